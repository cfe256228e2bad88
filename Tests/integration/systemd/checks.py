"""Installs the packages of /out in the container that boot.sh boots, and uses them as an operator would.
Standard library alone."""

import glob
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

NODES = ("node-1", "node-2", "node-3")
UNITS = ("kvcontrollerd", *(f"kvnode@{node}" for node in NODES), "kvrouter")
PACKAGES = ("kvnode", "kvrouter", "kvcontrollerd", "kvctl", "rangekeeper-common")
PASSWORD = "correct horse battery staple"
ETC = Path("/etc/rangekeeper")
DATA = Path("/var/lib/rangekeeper")
CHECKS = []


def check(function):
    """They run in this order, in one system; each leaves it whole."""
    CHECKS.append(function)
    return function


# Helpers

def run(*command, code=0):
    result = subprocess.run(command, capture_output=True, text=True)
    assert code is None or result.returncode == code, \
        f"{command}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result


def systemctl(*arguments, code=0):
    return run("systemctl", *arguments, code=code)


def show(unit, name):
    return systemctl("show", "--property", name, "--value", unit).stdout.strip()


def status(unit):
    return show(unit, "StatusText")


def pid(unit):
    return int(show(unit, "MainPID"))


def runs_anew(unit, before):
    """Whether the unit runs with another process than `before`."""
    return pid(unit) not in (0, before) and show(unit, "SubState") == "running"


def journal(unit, *arguments):
    run("journalctl", "--sync")
    lines = run("journalctl", "--unit", unit, "--output", "json", *arguments).stdout.splitlines()
    return [json.loads(line) for line in lines]


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while True:
        last = condition()
        if last:
            return last
        assert time.monotonic() < end, f"{what} did not come; last: {last!r}"
        time.sleep(0.1)


def drop_in(unit, *lines):
    """Lines for [Service], in force from the next start on; none takes them back."""
    path = Path(f"/etc/systemd/system/{unit}.service.d/checks.conf")
    if lines:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["[Service]", *lines, ""]))
    else:
        path.unlink()
    systemctl("daemon-reload")


def healthy():
    result = run("kvctl", "status", "--controllers", "127.0.0.1:7300", code=None)
    return result.returncode == 0


class Client:
    """A client of the router that connects anew once when its connection ended."""

    def __init__(self, password=PASSWORD):
        self.password = password
        self.connection = None

    def _connect(self):
        self.connection = socket.create_connection(("127.0.0.1", 6379), timeout=60)
        self.answers = self.connection.makefile("rb")
        if self.password:
            self._ask("AUTH", self.password)

    def _ask(self, *words):
        command = b"*%d\r\n" % len(words)
        for word in words:
            word = str(word).encode()
            command += b"$%d\r\n%b\r\n" % (len(word), word)
        self.connection.sendall(command)
        line = self.answers.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("closed")
        if line[:1] == b"-":
            raise RuntimeError(line.decode())
        if line[:1] != b"$":
            return line[1:-2].decode()
        length = int(line[1:])
        return None if length < 0 else self.answers.read(length + 2)[:-2].decode()

    def ask(self, *words):
        if self.connection is not None:
            try:
                return self._ask(*words)
            except ConnectionError:
                pass
        self._connect()
        return self._ask(*words)


class Load:
    """Clients that write, each a row of numbers, while something happens to the system. A crash may
    leave them in doubt of a write, which they then repeat; nothing else may."""

    def __init__(self, clients=8, crashes=False):
        self.crashes = crashes
        self.written = [0] * clients
        self.took = []
        self.errors = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(number,))
                        for number in range(clients)]

    def _write(self, number):
        client = Client()
        try:
            while not self.stopping.is_set():
                value = self.written[number] + 1
                begun = time.monotonic()
                try:
                    client.ask("HSET", "load", f"client-{number}", value)
                except RuntimeError as error:
                    if not self.crashes or not str(error).startswith("-UNKNOWN"):
                        raise
                    continue
                self.took.append(time.monotonic() - begun)
                self.written[number] = value
        except Exception as error:
            self.errors.append(f"client {number}: {error!r}")

    def figures(self):
        took = sorted(self.took)
        return (f"{len(took)} writes: p99 {took[len(took) * 99 // 100] * 1000:.1f} ms, "
                f"slowest {took[-1] * 1000:.0f} ms")

    def go_on(self, amount=30):
        before = list(self.written)
        wait_for(lambda: self.errors or all(
            now > then + amount for now, then in zip(self.written, before)),
            "progress of every client")
        assert not self.errors, self.errors

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *failure):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        if failure[0] is None:
            assert not self.errors, self.errors
            client = Client()
            for number, value in enumerate(self.written):
                assert int(client.ask("HGET", "load", f"client-{number}")) == value


