"""Metadata in etcd, with real processes: members of etcd and controllers are killed and paused, history is
compacted away, and with etcd down the data plane goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from base64 import b64decode, b64encode
from datetime import datetime, timezone
from pathlib import Path

import pytest
import redis

from conftest import is_alive, run, wait_for
from test_controllers import Controllers, Creator
from test_metrics import documented, scrape, value

ETCD = shutil.which("etcd") or ("/usr/bin/etcd" if os.path.exists("/usr/bin/etcd") else None)
pytestmark = [pytest.mark.fault,
              pytest.mark.skipif(ETCD is None, reason="etcd is not installed (see: make deps)")]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports


class Etcd:
    """An etcd of a few members, each a process with its data below `directory`."""

    def __init__(self, directory, members=3, scheme="http", flags=()):
        self.directory, self.scheme, self.flags = Path(directory), scheme, list(flags)
        self.directory.mkdir(parents=True)
        ports = free_ports(2 * members)
        self.clients, self.peers = ports[:members], ports[members:]
        self.processes = [None] * members
        for index in range(members):
            self.start(index)

    def start(self, index):
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(self.peers))
        client = f"{self.scheme}://127.0.0.1:{self.clients[index]}"
        peer = f"http://127.0.0.1:{self.peers[index]}"
        with (self.directory / f"m{index}.log").open("ab") as log:
            self.processes[index] = subprocess.Popen(
                [ETCD, "--name", f"m{index}", "--data-dir", self.directory / f"m{index}",
                 "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--initial-cluster", cluster, "--log-level", "error", *self.flags],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def endpoints(self):
        return ",".join(f"{self.scheme}://127.0.0.1:{port}" for port in self.clients)

    def ask(self, index, path, body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.clients[index]}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=3) as answer:
            return json.loads(answer.read())

    def leader(self):
        """The index of the member that leads."""
        def find():
            for index, process in enumerate(self.processes):
                if process and process.poll() is None:
                    try:
                        status = self.ask(index, "maintenance/status", {})
                    except OSError:
                        continue
                    if status.get("leader") == status["header"]["member_id"]:
                        return index, True
            return None
        return wait_for(find, what="a leader of etcd")[0]

    def compact(self):
        leader = self.leader()
        head = self.ask(leader, "kv/range", {"key": b64encode(b"rangekeeper/head").decode()})
        self.ask(leader, "kv/compaction", {"revision": head["header"]["revision"],
                                           "physical": True})

    def kill(self, index):
        self.processes[index].kill()
        self.processes[index].wait()

    def signal_all(self, number):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def close(self):
        self.signal_all(signal.SIGCONT)
        for index, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(index)
            shutil.rmtree(self.directory / f"m{index}", ignore_errors=True)


class OneController(Controllers):
    def log_of(self, name):
        return super().log_of(name) if name in self.daemons else ""


def metric(daemon, name):
    with urllib.request.urlopen(f"http://{daemon['admin']}/metrics", timeout=3) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
    return None


def close(cluster):
    if (cluster.directory / "playground.json").exists():
        for daemon in cluster.daemons.values():
            if daemon["pid"] and is_alive(daemon["pid"]):
                os.kill(daemon["pid"], signal.SIGCONT)
    cluster.kvctl("playground", "down")


@pytest.fixture
def etcd(tmp_path):
    etcd = Etcd(tmp_path / "etcd")
    try:
        etcd.leader()
        yield etcd
    finally:
        etcd.close()


@pytest.fixture
def on_etcd(tmp_path, etcd):
    """A cluster with one controller, whose metadata is in three members of etcd."""
    cluster = OneController(tmp_path / "cluster", environment={
        "KVCONTROLLERD_METADATA": "etcd", "KVCONTROLLERD_ETCD_ENDPOINTS": etcd.endpoints})
    try:
        cluster.up()
        yield cluster
    finally:
        close(cluster)


@pytest.fixture
def controllers(tmp_path):
    """Three controllers and a local etcd."""
    cluster = Controllers(tmp_path / "cluster", "--metadata", "etcd", "--controllers", "3")
    try:
        cluster.up()
        yield cluster
    finally:
        close(cluster)


def create(cluster, name, *flags):
    result = cluster.kvctl("table", "create", name, *flags)
    assert result.returncode == 0, f"{result.stderr}\n{cluster.log_tails()}"


def test_a_killed_acting_controller_is_replaced(controllers):
    create(controllers, "before")
    first = controllers.wait_for_acting()
    creator = Creator(controllers)
    creator.start()
    controllers.kill(first)
    second = controllers.wait_for_acting(first)
    create(controllers, "after")
    creator.stop()
    controllers.start(first)
    wait_for(lambda: len(controllers.json("status")["controllers"]) == 3,
             what="three controllers")
    # One that is stopped as it should be gives its place away at once.
    assert controllers.kvctl("playground", "stop", second).returncode == 0
    third = controllers.wait_for_acting(second)
    create(controllers, "last")
    assert third != second
    tables = set(controllers.tables())
    assert {"before", "after", "last"} | set(creator.created) <= tables
    assert tables - {"before", "after", "last"} <= set(creator.created + creator.uncertain)
    controllers.check_nothing_was_decided_twice()


def test_a_paused_acting_controller_is_deposed(controllers):
    first = controllers.wait_for_acting()
    controllers.pause(first)
    second = controllers.wait_for_acting(first)
    create(controllers, "meanwhile")
    controllers.resume(first)
    create(controllers, "later")
    assert controllers.wait_for_acting() == second
    assert set(controllers.tables()) == {"meanwhile", "later"}
    controllers.check_nothing_was_decided_twice()


def test_playground_keeps_its_metadata_over_a_restart(controllers):
    # More shards than one transaction of etcd has operations.
    create(controllers, "many", "--partition", "hash", "--vranges", "600")
    with controllers.redis() as client:
        client.hset("many", mapping={f"k{i}": f"v{i}" for i in range(100)})
    before = controllers.tables()
    controllers.down()
    controllers.up()
    assert controllers.tables()["many"]["id"] == before["many"]["id"]
    assert controllers.tables()["many"]["shards"] == 600
    with controllers.redis() as client:
        assert client.hget("many", "k42") == b"v42"
    refused = controllers.kvctl("controller", "add", "another", "127.0.0.1:1")
    assert refused.returncode != 0 and "etcd" in refused.stderr
    asked = controllers.json("audit")["commands"][-1]
    assert (asked["verb"], asked["outcome"]) == ("controller.add", "refused"), asked
    refused = controllers.kvctl("playground", "up", "--metadata", "embedded", "--detach")
    assert refused.returncode != 0 and "--metadata etcd" in refused.stderr


def test_a_killed_leader_of_etcd(on_etcd, etcd):
    creator = Creator(on_etcd)
    creator.start()
    for _ in range(2):
        made = len(creator.created)
        leader = etcd.leader()
        etcd.kill(leader)
        wait_for(lambda: len(creator.created) > made + 3, what="tables without the killed member")
        etcd.start(leader)
        made = len(creator.created)
        wait_for(lambda: len(creator.created) > made + 3, what="tables with it again")
    creator.stop()
    tables = set(on_etcd.tables())
    assert set(creator.created) <= tables
    assert tables <= set(creator.created + creator.uncertain)
    on_etcd.check_nothing_was_decided_twice()


def test_compaction_takes_nothing_away(on_etcd, etcd):
    creator = Creator(on_etcd)
    creator.start()
    for _ in range(5):
        made = len(creator.created)
        etcd.compact()
        wait_for(lambda: len(creator.created) > made + 1, what="tables after the compaction")
    # The one member that the watch may hang on goes, and with it the place of the watch.
    on_etcd.pause("controller-1")
    etcd.kill(0)
    etcd.compact()
    etcd.start(0)
    on_etcd.resume("controller-1")
    made = len(creator.created)
    wait_for(lambda: len(creator.created) > made + 1, what="tables after the pause")
    creator.stop()
    assert set(creator.created) <= set(on_etcd.tables())
    on_etcd.kill("controller-1")
    on_etcd.start("controller-1")
    on_etcd.wait_for_acting()
    assert set(creator.created) <= set(on_etcd.tables())
    on_etcd.check_nothing_was_decided_twice()


class Client(threading.Thread):
    """Writes and reads all the time; remembers what failed."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.ending = cluster, threading.Event()
        self.done, self.failures = 0, []

    def run(self):
        with self.cluster.redis() as client:
            while not self.ending.is_set():
                try:
                    client.hset("t", f"k{self.done}", self.done)
                    assert int(client.hget("t", f"k{self.done}")) == self.done
                    self.done += 1
                except (redis.RedisError, AssertionError) as error:
                    self.failures.append(repr(error))
                self.ending.wait(0.005)

    def stop(self):
        self.ending.set()
        self.join()


