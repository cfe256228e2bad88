"""What nodes do with their disks: snapshots for those that lag, freed space, several directories."""

import signal
from pathlib import Path

import pytest

from conftest import wait_for


def fill(client, table, count, size=200, prefix="k"):
    """Writes `count` records; returns them."""
    records = {f"{prefix}{number:06d}".encode(): b"%06d" % number * (size // 6)
               for number in range(count)}
    keys = list(records)
    for start in range(0, count, 500):
        pipeline = client.pipeline(transaction=False)
        for key in keys[start:start + 500]:
            pipeline.hset(table, key, records[key])
        pipeline.execute()
    return records


def follower_of(cluster, table):
    group = cluster.group_of(table)
    return next(replica["node"] for replica in group["replicas"]
                if replica["node"] != group["leader"])


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_follower_that_lags_far_gets_a_snapshot(small_log_cluster, engine):
    cluster = small_log_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "t", "ENGINE", engine)
    records = fill(client, "t", 1000)
    lagging = follower_of(cluster, "t")
    cluster.kill(lagging)
    records |= fill(client, "t", 8000, prefix="later")
    client.hdel("t", "k000007")
    del records[b"k000007"]
    cluster.start(lagging)
    log = cluster.directory / "logs" / f"{lagging}.log"
    wait_for(lambda: "snapshot installed" in log.read_text(), what="an installed snapshot")
    cluster.wait_until_equal()

    # Without the leader, the one that got the snapshot is needed for every majority.
    group = cluster.group_of("t")
    assert group["leader"] != lagging
    client.hset("t", "after", "snapshot")
    records[b"after"] = b"snapshot"
    leader = group["leader"]
    cluster.wait_until_equal()
    cluster.kill(leader)
    wait_for(lambda: cluster.redis().hgetall("t") == records, what="all records at the new leader")
    cluster.start(leader)
    cluster.wait_until_equal()


def test_snapshot_is_repeated_when_the_receiver_dies(small_log_cluster):
    cluster = small_log_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "t")
    records = fill(client, "t", 12000, size=600)
    lagging = follower_of(cluster, "t")
    cluster.kill(lagging)
    records |= fill(client, "t", 4000, prefix="later")
    cluster.start(lagging)
    log = cluster.directory / "logs" / f"{lagging}.log"
    wait_for(lambda: "receiving a snapshot" in log.read_text(), what="the start of a snapshot")
    cluster.kill(lagging)
    cluster.start(lagging)
    cluster.wait_until_equal()
    assert log.read_text().count("receiving a snapshot") >= 2
    leader = cluster.group_of("t")["leader"]
    cluster.kill(leader)
    wait_for(lambda: cluster.redis().hgetall("t") == records, what="all records at the new leader")


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_nothing_of_an_interrupted_snapshot_stays(small_log_cluster, engine):
    """A record that came with a snapshot which was interrupted, and that was deleted before the next
    one, must not come back."""
    cluster = small_log_cluster
    client = cluster.redis(timeout=30)
    client.execute_command("KV.CREATE", "t", "ENGINE", engine)
    early = fill(client, "t", 40000, size=1200, prefix="a")
    lagging = follower_of(cluster, "t")
    cluster.kill(lagging)
    fill(client, "t", 4000, prefix="b")
    log = cluster.directory / "logs" / f"{lagging}.log"
    cluster.start(lagging)
    wait_for(lambda: "receiving a snapshot" in log.read_text(), what="the start of a snapshot")
    # An orderly end makes durable what came so far.
    cluster.kill(lagging, signal_number=signal.SIGTERM)
    assert "snapshot installed" not in log.read_text(), "the snapshot was too quick"
    # Some records stay, so that the group's log moves on far enough for another snapshot.
    keys = list(early)
    for start in range(0, len(keys), 1000):
        client.hdel("t", *keys[start:start + 1000])
    kept = fill(client, "t", 4000, prefix="c")
    cluster.start(lagging)
    wait_for(lambda: "snapshot installed" in log.read_text(), what="an installed snapshot")
    cluster.wait_until_equal()
    # Only the replica that got the snapshot has the newest write: it must lead without the leader.
    group = cluster.group_of("t")
    other = next(replica["node"] for replica in group["replicas"]
                 if replica["node"] not in (lagging, group["leader"]))
    cluster.kill(other)
    client.hset("t", "last", "1")
    cluster.wait_until_caught_up_but(other)
    cluster.kill(group["leader"])
    cluster.start(other)
    wait_for(lambda: cluster.group_of("t")["leader"] == lagging, what="the receiver as leader")
    left = {key for key in cluster.redis(timeout=30).hkeys("t") if key.startswith(b"a")}
    assert not left, f"{len(left)} deleted records came back: {sorted(left)[:3]}"
    assert cluster.redis(timeout=30).hlen("t") == 4000 + len(kept) + 1


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_dropped_table_gives_its_space_back(fresh_cluster, engine):
    client = fresh_cluster.redis()
    client.execute_command("KV.CREATE", "kept", "ENGINE", engine)
    client.execute_command("KV.CREATE", "dropped", "ENGINE", engine)
    kept = fill(client, "kept", 500)
    fill(client, "dropped", 10000, size=1200)
    node = fresh_cluster.group_of("dropped")["leader"]
    directory = fresh_cluster.daemons[node]["data"][0]
    client.delete("dropped")

    def records():
        shards = fresh_cluster.json("shards")["shards"]
        return {shard["table"] for shard in shards}
    wait_for(lambda: records() == {"kept"}, what="the end of the dropped table's shards")
    if engine == "LSM":
    
        def table_files():
            return sum(path.stat().st_size for path in Path(directory, "lsm").glob("*.sst"))
        wait_for(lambda: table_files() < 2_000_000, what="the end of the dropped table's files")
    assert client.hgetall("kept") == kept
    # The name is free again, and nothing of the old table shows.
    client.hset("dropped", "new", "1")
    assert client.hgetall("dropped") == {b"new": b"1"}