# Checks

@check
def the_packages_pass_their_own_tests():
    """As autopkgtest runs them: from the source tree, on a machine that has the packages."""
    stanza = dict(re.findall(r"^([\w-]+): (.*)$", Path("/out/debian/tests/control").read_text(), re.M))
    assert shutil.which("redis-cli") and "redis-tools" in stanza["Depends"]
    said = []
    for name in stanza["Tests"].split():
        run("dpkg", "--install", *glob.glob("/out/packages/*.deb"))
        scratch = Path("/run/autopkgtest")
        scratch.mkdir()
        result = subprocess.run(
            [f"debian/tests/{name}"], cwd="/out", capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "AUTOPKGTEST_TMP": str(scratch)})
        assert result.returncode == 0 and not result.stderr, result.stdout + result.stderr
        scratch.rmdir()
        (DATA / "remove-on-purge").touch()
        run("dpkg", "--purge", *PACKAGES)
        assert not DATA.exists() and not ETC.exists()
        said += result.stdout.splitlines()[-1:]
    return "; ".join(said)


@check
def packages_install_and_start_nothing():
    run("dpkg", "--install", *glob.glob("/out/packages/*.deb"))
    assert run("id", "rangekeeper").returncode == 0
    for unit in ("kvcontrollerd.service", "kvrouter.service", "kvrouter.socket"):
        assert systemctl("is-active", unit, code=None).stdout.strip() == "inactive", unit
        assert systemctl("is-enabled", unit, code=None).stdout.strip() == "disabled", unit
    conffiles = run("dpkg-query", "--show", "--showformat", "${Conffiles}", "kvnode").stdout
    assert "/etc/rangekeeper/node-1.ini" in conffiles
    for program in ("kvnode", "kvrouter", "kvcontrollerd", "kvctl"):
        assert run("man", "--where", program).stdout
        assert run(program, "version" if program == "kvctl" else "--version").stdout
        # No toolchain is needed.
        path = os.path.realpath(shutil.which(program))
        for library in re.findall(r"=> (.*)", run("ldd", path).stdout):
            assert library.startswith(("/lib", "/usr/lib")), (program, library)


@check
def examples_are_right():
    for program, name in (("kvnode", "node-1"), ("kvrouter", "router"),
                          ("kvcontrollerd", "controller")):
        run(program, "--config", ETC / f"{name}.ini", "--check-config")


@check
def units_verify_without_a_word():
    result = run("systemd-analyze", "verify", "kvnode@node-1.service", "kvrouter.service",
                 "kvrouter.socket", "kvcontrollerd.service", "rangekeeper.target",
                 "rangekeeper.slice")
    assert result.stdout + result.stderr == ""


@check
def exposure_is_at_most_1_2():
    for unit in ("kvnode@node-1.service", "kvrouter.service", "kvcontrollerd.service"):
        result = run("systemd-analyze", "security", "--threshold=12", unit, code=None)
        assert result.returncode == 0, result.stdout


@check
def the_target_starts_a_cluster():
    first = (ETC / "node-1.ini").read_text()
    for index, node in enumerate(NODES[1:], 1):
        text = first.replace("node-1", node)
        for port in (7400, 7401):
            text = text.replace(str(port), str(port + 10 * index))
        (ETC / f"{node}.ini").write_text(text)
    store = Path("/etc/credstore")
    store.mkdir(mode=0o700, exist_ok=True)
    (store / "kvrouter.auth.password").write_text(PASSWORD + "\n")
    (store / "kvrouter.auth.password").chmod(0o600)
    systemctl("enable", "rangekeeper.target", *UNITS)
    systemctl("start", "rangekeeper.target")
    # The target only wants its services: started one by one they tell when they are ready.
    systemctl("start", *UNITS)
    for unit in UNITS:
        assert show(unit, "ActiveState") == "active", unit
        assert show(unit, "Slice") == "rangekeeper.slice", unit
    wait_for(healthy, "a healthy cluster")


