"""The Redis protocol as clients meet it: redis-py in RESP2 and RESP3, redis-cli, redis-benchmark,
raw bytes. See docs/redis-protocol.md."""

import itertools
import shutil
import socket
import subprocess
import threading

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

names = itertools.count()


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def client(cluster, request):
    # decode_responses stays off: keys and values are bytes.
    with redis.Redis(port=cluster.resp_port, protocol=request.param, socket_timeout=20,
                     retry=Retry(NoBackoff(), 0)) as connection:
        yield connection


@pytest.fixture
def table(client):
    name = f"proto{next(names)}"
    yield name
    client.delete(name)


@pytest.fixture(params=["RANGE", "HASH"])
def any_table(client, request):
    name = f"proto{next(names)}"
    options = ["SPLIT", "g", "p"] if request.param == "RANGE" else ["VRANGES", 8]
    client.execute_command("KV.CREATE", name, "PARTITION", request.param, *options)
    yield name
    client.delete(name)


def error_of(call):
    with pytest.raises(redis.ResponseError) as caught:
        call()
    return str(caught.value)


# Records


def test_hset_tells_how_many_fields_are_new(client, table):
    assert client.hset(table, "a", "1") == 1
    assert client.hset(table, "a", "2") == 0
    assert client.hset(table, mapping={"a": "3", "b": "1", "c": "1"}) == 2
    assert client.execute_command("HSET", table, "d", "1", "d", "2") == 1
    assert client.hget(table, "d") == b"2"


def test_reading_records(client, table):
    client.hset(table, mapping={"a": "1", "b": "", "c": b"\x00\xff\r\n"})
    assert client.hget(table, "a") == b"1"
    assert client.hget(table, "b") == b""
    assert client.hget(table, "c") == b"\x00\xff\r\n"
    assert client.hget(table, "x") is None
    assert client.hmget(table, "a", "x", "b", "a") == [b"1", None, b"", b"1"]
    assert client.hexists(table, "b") and not client.hexists(table, "x")
    assert client.hstrlen(table, "c") == 4 and client.hstrlen(table, "x") == 0


def test_deleting_records(client, table):
    client.hset(table, mapping={"a": "1", "b": "1"})
    assert client.hdel(table, "a", "x", "b", "a") == 2
    assert client.hdel(table, "a") == 0
    assert client.hget(table, "a") is None and client.hlen(table) == 0


def test_hsetnx_and_hmset(client, table):
    assert client.hsetnx(table, "a", "1") == 1
    assert client.hsetnx(table, "a", "2") == 0
    assert client.execute_command("HMSET", table, "a", "3", "b", "4") in (b"OK", True)
    assert client.hgetall(table) == {b"a": b"3", b"b": b"4"}
    client.hdel(table, "a")
    assert client.hsetnx(table, "a", "5") == 1


def test_a_missing_table_reads_as_a_missing_key(client):
    assert client.hget("never", "a") is None
    assert client.hgetall("never") == {} and client.hlen("never") == 0
    assert client.hkeys("never") == [] and client.hdel("never", "a") == 0
    assert client.type("never") == b"none" and client.exists("never") == 0


def test_whole_tables(client, any_table):
    expected = {f"{letter}{number}".encode(): f"{number}".encode()
                for letter in "abghopqz" for number in range(30)}
    client.hset(any_table, mapping=expected)
    assert client.hgetall(any_table) == expected
    assert client.hkeys(any_table) == sorted(expected)
    assert client.hvals(any_table) == [expected[key] for key in sorted(expected)]
    assert client.hlen(any_table) == len(expected)


def test_hscan_sees_every_record_once(client, any_table):
    expected = {f"key{number}".encode(): b"v" for number in range(257)}
    client.hset(any_table, mapping=expected)
    seen = list(client.hscan_iter(any_table, count=20))
    assert len(seen) == 257 and dict(seen) == expected
    matching = dict(client.hscan_iter(any_table, match="key1?", count=7))
    assert sorted(matching) == [f"key1{digit}".encode() for digit in range(10)]
    assert "cursor" in error_of(lambda: client.hscan(any_table, cursor=2**60))


# Own commands


def test_sequencers_and_conditions(client, table):
    def execute(*arguments):
        return client.execute_command(*arguments)

    first = execute("KV.PUT", table, "k", "1")
    assert execute("KV.GET", table, "k") == [b"1", first]
    second = execute("KV.PUT", table, "k", "2", "IF", first)
    assert second > first
    message = error_of(lambda: execute("KV.PUT", table, "k", "3", "IF", first))
    assert message.startswith("CONDITION ") and second.decode() in message
    assert error_of(lambda: execute("KV.PUT", table, "k", "3", "IF", "ABSENT")).startswith(
        "CONDITION ")
    assert execute("KV.PUT", table, "new", "1", "IF", "ABSENT") > second
    assert error_of(lambda: execute("KV.DEL", table, "k", "IF", first)).startswith("CONDITION ")
    assert execute("KV.DEL", table, "k", "IF", second) == 1
    assert execute("KV.DEL", table, "k") == 0
    assert execute("KV.GET", table, "k") is None
    assert execute("KV.GET", table, "new", "QUORUM")[0] == b"1"
    assert error_of(lambda: execute("KV.PUT", table, "k", "1", "IF", "x")).startswith("a sequencer")