def test_groups_use_every_data_directory(small_log_cluster):
    cluster = small_log_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "t", "PARTITION", "HASH", "VRANGES", 16)
    records = fill(client, "t", 2000)
    for node in cluster.json("nodes")["nodes"]:
        if node["state"] == "up":
            assert len(node["disks"]) == 2
            assert all(disk["dataBytes"] > 0 for disk in node["disks"]), node
    cluster.kill(*cluster.daemons)
    result = cluster.kvctl("playground", "up", "--detach")
    assert result.returncode == 0, result.stderr
    assert client.hgetall("t") == records


def test_data_directories_may_not_be_swapped_or_lost(small_log_cluster):
    cluster = small_log_cluster
    name = "node-1"
    first, second = cluster.daemons[name]["data"]
    cluster.kill(name)
    identity = Path(second, "identity")
    text = identity.read_text()
    identity.unlink()
    result = cluster.kvctl("playground", "start", name)
    assert result.returncode != 0
    assert "a lost data directory means a new node" in result.stderr + cluster.log_tails()
    identity.write_text(text)
    cluster.start(name)
    cluster.wait_until_caught_up()


@pytest.mark.parametrize("partition, overhead", [("RANGE", 25), ("HASH", 27)])
def test_record_overhead_is_within_thirty_bytes(cluster, partition, overhead):
    """Sequencer, flags and the table's prefix: what every record costs beside key and value."""
    client, table = cluster.redis(), f"overhead-{partition}"
    client.execute_command("KV.CREATE", table, "PARTITION", partition)
    records = fill(client, table, 3000)
    payload = sum(len(key) + len(value) for key, value in records.items())

    def counted():
        shards = cluster.json("shards", table)["shards"]
        return (sum(shard["records"] or 0 for shard in shards) == len(records)
                and sum(shard["bytes"] or 0 for shard in shards))
    total = wait_for(counted, what="the count of all records")
    assert (total - payload) / len(records) == overhead <= 30
