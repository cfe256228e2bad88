"""Clusters for the integration tests: real processes, started and stopped by `kvctl playground`.

The binaries are those of RANGEKEEPER_BIN, or else of .build/release or .build/debug, whichever
kvctl is newer.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("kvctl", "kvnode", "kvrouter", "kvcontrollerd", "kvbench")
PORT_SPAN = 60
#: Which of how many processes of pytest-xdist this is.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def find_binaries():
    named = os.environ.get("RANGEKEEPER_BIN")
    if named:
        return Path(named).resolve()
    built = [REPOSITORY / ".build" / kind for kind in ("release", "debug")]
    built = [path for path in built if (path / "kvctl").exists()]
    return max(built, key=lambda path: (path / "kvctl").stat().st_mtime, default=None)


BINARIES = find_binaries()


def pytest_configure():
    missing = [name for name in PROGRAMS if BINARIES is None or not (BINARIES / name).exists()]
    if missing:
        pytest.exit(f"not built: {', '.join(missing)} (see: make build)", returncode=3)


def run(program, *arguments, timeout=120, **options):
    """Runs a built program to its end; standard output and error are captured as text."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("KVCTL_", "KVNODE_", "KVROUTER_", "KVCONTROLLERD_"))}
    return subprocess.run(
        [BINARIES / program, *map(str, arguments)], capture_output=True, text=True,
        timeout=timeout, env=environment | options.pop("env", {}),
        stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in options else None,
        **options)


