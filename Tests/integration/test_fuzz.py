"""Hostile bytes at the ports of every daemon: no process may end, and the service goes on.

RANGEKEEPER_FUZZ_SECONDS (3) is the time given to each port, RANGEKEEPER_FUZZ_SEED repeats a run.
"""

import os
import random
import socket
import struct
import time

import pytest

import fake_cluster as wire
from conftest import is_alive, wait_for

pytestmark = pytest.mark.fault

SECONDS = float(os.environ.get("RANGEKEEPER_FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("RANGEKEEPER_FUZZ_SEED", random.randrange(1 << 32)))

NODE, ROUTER, CONTROLLER, TOOL = 1, 2, 3, 4
PEER_MESSAGES, SNAPSHOT_CHUNK, SNAPSHOT_ACK = 4, 5, 6
REGISTER, REGISTERED, HEARTBEAT, COMMANDS, OUTCOMES = 7, 8, 9, 10, 11
ADMIN_REQUEST, ADMIN_RESPONSE, LEADER_NOTICE = 14, 15, 20
MOST = 0xFFFF_FFFF_FFFF_FFFF


def hello(role, node=0, expects=0):
    return wire.frame(wire.HELLO, struct.pack("<BQII", role, 0, node, expects)
                      + wire.blob("fuzz") + wire.sequence([]))


def operation(group, shard, code, flags=0, key=b"k", value=b"v", epoch=1):
    expected = bytes(16) if flags & wire.CONDITIONAL else b""
    return struct.pack("<IIIIBBHII", 7, group, shard, epoch, code, flags, 0, len(key),
                       len(value)) + expected + key + value


def list_request(parts, limit=10, bytes_max=1 << 20, start=b""):
    return (wire.sequence([struct.pack("<II", *part) for part in parts]) + wire.blob(start)
            + b"\x00\x00" + struct.pack("<IIB", limit, bytes_max, 0))


def peer_message(group, sender, receiver, kind, term, rest):
    return struct.pack("<IIIBQ", group, sender, receiver, kind, term) + rest


def entry(term, index, payload=b"", kind=1):
    return struct.pack("<QQB", term, index, kind) + wire.blob(payload)


def peer_messages(group, sender, receiver, term, number):
    """One message of each kind, with `number` for every index, instant and round."""
    def message(kind, rest):
        return peer_message(group, sender, receiver, kind, term, rest)
    return [
        message(1, struct.pack("<QQBB", number, term, 1, 0)),
        message(1, struct.pack("<QQBB", number, term, 0, 1)),
        message(2, struct.pack("<BBQ", 1, 1, number)),
        message(2, struct.pack("<BBQ", 0, 0, number)),
        message(3, struct.pack("<QQ", number, term) + wire.sequence([]) + struct.pack("<Q", number)),
        message(3, struct.pack("<QQ", number, term)
                + wire.sequence([entry(term, (number + 1) & MOST, b"x")])
                + struct.pack("<Q", number)),
        message(4, struct.pack("<BQQQ", 1, number, number, term)),
        message(4, struct.pack("<BQQQ", 0, number, number, term)),
        message(5, struct.pack("<QQQ", number, number, number)),
        message(6, struct.pack("<BQQQ", 1, number, number, number)),
        message(7, b""),
        message(8, struct.pack("<QQ", number, term)),
    ]


def snapshot_chunk(group, sender, receiver, term, index, state=b"", sequence=0, last=1):
    return (struct.pack("<IIIQQIQQB", group, sender, receiver, term, 99, sequence, index, term,
                        last)
            + wire.blob(state) + bytes(16)
            + wire.sequence([wire.blob("key") + wire.blob("value")]))


def node_bodies(group, sender, receiver, shard):
    yield wire.REQUESTS, b"".join(
        operation(group, shard, code, flags) for code in (1, 2, 3) for flags in (0, 1, 2, 4, 8))
    yield wire.REQUESTS, operation(group, shard, wire.LIST,
                                   value=list_request([(shard, 1)], limit=10_000))
    yield wire.REQUESTS, operation(group, shard, 16) + operation(group, shard, 17)
    for message in peer_messages(group, sender, receiver, 5, 3):
        yield PEER_MESSAGES, message
    yield SNAPSHOT_CHUNK, snapshot_chunk(group, sender, receiver, 5, 3)
    yield SNAPSHOT_ACK, struct.pack("<IIIQIB", group, sender, receiver, 99, 1, 0)
    yield COMMANDS, struct.pack("<QQI", 1, 1, 0)


def registration(name, node=0):
    return (struct.pack("<IQQ", node, 0, 4711) + wire.blob(name) + wire.blob("127.0.0.1:1")
            + wire.blob("") + wire.blob("") + b"\x01" + wire.sequence([wire.blob("/nowhere")]))


def heartbeat(node, term=1):
    disk = wire.blob("/nowhere") + b"\x01" + struct.pack("<QQQQQQ", 1, 1, 1, 1, 1, 1)
    replica = (struct.pack("<IIBB", 1, 1, 1, 1) + struct.pack("<QQQQQ", term, term, 1, 1, 1)
               + struct.pack("<IB", 1, 1) + wire.sequence([]))
    shard = struct.pack("<IIQQ", 1, 1, 1, 1) + b"\0" + wire.sequence([])
    return (struct.pack("<IQQQQ", node, 4711, 1, 0, 0) + wire.sequence([disk])
            + wire.sequence([replica]) + wire.sequence([shard]) + b"\0" + wire.sequence([])
            + wire.sequence([]))


def controller_bodies():
    yield REGISTER, registration("fuzz")
    yield HEARTBEAT, heartbeat(1)
    yield HEARTBEAT, heartbeat(5, MOST)
    yield OUTCOMES, wire.sequence([struct.pack("<QQB", 1, 1, 0)])
    yield wire.UNREACHABLE, struct.pack("<I", 1)
    yield wire.WATCH_MAP, struct.pack("<Q", 0)
    yield wire.WATCH_MAP, struct.pack("<Q", MOST)
    yield wire.TABLE_REQUEST, (
        struct.pack("<IB", 1, 1) + wire.blob("fuzzed") + struct.pack("<HBB", 16, 1, 0)
        + wire.sequence([]) + b"\x01")
    yield wire.TABLE_REQUEST, (
        struct.pack("<IB", 1, 1) + wire.blob("fuzzed2") + struct.pack("<HBB", 0, 1, 3)
        + wire.sequence([wire.blob("m"), wire.blob("t")]) + b"\x01")
    yield wire.TABLE_REQUEST, struct.pack("<IB", 1, 2) + wire.blob("fuzzed")
    yield wire.TABLE_REQUEST, struct.pack("<IB", 1, 3)
    for text in ('{"verb":"status"}', '{"verb":"shards","arguments":{"table":"fuzzed"}}',
                 '{"verb":"table.create","arguments":{"table":"fuzzed3","partition":"hash"}}'):
        yield ADMIN_REQUEST, struct.pack("<I", 1) + text.encode()


INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, MOST, MOST - 1,
               MOST >> 1)


def mutated(generator, data):
    data = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        at = generator.randrange(len(data) + 1)
        match generator.randrange(5):
            case 0 if at < len(data):
                data[at] = generator.randrange(256)
            case 1:
                form = generator.choice("<B <H <I <Q".split())
                size = struct.calcsize(form)
                number = generator.choice(INTERESTING) & ((1 << 8 * size) - 1)
                data[at:at + size] = struct.pack(form, number)
            case 2:
                del data[at:at + generator.randrange(1, 9)]
            case 3:
                data[at:at] = generator.randbytes(generator.randrange(1, 9))
            case 4:
                data[at:at] = data[max(0, at - 40):at]
    return bytes(data)


class Peer:
    """A connection that sends what it is told, and reads what comes so that nothing blocks."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """False once the other side has closed."""
        try:
            self.socket.sendall(data)
            self.socket.setblocking(False)
            try:
                while data := self.socket.recv(1 << 16):
                    pass
                return False
            except BlockingIOError:
                return True
            finally:
                self.socket.settimeout(5)
        except OSError:
            return False

    def send_last(self, data):
        """Sends and waits for the other side to close, or for a moment to pass."""
        try:
            self.socket.sendall(data)
            self.socket.settimeout(0.1)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                try:
                    if not self.socket.recv(1 << 16):
                        break
                except TimeoutError:
                    pass
        except OSError:
            pass


class Target:
    """A cluster with one table, whose processes must all stay."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.pids = {name: cluster.pid(name) for name in cluster.daemons}
        client = cluster.redis()
        client.execute_command("KV.CREATE", "t")
        client.hset("t", "k", "v")
        self.shard = cluster.json("shards", "t")["shards"][0]
        self.group = cluster.group_of("t")

    def address(self, name):
        return self.cluster.daemons[name]["rpc"]

    def check(self, what=""):
        dead = [name for name, pid in self.pids.items() if not is_alive(pid)]
        assert not dead, f"{dead} ended; seed {SEED}; {what}\n{self.cluster.log_tails(5)}"

    def check_service(self, what=""):
        self.check(what)
        client = self.cluster.redis(timeout=3)
        wait_for(lambda: client.hset("t", "k", "again") is not None
                 and client.hget("t", "k") == b"again", 30, f"service after fuzzing, seed {SEED}")
        self.check(what)


@pytest.fixture
def target(fresh_cluster):
    return Target(fresh_cluster)


def throw(generator, target, address, first, bodies):
    """Mutated frames with correct checksums for SECONDS, a new connection when one is closed."""
    end, sent = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        with Peer(address) as peer:
            peer.send(generator.choice(first))
            for _ in range(generator.randrange(1, 20)):
                kind, body = generator.choice(bodies)
                if generator.random() < 0.9:
                    body = mutated(generator, body)
                data = wire.frame(kind, body)
                if generator.random() < 0.05:
                    data = mutated(generator, data)
                sent += 1
                if not peer.send(data):
                    break
        if sent % 16 == 0:
            target.check(f"after {sent} frames")
    assert sent > 50


def test_mutated_frames_at_a_node(target):
    generator = random.Random(SEED)
    group, shard = target.group["id"], target.shard["id"]
    leader = target.group["leader"]
    # A peer that speaks for replicas of a group nobody has: what real peers say decides on data.
    bodies = [body for which in (group, 77) for body in node_bodies(which, 1, 2, shard)
              if which != group or body[0] == wire.REQUESTS]
    first = [hello(NODE, 2), hello(ROUTER), hello(TOOL), hello(CONTROLLER)]
    throw(generator, target, target.address(leader), first, bodies)
    target.check_service()


def test_messages_of_a_peer_with_extreme_numbers(target):
    """A broken peer may cost one replica its place, never a process."""
    name = next(replica["node"] for replica in target.group["replicas"]
                if replica["node"] != target.group["leader"])
    ids = {replica["node"]: replica["replica"] for replica in target.group["replicas"]}
    nodes = {node["name"]: node["id"] for node in target.cluster.json("nodes")["nodes"]}
    leader = target.group["leader"]
    for term in (MOST, MOST - 1, 1 << 63, 1 << 62):
        for number in (MOST, MOST - 1, 1 << 63, 1 << 32, 0):
            messages = peer_messages(target.group["id"], ids[leader], ids[name], term, number)
            for message in messages:
                with Peer(target.address(name)) as peer:
                    peer.send(hello(NODE, nodes[leader]) + wire.frame(PEER_MESSAGES, message))
            target.check(f"term {term}, number {number}")
    for index in (MOST, MOST - 1, 1 << 63):
        for state in (b"", b"\xff" * 40, bytes(16)):
            chunk = snapshot_chunk(target.group["id"], ids[leader], ids[name], 1 << 33, index, state)
            with Peer(target.address(name)) as peer:
                peer.send_last(hello(NODE, nodes[leader]) + wire.frame(SNAPSHOT_CHUNK, chunk))
            target.check(f"snapshot at {index}")
    target.check_service()
    disks = {node["name"]: node["disks"] for node in target.cluster.json("nodes")["nodes"]}
    assert all(disk["state"] == "healthy" for disk in disks[name]), disks[name]


def test_list_that_asks_for_too_much(target):
    """More than fits into a frame: the node's bound counts, not the asker's."""
    client = target.cluster.redis()
    for number in range(24):
        client.hset("t", f"large-{number:02}", bytes(1_000_000))
    target.cluster.wait_until_equal()
    parts = [(target.shard["id"], target.shard["epoch"])]
    for bytes_max in (0, 0xFFFF_FFFF):
        request = operation(
            target.group["id"], target.shard["id"], wire.LIST, epoch=target.shard["epoch"],
            value=list_request(parts, limit=10_000, bytes_max=bytes_max))
        with Peer(target.address(target.group["leader"])) as peer:
            peer.send_last(hello(ROUTER) + wire.frame(wire.REQUESTS, request))
        target.check(f"bytes_max {bytes_max}")
    target.check_service()


def test_a_node_without_the_group_gives_no_leader_hint(target):
    """A router believes the hint of the highest term."""
    request = operation(9999, 1, wire.GET)
    with Peer(target.address(target.group["leader"])) as peer:
        peer.socket.sendall(hello(ROUTER) + wire.frame(wire.REQUESTS, request))
        stream = peer.socket.makefile("rb")
        while True:
            count, _, kind, _, _ = struct.unpack("<IIBBH", stream.read(12))
            body = stream.read(count)
            if kind == wire.RESPONSES:
                break
    answer = wire.Reader(body)
    token, code, *_ = answer.take("IBBH")
    answer.raw(16)
    assert (token, code, answer.blob()) == (7, wire.NOT_LEADER, wire.leader_hint(0, 0))


def test_frame_full_of_tiny_operations(target):
    one = operation(target.group["id"], target.shard["id"], wire.GET, key=b"", value=b"")
    body = one * ((4 << 20) // len(one))
    with Peer(target.address(target.group["leader"])) as peer:
        peer.send_last(hello(ROUTER) + wire.frame(wire.REQUESTS, body))
    target.check_service()


def test_mutated_frames_at_the_controller(target):
    generator = random.Random(SEED)
    first = [hello(NODE, 1), hello(NODE), hello(ROUTER), hello(TOOL)]
    throw(generator, target, target.address("controller-1"), first, list(controller_bodies()))
    target.check_service()
    target.cluster.redis().execute_command("KV.CREATE", "after")
    target.cluster.redis().hset("after", "k", "v")


COMMANDS_OF_CLIENTS = [
    [b"HSET", b"t", b"k", b"v"], [b"HGET", b"t", b"k"], [b"HDEL", b"t", b"k"], [b"HGETALL", b"t"],
    [b"HMGET", b"t", b"a", b"b"], [b"HSCAN", b"t", b"0", b"MATCH", b"*a*", b"COUNT", b"10"],
    [b"KV.PUT", b"t", b"k", b"v"], [b"KV.GET", b"t", b"k"], [b"KV.DEL", b"t", b"k"],
    [b"KV.LIST", b"t", b"FROM", b"a", b"TO", b"z", b"LIMIT", b"10"],
    [b"KV.LIST", b"t", b"LIMIT", b"5000", b"CURSOR", b"k"], [b"KV.CREATE", b"f1"],
    [b"HELLO", b"3"], [b"PING"], [b"INFO"], [b"COMMAND"], [b"CLIENT", b"SETNAME", b"x"],
    [b"SCAN", b"0"], [b"DBSIZE"], [b"EXISTS", b"t"], [b"TYPE", b"t"], [b"HLEN", b"t"],
    [b"HSETNX", b"t", b"k", b"v"], [b"HKEYS", b"t"], [b"HVALS", b"t"], [b"HEXISTS", b"t", b"k"],
    [b"HSTRLEN", b"t", b"k"], [b"KV.TABLES"], [b"KV.DESCRIBE", b"t"], [b"SELECT", b"0"],
]


def resp(arguments):
    return b"*%d\r\n" % len(arguments) + b"".join(
        b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments)


def test_mutated_commands_at_the_router(target):
    generator = random.Random(SEED)
    address = target.cluster.daemons["router-1"]["resp"]
    end, sent = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        with Peer(address) as peer:
            for _ in range(generator.randrange(1, 20)):
                arguments = list(generator.choice(COMMANDS_OF_CLIENTS))
                if generator.random() < 0.5:
                    place = generator.randrange(len(arguments))
                    arguments[place] = mutated(generator, arguments[place])
                data = resp(arguments)
                if generator.random() < 0.5:
                    data = mutated(generator, data)
                if generator.random() < 0.05:
                    data = b" ".join(arguments) + b"\r\n"
                sent += 1
                if not peer.send(data):
                    break
        if sent % 16 == 0:
            target.check(f"after {sent} commands")
    assert sent > 50
    target.check_service()