@check
def daemons_run_as_their_user_and_own_their_data():
    for unit in UNITS:
        assert Path(f"/proc/{pid(unit)}").owner() == "rangekeeper", unit
    for name in (*NODES, "controller"):
        place = DATA / name
        assert place.owner() == "rangekeeper" and place.stat().st_mode & 0o7777 == 0o750, place
        for path in place.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0 or path.is_dir(), path


@check
def the_credential_is_the_password():
    try:
        Client(password=None).ask("HSET", "t", "k", "v")
    except RuntimeError as error:
        assert "NOAUTH" in str(error)
    else:
        raise AssertionError("served without a password")
    client = Client()
    assert client.ask("HSET", "t", "k", "v") == "1"
    assert client.ask("HGET", "t", "k") == "v"
    environment = Path(f"/proc/{pid('kvrouter')}/environ").read_text()
    assert "CREDENTIALS_DIRECTORY=" in environment and PASSWORD not in environment


@check
def status_lines_have_live_figures():
    wait_for(lambda: re.search(r"^serving: \d+ leaders?, \d+ followers?.* MiB of data",
                               status("kvnode@node-1")), "the node's status")
    wait_for(lambda: re.search(r"^serving \d+ clients?, 3 of 3 nodes connected, map \d+\.\d+",
                               status("kvrouter")), "the router's status")
    wait_for(lambda: re.search(r"^acting: nodes 3 up; shards .*; metadata revision \d+",
                               status("kvcontrollerd")), "the controller's status")


@check
def the_journal_has_fields():
    entries = journal("kvnode@node-1")
    ready = [entry for entry in entries if entry["MESSAGE"].startswith("ready")]
    assert ready and ready[-1]["PRIORITY"] == "5", ready
    fields = [name for name in ready[-1] if name.startswith("KV_")]
    assert "KV_COMPONENT" in fields and "KV_STATUS" in fields, ready[-1]
    identity = ready[-1]["MESSAGE_ID"]
    assert re.fullmatch("[0-9a-f]{32}", identity)
    found = run("journalctl", f"MESSAGE_ID={identity}", "--output", "cat")
    assert len(found.stdout.splitlines()) >= len(UNITS) and "ready" in found.stdout


@check
def a_good_file_is_reloaded():
    unit, file = "kvnode@node-1", ETC / "node-1.ini"
    good = file.read_text()
    before = pid(unit)
    file.write_text(good.replace("level = info", "level = notice"))
    systemctl("reload", unit)
    wait_for(lambda: any("settings read again" in entry["MESSAGE"] for entry in journal(unit)),
             "the reload")
    wait_for(lambda: show(unit, "ActiveState") == "active", "the end of the reload")
    assert pid(unit) == before
    # What does not follow is named until the file is as before.
    file.write_text("zone = rack-9\n" + good)
    systemctl("reload", unit)
    wait_for(lambda: status(unit).endswith("(needs a restart for: zone)"), "the name of the setting")
    said = [entry["MESSAGE"] for entry in journal(unit)]
    assert "settings that need a restart: zone" in said
    # The check before the reload has nothing to say of a right file.
    assert not any("# default" in message for message in said)
    file.write_text(good)
    systemctl("reload", unit)
    wait_for(lambda: "needs a restart" not in status(unit), "the status as before")


@check
def a_bad_file_is_refused_and_nothing_changes():
    for unit, file in (("kvnode@node-1", "node-1"), ("kvrouter", "router"),
                       ("kvcontrollerd", "controller")):
        path = ETC / f"{file}.ini"
        good = path.read_text()
        before = pid(unit)
        path.write_text(good + "nonsense = 1\n")
        refused = systemctl("reload", unit, code=None)
        assert refused.returncode != 0, unit
        assert show(unit, "ActiveState") == "active" and pid(unit) == before, unit
        # A signal sent by hand goes past ExecReload's check.
        systemctl("kill", "--signal=HUP", "--kill-whom=main", unit)
        wait_for(lambda: "reload failed, the old settings hold" in status(unit), f"{unit}: status")
        assert f"{path}:" in status(unit) and "nonsense" in status(unit)
        path.write_text(good)
        systemctl("reload", unit)
        wait_for(lambda: "reload failed" not in status(unit), f"{unit}: a good reload")
        assert pid(unit) == before
    assert Client().ask("HGET", "t", "k") == "v"