def free_port_base():
    """A base from which on all ports of a playground are free. Below the range that the kernel
    hands out by itself, so that they stay free."""
    # Each worker has bases of its own, or two might find the same one free.
    bases = list(range(10_000, 32_000, PORT_SPAN))[WORKER::WORKERS]
    random.shuffle(bases)
    for base in bases:
        if all(is_free(port) for port in range(base, base + PORT_SPAN)):
            return base
    raise RuntimeError("no free ports")


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_alive(pid):
    """Whether the process runs: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for(condition, seconds=30, what="the condition"):
    """Returns the first true value of `condition`; fails after `seconds`."""
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            last = condition()
        except (redis.RedisError, AssertionError) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.02)
    pytest.fail(f"{what} did not come within {seconds} s; last: {last!r}")


class Cluster:
    """A playground that runs."""

    def __init__(self, directory, *flags, port_base=None, environment=None):
        self.directory = Path(directory)
        self.port_base = port_base or free_port_base()
        self.flags = flags
        #: For the daemons: kvctl hands it on to those that it starts.
        self.environment = environment or {}

    # Starting and stopping

    def up(self):
        result = self.kvctl("playground", "up", "--port-base", self.port_base, "--detach",
                            *self.flags)
        assert result.returncode == 0, f"{result.stderr}\n{self.log_tails()}"
        return result

    def down(self, *flags):
        result = self.kvctl("playground", "down", *flags)
        assert result.returncode == 0, result.stderr
        return result

    def start(self, name):
        result = self.kvctl("playground", "start", name)
        assert result.returncode == 0, f"{result.stderr}\n{self.log_tails()}"

    def kill(self, *names, signal_number=signal.SIGKILL):
        """Kills all of `names` at once and waits until they are gone."""
        pids = [self.pid(name) for name in names]
        for pid in pids:
            os.kill(pid, signal_number)
        for pid in pids:
            wait_for(lambda: not is_alive(pid), what=f"the end of process {pid}")

    def pause(self, name):
        os.kill(self.pid(name), signal.SIGSTOP)

    def resume(self, name):
        os.kill(self.pid(name), signal.SIGCONT)

    # Asking

    def kvctl(self, *arguments, **options):
        return run("kvctl", *arguments, "--dir", self.directory,
                   env=self.environment | options.pop("env", {}), **options)

    def json(self, *arguments):
        """The JSON answer of a kvctl command, whatever its exit code."""
        result = self.kvctl(*arguments, "-o", "json")
        assert result.stdout, result.stderr
        return json.loads(result.stdout)

    @property
    def info(self):
        return json.loads((self.directory / "playground.json").read_text())

    @property
    def daemons(self):
        info = self.info
        return {daemon["name"]: daemon
                for daemon in info["controllers"] + info["nodes"] + info["routers"]}

    def pid(self, name):
        return self.daemons[name]["pid"]

    @property
    def resp_port(self):
        return int(self.info["routers"][0]["resp"].rpartition(":")[2])

    def redis(self, timeout=10, **options):
        """A client that never repeats a command by itself."""
        return redis.Redis(
            port=self.resp_port, socket_timeout=timeout, socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0), **options)

    def groups(self):
        return self.json("groups")["groups"]

    def group_of(self, table):
        """The group that holds the only shard of `table`."""
        shards = self.json("shards", table)["shards"]
        assert len(shards) == 1, shards
        return next(group for group in self.groups() if group["id"] == shards[0]["group"])

    def wait_until_healthy(self, seconds=30):
        wait_for(lambda: self.kvctl("status").returncode == 0, seconds, "a healthy cluster")

    def wait_until_caught_up(self, seconds=30):
        """Every group has a leader, and all its replicas follow it closely. Not "without lag":
        clients may be writing."""
        def check():
            for group in self.groups():
                assert group["leader"], group
                for replica in group["replicas"]:
                    assert replica["state"] == "active", group
                    assert (replica["lag"] or 0) < 1000, group
            return True
        wait_for(check, seconds, "caught-up replicas")

    def wait_until_caught_up_but(self, absent, seconds=30):
        """Every replica that is not on the node `absent` has everything that its leader has."""
        def check():
            for group in self.groups():
                assert group["leader"] not in (None, "", absent), group
                for replica in group["replicas"]:
                    if replica["node"] != absent:
                        assert replica["state"] == "active" and replica["lag"] == 0, group
            return True
        wait_for(check, seconds, f"replicas without lag but on {absent}")

    def wait_until_equal(self, seconds=30):
        """Every replica has everything that its leader has. For when nobody writes."""
        def check():
            for group in self.groups():
                assert group["leader"], group
                for replica in group["replicas"]:
                    assert replica["state"] == "active" and replica["lag"] == 0, group
            return True
        wait_for(check, seconds, "replicas without lag")

    def log_tails(self, lines=12):
        parts = []
        for log in sorted((self.directory / "logs").glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {log}", *tail]))
        return "\n".join(parts)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for value in item.funcargs.values():
            if isinstance(value, Cluster):
                report.sections.append(("daemon logs", value.log_tails()))


def _running(directory, *flags, environment=None):
    cluster = Cluster(directory, *flags, environment=environment)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.kvctl("playground", "down")
        # The data of a passed test is of no use; pytest keeps the logs of a few runs.
        for node in directory.glob("*/data*"):
            shutil.rmtree(node, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """One cluster for all tests that leave its processes alone and use tables of their own."""
    yield from _running(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def fresh_cluster(tmp_path):
    """A cluster of the test's own."""
    yield from _running(tmp_path / "cluster")


class StallableCluster(Cluster):
    """A cluster whose disks can be made to answer no sync; see stalled_disk.c."""

    def __init__(self, directory, library, *flags):
        self.control = Path(directory).with_name("stalled")
        super().__init__(directory, *flags, environment={
            "LD_PRELOAD": str(library), "STALL_CONTROL": str(self.control)})

    def stall(self, path):
        """From now on no sync of a file below `path` ends."""
        written = self.control.with_name("stalled.new")
        written.write_text(str(Path(path).resolve()) + "/")
        written.rename(self.control)

    def unstall(self):
        self.control.unlink(missing_ok=True)


def preloadable(name, directory):
    """The library that is made of NAME.c, to be preloaded into daemons."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip(f"no C compiler for {name}.c")
    library = directory / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"],
                   check=True)
    return library


@pytest.fixture
def stallable_cluster(tmp_path):
    cluster = StallableCluster(tmp_path / "cluster", preloadable("stalled_disk", tmp_path))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.unstall()
        cluster.kvctl("playground", "down")


@pytest.fixture
def small_log_cluster(tmp_path):
    """Nodes that make their engines durable often and keep little of the log: followers that lag
    need a snapshot soon. Two data directories each."""
    yield from _running(
        tmp_path / "cluster", "--disks", "2", "--groups", "4",
        environment={"KVNODE_LOG_CHECKPOINT": "256KiB", "KVNODE_LOG_RETAIN": "0"})