def test_kv_list_pages_in_order(client, any_table):
    keys = sorted(f"{letter}{number:03}" for letter in "afgoqz" for number in range(40))
    client.hset(any_table, mapping={key: key for key in keys})

    def pages(*options):
        cursor, found = b"", []
        while cursor is not None:
            cursor, records = client.execute_command(
                "KV.LIST", any_table, *options, *(["CURSOR", cursor] if cursor else []))
            assert records[0::3] == records[1::3] and all(len(s) == 34 for s in records[2::3])
            found += [key.decode() for key in records[0::3]]
        return found

    assert pages("LIMIT", 7) == keys
    assert pages("LIMIT", 240) == keys
    assert pages() == keys
    assert pages("QUORUM", "LIMIT", 100) == keys
    assert pages("FROM", "f010", "TO", "q003", "LIMIT", 11) == [
        key for key in keys if "f010" <= key < "q003"]
    assert pages("FROM", "zz") == []
    assert "LIMIT" in error_of(
        lambda: client.execute_command("KV.LIST", any_table, "LIMIT", 0))


def test_tables_are_made_described_and_dropped(client):
    name = f"proto{next(names)}"
    execute = client.execute_command
    assert execute("KV.CREATE", name, "PARTITION", "HASH", "VRANGES", 16, "ENGINE", "BTREE",
                   "REPLICAS", 3) == b"OK"
    assert f"table named {name}" in error_of(lambda: execute("KV.CREATE", name))
    assert execute("KV.CREATE", name, "IFMISSING") == b"OK"
    description = execute("KV.DESCRIBE", name)
    if isinstance(description, list):
        description = dict(zip(description[0::2], description[1::2]))
    assert description[b"partition"] == b"HASH" and description[b"engine"] == b"BTREE"
    assert description[b"shards"] == description[b"vranges"] == 16
    assert name.encode() in execute("KV.TABLES")
    client.hset(name, "k", "v")
    assert client.type(name) == b"hash" and client.exists(name, name, "never") == 2
    assert execute("KV.DROP", name) == b"OK"
    assert client.exists(name) == 0 and client.hget(name, "k") is None
    assert "table" in error_of(lambda: execute("KV.DROP", name))


def test_a_table_made_anew_is_empty(client, table):
    client.hset(table, "k", "v")
    assert client.delete(table, table, "never") == 1
    assert client.hset(table, "k", "w") == 1
    assert client.hgetall(table) == {b"k": b"w"}


def test_scan_and_keys_go_over_tables(client):
    prefix = f"proto{next(names)}-"
    mine = sorted(f"{prefix}{number}".encode() for number in range(12))
    for name in mine:
        client.execute_command("KV.CREATE", name)
    assert sorted(client.scan_iter(match=f"{prefix}*", count=5)) == mine
    assert sorted(client.scan_iter(match=f"{prefix}*", _type="hash")) == mine
    assert list(client.scan_iter(match=f"{prefix}*", _type="string")) == []
    assert sorted(client.keys(f"{prefix}*")) == mine
    assert client.dbsize() >= 12
    assert client.unlink(*mine) == 12


@pytest.mark.parametrize("options", [
    ["PARTITION", "LIST"], ["ENGINE", "HEAP"], ["REPLICAS", "2"], ["VRANGES", "8"],
    ["PARTITION", "HASH", "VRANGES", "1"], ["PARTITION", "HASH", "SPLIT", "a"],
    ["SPLIT", "a", "a"], ["SPLIT", ""], ["PARTITION"], ["NONSENSE", "1"]], ids=" ".join)
def test_wrong_options_are_refused(client, options):
    error_of(lambda: client.execute_command("KV.CREATE", "never", *options))
    assert client.exists("never") == 0


# Limits and errors


def test_sizes_up_to_the_limit(client, table):
    value = b"v" * (1 << 20)
    key = b"k" * (1 << 20)
    assert client.hset(table, "k", value) == 1
    assert client.hget(table, "k") == value
    assert client.hset(table, key, "long") == 1
    assert client.hget(table, key) == b"long"
    for size in ((1 << 20) + 1, 2_000_000):
        assert error_of(lambda: client.hset(table, "k", b"v" * size)).startswith("TOOLARGE ")
        assert error_of(lambda: client.hget(table, b"v" * size)).startswith("TOOLARGE ")
    assert client.hget(table, "k") == value


@pytest.mark.parametrize("name", ["", "_system", "with space", "n" * 129, "caf\u00e9"])
def test_bad_table_names_are_refused(client, name):
    assert "table name" in error_of(lambda: client.hset(name, "k", "v"))


@pytest.mark.parametrize("command", [
    "HSET t", "HSET t k", "HSET t k v k", "HGET t", "HGET t k v", "HDEL t", "KV.PUT t k",
    "HELLO 4", "SELECT 1", "CLIENT NONSENSE", "CONFIG SET save x", "KV.PUT t k v IF"])