@check
def a_restart_of_the_router_loses_no_client():
    with Load() as load:
        for _ in range(3):
            before = pid("kvrouter")
            systemctl("restart", "kvrouter")
            assert pid("kvrouter") != before
            load.go_on(200)
    return load.figures()


@check
def the_socket_starts_the_router():
    systemctl("stop", "kvrouter.service")
    assert show("kvrouter", "ActiveState") == "inactive"
    assert Client().ask("HGET", "t", "k") == "v"
    assert show("kvrouter", "ActiveState") == "active"


@check
def a_restart_of_nodes_costs_clients_latency_only():
    with Load() as load:
        for node in NODES:
            systemctl("restart", f"kvnode@{node}")
            load.go_on(200)
            wait_for(healthy, "a healthy cluster")
    for node in NODES:
        assert show(f"kvnode@{node}", "Result") == "success"
    return load.figures()


@check
def a_killed_daemon_is_started_anew():
    with Load(crashes=True) as load:
        for unit in ("kvnode@node-2", "kvcontrollerd"):
            restarts, before = int(show(unit, "NRestarts")), pid(unit)
            systemctl("kill", "--signal=KILL", unit)
            wait_for(lambda: runs_anew(unit, before), unit)
            assert int(show(unit, "NRestarts")) == restarts + 1
            wait_for(healthy, "a healthy cluster")
        load.go_on()
    before = pid("kvrouter")
    systemctl("kill", "--signal=KILL", "kvrouter")
    wait_for(lambda: not Path(f"/proc/{before}").exists(), "the end of the router")
    # Whoever connects meanwhile waits in the socket.
    assert Client().ask("HGET", "t", "k") == "v"
    assert pid("kvrouter") != before


@check
def the_watchdog_ends_who_stands_still():
    unit, gate = "kvnode@node-3", Path("/run/stall-loop")
    drop_in(unit, "Environment=LD_PRELOAD=/usr/lib/stalled_calls.so",
            f"Environment=STALL_LOOP={gate}", "WatchdogSec=6s")
    systemctl("restart", unit)
    before, restarts = pid(unit), int(show(unit, "NRestarts"))
    gate.touch()
    wait_for(lambda: show(unit, "SubState") != "running", "the watchdog")
    gate.unlink()
    wait_for(lambda: runs_anew(unit, before), "the restart")
    assert int(show(unit, "NRestarts")) == restarts + 1
    messages = [entry["MESSAGE"] for entry in journal(unit, "--lines=100")]
    text = "\n".join(messages)
    assert "a stage makes no progress" in text and "asks to be restarted" in text, text
    assert "Watchdog request (last status:" in text and "Failed with result 'watchdog'" in text, text
    dumped = [entry for entry in journal(unit) if entry["MESSAGE"].startswith("watchdog: thread")]
    assert any(entry.get("KV_THREAD") == "loop" for entry in dumped), dumped
    drop_in(unit)
    systemctl("restart", unit)
    wait_for(healthy, "a healthy cluster")


@check
def a_slow_replay_gets_its_time():
    unit = "kvnode@node-3"
    drop_in(unit, "Environment=LD_PRELOAD=/usr/lib/stalled_calls.so",
            f"Environment=SLOW_READS_BELOW={DATA}/node-3/log",
            "Environment=SLOW_READS_MICROSECONDS=120000", "TimeoutStartSec=4s")
    seen = []
    starter = threading.Thread(target=lambda: seen.append(
        systemctl("restart", unit, code=None).returncode))
    starter.start()
    shown = set()
    while starter.is_alive():
        shown.add(status(unit))
        time.sleep(0.2)
    assert seen == [0], (seen, shown)
    took = (int(show(unit, "ActiveEnterTimestampMonotonic"))
            - int(show(unit, "InactiveExitTimestampMonotonic"))) / 1e6
    assert took > 4, took
    assert any(re.match(r"replaying the log of .*: \d+ % of \d+ bytes", line)
               for line in shown), shown
    drop_in(unit)
    systemctl("restart", unit)
    wait_for(healthy, "a healthy cluster")
    return f"{took:.1f} s, with a time-out of 4 s"


