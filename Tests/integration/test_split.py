"""Tables under load are split and moved, by an operator and by the controller alone, while processes
are killed and operations are cancelled on the way."""

import json
import time

import pytest

from conftest import _running, wait_for
from test_operations import create, operations, wait_for_progress
from test_storage import fill
from workload import Inserts, Workload

pytestmark = pytest.mark.fault

#: Records that lie in the table before it is split, so that the copy takes a while.
RECORDS = 12_000
#: At this rate the copy of half of them takes about two seconds.
SLOW = {"KVNODE_COPY_RATE": "512KiB"}


@pytest.fixture
def slow_cluster(tmp_path):
    yield from _running(tmp_path / "cluster", environment=SLOW)


class Traffic:
    """A table with records that nobody touches, registers that many write, and inserts."""

    def __init__(self, cluster, records=RECORDS, **options):
        self.cluster = cluster
        create(cluster, "table", *options.get("table", ()))
        self.kept = fill(cluster.redis(), "table", records, prefix="a")
        self.workload = Workload(cluster, "table", keys=24)
        self.inserts = Inserts(cluster, "table", threads=2)

    def __enter__(self):
        self.workload.__enter__()
        self.inserts.__enter__()
        wait_for_progress(self.workload, self.inserts)
        return self

    def __exit__(self, *details):
        try:
            self.inserts.__exit__(*details)
        finally:
            self.workload.__exit__(*details)

    def go_on(self):
        wait_for_progress(self.workload, self.inserts)

    def check(self):
        """Nothing acknowledged is lost, nothing that was never written is there."""
        self.workload.check()
        client, cursor, stored = self.cluster.redis(timeout=30), b"", {}
        while cursor is not None:
            cursor, fields = client.execute_command(
                "KV.LIST", "table", "LIMIT", 5000, "CURSOR", cursor)
            stored |= dict(zip(fields[0::3], fields[1::3]))
        for key, value in self.kept.items():
            assert stored.pop(key, None) == value, key
        for key in self.inserts.acknowledged:
            assert stored.pop(key, None) == b"value of " + key, key
        extra = stored.keys() - self.inserts.unknown - set(self.workload.keys)
        assert not extra, f"records of refused writes: {sorted(extra)[:5]}"

    def assert_no_errors(self):
        assert not self.workload.errors, self.workload.errors
        assert not self.inserts.unknown


def shards(cluster, table="table"):
    return cluster.json("shards", table)["shards"]


def start_split(cluster, *flags):
    result = cluster.kvctl("split", "table", "--at", f"a{RECORDS // 2:06d}", "--no-wait",
                           "-o", "json", *flags)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)["id"]


def shown(cluster, operation):
    return cluster.json("ops", "show", operation)


def wait_for_end(cluster, operation, seconds=60):
    return wait_for(lambda: (one := shown(cluster, operation))["finished"] and one, seconds,
                    f"the end of operation {operation}")


#: In the order in which an operation goes through them.
STEPS = ("forming", "splitting", "switching", "copying", "verifying", "finishing",
         "merging", "done")


def wait_for_step(cluster, operation, step):
    """Waits until the operation is in this step, or just beyond it when it is a short one."""
    def check():
        reached = shown(cluster, operation)["step"]
        return reached in STEPS and STEPS.index(reached) >= STEPS.index(step)
    wait_for(check, what=f"step {step}")


