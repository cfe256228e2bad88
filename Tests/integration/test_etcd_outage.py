"""Etcd is gone for a minute, emptied, or restored from an older backup, under running controllers: the data
plane goes on, and the controllers say what is the matter and decide nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from conftest import is_alive, run, wait_for
from test_controllers import NAMES
from test_etcd import ETCD, Client, Etcd, OneController, close, create, metric
from test_metadata_chaos import ChaosCluster
from test_split import Traffic, shards, shown, start_split, wait_for_end
from workload import Inserts, Workload

pytestmark = [pytest.mark.fault,
              pytest.mark.skipif(ETCD is None, reason="etcd is not installed (see: make deps)")]

MINUTE = 60
#: The copy of half of them takes longer than the time before the outage.
ENVIRONMENT = {"KVNODE_COPY_RATE": "48KiB"}
SILENT = "etcd does not answer"


def page(daemon, path):
    """The status and the JSON of a page of the admin HTTP."""
    try:
        with urllib.request.urlopen(f"http://{daemon['admin']}{path}", timeout=3) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def controllers_of(cluster):
    return [cluster.daemons[name] for name in NAMES if name in cluster.daemons]


def assert_that_nobody_acts(cluster, words, up=None):
    """Every controller says by metrics, page and command why none acts."""
    for daemon in controllers_of(cluster):
        figures = {name: metric(daemon, f"kvcontroller_{name}")
                   for name in ("etcd_up", "serving", "has_leader", "etcd_elected")}
        assert figures == {"etcd_up": figures["etcd_up"] if up is None else up, "serving": 0,
                           "has_leader": 0, "etcd_elected": 0}, f"{daemon['name']}: {figures}"
        status, ready = page(daemon, "/readyz")
        assert status == 503 and words in " ".join(ready["reasons"]), (daemon["name"], ready)
    status = cluster.kvctl("status", "--request-timeout", "1s")
    said = status.stdout + status.stderr
    assert status.returncode != 0 and words in said, said
    return True


class LightTraffic(Traffic):
    """Two clusters share this machine."""

    def __init__(self, cluster):
        super().__init__(cluster)
        self.workload = Workload(cluster, "table", threads=2, keys=24, pause=0.02)
        self.inserts = Inserts(cluster, "table", threads=1, pause=0.02)


class KilledEtcd(ChaosCluster):
    """Three controllers and a local etcd of one member, which is killed."""

    def __init__(self, directory):
        super().__init__(directory, "--controllers", "3", "--nodes", "3", "--spares", "0",
                         "--metadata", "etcd", environment=ENVIRONMENT)

    def take_etcd(self):
        os.kill(self.etcd_pid(), signal.SIGKILL)

    def return_etcd(self):
        self.start("etcd-1")


class PausedEtcd(OneController):
    """One controller and an etcd of three members, which are stopped where they are."""

    def __init__(self, directory):
        self.etcd = Etcd(directory.with_name("members"))
        self.etcd.leader()
        super().__init__(directory, "--nodes", "3", "--spares", "0", environment=ENVIRONMENT | {
            "KVCONTROLLERD_METADATA": "etcd", "KVCONTROLLERD_ETCD_ENDPOINTS": self.etcd.endpoints})

    def take_etcd(self):
        self.etcd.signal_all(signal.SIGSTOP)

    def return_etcd(self):
        self.etcd.signal_all(signal.SIGCONT)


@pytest.fixture
def clusters(tmp_path):
    """Both at once: a minute is long."""
    made = []
    try:
        for form in (KilledEtcd, PausedEtcd):
            made.append(form(tmp_path / form.__name__))
            made[-1].up()
        yield made
    finally:
        for cluster in made:
            close(cluster)
            if isinstance(cluster, PausedEtcd):
                cluster.etcd.close()


def test_etcd_down_for_a_minute(clusters, record_property):
    with ExitStack() as stack:
        traffics = [stack.enter_context(LightTraffic(cluster)) for cluster in clusters]
        under_way = [start_split(cluster, "--to", "2" if cluster.group_of("table")["id"] == 1
                                 else "1") for cluster in clusters]
        for cluster, operation in zip(clusters, under_way):
            wait_for(lambda: shown(cluster, operation)["step"] == "copying", what="a copy")
        leaders = [next(group["leader"] for group in cluster.groups()
                        if group["id"] == shards(cluster)[0]["group"]) for cluster in clusters]
        terms = [cluster.terms_acted() for cluster in clusters]
        for cluster in clusters:
            cluster.take_etcd()
        began = time.monotonic()
        for cluster in clusters:
            wait_for(lambda: assert_that_nobody_acts(cluster, SILENT, up=0), 20, "the word")
            for name in NAMES[:len(controllers_of(cluster))]:
                assert SILENT in cluster.log_of(name)
        print(f"said after {time.monotonic() - began:.1f} s at the latest")
        # Leaders fail over without a controller and without etcd.
        for cluster, leader in zip(clusters, leaders):
            cluster.kill(leader)
        while time.monotonic() < began + MINUTE:
            for traffic in traffics:
                traffic.go_on()
            for cluster in clusters:
                assert_that_nobody_acts(cluster, SILENT, up=0)
            time.sleep(1)
        for cluster in clusters:
            cluster.return_etcd()
        ended = time.monotonic()
        for cluster, operation, leader in zip(clusters, under_way, leaders):
            cluster.wait_for_acting(seconds=30)
            took = time.monotonic() - ended
            record_property("outage", f"{type(cluster).__name__}: acts after {took:.1f} s")
            for daemon in controllers_of(cluster):
                wait_for(lambda: metric(daemon, "kvcontroller_etcd_up") == 1, what="etcd_up 1")
                wait_for(lambda: page(daemon, "/readyz")[0] == 200, what="readiness")
            cluster.start(leader)
            one = wait_for_end(cluster, operation)
            assert one["step"] == "done", one
            create(cluster, "after")
        for traffic in traffics:
            traffic.go_on()
    for cluster, traffic, before in zip(clusters, traffics, terms):
        traffic.check()
        assert len(cluster.terms_acted()) > len(before)
        cluster.check_nothing_was_decided_twice(shards_per_table=None)
        cluster.wait_until_equal()
        for daemon in controllers_of(cluster):
            assert is_alive(daemon["pid"])


class LostEtcd(ChaosCluster):
    """Three controllers with a backup and a local etcd of one member, which somebody tampers with."""

    def __init__(self, directory):
        self.backup = directory.with_name("backup")
        self.by_hand = {}
        super().__init__(directory, "--controllers", "3", "--nodes", "3", "--spares", "0",
                         "--metadata", "etcd",
                         environment={"KVCONTROLLERD_BACKUP_TO": str(self.backup)})

    def etcd_words(self):
        """The command line of etcd."""
        return Path(f"/proc/{self.etcd_pid()}/cmdline").read_text().split("\0")[:-1]

    def etcdctl(self, *words, member=None):
        """Runs etcdctl; `member` is the command line of the etcd, where it does not run."""
        words_of = member or self.etcd_words()
        endpoint = words_of[words_of.index("--advertise-client-urls") + 1]
        result = subprocess.run(["etcdctl", "--endpoints", endpoint, *map(str, words)], text=True,
                                capture_output=True, env=os.environ | {"ETCDCTL_API": "3"})
        assert result.returncode == 0, result.stderr
        return result.stdout

    def mutations(self):
        """What changes with every mutation, and with nothing else."""
        return json.loads(self.etcdctl("get", "rangekeeper/head", "-w", "json")).get("kvs")

    def restore_etcd(self, snapshot):
        """As the manual of etcd has it: the member begins anew from the snapshot."""
        member = self.etcd_words()
        os.kill(self.etcd_pid(), signal.SIGKILL)
        data = Path(member[member.index("--data-dir") + 1])
        wait_for(lambda: self.etcd_pid() is None, what="the end of etcd")
        shutil.rmtree(data)
        same = [word for flag in ("--name", "--initial-cluster", "--initial-advertise-peer-urls",
                                  "--data-dir")
                for word in (flag, member[member.index(flag) + 1])]
        self.etcdctl("snapshot", "restore", snapshot, *same, member=member)
        self.start("etcd-1")

    def seen(self, name):
        """The revision that a controller notes to have seen."""
        path = self.directory / name / "data" / "etcd" / "seen"
        return int(path.read_text().split()[1]) if path.exists() else 0

    def restart_controllers(self):
        """Kills all and starts them again. `playground start` would wait until one acts."""
        commands = {name: Path(f"/proc/{self.pid(name)}/cmdline").read_bytes().split(b"\0")[:-1]
                    for name in NAMES}
        self.kill(*NAMES)
        for name, command in commands.items():
            self.start_by_hand(name, command)
        return commands

    def start_by_hand(self, name, command):
        with (self.directory / "logs" / f"{name}.log").open("ab") as log:
            self.by_hand[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | self.environment)

    def stop_by_hand(self):
        for process in self.by_hand.values():
            process.terminate()
        for process in self.by_hand.values():
            process.wait(timeout=30)
        self.by_hand.clear()

    def assert_that_it_is_over(self, words):
        """Nobody decides, everybody says why, and it stays so."""
        def say():
            try:
                for daemon in controllers_of(self):
                    assert metric(daemon, "kvcontroller_etcd_history_lost") == 1, daemon["name"]
                return assert_that_nobody_acts(self, words)
            except OSError as error:
                raise AssertionError(f"a controller does not answer: {error}") from None
        wait_for(say, 30, f"the word that {words}")
        before, terms = self.mutations(), self.terms_acted()
        refused = self.kvctl("table", "create", "never", "--request-timeout", "2s")
        assert refused.returncode != 0 and words in refused.stderr, refused.stderr
        say()
        assert (self.mutations(), self.terms_acted()) == (before, terms), "somebody decided"
        for name in NAMES:
            said = [line for line in self.log_of(name).splitlines()
                    if '"level":"error"' in line and words in line]
            assert said, f"{name} did not say so"


@contextmanager
def writing(cluster):
    """A client that writes and reads meanwhile."""
    client = Client(cluster)
    client.start()
    try:
        yield client
    finally:
        client.stop()


@pytest.fixture
def lost(tmp_path):
    if shutil.which("etcdctl") is None:
        pytest.skip("etcdctl is not installed (see: make deps)")
    cluster = LostEtcd(tmp_path / "cluster")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.stop_by_hand()
        close(cluster)


def test_etcd_restored_from_an_older_snapshot(lost, tmp_path):
    """Under running controllers, and again with controllers that are started after it. Then what the runbook
    says: the newest backup comes back, below the same prefix."""
    create(lost, "early")
    lost.etcdctl("snapshot", "save", tmp_path / "snapshot")
    older = lost.json("status")["revision"]
    for number in range(5):
        create(lost, f"later{number}")
    create(lost, "t")
    for name in NAMES:
        wait_for(lambda: lost.seen(name) > older, what="a note of what was seen")
    with writing(lost) as client:
        lost.restore_etcd(tmp_path / "snapshot")
        lost.assert_that_it_is_over("went back")
        assert all(is_alive(lost.pid(name)) for name in NAMES)
        commands = lost.restart_controllers()
        lost.assert_that_it_is_over("was an older backup of etcd restored?")
        written = client.done
        wait_for(lambda: client.done > written + 50, what="writes without controllers")

        lost.stop_by_hand()
        for name in NAMES:
            shutil.move(lost.directory / name / "data", tmp_path / f"{name}.lost")
        member = lost.etcd_words()
        endpoint = member[member.index("--advertise-client-urls") + 1]
        into = lost.directory / NAMES[0] / "data"
        into.mkdir()
        nodes = ",".join(daemon["rpc"] for name, daemon in lost.daemons.items() if "node" in name)
        done = run("kvctl", "restore", "--from", lost.backup, "--into", into, "--name", NAMES[0],
                   "--peers", f"{NAMES[0]}={lost.daemons[NAMES[0]]['rpc']}", "--nodes", nodes)
        assert done.returncode == 0, done.stdout + done.stderr
        # With its metadata embedded for a moment.
        command = [word.decode() for word in commands[NAMES[0]]]
        for flag in ("--metadata", "--etcd-endpoints"):
            at = command.index(flag)
            del command[at:at + 2]
        lost.start_by_hand(NAMES[0], command)
        lost.wait_for_acting()
        lost.etcdctl("del", "--prefix", "rangekeeper/")
        done = lost.kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints", endpoint)
        assert done.returncode == 0, done.stdout + done.stderr
        lost.stop_by_hand()
        for name in NAMES:
            lost.start(name)
        lost.wait_for_acting()
        assert set(lost.tables()) == {"early", "t"} | {f"later{number}" for number in range(5)}
        create(lost, "last")
    assert client.done > written and len(client.failures) < 5, client.failures[:5]
    lost.wait_until_healthy()
    lost.check_nothing_was_decided_twice()


def test_the_prefix_deleted_in_etcd(lost):
    create(lost, "t")
    for name in NAMES:
        wait_for(lambda: lost.seen(name), what="a note of what was seen")
    with writing(lost) as client:
        lost.etcdctl("del", "--prefix", "rangekeeper/")
        lost.assert_that_it_is_over("was deleted")
        lost.restart_controllers()
        lost.assert_that_it_is_over("is gone")
        written = client.done
        wait_for(lambda: client.done > written + 50, what="writes without controllers")
    assert not client.failures, client.failures[:5]
    for name in NAMES:
        message = re.findall(r"cluster ([0-9a-f]{16}) at revision \d+ was there", lost.log_of(name))
        assert message, "the cluster is not named"
