"""kvrouter alone, against a scripted controller and nodes (fake_cluster.py): what it does when
nodes refuse, hang, die, or hold another map."""

import re
import shutil
import socket
import struct
import subprocess
import time

import pytest
import redis
from conftest import BINARIES, wait_for
from redis.backoff import NoBackoff
from redis.retry import Retry

import fake_cluster
from fake_cluster import FakeCluster, leader_hint, response

DEADLINE_MILLIS = 1500


class Router:
    def __init__(self, fake, log, *flags, controller_port=None):
        """`fake` None: the controller at `controller_port` comes later."""
        self.port = fake_cluster.free_port()
        self.admin = fake_cluster.free_port()
        self.log = log
        self.process = subprocess.Popen(
            [BINARIES / "kvrouter", f"--controllers=127.0.0.1:{controller_port or fake.port}",
             f"--listen-resp=127.0.0.1:{self.port}", f"--listen-admin=127.0.0.1:{self.admin}",
             f"--request-deadline={DEADLINE_MILLIS}ms", *flags],
            stderr=log.open("w"), stdout=subprocess.DEVNULL)
        if fake:
            wait_for(self.is_ready, what="a ready router")
        else:
            wait_for(self.accepts, what="a router that accepts")

    def is_ready(self):
        status, _ = self.get("/readyz")
        return status == 200

    def accepts(self):
        try:
            self.raw().close()
        except OSError:
            return False
        return True

    def get(self, path):
        import http.client
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def redis(self, **options):
        return redis.Redis(
            port=self.port, socket_timeout=10, retry=Retry(NoBackoff(), 0), **options)

    def raw(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def metric(self, pattern):
        def read():
            _, text = self.get("/metrics")
            found = re.search(rf"^{pattern} (\S+)$", text, re.M)
            return float(found[1]) if found else None
        return read()

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture
def fake():
    cluster = FakeCluster()
    yield cluster
    cluster.close()


@pytest.fixture
def router(fake, tmp_path):
    running = Router(fake, tmp_path / "router.log")
    yield running
    assert running.stop() == 0, (tmp_path / "router.log").read_text()


def error_of(call):
    with pytest.raises(redis.ResponseError) as caught:
        call()
    return str(caught.value)


def encode(*arguments):
    out = b"*%d\r\n" % len(arguments)
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        out += b"$%d\r\n%s\r\n" % (len(data), data)
    return out


def read_until(connection, ending):
    data = b""
    while not data.endswith(ending):
        piece = connection.recv(1 << 16)
        assert piece, data
        data += piece
    return data


def test_a_write_creates_its_table_once(fake, router):
    connections = [router.raw() for _ in range(20)]
    for number, connection in enumerate(connections):
        connection.sendall(encode("HSET", "made", f"key{number}", "v"))
    assert {read_until(connection, b"\r\n") for connection in connections} == {b":1\r\n"}
    assert fake.table_requests == 1
    assert router.redis().hlen("made") == 20


def test_reads_of_an_unknown_table_are_empty_and_create_nothing(fake, router):
    client = router.redis()
    assert client.hget("nothing", "k") is None
    assert client.hgetall("nothing") == {}
    assert client.hmget("nothing", "a", "b") == [None, None]
    assert client.hlen("nothing") == client.hdel("nothing", "a") == client.exists("nothing") == 0
    assert fake.table_requests == 0


def test_a_table_that_the_map_lacks_is_asked_for_before_it_is_called_missing(fake, router):
    fake.add_table("t")
    fake.revision += 1
    number = fake.tables["t"][2][0][0]
    fake.records[number] = {b"k": (b"v", bytes(16))}
    assert router.redis().hget("t", "k") == b"v"


def test_a_confirmation_of_a_map_that_broke_off_does_not_count(fake, router):
    """An update does not fit, and the answer of before comes ahead of the map that the router asks for."""
    [shard] = fake.add_table("late")
    fake.records[shard[0]] = {b"key": (b"value", bytes(16))}
    asked = []

    def confirm(writer, reader):
        number, kind = reader.take("IB")
        assert kind == 3
        asked.append(number)
        if len(asked) == 1:
            fits_nothing = struct.pack("<BQQIB", 0, 998, 999, 0, 1) + fake_cluster.sequence([])
            writer.write(fake_cluster.frame(fake_cluster.MAP_UPDATE, fits_nothing))
        writer.write(fake_cluster.frame(
            fake_cluster.TABLE_RESPONSE, struct.pack("<I", number) + b"\0"))
    fake._table = confirm
    fake.revision += 1
    assert router.redis().hget("late", "key") == b"value"
    assert len(asked) == 2


def test_commands_wait_for_the_first_map(tmp_path):
    port = fake_cluster.free_port()
    router = Router(
        None, tmp_path / "router.log", "--request-deadline=20s", controller_port=port)
    assert router.redis().ping()
    assert router.get("/readyz")[0] == 503
    connection = router.raw()
    connection.sendall(encode("HGET", "t", "k") + encode("EXISTS", "t"))
    fake = FakeCluster(port=port, tables=["t"])
    assert read_until(connection, b":1\r\n") == b"$-1\r\n:1\r\n"
    assert router.stop() == 0
    fake.close()


def test_without_a_controller_commands_are_refused_at_the_deadline(tmp_path):
    router = Router(None, tmp_path / "router.log", controller_port=fake_cluster.free_port())
    client = router.redis()
    assert error_of(lambda: client.hget("t", "k")).startswith("UNAVAILABLE ")
    assert error_of(lambda: client.hset("t", "k", "v")).startswith("UNAVAILABLE ")
    assert client.ping()
    assert router.stop() == 0


def test_not_leader_is_followed_to_the_leader_that_is_named(fake, router):
    fake.add_table("t")
    fake.publish()
    fake.nodes[0].behave = lambda operation: response(
        operation.token, fake_cluster.NOT_LEADER, payload=leader_hint(5, 2))
    assert router.redis().hset("t", "k", "v") == 1
    assert len(fake.nodes[0].seen) == 1 and len(fake.nodes[1].seen) == 1


def test_unavailable_is_tried_again(fake, router):
    fake.add_table("t")
    fake.publish()
    left = [3]

    def refuse(operation):
        left[0] -= 1
        return response(operation.token, fake_cluster.UNAVAILABLE) if left[0] >= 0 else None

    fake.nodes[0].behave = refuse
    assert router.redis().hset("t", "k", "v") == 1
    assert len(fake.nodes[0].seen) == 4


def test_a_stale_epoch_makes_the_router_ask_for_the_map(fake, router):
    shards = fake.add_table("t")
    fake.publish()
    client = router.redis()
    client.hset("t", "k", "v")
    number, start, end, group, epoch = shards[0]
    # Nobody is told: the router learns it from the node.
    fake.tables["t"][2][0] = (number, start, end, group, epoch + 1)
    fake.revision += 1
    assert client.hget("t", "k") == b"v"


def test_a_list_goes_on_after_the_shards_changed(fake, router):
    shards = fake.add_table("t", splits=["m"])
    fake.publish()
    client = router.redis()
    expected = {}
    for letter in "abcmnopq":
        client.hset("t", letter, letter)
        expected[letter.encode()] = letter.encode()
    number, start, end, group, epoch = shards[1]
    fake.tables["t"][2][1] = (number, start, end, group, epoch + 1)
    fake.revision += 1
    assert client.hgetall("t") == expected
    assert client.hlen("t") == 8


def test_a_write_whose_connection_dies_is_unknown_and_not_repeated(fake, router):
    fake.add_table("t")
    fake.publish()
    client = router.redis()
    fake.nodes[0].behave = lambda operation: "do and drop"
    message = error_of(lambda: client.hset("t", "k", "v"))
    assert message.startswith("UNKNOWN ")
    fake.nodes[0].behave = lambda operation: None
    assert client.hget("t", "k") == b"v"
    assert sum(operation.is_write for operation in fake.nodes[0].seen) == 1
    wait_for(lambda: 1 in fake.unreachable, what="the report to the controller")


def test_a_read_whose_connection_dies_is_repeated(fake, router):
    fake.add_table("t")
    fake.publish()
    client = router.redis()
    client.hset("t", "k", "v")
    left = [1]

    def drop(operation):
        left[0] -= 1
        return "drop" if left[0] >= 0 else None

    fake.nodes[0].behave = drop
    assert client.hget("t", "k") == b"v"


def test_a_write_that_is_not_answered_is_unknown_at_the_deadline(fake, router):
    fake.add_table("t")
    fake.publish()
    fake.nodes[0].behave = lambda operation: "hang"
    start = time.monotonic()
    message = error_of(lambda: router.redis().hset("t", "k", "v"))
    assert message.startswith("UNKNOWN ") and time.monotonic() - start >= DEADLINE_MILLIS / 1000


def test_without_a_leader_a_write_is_refused_at_the_deadline_as_not_applied(fake, router):
    fake.add_table("t")
    fake.set_leader(1, 0)
    message = error_of(lambda: router.redis().hset("t", "k", "v"))
    assert message.startswith("UNAVAILABLE ")
    assert not any(node.seen for node in fake.nodes)
    assert router.get("/readyz")[0] == 503


def test_a_held_write_goes_when_a_leader_appears(fake, router):
    fake.add_table("t")
    fake.set_leader(1, 0)
    connection = router.raw()
    connection.sendall(encode("HSET", "t", "k", "v"))
    wait_for(
        lambda: router.metric('kvrouter_retries_total{reason="no_leader"}'.replace("{", r"\{")),
        what="a held write")
    fake.set_leader(1, 3)
    assert read_until(connection, b"\r\n") == b":1\r\n"
    assert len(fake.nodes[2].seen) == 1


def test_reads_move_on_when_a_hung_node_loses_its_leadership(fake, router):
    fake.add_table("t")
    fake.publish()
    client = router.redis()
    client.hset("t", "k", "v")
    fake.nodes[0].behave = lambda operation: "hang"
    connection = router.raw()
    seen = len(fake.nodes[0].seen)
    connection.sendall(encode("HGET", "t", "k"))
    wait_for(lambda: len(fake.nodes[0].seen) > seen, what="the read at the hung node")
    fake.set_leader(1, 2)
    assert read_until(connection, b"v\r\n") == b"$1\r\nv\r\n"


def test_late_answers_meet_no_other_request(fake, router):
    fake.add_table("t")
    fake.publish()
    client = router.redis()
    client.hset("t", "k", "v")
    held = []
    fake.nodes[0].behave = lambda operation: held.append(operation) or "hang"
    message = error_of(lambda: client.hget("t", "k"))
    assert message.startswith("UNAVAILABLE ")
    fake.nodes[0].behave = lambda operation: (
        fake.apply(held[0]) + fake.apply(operation) if held else None)
    assert client.hget("t", "missing") is None


def test_pipelined_replies_keep_their_order_over_groups(fake, router):
    fake.add_table("t", splits=[f"{digit}" for digit in range(1, 10)])
    fake.publish()
    connection = router.raw()
    count = 3000
    sent = b"".join(
        encode("HSET", "t", f"{number % 10}-{number}", f"v{number}") for number in range(count))
    sent += b"".join(
        encode("HGET", "t", f"{number % 10}-{number}") + encode("PING", f"p{number}")
        for number in range(count))
    expected = b":1\r\n" * count
    for number in range(count):
        value, ping = f"v{number}", f"p{number}"
        expected += f"${len(value)}\r\n{value}\r\n${len(ping)}\r\n{ping}\r\n".encode()

    import threading
    writer = threading.Thread(target=connection.sendall, args=(sent,))
    writer.start()
    received = b""
    while len(received) < len(expected):
        piece = connection.recv(1 << 20)
        assert piece
        received += piece
    writer.join()
    assert received == expected


def test_commands_of_one_key_keep_their_order_through_a_change_of_leader(fake, router):
    fake.add_table("t")
    fake.publish()
    count = 200
    refusals = [40]

    def refuse(operation):
        refusals[0] -= 1
        if refusals[0] >= 0:
            return response(operation.token, fake_cluster.NOT_LEADER, payload=leader_hint(9, 3))
        return None

    fake.nodes[0].behave = refuse
    connection = router.raw()
    connection.sendall(
        b"".join(encode("HSET", "t", "k", f"v{number}") for number in range(count))
        + encode("HGET", "t", "k"))
    replies = b""
    while replies.count(b"\r\n") < count + 2:
        replies += connection.recv(1 << 16)
    lines = replies.split(b"\r\n")
    # Whatever was refused for good was overtaken; what was applied was applied in order.
    assert lines[count + 1] == f"v{count - 1}".encode()
    assert all(line in (b":0", b":1") or line.startswith(b"-UNAVAILABLE") for line in lines[:count])
    applied = [operation.value for node in fake.nodes for operation in node.seen
               if operation.is_write]
    assert applied[-1] == f"v{count - 1}".encode()


def test_operations_of_one_turn_share_frames(fake, router):
    fake.add_table("t")
    fake.publish()
    connection = router.raw()
    connection.sendall(b"".join(encode("HSET", "t", f"k{n}", "v") for n in range(500)))
    replies = b""
    while replies.count(b"\r\n") < 500:
        replies += connection.recv(1 << 16)
    assert fake.nodes[0].frames <= 50


def test_a_node_that_comes_back_at_its_address_is_used_again(fake, router):
    fake.add_table("t")
    fake.publish()
    client = router.redis()
    assert client.hset("t", "k", "v") == 1
    port = fake.nodes[0].port
    fake.call(fake.nodes[0].stop())
    wait_for(lambda: not router.is_ready(), what="the router to notice")
    assert error_of(lambda: client.hset("t", "k", "w")).startswith("UNAVAILABLE ")
    fake.call(fake.nodes[0].start(port))
    assert wait_for(lambda: client.hset("t", "k", "w") == 0)


def test_clients_over_the_limit_are_refused(fake, tmp_path):
    router = Router(fake, tmp_path / "router.log", "--clients-max=2")
    first, second, third = router.raw(), router.raw(), router.raw()
    for connection in (first, second):
        connection.sendall(encode("PING"))
        assert connection.recv(100) == b"+PONG\r\n"
    assert third.recv(100).startswith(b"-ERR max number of clients")
    assert third.recv(100) == b""
    first.close()
    assert wait_for(lambda: router.redis().ping())
    assert router.stop() == 0


def test_a_password_is_asked_for(fake, tmp_path):
    router = Router(fake, tmp_path / "router.log", "--auth-password=secret")
    with pytest.raises(redis.AuthenticationError):
        router.redis().ping()
    with pytest.raises(redis.AuthenticationError, match="invalid username-password"):
        router.redis(password="wrong").ping()
    for protocol in (2, 3):
        assert router.redis(password="secret", protocol=protocol).ping()
        assert router.redis(username="default", password="secret", protocol=protocol).ping()
    assert router.stop() == 0


def test_the_stop_answers_what_is_under_way(fake, tmp_path):
    router = Router(fake, tmp_path / "router.log")
    fake.add_table("t")
    fake.publish()
    release = []
    fake.nodes[0].behave = lambda operation: release.append(operation) or "hang"
    connection = router.raw()
    connection.sendall(encode("HSET", "t", "k", "v"))
    wait_for(lambda: release, what="the write at the node")
    router.process.terminate()

    async def answer():
        for writer in fake.nodes[0].writers:
            writer.write(fake_cluster.frame(fake_cluster.RESPONSES, fake.apply(release[0])))

    fake.call(answer())
    assert read_until(connection, b"\r\n") == b":1\r\n"
    assert router.process.wait(10) == 0


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is missing")
def test_a_socket_that_systemd_passes_is_served(fake):
    fake.add_table("t")
    port = fake_cluster.free_port()
    process = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", BINARIES / "kvrouter",
         f"--controllers=127.0.0.1:{fake.port}"], stderr=subprocess.DEVNULL)
    try:
        connection = wait_for(lambda: connect(port), what="the activating socket")
        connection.sendall(encode("HSET", "t", "k", "v"))
        assert read_until(connection, b"\r\n") == b":1\r\n"
    finally:
        process.terminate()
        assert process.wait(10) == 0


def connect(port):
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError:
        return None