def test_wrong_commands_get_errors_and_the_connection_stays(client, command):
    error_of(lambda: client.execute_command(*command.split()))
    assert client.ping()


def test_auth_without_a_password_answers_as_redis_does(client):
    with pytest.raises(redis.AuthenticationError, match="without any password"):
        client.execute_command("AUTH", "x")
    assert client.ping()


def test_string_commands_tell_what_to_do(client):
    assert "HSET table key value" in error_of(lambda: client.set("a", "b"))
    assert "HSET table key value" in error_of(lambda: client.get("a"))


# Connections


def test_what_libraries_ask(client):
    assert client.ping() and client.echo("x") == b"x"
    assert client.client_id() > 0
    assert client.client_setname("me") and client.client_getname() in ("me", b"me")
    assert any(entry["name"] == "me" for entry in client.client_list())
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("nothing") == {}
    info = client.info()
    assert info["server_name"] == "rangekeeper" and info["role"] == "master"
    assert "redis_version" in client.info("server")
    assert client.command_count() > 30
    assert client.time()[0] > 1_600_000_000
    assert client.select(0)


def test_hello_answers_the_server_and_switches(cluster):
    with socket.create_connection(("127.0.0.1", cluster.resp_port), timeout=10) as connection:
        connection.sendall(b"HELLO 3\r\n")
        assert connection.recv(4096).startswith(b"%7\r\n$6\r\nserver\r\n$11\r\nrangekeeper\r\n")
        connection.sendall(b"HGET never k\r\n")
        assert connection.recv(4096) == b"_\r\n"
        connection.sendall(b"HELLO 2\r\n")
        assert connection.recv(4096).startswith(b"*14\r\n")
        connection.sendall(b"HGET never k\r\nQUIT\r\n")
        received = b""
        while piece := connection.recv(4096):
            received += piece
        assert received == b"$-1\r\n+OK\r\n"


def test_broken_bytes_get_an_error_and_the_end(cluster):
    for broken in (b"*1\r\n:5\r\n", b"*9999999\r\n", b"*1\r\n$-7\r\n", b'GET "a\r\n'):
        with socket.create_connection(("127.0.0.1", cluster.resp_port), timeout=10) as connection:
            connection.sendall(b"PING\r\n" + broken)
            received = b""
            while piece := connection.recv(4096):
                received += piece
            assert received.startswith(b"+PONG\r\n-ERR Protocol error"), (broken, received)


def test_pipelines_answer_in_order(client, table):
    pipeline = client.pipeline(transaction=False)
    for number in range(500):
        pipeline.hset(table, f"k{number}", number)
        pipeline.hget(table, f"k{number}")
        pipeline.hlen(table)
        pipeline.hdel(table, f"k{number}")
        pipeline.hexists(table, f"k{number}")
    assert pipeline.execute() == [
        reply for number in range(500)
        for reply in (1, str(number).encode(), 1, 1, False)]


def test_many_connections_write_at_once(cluster, client, table):
    failures = []

    def work(worker):
        try:
            with redis.Redis(port=cluster.resp_port, socket_timeout=30) as connection:
                for number in range(50):
                    connection.hset(table, f"{worker}-{number}", number)
        except redis.RedisError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert client.hlen(table) == 2000


def test_a_thousand_idle_connections(cluster):
    connections = [socket.create_connection(("127.0.0.1", cluster.resp_port), timeout=20)
                   for _ in range(1000)]
    for connection in connections:
        connection.sendall(b"PING\r\n")
    assert all(connection.recv(100) == b"+PONG\r\n" for connection in connections)
    for connection in connections:
        connection.close()


# Programs


needs_cli = pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-tools is missing")


def cli(cluster, *arguments, **options):
    result = subprocess.run(
        ["redis-cli", "-p", str(cluster.resp_port), *arguments], capture_output=True, text=True,
        timeout=60, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_cli
@pytest.mark.parametrize("flags", [[], ["-3"]], ids=["RESP2", "RESP3"])
def test_redis_cli(cluster, flags):
    name = f"proto{next(names)}"
    assert cli(cluster, *flags, "HSET", name, "a", "1", "b", "2") == "2\n"
    assert cli(cluster, *flags, "HGETALL", name).split() == ["a", "1", "b", "2"]
    assert cli(cluster, *flags, "DEL", name) == "1\n"
    assert "PONG" in cli(cluster, *flags, input="PING\nHGET never k\n")


@needs_cli
@pytest.mark.parametrize("pipeline", ["1", "16"])
def test_redis_benchmark(cluster, pipeline):
    name = f"bench{next(names)}"
    for command in (["HSET", name, "__rand_int__", "xxx"], ["HGET", name, "__rand_int__"]):
        result = subprocess.run(
            ["redis-benchmark", "-p", str(cluster.resp_port), "-n", "4000", "-c", "20", "-q",
             "-P", pipeline, "-r", "1000", *command], capture_output=True, text=True, timeout=120)
        assert "requests per second" in result.stdout, result.stdout + result.stderr
        assert "Error" not in result.stdout + result.stderr
    assert cli(cluster, "DEL", name) == "1\n"