def test_etcd_down_for_a_while(on_etcd, etcd):
    create(on_etcd, "t")
    leader = on_etcd.group_of("t")["leader"]
    client = Client(on_etcd)
    client.start()
    controller = on_etcd.daemons["controller-1"]
    etcd.signal_all(signal.SIGSTOP)
    wait_for(lambda: metric(controller, "kvcontroller_etcd_up") == 0, what="etcd_up 0")
    wait_for(lambda: metric(controller, "kvcontroller_serving") == 0, what="serving 0")
    status = on_etcd.kvctl("status")
    words = status.stdout + status.stderr
    assert status.returncode != 0 and "etcd does not answer" in words, words
    assert "etcd does not answer" in on_etcd.log_of("controller-1")
    for question in (["controller", "list"], ["metadata", "show"]):
        told = on_etcd.kvctl(*question)
        assert told.returncode == 5 and "etcd does not answer" in told.stdout, told
        assert "majority" not in told.stderr, told.stderr
    done = client.done
    # Leaders fail over without a controller and without etcd.
    on_etcd.kill(leader)
    wait_for(lambda: client.done > done + 200, seconds=60, what="writes without etcd")
    etcd.signal_all(signal.SIGCONT)
    wait_for(lambda: metric(controller, "kvcontroller_etcd_up") == 1, what="etcd_up 1")
    on_etcd.wait_for_acting()
    on_etcd.start(leader)
    create(on_etcd, "after")
    client.stop()
    # A client that asked while a leader was gone may have been told so, nothing else.
    assert len(client.failures) < 20, client.failures[:5]
    assert is_alive(on_etcd.pid("controller-1"))
    # All members at once, with their data.
    for index in range(3):
        etcd.kill(index)
    wait_for(lambda: metric(controller, "kvcontroller_etcd_up") == 0, what="etcd_up 0")
    for index in range(3):
        etcd.start(index)
    on_etcd.wait_for_acting()
    create(on_etcd, "last")
    assert set(on_etcd.tables()) == {"t", "after", "last"}
    on_etcd.check_nothing_was_decided_twice()


