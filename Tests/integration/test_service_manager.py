"""What the daemons tell a service manager, and what they take from it: a notify socket and a
listening socket of the test's own stand for systemd's. test_systemd.py has the real one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis
from conftest import BINARIES, wait_for
from redis.backoff import NoBackoff
from redis.retry import Retry

import fake_cluster
from fake_cluster import FakeCluster

CONFIGURATIONS = {
    "kvnode": "name = node-1\ndata = {data}\ncontrollers = 127.0.0.1:1\n[listen]\nrpc = 127.0.0.1:0\n",
    "kvrouter": "controllers = 127.0.0.1:1\n[listen]\nresp = 127.0.0.1:0\n",
    "kvcontrollerd": "name = controller-1\ndata = {data}\n[listen]\nrpc = 127.0.0.1:0\n",
}


class Manager:
    """A notify socket, and all that was said there."""

    def __init__(self, directory):
        self.path = str(directory / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.messages = []
        self.arrived = threading.Condition()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        while True:
            message = self.socket.recv(65536).decode()
            with self.arrived:
                self.messages.append(message)
                self.arrived.notify_all()

    def lines(self, prefix, since=0):
        """What was said with this prefix after the first `since` messages, in order."""
        with self.arrived:
            return [line[len(prefix):] for message in self.messages[since:]
                    for line in message.splitlines() if line.startswith(prefix)]

    def wait(self, text, since=0, seconds=30):
        """Waits for a message with `text` behind the first `since`; the number of messages up to
        and with it."""
        end = time.monotonic() + seconds
        with self.arrived:
            while True:
                for index, message in enumerate(self.messages[since:], since):
                    if text in message:
                        return index + 1
                left = end - time.monotonic()
                assert left > 0 and self.arrived.wait(left), f"no {text!r} in {self.messages}"


class Daemon:
    def __init__(self, program, directory, manager, *flags, environment=None, configuration=None):
        self.file = directory / f"{program}.ini"
        self.file.write_text(configuration or
                             CONFIGURATIONS[program].format(data=directory / "data"))
        self.admin = fake_cluster.free_port()
        self.log = directory / f"{program}.log"
        self.manager = manager
        self.process = subprocess.Popen(
            [BINARIES / program, "--config", self.file,
             f"--listen-admin=127.0.0.1:{self.admin}", *flags],
            env=os.environ | {"NOTIFY_SOCKET": manager.path} | (environment or {}),
            stderr=self.log.open("a"), stdout=subprocess.DEVNULL)

    def page(self, path):
        import http.client
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def metric(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.page("/metrics")[1], re.M)[1])

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path)


@pytest.fixture
def start(tmp_path, manager):
    """Starts daemons that end with the test."""
    daemons = []

    def start(program, *flags, **options):
        daemons.append(Daemon(program, tmp_path, manager, *flags, **options))
        return daemons[-1]

    yield start
    for daemon in daemons:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


@pytest.fixture(scope="session")
def stalled_calls(tmp_path_factory):
    """The environment that preloads stalled_calls.c."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the library that stalls calls")
    library = tmp_path_factory.mktemp("preload") / "stalled_calls.so"
    source = Path(__file__).with_name("stalled_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


@pytest.mark.parametrize("program", CONFIGURATIONS)
def test_life_of_a_service(program, start, manager):
    daemon = start(program, environment={"WATCHDOG_USEC": "2000000"})
    ready = manager.wait("READY=1")
    # Ready is who can be reached: without controller, map and quorum.
    assert daemon.page("/metrics")[0] == 200
    status = {"kvnode": "waiting to be admitted", "kvrouter": "waiting for the cluster map",
              "kvcontrollerd": "acting: "}[program]
    manager.wait("STATUS=" + status)
    assert not any("WATCHDOG" in message for message in manager.messages[:ready])
    pinged = manager.wait("WATCHDOG=1", since=ready)
    manager.wait("WATCHDOG=1", since=pinged)
    assert daemon.end() == 0
    stopping = manager.wait("STOPPING=1")
    assert "stopping (SIGTERM)" in manager.messages[stopping - 1]
    assert len(manager.lines("READY=1")) == 1


@pytest.mark.parametrize("program", CONFIGURATIONS)
def test_reload(program, start, manager):
    daemon = start(program)
    ready = manager.wait("READY=1")
    good = daemon.file.read_text()

    def reload(text):
        daemon.file.write_text(text)
        since = len(manager.messages)
        daemon.process.send_signal(signal.SIGHUP)
        begun = manager.wait("RELOADING=1", since)
        assert "MONOTONIC_USEC=" in manager.messages[begun - 1]
        return manager.messages[manager.wait("READY=1", begun) - 1]

    assert "reload failed" not in reload(good + "[log]\nlevel = error\n")
    assert daemon.metric("kv_config_last_reload_successful") == 1
    at = daemon.metric("kv_config_last_reload_success_timestamp_seconds")
    quiet = len(daemon.log.read_text().splitlines())

    answer = reload(good + "no-such-setting = 1\n")
    assert "reload failed, the old settings hold" in answer and "no-such-setting" in answer
    assert f"{daemon.file}:" in answer
    assert daemon.metric("kv_config_last_reload_successful") == 0
    assert daemon.metric("kv_config_last_reload_success_timestamp_seconds") == at
    # The level that was read before holds: errors alone are logged.
    lines = daemon.log.read_text().splitlines()[quiet:]
    assert len(lines) == 1 and "not read again" in lines[0], lines

    assert "reload failed" not in reload(good)
    assert daemon.metric("kv_config_last_reload_successful") == 1
    assert daemon.process.poll() is None
    assert manager.messages[ready - 1].startswith("READY=1")


@pytest.mark.parametrize("program, more", [
    ("kvnode", "zone = z\ncache = 1MiB\ncopy.rate = 1MiB\n"),
    ("kvrouter", "name = other\nrequest.deadline = 1s\n"),
    ("kvcontrollerd", "repair = off\nbackup.keep = 1d\n")])
def test_settings_that_need_a_restart_are_named(program, more, start, manager):
    """Until the file says again what runs, or the restart; those that follow are not among them."""
    flags = {line.partition(" = ")[0]: line.partition(" = ")[2] for line in more.splitlines()}
    waiting = [name for name in flags if name not in ("copy.rate", "request.deadline", "backup.keep")]
    daemon = start(program)
    manager.wait("READY=1")
    good = daemon.file.read_text()
    changed = good
    for name, value in flags.items():
        section, _, key = name.rpartition(".")
        if section:
            changed += f"[{section}]\n{key} = {value}\n"
        else:
            # Above the sections of the file.
            changed = f"{name} = {value}\n" + re.sub(rf"^{name} = .*\n", "", changed, flags=re.M)

    def reload(text):
        daemon.file.write_text(text)
        since = len(manager.messages)
        daemon.process.send_signal(signal.SIGHUP)
        return manager.messages[manager.wait("READY=1", since) - 1]

    def named():
        return [one["name"] for one in json.loads(daemon.page("/debug/settings")[1])["settings"]
                if one["needs_restart"]]

    for _ in range(2):
        # A second reading of the same file does not make the first one forgotten.
        assert f"(needs a restart for: {', '.join(waiting)})" in reload(changed)
        assert named() == waiting
    assert daemon.metric("kv_config_last_reload_successful") == 1
    assert "settings that need a restart: " + ", ".join(waiting) in daemon.log.read_text()
    assert "needs a restart" not in reload(good)
    assert named() == []
    # What the process runs with is what counts, not what was read before.
    assert "reload failed" in reload(changed + "[nonsense]\nx = 1\n")
    assert "needs a restart" not in reload(good)


def test_settings_that_are_wrong_together_are_found_before_the_reload(start, manager):
    daemon = start("kvcontrollerd")
    manager.wait("READY=1")
    text = daemon.file.read_text() + "[node]\nsuspect.after = 10s\ndown.after = 5s\n"
    other = daemon.file.with_name("other.ini")
    other.write_text(text)
    check = subprocess.run([BINARIES / "kvcontrollerd", "--config", other, "--check-config"],
                           capture_output=True, text=True)
    assert check.returncode == 78 and "node.suspect.after" in check.stderr, check
    daemon.file.write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    manager.wait("reload failed")


@pytest.mark.parametrize("program, code", [("kvnode", 65), ("kvcontrollerd", 65)])
def test_damage_ends_with_a_code_of_its_own(program, code, start, manager, tmp_path):
    daemon = start(program)
    manager.wait("READY=1")
    assert daemon.end() == 0
    segment = next((tmp_path / "data").glob("**/log/*1*"))
    with segment.open("r+b") as file:
        file.write(b"damage" * 100)
    since = len(manager.messages)
    damaged = start(program)
    assert damaged.process.wait(30) == code
    manager.wait("STATUS=failed: ", since)


def test_a_slow_replay_extends_the_start_by_its_progress(start, manager, tmp_path, stalled_calls):
    daemon = start("kvnode")
    manager.wait("READY=1")
    assert daemon.end() == 0
    since = len(manager.messages)
    start("kvnode", environment=stalled_calls | {
        "SLOW_READS_BELOW": str(tmp_path / "data" / "log"), "SLOW_READS_MICROSECONDS": "90000"})
    ready = manager.wait("READY=1", since)
    told = [message for message in manager.messages[since:ready - 1]]
    extended = [line for message in told for line in message.splitlines()
                if line.startswith("EXTEND_TIMEOUT_USEC=")]
    percents = [int(found[1]) for message in told
                if (found := re.search(r"STATUS=replaying the log of .*: (\d+) % of \d+ bytes", message))]
    assert len(extended) >= 3 and set(extended) == {"EXTEND_TIMEOUT_USEC=30000000"}, told
    assert len(percents) >= 3 and percents == sorted(percents), told


@pytest.mark.parametrize("program", CONFIGURATIONS)
def test_a_loop_that_stands_still_asks_for_the_watchdog(
        program, start, manager, tmp_path, stalled_calls):
    gate = tmp_path / "stall"
    daemon = start(program, environment=stalled_calls | {
        "STALL_LOOP": str(gate), "WATCHDOG_USEC": "6000000"})
    ready = manager.wait("READY=1")
    manager.wait("WATCHDOG=1", since=ready)
    gate.touch()
    triggered = manager.wait("WATCHDOG=trigger", since=ready)
    log = daemon.log.read_text()
    assert "a stage makes no progress" in log
    assert '"stage":"loop"' in log and '"thread":"loop"' in log, log
    assert daemon.page("/livez")[0] == 503
    # No ping follows: whoever counts on them ends the process.
    assert "WATCHDOG=1" not in manager.messages[triggered:]
    gate.unlink()


# The router and its listening socket.

class Listening:
    """A listening socket that outlives the routers that get it, as that of kvrouter.socket."""

    def __init__(self, fake, directory, manager):
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.socket.getsockname()[1]
        self.manager = manager
        self.fake = fake
        self.log = directory / "router.log"

    def start(self):
        number = self.socket.fileno()
        since = len(self.manager.messages)
        process = subprocess.Popen(
            # The environment must name the process that gets the socket, as number 3.
            ["/bin/bash", "-c", f'LISTEN_PID=$$ exec "$@" 3<&{number}', "bash", BINARIES / "kvrouter",
             f"--controllers=127.0.0.1:{self.fake.port}", "--request-deadline=2s"],
            env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "resp",
                              "NOTIFY_SOCKET": self.manager.path},
            pass_fds=[number], stderr=self.log.open("a"), stdout=subprocess.DEVNULL)
        self.manager.wait("READY=1", since)
        return process


