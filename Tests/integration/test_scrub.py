"""Data at rest: what rots where nobody reads is found, named, and made anew from the peers."""

import signal
from pathlib import Path

import pytest

from conftest import Cluster, is_alive, wait_for
from test_disk_faults import flip_byte
from test_metrics import page, value
from test_storage import fill, follower_of

pytestmark = pytest.mark.fault


@pytest.fixture
def repaired_cluster(tmp_path):
    """A cluster with a spare, whose nodes make their engines durable often."""
    cluster = Cluster(tmp_path / "cluster", "--nodes", "4", "--spares", "1",
                      environment={"KVNODE_LOG_CHECKPOINT": "256KiB"})
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down("--wipe", "--yes")


def failures(daemon, source):
    return value(daemon, "kvnode_checksum_failures_total", source=source)


def filled(cluster, count=20000, engine="LSM"):
    """A table with records that every replica has; the records and one of its followers."""
    client = cluster.redis(timeout=30)
    client.execute_command("KV.CREATE", "t", "ENGINE", engine)
    records = fill(client, "t", count)
    cluster.wait_until_equal()
    return records, follower_of(cluster, "t")


def is_at_rest(daemon):
    return (value(daemon, "kvnode_compactions_running") == 0
            and value(daemon, "kvnode_compaction_pending_bytes") == 0)


def check_repaired(cluster, victim, records):
    """The replicas of the damaged disk are elsewhere, and every record is there."""
    def replaced():
        group = cluster.group_of("t")
        names = [replica["node"] for replica in group["replicas"]]
        return (len(names) == 3 and victim not in names
                and all(replica["state"] == "active" for replica in group["replicas"]))
    wait_for(replaced, 90, f"a group without {victim}")
    cluster.wait_until_equal(60)
    assert cluster.redis(timeout=60).hgetall("t") == records


