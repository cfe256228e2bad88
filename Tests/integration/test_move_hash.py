"""Splitting and moving the shards of a HASH table under load: cut between virtual ranges, and lists
sorted over all of them while a part is being copied."""

import struct

import pytest
from conftest import wait_for
from test_move import SHARD, VALUE_BYTES, Load, ScriptedCluster, check_all, more, router  # noqa: F401

REFUSED = 14
HALF = struct.pack(">H", 8)
#: Records that the load leaves alone: they are in every list.
STILL = {b"s%04d" % number: b"still %d" % number for number in range(400)}


class HashCluster(ScriptedCluster):
    virtual_ranges = 16


@pytest.fixture(params=[(1, "96KiB"), (2, "96KiB"), (1, "64MiB")],
                ids=["lsm-slow", "btree-slow", "lsm"])
def cluster(request, tmp_path):
    running = HashCluster(tmp_path, *request.param)
    yield running
    running.stop()


@pytest.fixture
def load(router):  # noqa: F811
    client = router.redis()
    records = STILL | {
        b"k%05d" % number: b"first" + b"." * VALUE_BYTES for number in range(0, 3_000, 2)}
    pipeline = client.pipeline(transaction=False)
    for key, value in records.items():
        pipeline.hset("t", key, value)
    pipeline.execute()
    running = Load(client, {key.decode(): {value} for key, value in records.items()}, seed=7)
    yield running
    running.stop()


def listed(client, *arguments):
    """All records of the table in pages: keys and values, in the order of the pages."""
    records, cursor = [], None
    while True:
        cursor, page = client.execute_command(
            "KV.LIST", "t", *arguments, "LIMIT", 70, *(["CURSOR", cursor] if cursor else []))
        records += zip(page[0::3], page[1::3])
        if cursor is None:
            return records


def check_list(client):
    """One list under way of the load: sorted, no key twice, and nothing lost that stays."""
    records = listed(client)
    keys = [key for key, _ in records]
    assert all(left < right for left, right in zip(keys, keys[1:])), "not sorted"
    assert {key: value for key, value in records if key in STILL} == STILL
    some = listed(client, "FROM", b"s0100", "TO", b"s0200")
    assert some == sorted((key, value) for key, value in STILL.items()
                          if b"s0100" <= key < b"s0200")


def split(cluster):
    cluster.split(1, HALF, SHARD + 1)
    cluster.show((SHARD, b"", HALF, 1, 2), (SHARD + 1, HALF, None, 1, 2))


def test_a_hash_table_is_cut_between_virtual_ranges_only(cluster, load):
    body = struct.pack("<II", SHARD, 1)
    for key in (b"\x00\x08k", b"\x08", b""):
        at = struct.pack("<I", len(key)) + key + struct.pack("<I", SHARD + 1)
        error, message, _ = cluster.shard_command(1, 1, body + at, until=lambda error: error != 0)
        assert error == REFUSED, message
    split(cluster)
    more(load)
    check_all(load)


def test_half_of_a_hash_table_moves_under_load(cluster, load, router):  # noqa: F811
    client = router.redis()
    split(cluster)
    more(load, 50)
    check_list(client)
    floor = cluster.fence(1, 2, to=2)
    cluster.activate(2, 3, 1, floor, end=HALF)
    cluster.show((SHARD, b"", HALF, 2, 3), (SHARD + 1, HALF, None, 1, 2))
    lists = 0
    while True:
        check_list(client)
        lists += 1
        assert load.failures == []
        if (cluster.copy(3) or [False])[0]:
            break
    if cluster.copy_rate == "96KiB":
        assert lists > 2, "the copy was over before it was looked at"
    cluster.verify(2, 3)
    cluster.finish(2, 3)
    cluster.show((SHARD, b"", HALF, 2, 4), (SHARD + 1, HALF, None, 1, 2))
    cluster.release(1, 4)
    more(load)
    check_list(client)
    check_all(load)


def test_a_move_of_a_hash_shard_is_turned_round(cluster, load, router):  # noqa: F811
    client = router.redis()
    floor = cluster.fence(1, 1, to=2)
    cluster.activate(2, 2, 1, floor)
    cluster.show((SHARD, b"", None, 2, 2))
    more(load, 30)
    check_list(client)
    floor = cluster.fence(2, 2, to=1)
    cluster.activate(1, 3, 2, floor)
    cluster.show((SHARD, b"", None, 1, 3))
    check_list(client)
    cluster.wait_for_copy(3)
    cluster.finish(1, 3)
    cluster.show((SHARD, b"", None, 1, 4))
    cluster.release(2, 4)
    more(load)
    check_list(client)
    check_all(load)


def test_load_and_middle_of_a_hash_table_lie_between_virtual_ranges(cluster, load):
    """The leader reports both with its heartbeats, fit to split at."""
    def reported():
        reads, writes, median, _, _ = cluster.shard_loads.get((SHARD, 1), (0, 0, None, None, 0))
        busy = reads > 0 and writes > 0 and all(cluster.group_loads[1])
        return (median, cluster.middles.get(SHARD)) if median and busy else None
    median, middle = wait_for(reported, seconds=60, what="a median")
    assert cluster.group_loads.get(2, (0, 0)) == (0, 0)
    for cut in (median, middle):
        assert len(cut) == 2 and 4 <= struct.unpack(">H", cut)[0] <= 12
    cluster.split(1, median, SHARD + 1)
    cluster.show((SHARD, b"", median, 1, 2), (SHARD + 1, median, None, 1, 2))
    halves = wait_for(
        lambda: [cluster.shard_loads[key] for key in ((SHARD, 2), (SHARD + 1, 2))
                 if key in cluster.shard_loads] if len(cluster.shard_loads) >= 3 else None,
        what="loads of both halves")
    assert all(half[0] > 0 for half in halves)
    check_all(load)
