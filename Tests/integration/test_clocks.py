"""Wall clocks that differ: every daemon knows its offset, and the doctor names who is wrong."""

import pytest

from conftest import Cluster, preloadable, wait_for
from test_etcd import ETCD
from test_metrics import scrape, value

OFFSET = "kv_clock_offset_seconds"


@pytest.fixture(scope="module")
def shifting_library(tmp_path_factory):
    return preloadable("shifted_clock", tmp_path_factory.mktemp("library"))


def restart(cluster, name, **environment):
    cluster.kill(name)
    before = cluster.environment
    cluster.environment = before | environment
    try:
        cluster.start(name)
    finally:
        cluster.environment = before


def findings(cluster):
    return [finding for finding in cluster.json("doctor")["findings"]
            if finding["code"] == "RK023"]


@pytest.mark.parametrize("metadata", ["embedded", "etcd"])
def test_offsets_are_measured_and_named(tmp_path, shifting_library, metadata):
    flags = [] if metadata == "embedded" else ["--metadata", "etcd"]
    if flags and ETCD is None:
        pytest.skip("etcd is not installed (see: make deps)")
    cluster = Cluster(tmp_path / "cluster", "--controllers", "3", *flags)
    try:
        cluster.up()
        acting = next(one["name"] for one in cluster.json("status")["controllers"]
                      if one["acting"])
        for name, daemon in cluster.daemons.items():
            offset = wait_for(lambda: scrape(daemon)[OFFSET][1], what=f"an offset of {name}")[0][2]
            # One machine, one clock: only what the round trip leaves open.
            assert abs(offset) < 0.2, name
            assert name != acting or offset == 0
        assert not findings(cluster)

        standby = next(name for name in cluster.daemons
                       if name.startswith("controller") and name != acting)
        wrong = {"node-2": 2.0, "router-1": -5.0, standby: 60.0}
        for name, shift in wrong.items():
            restart(cluster, name, LD_PRELOAD=str(shifting_library),
                    CLOCK_SHIFT=str(int(shift * 1e9)))
        for name, shift in wrong.items():
            daemon = cluster.daemons[name]
            wait_for(lambda: abs((value(daemon, OFFSET) or 0) - shift) < 0.2,
                     what=f"an offset of {shift} s of {name}")
        found = wait_for(lambda: len(findings(cluster)) == 3 and findings(cluster),
                         what="three findings")
        texts = sorted(finding["text"] for finding in found)
        for text, (name, word) in zip(texts, sorted(
                [("node-2", "ahead of"), ("router-1", "behind"), (standby, "ahead of")],
                key=lambda pair: f"the clock of {pair[0]}")):
            assert text.startswith(f"the clock of {name} is ") and word in text, texts
            assert acting in text
        # Nothing depends on it but times that people read: the cluster serves.
        assert cluster.redis().hset("clocks", "a", "b") == 1

        for name in wrong:
            restart(cluster, name)
        wait_for(lambda: not findings(cluster), what="no finding")
    finally:
        cluster.down("--wipe", "--yes")


def test_nodes_measure_round_trips(cluster):
    for node in cluster.info["nodes"]:
        count = wait_for(
            lambda: sum(number for sample, _, number in scrape(node)["kvnode_peer_rtt_seconds"][1]
                        if sample.endswith("_count")), what="answers to pings")
        total = sum(number for sample, _, number in scrape(node)["kvnode_peer_rtt_seconds"][1]
                    if sample.endswith("_sum"))
        assert 0 < total / count < 10