@check
def a_start_that_hangs_is_ended():
    unit, gate = "kvnode@node-3", Path("/run/stall-reads")
    gate.touch()
    drop_in(unit, "Environment=LD_PRELOAD=/usr/lib/stalled_calls.so", "Restart=no",
            f"Environment=SLOW_READS_BELOW={DATA}/node-3/log", f"Environment=STALL_READS={gate}",
            "TimeoutStartSec=3s", "TimeoutStopSec=1s")
    systemctl("restart", unit, code=1)
    assert show(unit, "Result") == "timeout"
    gate.unlink()
    drop_in(unit)
    systemctl("reset-failed", unit)
    systemctl("start", unit)
    wait_for(healthy, "a healthy cluster")


@check
def wrong_settings_are_not_tried_again():
    unit, path = "kvnode@node-3", ETC / "node-3.ini"
    good = path.read_text()
    systemctl("stop", unit)
    path.write_text(good + "nonsense = 1\n")
    systemctl("start", unit, code=1)
    assert show(unit, "ActiveState") == "failed"
    assert show(unit, "ExecMainStatus") == "78" and show(unit, "NRestarts") == "0"
    path.write_text(good)
    systemctl("reset-failed", unit)
    systemctl("start", unit)
    wait_for(healthy, "a healthy cluster")


@check
def damage_is_not_tried_again():
    unit, place = "kvnode@node-3", DATA / "node-3"
    systemctl("stop", unit)
    shutil.copytree(place, "/run/copy")
    segment = max((place / "log").glob("*1*"))
    with segment.open("r+b") as file:
        file.write(b"damage" * 100)
    systemctl("start", unit, code=1)
    assert show(unit, "ActiveState") == "failed"
    assert show(unit, "ExecMainStatus") == "65" and show(unit, "NRestarts") == "0"
    assert str(place) in status(unit), status(unit)
    run("rm", "-rf", place)
    run("cp", "-a", "/run/copy", place)
    run("chown", "-R", "rangekeeper:rangekeeper", place)
    systemctl("reset-failed", unit)
    systemctl("start", unit)
    wait_for(healthy, "a healthy cluster")


@check
def an_upgrade_can_be_held_back():
    """As Runbooks/rolling-upgrade.md has it."""
    policy = Path("/usr/sbin/policy-rc.d")
    before = {unit: pid(unit) for unit in UNITS}
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    run("dpkg", "--install", "--force-confold", *glob.glob("/out/packages/*.deb"))
    policy.unlink()
    assert {unit: pid(unit) for unit in UNITS} == before
    assert Client().ask("HGET", "t", "k") == "v"


@check
def an_upgrade_starts_anew_what_runs_and_keeps_settings():
    path = ETC / "node-1.ini"
    edited = path.read_text() + "\n# edited by the operator\n"
    path.write_text(edited)
    before = {unit: pid(unit) for unit in UNITS}
    # All three nodes of the cluster are on this machine: the next one may stop before the one before
    # has caught up.
    with Load() as load:
        run("dpkg", "--install", "--force-confold", *glob.glob("/out/packages/*.deb"))
        for unit in UNITS:
            wait_for(lambda: show(unit, "SubState") == "running", unit)
            assert pid(unit) != before[unit], f"{unit} was not started anew"
        wait_for(healthy, "a healthy cluster")
        load.go_on()
    assert path.read_text() == edited
    return load.figures()


@check
def stopping_the_target_stops_everything():
    systemctl("stop", "rangekeeper.target")
    for unit in (*UNITS, "kvrouter.socket"):
        wait_for(lambda: show(unit, "ActiveState") == "inactive", f"the end of {unit}")
        assert show(unit, "Result") == "success", unit
    systemctl("start", "rangekeeper.target", *UNITS)
    wait_for(healthy, "a healthy cluster")
    assert Client().ask("HGET", "t", "k") == "v"


@check
def removal_stops_and_purge_keeps_the_data():
    pids = [pid(unit) for unit in UNITS]
    run("dpkg", "--remove", *PACKAGES)
    for number in pids:
        assert not Path(f"/proc/{number}").exists()
    assert (ETC / "node-1.ini").exists()
    said = run("dpkg", "--purge", *PACKAGES)
    assert "is kept" in said.stderr, said
    assert not (ETC / "node-1.ini").exists()
    assert (DATA / "node-1" / "log").is_dir()
    run("dpkg", "--install", *glob.glob("/out/packages/*.deb"))
    (DATA / "remove-on-purge").touch()
    run("dpkg", "--purge", *PACKAGES)
    assert not DATA.exists()
