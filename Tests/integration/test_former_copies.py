"""What a move leaves in the group that the shard came from: kept for a time, deleted with proof."""

import json
import signal
import struct

import pytest
from conftest import _running, wait_for
from fake_cluster import crc32c
from test_split import RECORDS, SLOW, Traffic, shards, shown
from test_storage import fill

pytestmark = pytest.mark.fault


def do(cluster, *words):
    result = cluster.kvctl(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def move(cluster, shard):
    groups = {group["id"]: group for group in cluster.groups()}
    engine = groups.pop(shard["group"])["engine"]
    target = next(group["id"] for group in groups.values() if group["engine"] == engine)
    do(cluster, "move", shard["id"], "--to", target, "--wait")
    return cluster.json("ops", "list")["operations"][-1]["id"], target


def wait_until_gone(cluster, operation):
    wait_for(lambda: shown(cluster, operation).get("formerCopy") is None, 60,
             f"the end of the copy that operation {operation} left")
    why = do(cluster, "why", "op", operation)
    assert "is deleted: 3 replicas of group" in why, why


def test_the_copy_is_kept_for_its_time_over_a_change_of_controller(fresh_cluster):
    cluster = fresh_cluster
    with Traffic(cluster, records=2_000) as traffic:
        [shard] = shards(cluster)
        operation, target = move(cluster, shard)
        left = shown(cluster, operation)["formerCopy"]
        assert left["group"] == shard["group"] and left["note"] == ""
        assert f"group {shard['group']} keeps its copy for 1m" in shown(cluster, operation)["outcome"]
        assert f"source   group {shard['group']} keeps its copy for" in do(
            cluster, "ops", "show", operation)
        # Nobody has to wait for it: the shard is cut meanwhile, by the next controller.
        cluster.kill("controller-1")
        cluster.start("controller-1")
        cluster.wait_until_healthy()
        assert shown(cluster, operation)["formerCopy"]["until"] == left["until"]
        do(cluster, "split", "table", "--at", "k012", "--to", "none", "--wait")
        assert shown(cluster, operation)["formerCopy"]["note"] == ""
        do(cluster, "config", "set", "release.after", "0s")
        wait_until_gone(cluster, operation)
        traffic.go_on()
    traffic.check()
    traffic.assert_no_errors()
    assert {one["group"] for one in shards(cluster)} == {target}


def test_the_way_back_needs_no_waiting(fresh_cluster):
    cluster = fresh_cluster
    do(cluster, "config", "set", "release.after", "1h")
    with Traffic(cluster, records=2_000) as traffic:
        [shard] = shards(cluster)
        operation, target = move(cluster, shard)
        do(cluster, "ops", "reverse", operation, "--wait")
        wait_until_gone(cluster, operation)
        assert shards(cluster)[0]["group"] == shard["group"]
        last = cluster.json("ops", "list")["operations"][-1]
        assert last["formerCopy"]["group"] == target
        traffic.go_on()
    traffic.check()
    traffic.assert_no_errors()


#: Before a client's key in the tree: store and table; before its value: sequencer and flags.
KEY_PREFIX, VALUE_PREFIX = 8, 17


def corrupt(cluster, node, key, value):
    """Changes a byte of a record in a node's B+ tree, while the node does not run, in such a way that only
    the comparison of replicas can tell: the checksum behind it is right."""
    changed = 0
    for file in cluster.directory.glob(f"{node}/data*/btree/data.mdb"):
        content = bytearray(file.read_bytes())
        at = content.find(value)
        while at >= 0:
            content[at + len(value) // 2] ^= 0x20
            begin, end = at - VALUE_PREFIX - len(key) - KEY_PREFIX, at + len(value)
            content[end:end + 4] = struct.pack("<I", crc32c(bytes(content[begin:end])))
            changed += 1
            at = content.find(value, at + 1)
        file.write_bytes(content)
    assert changed, f"{value} is not in the tree of {node}"


def followers(cluster, group):
    group = next(one for one in cluster.groups() if one["id"] == group)
    return [one["node"] for one in group["replicas"] if one["node"] != group["leader"]]


def finding(cluster, code):
    return next((one for one in cluster.json("doctor")["findings"] if one["code"] == code), None)


#: A value that lies in a page of the tree as it is.
MARKED = b"a value that is found again in the file " * 4


@pytest.fixture
def tree_cluster(tmp_path):
    """A table in B+ trees that are written out often, with a marked record before all others."""
    environment = SLOW | {"KVNODE_LOG_CHECKPOINT": "256KiB"}
    for cluster in _running(tmp_path / "cluster", environment=environment):
        client = cluster.redis()
        client.execute_command("KV.CREATE", "table", "ENGINE", "BTREE")
        client.hset("table", "a000000", MARKED)
        fill(client, "table", RECORDS, prefix="b")
        yield cluster


def begin_move(cluster):
    """Starts to move the table's shard; the operation's number, and the group it goes to."""
    [shard] = shards(cluster)
    source = cluster.group_of("table")
    target = next(group["id"] for group in cluster.groups()
                  if group["id"] != source["id"] and group["engine"] == source["engine"])
    result = cluster.kvctl("move", shard["id"], "--to", target, "--no-wait", "-o", "json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["id"], target


def damage_a_follower(cluster, group):
    """Changes the marked record on one replica of the group; the name of its node."""
    node = followers(cluster, group)[0]
    cluster.kill(node, signal_number=signal.SIGTERM)
    corrupt(cluster, node, b"a000000", MARKED)
    cluster.start(node)
    cluster.wait_until_equal()
    return node


def test_a_replica_that_differs_stops_a_move(tree_cluster):
    cluster = tree_cluster
    operation, target = begin_move(cluster)
    # More than what a checkpoint of the log leaves to be applied again.
    wait_for(lambda: (shown(cluster, operation).get("recordsDone") or 0) > 4_000, 60,
             "the first records")
    do(cluster, "ops", "pause", operation)
    node = damage_a_follower(cluster, target)
    do(cluster, "ops", "resume", operation)
    stopped = wait_for(lambda: (one := shown(cluster, operation))["paused"] and one, 90,
                       "the end of the comparison")
    assert stopped["step"] == "verifying" and "formerCopy" not in stopped, stopped
    assert f"on {node}: {RECORDS + 1} records, digest" in stopped["outcome"], stopped
    found = finding(cluster, "RK042")
    assert found["severity"] == "critical" and stopped["outcome"] in found["text"], found
    assert f"kvctl ops cancel {operation}" in found["advice"]
    # As the runbook says.
    do(cluster, "replace", "--group", target, "--replica", node, "--wait")
    do(cluster, "ops", "resume", operation, "--wait")
    assert shown(cluster, operation)["step"] == "done"
    assert finding(cluster, "RK042") is None
    assert cluster.redis().hget("table", "a000000") == MARKED


def test_a_replica_that_differs_keeps_the_former_copy(tree_cluster):
    cluster = tree_cluster
    [shard] = shards(cluster)
    operation, target = begin_move(cluster)
    do(cluster, "ops", "watch", operation)
    node = damage_a_follower(cluster, target)
    assert finding(cluster, "RK044") is None
    do(cluster, "config", "set", "release.after", "0s")
    found = wait_for(lambda: finding(cluster, "RK044"), 60, "the finding")
    assert found["severity"] == "critical" and f"on {node}: {RECORDS + 1} records" in found["text"]
    left = shown(cluster, operation)["formerCopy"]
    assert left["group"] == shard["group"] and node in left["note"], left
    assert "keeps its former copy of shard" in do(cluster, "why", "op", operation)
    assert cluster.redis().hget("table", "a000000") == MARKED


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
@pytest.mark.parametrize("how", ["new", "restarted"])
def test_a_replica_that_applies_two_stays_at_once_has_all_records(fresh_cluster, how, engine):
    """The records of the first stay, its end, and the copy that comes back are all in the log that a
    replica reads in one go: the copy's records are the same as those that went."""
    cluster = fresh_cluster
    do(cluster, "config", "set", "release.after", "0s")
    do(cluster, "table", "create", "table", "--engine", engine.lower())
    records = fill(cluster.redis(), "table", 200)
    [shard] = shards(cluster)
    operation, target = move(cluster, shard)
    wait_until_gone(cluster, operation)
    [moved] = shards(cluster)
    assert moved["group"] == target
    operation, _ = move(cluster, moved)
    wait_until_gone(cluster, operation)
    group = cluster.group_of("table")
    assert group["id"] == shard["group"]
    heir = next(replica["node"] for replica in group["replicas"]
                if replica["node"] != group["leader"])
    if how == "new":
        do(cluster, "replace", "--group", group["id"], "--replica", heir, "--with", "node-4",
           "--wait")
        heir = "node-4"
    else:
        cluster.kill(heir)
        cluster.start(heir)
        cluster.wait_until_equal()
    do(cluster, "transfer", group["id"], heir, "--wait")
    assert cluster.group_of("table")["leader"] == heir
    assert cluster.redis().hgetall("table") == records
