"""Bounds at the door, and settings that are wrong."""

import socket

import pytest
import redis

from conftest import run

MEGABYTE = 1 << 20


def test_largest_record_is_kept(cluster):
    client = cluster.redis(timeout=30)
    key, value = b"k" * MEGABYTE, b"v" * MEGABYTE
    assert client.hset("large", key, value) == 1
    assert client.hget("large", key) == value
    assert client.hdel("large", key) == 1


@pytest.mark.parametrize("key, value", [
    (b"k", b"v" * (MEGABYTE + 1)), (b"k" * (MEGABYTE + 1), b"v")])
def test_over_the_limit_is_an_error_and_the_connection_goes_on(cluster, key, value):
    client = cluster.redis(timeout=30, single_connection_client=True)
    before = client.client_id()
    with pytest.raises(redis.ResponseError, match="TOOLARGE|at most"):
        client.hset("large", key, value)
    assert client.hset("large", "small", "x") in (0, 1)
    assert client.client_id() == before, "the connection was closed"


@pytest.mark.parametrize("name", ["_system", "with space", "x" * 129, ""])
def test_table_names_are_checked(cluster, name):
    with pytest.raises(redis.ResponseError):
        cluster.redis().hset(name, "k", "v")


def test_malformed_commands_end_the_connection_only(cluster):
    for bytes_ in (b"*1\r\n$99999999999\r\n", b"*-5\r\n\x00\xff", b"*1000000000\r\n$1\r\n"):
        with socket.create_connection(("127.0.0.1", cluster.resp_port), timeout=10) as raw:
            raw.sendall(bytes_)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    assert cluster.redis().ping()


DAEMONS = {
    "kvnode": ("rpc", ["--name", "n", "--data", "/nowhere", "--controllers", "127.0.0.1:1"]),
    "kvrouter": ("resp", ["--name", "r", "--controllers", "127.0.0.1:1"]),
    "kvcontrollerd": ("rpc", ["--name", "c", "--data", "/nowhere"]),
}


@pytest.mark.parametrize("program", DAEMONS)
@pytest.mark.parametrize("line, reason", [
    ("{listener} = nonsense", "host:port"), ("no-such-setting = 1", "unknown setting")])
def test_bad_configuration_exits_78_with_file_and_line(tmp_path, program, line, reason):
    listener, _ = DAEMONS[program]
    file = tmp_path / "bad.ini"
    file.write_text("# a comment\n[listen]\n" + line.format(listener=listener) + "\n")
    result = run(program, "--config", file)
    assert result.returncode == 78, result.stderr
    assert f"{file}:3" in result.stderr and reason in result.stderr


@pytest.mark.parametrize("program", DAEMONS)
def test_check_config(tmp_path, program):
    _, flags = DAEMONS[program]
    good = run(program, *flags, "--check-config")
    assert good.returncode == 0, good.stderr
    assert "listen" in good.stdout
    bad = run(program, *flags, "--listen-admin", "nowhere", "--check-config")
    assert bad.returncode == 78 and "--listen-admin" in bad.stderr


@pytest.mark.parametrize("program", DAEMONS)
def test_unknown_flag_is_a_usage_error(program):
    result = run(program, "--lissen-admin", "127.0.0.1:1")
    assert result.returncode == 2 and "--listen-admin" in result.stderr