def test_rot_in_a_table_file_is_found_and_repaired(repaired_cluster):
    cluster = repaired_cluster
    records, victim = filled(cluster)
    daemon = cluster.daemons[victim]
    lsm = Path(daemon["data"][0], "lsm")

    def tables():
        found = [path for path in lsm.glob("*.sst") if path.stat().st_size > 50_000]
        return found if is_at_rest(daemon) else []
    table = max(wait_for(tables, what="table files at rest"), key=lambda path: path.stat().st_size)
    before = cluster.kvctl("node", "scrub", victim)
    assert before.returncode == 0, before.stdout + before.stderr
    assert failures(daemon, "engine") == 0

    flip_byte(table, table.stat().st_size // 2)
    result = cluster.kvctl("node", "scrub", victim)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "damaged" in result.stdout and str(table) in result.stdout
    [disk] = cluster.json("node", "scrub", victim, "--status")["disks"]
    assert disk["state"] == "damaged" and str(table) in disk["finding"]
    assert failures(daemon, "engine") == 1 and failures(daemon, "log") == 0
    assert "scrub found damage" in (cluster.directory / "logs" / f"{victim}.log").read_text()
    assert "RK021" in {finding["code"] for finding in cluster.json("doctor")["findings"]}
    check_repaired(cluster, victim, records)


def test_rot_in_the_tree_is_found_and_repaired(repaired_cluster):
    cluster = repaired_cluster
    records, victim = filled(cluster, engine="BTREE")
    daemon = cluster.daemons[victim]
    tree = Path(daemon["data"][0], "btree", "data.mdb")
    # In a record: what no tree holds any more, or not yet, means nothing.
    before = records[b"k000100"]

    def place():
        return tree.read_bytes().find(before)
    wait_for(lambda: place() >= 0, what="records in the tree")
    passed = cluster.kvctl("node", "scrub", victim)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    flip_byte(tree, place())
    result = cluster.kvctl("node", "scrub", victim)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "damaged" in result.stdout and str(tree) in result.stdout
    assert failures(daemon, "engine") == 1 and failures(daemon, "log") == 0
    check_repaired(cluster, victim, records)


def test_a_read_of_rot_in_the_tree_is_not_answered(repaired_cluster):
    cluster = repaired_cluster
    records, _ = filled(cluster, engine="BTREE")
    leader = cluster.group_of("t")["leader"]
    daemon = cluster.daemons[leader]
    tree = Path(daemon["data"][0], "btree", "data.mdb")
    key = b"k000100"
    wait_for(lambda: tree.read_bytes().find(records[key]) >= 0, what="records in the tree")
    flip_byte(tree, tree.read_bytes().find(records[key]))
    # By the next leader, once this one has given its disk up.
    assert wait_for(lambda: cluster.redis().hget("t", key), what="an answer") == records[key]
    assert failures(daemon, "engine") == 1
    check_repaired(cluster, leader, records)


def test_rot_in_the_log_is_found_and_repaired(repaired_cluster):
    cluster = repaired_cluster
    records, victim = filled(cluster, 2000)
    daemon = cluster.daemons[victim]
    segment = max(Path(daemon["data"][0], "log").glob("*.log"))
    # In a record: the space between two batches means nothing.
    flip_byte(segment, segment.read_bytes().index(records[b"k001500"]))
    result = cluster.kvctl("node", "scrub", victim)
    assert result.returncode == 1, result.stdout + result.stderr
    assert str(segment) in result.stdout and "offset" in result.stdout
    assert failures(daemon, "log") == 1 and failures(daemon, "engine") == 0
    check_repaired(cluster, victim, records)


def test_scrubs_come_by_themselves_and_are_remembered(tmp_path):
    cluster = Cluster(tmp_path / "cluster", environment={"KVNODE_SCRUB_PERIOD": "2s"})
    last = "kvnode_scrub_last_success_timestamp_seconds"
    try:
        cluster.up()
        filled(cluster, 1000)
        node = cluster.info["nodes"][0]
        passed = wait_for(lambda: page_of_scrub(cluster, node)["lastSuccess"], what="a scrub")
        wait_for(lambda: page_of_scrub(cluster, node)["lastSuccess"] > passed, what="another one")
        assert value(node, "kvnode_scrub_period_seconds") == 2
        assert value(node, "kvnode_scrub_bytes_total") > 200_000
        # From now on only when asked to.
        cluster.environment["KVNODE_SCRUB_PERIOD"] = "0"
        known = page_of_scrub(cluster, node)["lastSuccess"]
        cluster.kill(node["name"])
        cluster.start(node["name"])
        node = cluster.info["nodes"][0]
        wait_for(lambda: (value(node, last) or 0) * 1000 >= known, what="the time of the last scrub")
        assert value(node, "kvnode_scrub_bytes_total") == 0
        assert page_of_scrub(cluster, node)["state"] == "idle"
    finally:
        cluster.down("--wipe", "--yes")


def page_of_scrub(cluster, node):
    [disk] = cluster.json("node", "scrub", node["name"], "--status")["disks"]
    return disk


def test_a_slow_scrub_disturbs_nobody_and_ends_with_the_node(tmp_path):
    # At this pace it takes minutes.
    cluster = Cluster(tmp_path / "cluster", environment={"KVNODE_SCRUB_RATE": "64KiB"})
    try:
        cluster.up()
        filled(cluster, 10000)
        leader = cluster.group_of("t")["leader"]
        node = cluster.daemons[leader]
        assert cluster.kvctl("node", "scrub", leader, "--no-wait").returncode == 0
        wait_for(lambda: page_of_scrub(cluster, node)["bytesDone"] > 300_000, what="progress")
        state = page_of_scrub(cluster, node)
        assert state["state"] == "running" and state["bytesDone"] < state["bytesTotal"]
        assert value(node, "kvnode_scrub_running") == 1
        assert page(node, "/livez") == {"live": True, "reasons": []}
        assert cluster.redis().hset("t", "during", "scrub") == 1
        # One that is under way is not begun again.
        again = cluster.kvctl("node", "scrub", leader, "--no-wait")
        assert again.returncode == 0 and "running" in again.stdout
        assert page_of_scrub(cluster, node)["bytesDone"] >= state["bytesDone"]
        pid = cluster.pid(leader)
        cluster.kill(leader, signal_number=signal.SIGTERM)
        assert not is_alive(pid)
    finally:
        cluster.down("--wipe", "--yes")
