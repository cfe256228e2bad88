"""Splitting and moving shards: real nodes and a real router, told what to do by a scripted
controller, under load and with leaders killed on the way."""

import asyncio
import itertools
import random
import struct
import subprocess
import threading
import time

import pytest
import redis
from conftest import BINARIES, wait_for
from test_router import Router

import fake_cluster
from fake_cluster import CLUSTER, FakeCluster, Reader, blob, frame, sequence

REGISTER, REGISTERED, HEARTBEAT, COMMANDS, OUTCOMES = 7, 8, 9, 10, 11
NOT_LEADER, FENCED = 6, 13
SHARD_ACTION = 16
TABLE = 1
SHARD = 10_000
VALUE_BYTES = 500


def spread(reader):
    """Keys, and how much lies below each."""
    return [(reader.blob(), reader.take("H")) for _ in range(reader.take("I"))]


class ScriptedCluster(FakeCluster):
    """A controller of three kvnode processes with two groups on all of them, and their router.
    It follows the script of its test and decides nothing."""

    #: Of its table; 0 for RANGE.
    virtual_ranges = 0

    def __init__(self, directory, engine=1, copy_rate="64MiB"):
        self.directory = directory
        self.copy_rate = copy_rate
        self.engine = engine
        self.links = {}
        self.outcomes = {}
        self.copies = {}
        self.digests = {}
        self.records = {}
        #: Of the newest heartbeats: by group or shard (reads, writes), by shard the middle key.
        self.group_loads = {}
        self.shard_loads = {}
        self.middles = {}
        self.numbers = itertools.count(1)
        self.sources = {}
        self.ports = {n: fake_cluster.free_port() for n in (1, 2, 3)}
        self.processes = {}
        super().__init__(groups=2)
        self.leaders = {}
        for node in (1, 2, 3):
            self.start_node(node)
        wait_for(lambda: len(self.links) == 3, what="three registered nodes")
        self.publish()
        for group in (1, 2):
            for node in (1, 2, 3):
                self.tell(node, b"\x01" + self.group(group) + struct.pack("<I", 10 * group + node))
            self.tell(group, struct.pack("<BIIQ", 2, group, 10 * group + group, 1))
        self.command(
            1, b"\x04" + self.shard_bytes(1, 1) + struct.pack("<H", self.virtual_ranges))
        self.show((SHARD, b"", None, 1, 1))

    async def _start(self):
        self.nodes = []
        await super()._start()

    def start_node(self, node):
        log = (self.directory / f"node-{node}.log").open("a")
        self.processes[node] = subprocess.Popen(
            [BINARIES / "kvnode", f"--name=node-{node}", f"--data={self.directory}/node-{node}",
             f"--listen-rpc=127.0.0.1:{self.ports[node]}",
             f"--listen-admin=127.0.0.1:{fake_cluster.free_port()}",
             f"--controllers=127.0.0.1:{self.port}", f"--copy-rate={self.copy_rate}"],
            stderr=log, stdout=subprocess.DEVNULL)

    def kill_node(self, node):
        self.processes[node].kill()
        self.processes[node].wait()
        self.links.pop(node, None)

    def stop(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.close()

    # Encodings

    def group(self, group):
        places = [struct.pack("<IIB", 10 * group + n, n, 0) for n in (1, 2, 3)]
        return struct.pack("<IB", group, self.engine) + sequence(places) + b"\x02"

    def shard_bytes(self, group, epoch, shard=SHARD, start=b"", end=None):
        edge = b"\x00" if end is None else b"\x01" + blob(end)
        return (struct.pack("<II", shard, TABLE) + blob(start) + edge
                + struct.pack("<IIB", group, epoch, 2))

    def map_update(self):
        changes = []
        for node, port in self.ports.items():
            changes.append(
                struct.pack("<BI", 7, node) + blob(f"node-{node}") + blob(f"127.0.0.1:{port}")
                + blob("") + blob("") + struct.pack("<BB", 0, 1))
        for group in (1, 2):
            changes.append(b"\x05" + self.group(group))
        for name, (number, ranges, shards) in self.tables.items():
            changes.append(
                struct.pack("<BI", 1, number) + blob(name)
                + struct.pack("<HBBB", ranges, self.engine, 3, 2))
            for shard, start, end, group, epoch in shards:
                changes.append(b"\x03" + self.shard_bytes(group, epoch, shard, start, end))
        head = struct.pack("<BQQIB", 1, 0, self.revision, 0, 1)
        return frame(fake_cluster.MAP_UPDATE, head + sequence(changes))

    def show(self, *shards):
        """Publishes the shards of the table: (shard, start, end, group, epoch)."""
        self.tables["t"] = (TABLE, self.virtual_ranges, list(shards))
        self.publish()

    # Controller

    async def _serve(self, reader, writer):
        node = None
        try:
            await fake_cluster.read_frame(reader)
            writer.write(frame(fake_cluster.HELLO, fake_cluster.hello(3, 0, "controller-1")))
            while True:
                kind, body = await fake_cluster.read_frame(reader)
                if kind == REGISTER:
                    fields = Reader(body)
                    fields.raw(20)
                    node = int(fields.blob().decode().split("-")[1])
                    writer.write(frame(REGISTERED, struct.pack("<IQQ", node, CLUSTER, 1)))
                    self.links[node] = writer
                elif kind == fake_cluster.WATCH_MAP:
                    self.watchers.add(writer)
                    writer.write(self.map_update())
                elif kind == OUTCOMES:
                    self.learn(node, Reader(body))
                elif kind == HEARTBEAT:
                    self.observe(node, Reader(body))
                elif kind == fake_cluster.TABLE_REQUEST:
                    self._table(writer, Reader(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.watchers.discard(writer)
            if self.links.get(node) is writer:
                del self.links[node]
            writer.close()

    def learn(self, node, reader):
        for _ in range(reader.take("I")):
            number, _, error = reader.take("QQB")
            message = reader.blob().decode() if error else ""
            floor = reader.raw(16)
            self.outcomes[number] = (error, message, floor)

    def observe(self, node, reader):
        """Keeps a heartbeat's copies, digests, sizes and loads."""
        reader.take("IQQQQ")
        for _ in range(reader.take("I")):
            reader.blob()
            reader.take("BQQQQQQ")
        for _ in range(reader.take("I")):
            reader.take("IIBBQQQQQIB")
            for _ in range(reader.take("I")):
                if reader.take("IBQB")[3]:
                    reader.take("Q")
        for _ in range(reader.take("I")):
            shard, epoch, _, records = reader.take("IIQQ")
            self.records[shard, epoch] = records
            self.middles[shard] = reader.optional()
            spread(reader)
        if reader.take("B"):
            for _ in range(reader.take("I")):
                group, reads, writes = reader.take("III")
                self.group_loads[group] = (reads, writes)
            for _ in range(reader.take("I")):
                shard, epoch, reads, writes = reader.take("IIII")
                median, hottest = reader.optional(), reader.optional()
                self.shard_loads[shard, epoch] = (
                    reads, writes, median, hottest, reader.take("B"))
                spread(reader)
        copies = [reader.take("IIBQQB") for _ in range(reader.take("I"))]
        self.copies[node] = {
            (shard, epoch): (whole, copied, records)
            for shard, epoch, whole, copied, records, _ in copies}
        digests = [reader.take("IIIIQQQ") for _ in range(reader.take("I"))]
        self.digests[node] = {
            (group, shard, epoch): (index, digest, records)
            for group, _, shard, epoch, index, digest, records in digests}
        assert not reader.more

    def tell(self, node, action):
        """Sends one command to one node; its outcome, or None when it did not come."""
        number = next(self.numbers)
        link = self.links.get(node)
        if link is None:
            return None
        body = struct.pack("<QQ", 1, 0) + sequence([struct.pack("<Q", number) + action])
        self.loop.call_soon_threadsafe(link.write, frame(COMMANDS, body))
        end = time.monotonic() + 2
        while time.monotonic() < end:
            if number in self.outcomes:
                return self.outcomes[number]
            time.sleep(0.002)
        return None

    def command(self, group, action, until=lambda error: error == 0):
        """Gives a command to whoever leads the group until it answers as wanted."""
        end = time.monotonic() + 60
        last = None
        while time.monotonic() < end:
            for node in (1, 2, 3):
                outcome = self.tell(node, action)
                if outcome is None or outcome[0] == NOT_LEADER:
                    continue
                last = outcome
                if until(outcome[0]):
                    return outcome
            time.sleep(0.02)
        pytest.fail(f"group {group} never answered {action!r} as wanted; last: {last}")

    def shard_command(self, group, kind, body, **options):
        return self.command(group, struct.pack("<BIB", SHARD_ACTION, group, kind) + body, **options)

    def leader(self, group):
        """The node that leads, asked with a command that changes nothing."""
        def find():
            for node in (1, 2, 3):
                probe = struct.pack("<BIBII", SHARD_ACTION, group, 7, 999_999, 0)
                outcome = self.tell(node, probe)
                if outcome is not None and outcome[0] != NOT_LEADER:
                    return node
            return None
        return wait_for(find, what=f"a leader of group {group}")

    # Moves

    def split(self, epoch, at, right):
        self.shard_command(1, 1, struct.pack("<II", SHARD, epoch) + blob(at)
                           + struct.pack("<I", right))

    def fence(self, group, epoch, to):
        return self.shard_command(group, 2, struct.pack("<III", SHARD, epoch, to))[2]

    def activate(self, group, epoch, source, floor, **shard):
        self.shard_command(group, 3, self.shard_bytes(group, epoch, **shard)
                           + struct.pack("<HI", self.virtual_ranges, source) + floor)

    def finish(self, group, epoch):
        self.shard_command(group, 5, struct.pack("<II", SHARD, epoch))

    def release(self, group, epoch):
        self.shard_command(group, 6, struct.pack("<II", SHARD, epoch))

    def merge(self, group, epoch, neighbour, other, **options):
        return self.shard_command(
            group, 9, struct.pack("<IIII", SHARD, epoch, neighbour, other), **options)

    def hold(self, group):
        self.command(group, struct.pack("<BII", 17, group, SHARD))

    def copy(self, epoch):
        """What the leader of the copy says of it: whole, bytes, records."""
        for copies in list(self.copies.values()):
            if (SHARD, epoch) in copies:
                return copies[SHARD, epoch]
        return None

    def wait_for_copy(self, epoch):
        wait_for(lambda: (self.copy(epoch) or [False])[0], what=f"the copy of epoch {epoch}",
                 seconds=60)

    def verify(self, group, epoch):
        """Has the shard digested by every replica; how many records they all hold."""
        key = (group, SHARD, epoch)
        def verified():
            self.shard_command(group, 8, struct.pack("<II", SHARD, epoch))
            end = time.monotonic() + 5
            while time.monotonic() < end:
                found = [self.digests.get(node, {}).get(key) for node in (1, 2, 3)]
                if all(found) and len({index for index, _, _ in found}) == 1:
                    return found
                time.sleep(0.01)
            return None
        found = wait_for(verified, what=f"digests of shard {key}", seconds=60)
        assert len(set(found)) == 1, f"replicas differ: {found}"
        return found[0][2]


class Load:
    """One client that checks every answer against what it wrote. A write whose outcome is unknown
    leaves both values possible until the next read."""

    def __init__(self, client, known, seed):
        self.client, self.random = client, random.Random(seed)
        self.known = known
        self.failures = []
        self.operations = 0
        self.running = True
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while self.running:
            key = f"k{self.random.randrange(3_000):05}"
            try:
                self.once(key)
                self.operations += 1
            except (redis.RedisError, AssertionError) as error:
                self.failures.append(f"{key}: {error!r}")
                if isinstance(error, AssertionError):
                    return

    def once(self, key):
        if self.random.randrange(50) == 0 and all(len(v) == 1 for v in self.known.values()):
            expected = sum(value != {None} for value in self.known.values())
            count = self.client.hlen("t")
            assert count == expected, f"{count} records listed, not {expected}"
        possible = self.known.setdefault(key, {None})
        choice = self.random.randrange(4)
        if choice < 2:
            found = self.client.hget("t", key)
            assert found in possible, f"read {found!r}, possible were {possible!r}"
            self.known[key] = {found}
        elif choice == 2:
            value = b"%d" % self.random.randrange(10**9) + b"." * VALUE_BYTES
            self.known[key] = possible | {value}
            was_new = self.client.hset("t", key, value)
            assert len(possible) > 1 or was_new == (possible == {None}), f"new: {was_new}"
            self.known[key] = {value}
        else:
            self.known[key] = possible | {None}
            count = self.client.hdel("t", key)
            assert len(possible) > 1 or count == (possible != {None}), f"deleted: {count}"
            self.known[key] = {None}

    def stop(self):
        self.running = False
        self.thread.join()


@pytest.fixture(params=[(1, "64MiB"), (2, "64MiB"), (1, "128KiB")], ids=["lsm", "btree", "slow"])
def cluster(request, tmp_path):
    running = ScriptedCluster(tmp_path, *request.param)
    yield running
    running.stop()


@pytest.fixture
def router(cluster, tmp_path):
    running = Router(cluster, tmp_path / "router.log", "--request-deadline=10s")
    yield running
    running.stop()


@pytest.fixture
def load(router):
    client = router.redis()
    known = {}
    pipeline = client.pipeline(transaction=False)
    for number in range(0, 3_000, 2):
        key, value = f"k{number:05}", b"first" + b"." * VALUE_BYTES
        known[key] = {value}
        pipeline.hset("t", key, value)
    pipeline.execute()
    running = Load(client, known, seed=7)
    yield running
    running.stop()


def more(load, count=200):
    """Waits until the load has done so much more."""
    target = load.operations + count
    wait_for(lambda: load.operations >= target or load.failures, what="operations")


def check_all(load):
    """Everything is as the load left it, one by one and in a list."""
    load.stop()
    assert load.failures == []
    for key, possible in sorted(load.known.items()):
        found = load.client.hget("t", key)
        assert found in possible, key
        load.known[key] = {found}
    count = sum(possible != {None} for possible in load.known.values())
    assert load.client.hlen("t") == count


def move(cluster, load, source, target, epoch):
    """Moves the shard, which has this epoch; it has the one after the next then."""
    floor = cluster.fence(source, epoch, to=target)
    cluster.activate(target, epoch + 1, source, floor)
    cluster.show((SHARD, b"", None, target, epoch + 1))
    more(load, 50)
    cluster.wait_for_copy(epoch + 1)
    assert cluster.verify(target, epoch + 1) > 1_000
    cluster.finish(target, epoch + 1)
    cluster.show((SHARD, b"", None, target, epoch + 2))
    more(load, 50)
    cluster.release(source, epoch + 2)
    assert cluster.verify(target, epoch + 2) > 1_000


def test_a_shard_moves_to_and_fro_under_load(cluster, load):
    more(load)
    for epoch in (1, 3, 5, 7):
        source = 1 if epoch in (1, 5) else 2
        move(cluster, load, source, 3 - source, epoch)
    more(load)
    check_all(load)


def test_the_new_owners_leader_dies_in_the_copy(cluster, load):
    floor = cluster.fence(1, 1, to=2)
    victim = cluster.leader(2)
    cluster.activate(2, 2, 1, floor)
    cluster.kill_node(victim)
    cluster.show((SHARD, b"", None, 2, 2))
    cluster.finish(2, 2)
    cluster.start_node(victim)
    cluster.release(1, 3)
    more(load)
    check_all(load)


def test_a_move_is_turned_round_in_the_copy(cluster, load):
    floor = cluster.fence(1, 1, to=2)
    cluster.activate(2, 2, 1, floor)
    cluster.show((SHARD, b"", None, 2, 2))
    more(load, 50)
    floor = cluster.fence(2, 2, to=1)
    cluster.activate(1, 3, 2, floor)
    cluster.show((SHARD, b"", None, 1, 3))
    cluster.finish(1, 3)
    cluster.release(2, 4)
    more(load)
    check_all(load)


def test_a_move_is_given_up_before_it_is_activated(cluster, load):
    floor = cluster.fence(1, 1, to=2)
    cluster.shard_command(2, 7, struct.pack("<II", SHARD, 2))
    late = struct.pack("<BIB", SHARD_ACTION, 2, 3) + cluster.shard_bytes(2, 2) + struct.pack("<HI", 0, 1)
    assert cluster.command(2, late + floor, until=lambda error: error != 0)[0] == FENCED
    cluster.activate(1, 3, 0, floor)
    cluster.show((SHARD, b"", None, 1, 3))
    more(load)
    check_all(load)


def test_a_split_half_moves(cluster, load):
    cluster.split(1, b"k01500", SHARD + 1)
    cluster.show((SHARD, b"", b"k01500", 1, 2), (SHARD + 1, b"k01500", None, 1, 2))
    more(load)
    floor = cluster.fence(1, 2, to=2)
    cluster.activate(2, 3, 1, floor, end=b"k01500")
    cluster.show((SHARD, b"", b"k01500", 2, 3), (SHARD + 1, b"k01500", None, 1, 2))
    cluster.finish(2, 3)
    cluster.release(1, 4)
    more(load)
    check_all(load)


def test_halves_are_merged_under_load(cluster, load):
    cluster.split(1, b"k01500", SHARD + 1)
    cluster.show((SHARD, b"", b"k01500", 1, 2), (SHARD + 1, b"k01500", None, 1, 2))
    more(load)
    # Somebody else's epochs: refused, and nothing happens.
    refused = cluster.merge(1, 2, SHARD + 1, 1, until=lambda error: error != 0)
    assert refused[0] == FENCED
    more(load, 50)
    cluster.merge(1, 2, SHARD + 1, 2)
    cluster.merge(1, 2, SHARD + 1, 2)
    cluster.show((SHARD, b"", None, 1, 3))
    more(load)
    move(cluster, load, 1, 2, 3)
    check_all(load)
    count = sum(possible != {None} for possible in load.known.values())
    assert cluster.verify(2, 5) == count


def test_a_copy_rests_when_it_is_told_to(cluster, load):
    floor = cluster.fence(1, 1, to=2)
    cluster.activate(2, 2, 1, floor)
    cluster.show((SHARD, b"", None, 2, 2))
    for _ in range(5):
        cluster.hold(2)
        before = cluster.copy(2)
        more(load, 50)
    # What was asked for before it was told may still have come.
    after = cluster.copy(2)
    assert before is not None and after[1] <= before[1] + (512 << 10)
    cluster.wait_for_copy(2)
    cluster.verify(2, 2)
    cluster.finish(2, 2)
    cluster.release(1, 3)
    cluster.show((SHARD, b"", None, 2, 3))
    check_all(load)


def test_tombstones_of_a_finished_copy_are_forgotten(cluster, router):
    client = router.redis()
    keys = [b"k%05d" % number for number in range(2_000)]
    client.hset("t", mapping={key: b"." * VALUE_BYTES for key in keys})
    floor = cluster.fence(1, 1, to=2)
    cluster.activate(2, 2, 1, floor)
    cluster.show((SHARD, b"", None, 2, 2))
    for start in range(0, 500, 50):
        assert client.hdel("t", *keys[start:start + 50]) == 50
    cluster.wait_for_copy(2)
    # What was deleted here since the activation is compared as well.
    assert cluster.verify(2, 2) == 2_000
    cluster.finish(2, 2)
    cluster.show((SHARD, b"", None, 2, 3))
    cluster.release(1, 3)
    assert cluster.verify(2, 3) == 1_500
    wait_for(lambda: cluster.records.get((SHARD, 3)) == 1_500, what="the sweep of tombstones")
    for node in (1, 2, 3):
        cluster.kill_node(node)
        cluster.start_node(node)
    assert cluster.verify(2, 3) == 1_500
    assert client.hlen("t") == 1_500