def test_the_audit_log_in_etcd_is_checked_and_not_a_copy_of_it(on_etcd, etcd):
    create(on_etcd, "t")
    assert on_etcd.kvctl("audit", "verify").returncode == 0
    key = b64encode(b"rangekeeper/data/audit/" + (1).to_bytes(8, "big")).decode()
    entry = b64decode(etcd.ask(0, "kv/range", {"key": key})["kvs"][0]["value"])
    changed = entry.replace(b"table.create", b"table.cReate")
    assert changed != entry
    etcd.ask(0, "kv/put", {"key": key, "value": b64encode(changed).decode()})
    verdict = on_etcd.kvctl("audit", "verify")
    assert verdict.returncode == 5 and "entry 1 was changed" in verdict.stdout, verdict


def test_metrics_are_those_of_the_document(on_etcd):
    tables = documented()
    expected = (tables["Every daemon"] | tables["kvcontrollerd"]
                | tables["kvcontrollerd with metadata in etcd"])
    families = scrape(on_etcd.daemons["controller-1"])
    assert set(families) == set(expected), "docs/metrics.md and the daemon differ"
    assert all(families[name][0] == expected[name][0] for name in expected)
    assert metric(on_etcd.daemons["controller-1"], "kvcontroller_etcd_requests_total") > 0
    assert metric(on_etcd.daemons["controller-1"], "kvcontroller_etcd_elected") == 1


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def test_tls_and_users(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path / "pki"
    folder.mkdir()
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca",
            "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    # A certificate with a common name would count as a user of that name.
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/O=rangekeeper",
                "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr")
        openssl("x509", "-req", "-days", "2", "-in", folder / f"{name}.csr",
                "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial",
                "-extfile", folder / "names", "-out", folder / f"{name}.pem")
    etcd = Etcd(tmp_path / "etcd", members=1, scheme="https", flags=[
        "--cert-file", folder / "server.pem", "--key-file", folder / "server.key",
        "--client-cert-auth", "--trusted-ca-file", folder / "ca.pem"])
    tls = ["--cacert", folder / "ca.pem", "--cert", folder / "client.pem",
           "--key", folder / "client.key"]

    def api(path, body):
        answer = subprocess.run(
            ["curl", "-sf", *tls, f"{etcd.endpoints}/v3/{path}", "-d", json.dumps(body)],
            capture_output=True, text=True)
        return answer.returncode == 0

    # The password as systemd hands over what is secret; the key as a setting.
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    password = credentials / "etcd.password.file"
    password.write_text("wrong\n")
    cluster = Controllers(tmp_path / "cluster", environment={
        "KVCONTROLLERD_METADATA": "etcd", "KVCONTROLLERD_ETCD_ENDPOINTS": etcd.endpoints,
        "KVCONTROLLERD_ETCD_CA": str(folder / "ca.pem"),
        "KVCONTROLLERD_ETCD_CERT": str(folder / "client.pem"),
        "KVCONTROLLERD_ETCD_KEY": str(folder / "client.key"),
        "KVCONTROLLERD_ETCD_USER": "root",
        "CREDENTIALS_DIRECTORY": str(credentials)})
    try:
        wait_for(lambda: api("auth/user/add", {"name": "root", "password": "secret"}),
                 what="an etcd that takes users")
        assert api("auth/role/add", {"name": "root"})
        assert api("auth/user/grant", {"user": "root", "role": "root"})
        assert api("auth/enable", {})
        refused = cluster.kvctl("playground", "up", "--port-base", cluster.port_base, "--detach",
                                "--timeout", "5s")
        assert refused.returncode != 0 and "authentication failed" in refused.stderr, \
            refused.stderr
        password.write_text("secret\n")
        cluster.up()
        create(cluster, "t")
        assert set(cluster.tables()) == {"t"}
        assert "secret" not in cluster.log_of("controller-1")
        # The watch has the user's token from the first.
        controller = cluster.info["controllers"][0]
        assert value(controller, "kvcontroller_etcd_images_total") == 1
        assert value(controller, "kvcontroller_etcd_watch_interruptions_total") == 0
        # Families and the ends of the certificates, as documented.
        families = scrape(controller)
        for name, (kind, labels, _) in documented()["kvcontrollerd with metadata in etcd"].items():
            assert families[name][0] == kind, name
            for label, values in labels.items():
                assert {have[label] for _, have, _ in families[name][1]} == values, name
        expiry = "kv_tls_certificate_expiry_timestamp_seconds"
        for use, file in (("etcd_ca", "ca.pem"), ("etcd_client", "client.pem")):
            said = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", folder / file],
                                  check=True, capture_output=True, text=True).stdout
            end = datetime.strptime(said.strip(), "notAfter=%b %d %H:%M:%S %Y GMT")
            assert value(controller, expiry, use=use) == end.replace(tzinfo=timezone.utc).timestamp()
    finally:
        close(cluster)
        etcd.close()


@pytest.mark.parametrize("setting, words", [
    ({"METADATA": "etcd"}, "etcd.endpoints"),
    ({"METADATA": "etcd", "ETCD_ENDPOINTS": "localhost:2379"}, "http://HOST:PORT"),
    ({"ETCD_ENDPOINTS": "http://localhost:2379"}, "metadata = etcd"),
    ({"METADATA": "etcd", "ETCD_ENDPOINTS": "http://localhost:2379", "ETCD_USER": "u"},
     "etcd.password.file"),
    ({"METADATA": "etcd", "ETCD_ENDPOINTS": "http://localhost:2379",
      "PEERS": "c=127.0.0.1:1"}, "peers"),
])
def test_settings_that_contradict_each_other(tmp_path, setting, words):
    result = run("kvcontrollerd", "--name", "c", "--data", tmp_path / "data", timeout=20,
                 env={f"KVCONTROLLERD_{name}": value for name, value in setting.items()})
    assert result.returncode != 0
    assert words in result.stdout + result.stderr