def assert_tiled(cluster):
    """The shards of the table leave no gap, and each is in one group."""
    bounds = sorted((one["start"], one["end"]) for one in shards(cluster))
    assert bounds[0][0] == "" and bounds[-1][1] is None, bounds
    for left, right in zip(bounds, bounds[1:]):
        assert left[1] == right[0], bounds


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_split_and_move_under_load_costs_clients_nothing(fresh_cluster, engine):
    cluster = fresh_cluster
    with Traffic(cluster, table=("ENGINE", engine)) as traffic:
        result = cluster.kvctl("split", "table", "--at", "k012", "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
        traffic.go_on()
    traffic.check()
    traffic.assert_no_errors()
    left, right = sorted(shards(cluster), key=lambda one: one["start"])
    assert (left["end"], right["start"]) == ("k012", "k012")
    assert left["group"] != right["group"]
    cluster.wait_until_equal()
    cluster.wait_until_healthy()
    # And back, and together again.
    moved = max((left, right), key=lambda one: one["epoch"])
    other = min((left, right), key=lambda one: one["epoch"])
    back = cluster.kvctl("move", moved["id"], "--to", other["group"], "--wait")
    assert back.returncode == 0, back.stdout + back.stderr
    merged = cluster.kvctl("merge", left["id"], "--wait")
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert len(shards(cluster)) == 1
    traffic.check()


@pytest.mark.parametrize("step", ["switching", "copying", "finishing"])
@pytest.mark.parametrize("victim", ["source", "target", "router", "controller"])
def test_killed_during_a_split(slow_cluster, step, victim):
    cluster = slow_cluster
    with Traffic(cluster) as traffic:
        groups = {group["id"]: group for group in cluster.groups()}
        source = cluster.group_of("table")
        target = next(group for group in groups.values()
                      if group["id"] != source["id"] and group["engine"] == source["engine"])
        name = {"source": source["leader"], "target": target["leader"],
                "router": "router-1", "controller": "controller-1"}[victim]
        operation = start_split(cluster, "--to", target["id"])
        wait_for_step(cluster, operation, step)
        cluster.kill(name)
        if victim in ("source", "target"):
            traffic.go_on()
        cluster.start(name)
        end = wait_for_end(cluster, operation)
        assert end["step"] == "done", end
        traffic.go_on()
    traffic.check()
    assert_tiled(cluster)
    assert len({one["group"] for one in shards(cluster)}) == 2
    cluster.wait_until_equal()


@pytest.mark.parametrize("step", ["splitting", "switching", "copying"])
def test_cancelled_during_a_split(slow_cluster, step):
    cluster = slow_cluster
    with Traffic(cluster) as traffic:
        before = cluster.group_of("table")["id"]
        operation = start_split(cluster)
        wait_for_step(cluster, operation, step)
        cluster.kvctl("ops", "cancel", operation)
        end = wait_for_end(cluster, operation)
        assert end["step"] in ("cancelled", "done"), end
        traffic.go_on()
    traffic.check()
    traffic.assert_no_errors()
    assert_tiled(cluster)
    if end["step"] == "cancelled":
        assert {one["group"] for one in shards(cluster)} == {before}


def test_paused_and_resumed_and_reversed(slow_cluster):
    cluster = slow_cluster
    with Traffic(cluster) as traffic:
        operation = start_split(cluster)
        wait_for_step(cluster, operation, "copying")
        assert cluster.kvctl("ops", "pause", operation).returncode == 0
        done = shown(cluster, operation)["bytesDone"]
        time.sleep(1)
        paused = shown(cluster, operation)
        # One chunk may have been on its way.
        assert not paused["finished"] and paused["bytesDone"] <= done + (1 << 20), paused
        traffic.go_on()
        assert cluster.kvctl("ops", "resume", operation).returncode == 0
        assert wait_for_end(cluster, operation)["step"] == "done"
        apart = {one["group"] for one in shards(cluster)}
        assert len(apart) == 2
        result = cluster.kvctl("ops", "reverse", operation, "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
        assert len({one["group"] for one in shards(cluster)}) == 1
        traffic.go_on()
    traffic.check()
    traffic.assert_no_errors()


def test_leader_is_replaced_during_the_copy(slow_cluster):
    """Members change and a shard moves in the same group at the same time."""
    cluster = slow_cluster
    with Traffic(cluster) as traffic:
        operation = start_split(cluster)
        wait_for_step(cluster, operation, "copying")
        leader = cluster.group_of("table")["leader"] if len(shards(cluster)) == 1 else \
            next(group for group in cluster.groups()
                 if group["id"] == shards(cluster)[0]["group"])["leader"]
        result = cluster.kvctl("replace", leader, "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
        assert wait_for_end(cluster, operation)["step"] == "done"
        traffic.go_on()
    traffic.check()
    cluster.wait_until_equal()


def test_hot_table_is_split_by_the_controller_alone(fresh_cluster):
    cluster = fresh_cluster
    for name, value in (("split.rate", 300), ("split.sustain", "2s"), ("split.hot", "auto")):
        result = cluster.kvctl("config", "set", name, value)
        assert result.returncode == 0, result.stderr
    with Traffic(cluster, records=1_000) as traffic:
        wait_for(lambda: len({one["group"] for one in shards(cluster)}) == 2, 60,
                 "a table on both groups")
        traffic.go_on()
        automatic = [one for one in operations(cluster) if one["kind"] in ("split", "move")]
        assert automatic and automatic[0]["origin"] == "split.hot", automatic
        wait_for(lambda: all(one["finished"] for one in operations(cluster)), 60, "quiet")
    traffic.check()
    traffic.assert_no_errors()
    why = cluster.kvctl("why").stdout
    assert "requests/s" in why, why