@pytest.fixture
def fake():
    cluster = FakeCluster()
    yield cluster
    cluster.close()


def end(process):
    process.terminate()
    return process.wait(30)


def test_a_router_restart_loses_no_client(fake, manager, tmp_path):
    """Clients with one reconnection see no error over three restarts under load, and no write that
    they were told of is lost."""
    listening = Listening(fake, tmp_path, manager)
    router = listening.start()
    wait_for(lambda: redis.Redis(port=listening.port).hset("t", "k", "v") in (0, 1))
    stop = threading.Event()
    written = [0] * 8
    errors = []

    def client(number):
        connection = redis.Redis(port=listening.port, socket_timeout=20,
                                 retry=Retry(NoBackoff(), 1),
                                 retry_on_error=[redis.ConnectionError])
        try:
            while not stop.is_set():
                value = written[number] + 1
                connection.hset("t", f"client-{number}", value)
                written[number] = value
        except redis.RedisError as error:
            errors.append((number, error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(len(written))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            before = list(written)
            wait_for(lambda: errors or all(now > then + 20 for now, then in zip(written, before)),
                     what="progress of every client")
            assert end(router) == 0
            router = listening.start()
        before = list(written)
        wait_for(lambda: errors or all(now > then + 20 for now, then in zip(written, before)),
                 what="progress of every client after the last restart")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    check = redis.Redis(port=listening.port)
    for number, value in enumerate(written):
        assert int(check.hget("t", f"client-{number}")) >= value
    assert end(router) == 0


def test_what_was_sent_before_the_stop_is_answered(fake, manager, tmp_path):
    """Pipelined commands that were on their way when SIGTERM came: each has its answer, and then the
    connection ends without a reset, while the client still sends."""
    listening = Listening(fake, tmp_path, manager)
    router = listening.start()
    wait_for(lambda: redis.Redis(port=listening.port).hset("t", "k", "v") in (0, 1))
    with socket.create_connection(("127.0.0.1", listening.port), timeout=20) as raw:
        raw.sendall(b"*1\r\n$4\r\nPING\r\n")
        assert raw.recv(16) == b"+PONG\r\n"
        count = 400
        raw.sendall(b"*3\r\n$4\r\nHGET\r\n$1\r\nt\r\n$1\r\nk\r\n" * count)
        router.terminate()
        answers = b""
        while chunk := raw.recv(65536):
            answers += chunk
        assert answers == b"$1\r\nv\r\n" * count
    assert router.wait(30) == 0


def test_idle_clients_are_let_go_at_once_and_new_ones_wait_for_the_next_router(
        fake, manager, tmp_path):
    listening = Listening(fake, tmp_path, manager)
    router = listening.start()
    with socket.create_connection(("127.0.0.1", listening.port), timeout=20) as raw:
        raw.sendall(b"*1\r\n$4\r\nPING\r\n")
        assert raw.recv(16) == b"+PONG\r\n"
        router.terminate()
        assert raw.recv(16) == b""
    assert router.wait(30) == 0
    with socket.create_connection(("127.0.0.1", listening.port), timeout=20) as raw:
        raw.sendall(b"*1\r\n$4\r\nPING\r\n")
        router = listening.start()
        assert raw.recv(16) == b"+PONG\r\n"
    assert end(router) == 0
