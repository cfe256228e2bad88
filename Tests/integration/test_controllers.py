"""Three controllers as real processes: the acting one is killed, paused and cut off; operations go on,
nothing is decided twice, and what a dead disk took is replaced."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter

import pytest
import redis

from conftest import BINARIES, Cluster, is_alive, run, wait_for
from test_partitions import NetworkCluster

pytestmark = pytest.mark.fault

NAMES = ["controller-1", "controller-2", "controller-3"]


class Controllers(Cluster):
    def list(self):
        return self.json("controller", "list")

    def acting(self):
        """The name of the controller that acts now, None when none does."""
        return next((answer["name"] for answer in self.list()["answers"]
                     if answer.get("acting")), None)

    def wait_for_acting(self, *but, seconds=30):
        def check():
            name = self.acting()
            return name if name and name not in but else None
        return wait_for(check, seconds, "an acting controller")

    def wait_for_members(self, *names, seconds=30):
        """Exactly these are members, all of them answer, and none lags."""
        def check():
            members = self.json("status")["controllers"]
            assert sorted(m["name"] for m in members) == sorted(names), members
            assert all(m["state"] == "member" and m["reachable"] and m["lag"] < 10
                       for m in members), members
            return True
        wait_for(check, seconds, f"the members {names}")

    def tables(self):
        return {table["name"]: table for table in self.json("table", "list")["tables"]}

    def log_of(self, name):
        return (self.directory / "logs" / f"{name}.log").read_text(errors="replace")

    def terms_acted(self):
        """In which controller terms each controller acted, by its own log."""
        terms = []
        for name in NAMES:
            terms += re.findall(r'"message":"acts in term (\d+) ', self.log_of(name))
        return [int(term) for term in terms]

    def check_nothing_was_decided_twice(self, shards_per_table=1):
        """`shards_per_table` is None where tables were split."""
        terms = Counter(self.terms_acted())
        assert max(terms.values()) == 1, f"two controllers acted in one term: {terms}"
        tables = list(self.tables().values())
        ids = Counter(table["id"] for table in tables)
        assert max(ids.values(), default=1) == 1, ids
        shards = self.json("shards")["shards"]
        ids = Counter(shard["id"] for shard in shards)
        assert max(ids.values(), default=1) == 1, ids
        per_table = Counter(shard["table"] for shard in shards if shard["state"] != "dropping")
        for table in tables:
            if table["state"] == "active":
                assert per_table[table["name"]] == table["shards"], table
                assert shards_per_table in (None, table["shards"]), table
        groups = self.json("groups")["groups"]
        replicas = Counter(r["replica"] for group in groups for r in group["replicas"])
        assert max(replicas.values()) == 1, replicas


@pytest.fixture
def controllers(tmp_path):
    cluster = Controllers(tmp_path / "cluster", "--controllers", "3")
    try:
        cluster.up()
        cluster.wait_for_members(*NAMES)
        yield cluster
    finally:
        for name, daemon in cluster.daemons.items():
            if daemon["pid"] and is_alive(daemon["pid"]):
                os.kill(daemon["pid"], signal.SIGCONT)
        cluster.kvctl("playground", "down")


class Creator(threading.Thread):
    """Creates tables one after the other by the router and notes how each attempt ended."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.ending = cluster, threading.Event()
        self.created, self.uncertain = [], []

    def run(self):
        number = 0
        while not self.ending.is_set():
            number += 1
            name = f"made{number}"
            try:
                with self.cluster.redis(timeout=15) as client:
                    client.execute_command("KV.CREATE", name)
                self.created.append(name)
            except redis.RedisError:
                self.uncertain.append(name)

    def stop(self):
        self.ending.set()
        self.join()


def test_a_killed_acting_controller_is_replaced(controllers):
    result = controllers.kvctl("table", "create", "before")
    assert result.returncode == 0, result.stderr
    first = controllers.acting()
    controllers.kill(first)
    result = controllers.kvctl("table", "create", "after")
    assert result.returncode == 0, result.stderr
    second = controllers.acting()
    assert second not in (None, first)
    assert set(controllers.tables()) == {"before", "after"}
    status = controllers.json("status")
    assert status["verdict"] == "degraded"
    assert f"controller {first} does not answer" in " ".join(status["findings"])
    doctor = controllers.json("doctor")
    assert doctor["verdict"] == "degraded"
    assert "RK002" in {finding["code"] for finding in doctor["findings"]}
    texts = [decision["text"] for decision in controllers.json("why")["decisions"]]
    assert any(text.startswith("acts in term") and text.endswith(second) for text in texts)
    # A standby says who acts, and kvctl goes there.
    standby = next(name for name in NAMES if name not in (first, second))
    answer = run("kvctl", "table", "list", "-o", "json", "--controllers",
                 controllers.daemons[standby]["rpc"])
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["tables"]) == 2
    controllers.start(first)
    controllers.wait_for_members(*NAMES)
    controllers.wait_until_healthy()
    controllers.check_nothing_was_decided_twice()


def test_kills_during_table_creations(controllers):
    creator = Creator(controllers)
    creator.start()
    try:
        for _ in range(4):
            before = len(creator.created)
            wait_for(lambda: len(creator.created) > before, what="a creation")
            victim = controllers.wait_for_acting()
            controllers.kill(victim)
            controllers.wait_for_acting(victim)
            before = len(creator.created)
            wait_for(lambda: len(creator.created) > before, what="a creation after the kill")
            controllers.start(victim)
            controllers.wait_for_members(*NAMES)
    finally:
        creator.stop()
    # A creation with an unknown end is finished by the next controller, or was never begun.
    wait_for(lambda: all(table["state"] == "active" for table in controllers.tables().values()),
             what="finished creations")
    tables = controllers.tables()
    assert set(creator.created) <= set(tables), "an acknowledged table is gone"
    assert set(tables) <= set(creator.created) | set(creator.uncertain)
    controllers.check_nothing_was_decided_twice()


def test_a_paused_acting_controller_is_deposed(controllers):
    first = controllers.acting()
    controllers.pause(first)
    others = ",".join(controllers.daemons[name]["rpc"] for name in NAMES if name != first)
    result = run("kvctl", "table", "create", "meanwhile", "--request-timeout", "20s",
                 "--controllers", others)
    assert result.returncode == 0, result.stderr
    controllers.resume(first)
    controllers.wait_for_members(*NAMES)
    controllers.wait_for_acting()
    assert len(controllers.terms_acted()) >= 2
    assert "meanwhile" in controllers.tables()
    controllers.check_nothing_was_decided_twice()


def test_a_replacement_survives_its_controllers(controllers):
    assert controllers.kvctl("table", "create", "t").returncode == 0
    with controllers.redis() as client:
        for number in range(500):
            client.hset("t", f"k{number}", "v" * 1000)
    result = controllers.kvctl("replace", "node-1", "--no-wait")
    assert result.returncode == 0, result.stderr
    for _ in range(2):
        victim = controllers.wait_for_acting()
        controllers.kill(victim)
        controllers.wait_for_acting(victim)
        controllers.start(victim)
        controllers.wait_for_members(*NAMES)

    def done():
        groups = controllers.json("groups")["groups"]
        for group in groups:
            nodes = sorted(replica["node"] for replica in group["replicas"])
            assert nodes == ["node-2", "node-3", "node-4"], group
        return groups
    wait_for(done, 60, "the end of the replacement")
    def ended():
        operations = controllers.json("ops", "list")["operations"]
        assert operations and all(op["finished"] for op in operations), operations
        return operations
    operations = wait_for(ended, 60, "the end of all operations")
    assert all(op["step"] == "done" for op in operations), operations
    per_group = Counter(op["group"] for op in operations if op.get("group"))
    assert sorted(per_group.values()) == [1, 1], operations
    with controllers.redis() as client:
        assert client.hlen("t") == 500
    controllers.check_nothing_was_decided_twice()


def test_the_data_plane_serves_without_controllers(controllers):
    assert controllers.kvctl("table", "create", "t").returncode == 0
    with controllers.redis() as client:
        client.hset("t", "a", "1")
    controllers.kill(*NAMES)
    with controllers.redis() as client:
        client.hset("t", "b", "2")
        assert client.hget("t", "a") == b"1"
    # The nodes speak for themselves.
    status = controllers.kvctl("status")
    assert status.returncode == 5 and status.stdout.startswith("uncontrolled: "), status
    assert controllers.kvctl("groups").returncode == 3
    # The leader of the table's group dies as well: its replicas elect by themselves.
    for name in ("node-1", "node-2"):
        controllers.kill(name)

        def write():
            with controllers.redis(timeout=5) as client:
                client.hset("t", f"after {name}", "3")
            return True
        wait_for(write, what=f"a write after the death of {name}")
        # kvctl would wait for a controller.
        restart_by_hand(controllers, name, controllers.daemons[name])
    # One controller is no majority: it says so and changes nothing.
    restart_by_hand(controllers, "controller-1", controllers.daemons["controller-1"])

    def alone():
        answers = controllers.list()["answers"]
        return [a for a in answers if a.get("name") == "controller-1"]
    answer = wait_for(alone, what="controller-1")[0]
    assert not answer["acting"] and not answer["leader"]
    shown = controllers.kvctl("controller", "list").stdout
    assert "controller-2 does not answer: cannot connect to 127.0.0.1:" in shown, shown
    result = controllers.kvctl("table", "create", "no", "--request-timeout", "1s")
    assert result.returncode != 0
    assert "does not act" in result.stderr
    for name in ("controller-2", "controller-3"):
        restart_by_hand(controllers, name, controllers.daemons[name])
    controllers.wait_for_members(*NAMES)
    result = controllers.kvctl("table", "create", "yes")
    assert result.returncode == 0, result.stderr
    assert set(controllers.tables()) == {"t", "yes"}
    with controllers.redis() as client:
        assert client.hget("t", "b") == b"2"
    controllers.check_nothing_was_decided_twice()
    for process in BY_HAND:
        process.terminate()
    for process in BY_HAND:
        process.wait(timeout=30)
    BY_HAND.clear()


BY_HAND = []


def restart_by_hand(cluster, name, daemon):
    """Starts a daemon as the playground would, without waiting for anything."""
    kind = name.partition("-")[0]
    program = {"controller": "kvcontrollerd", "node": "kvnode"}[kind]
    daemons = cluster.daemons
    addresses = ",".join(daemons[other]["rpc"] for other in NAMES)
    arguments = ["--name", name, "--listen-admin", daemon["admin"], "--listen-rpc", daemon["rpc"]]
    if kind == "controller":
        peers = ",".join(f"{other}={daemons[other]['rpc']}" for other in NAMES)
        arguments += ["--data", cluster.directory / name / "data", "--peers", peers]
    else:
        arguments += ["--data", ",".join(daemon["data"]), "--controllers", addresses]
    with open(cluster.directory / "logs" / f"{name}.log", "ab") as log:
        BY_HAND.append(subprocess.Popen(
            [BINARIES / program, *map(str, arguments)], stdout=log, stderr=log,
            stdin=subprocess.DEVNULL))


def test_a_wiped_controller_is_removed_and_added_anew(controllers):
    assert controllers.kvctl("table", "create", "t").returncode == 0
    victim = next(name for name in NAMES if name != controllers.acting())
    address = controllers.daemons[victim]["rpc"]
    controllers.kill(victim)
    shutil.rmtree(controllers.directory / victim / "data")
    controllers.start(victim)
    wait_for(lambda: any(c["name"] == victim and c["state"] == "empty"
                         for c in controllers.json("status")["controllers"]),
             what="the notice that the disk is empty")
    result = controllers.kvctl("controller", "remove", victim)
    assert result.returncode == 0, result.stderr
    controllers.wait_for_members(*[name for name in NAMES if name != victim])
    result = controllers.kvctl("controller", "add", victim, address)
    assert result.returncode == 0, result.stderr
    controllers.wait_for_members(*NAMES)
    # It counts: with another one dead the two others, it among them, are a majority.
    other = controllers.acting()
    controllers.kill(other)
    result = controllers.kvctl("table", "create", "u")
    assert result.returncode == 0, result.stderr
    assert set(controllers.tables()) == {"t", "u"}
    controllers.start(other)
    controllers.wait_for_members(*NAMES)
    controllers.check_nothing_was_decided_twice()


def test_an_addition_that_does_not_get_on_says_why(controllers):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
    with subprocess.Popen(
            [BINARIES / "kvctl", "controller", "add", "another", address, "--dir",
             controllers.directory], stderr=subprocess.PIPE, text=True) as adding:
        wait_for(lambda: any(c["name"] == "another" and "refused" in c.get("problem", "")
                             for c in controllers.json("status")["controllers"]),
                 what="the reason")
        assert "controller another is joining and does not answer" in \
            " ".join(controllers.json("status")["findings"])
        assert "or: kvctl controller remove another" in \
            " ".join(finding["advice"] for finding in controllers.json("doctor")["findings"])
        time.sleep(1)
        adding.send_signal(signal.SIGINT)
        _, said = adding.communicate(timeout=30)
    assert adding.returncode == 130, said
    assert "not done yet: " in said and "refused" in said, said
    assert "kvctl controller remove another" in said, said
    assert controllers.kvctl("controller", "remove", "another").returncode == 0
    controllers.wait_for_members(*NAMES)


def test_controllers_are_removed_while_a_majority_stays(controllers):
    # With one that does not answer, the two others are needed.
    acting = controllers.acting()
    paused, live = [name for name in NAMES if name != acting]
    controllers.pause(paused)
    wait_for(lambda: any(not c["reachable"] for c in controllers.json("status")["controllers"]),
             what="the notice that it does not answer")
    result = controllers.kvctl("controller", "remove", live)
    assert result.returncode == 7, result.stderr
    assert f"start {paused} first" in result.stderr
    controllers.resume(paused)
    controllers.wait_for_members(*NAMES)
    # The acting one goes: another takes over.
    result = controllers.kvctl("controller", "remove", acting)
    assert result.returncode == 0, result.stderr
    rest = [name for name in NAMES if name != acting]
    controllers.wait_for_members(*rest)
    successor = controllers.wait_for_acting()
    assert successor in rest
    # Started again, it has a copy that nobody counts any more.
    controllers.kill(acting)
    controllers.start(acting)
    wait_for(lambda: f"controller {acting} at {controllers.daemons[acting]['rpc']} runs on a copy"
             in " ".join(controllers.json("status")["findings"]), what="word of the removed one")
    result = controllers.kvctl("controller", "remove",
                               next(name for name in rest if name != successor))
    assert result.returncode == 0, result.stderr
    result = controllers.kvctl("controller", "remove", successor)
    assert result.returncode == 7, result.stderr
    assert "only controller" in result.stderr
    assert controllers.kvctl("table", "create", "t").returncode == 0


class ControllerNetwork(NetworkCluster, Controllers):
    HOSTS = {"controller-1": 1, "controller-2": 2, "controller-3": 3, "node-1": 11, "node-2": 12,
             "node-3": 13, "router-1": 21}

    def all_acting(self):
        return [answer["name"] for answer in self.list()["answers"] if answer.get("acting")]


@pytest.fixture
def controller_network(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    cluster = ControllerNetwork(tmp_path / "network")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def test_an_acting_controller_cut_off_from_the_others(controller_network):
    """The nodes still hear the old one: it must not go on all the same."""
    network = controller_network
    first = network.wait_for_acting()
    others = [name for name in NAMES if name != first]
    for other in others:
        network.cut_both(first, other)
    second = network.wait_for_acting(first)
    assert network.all_acting() == [second], "the one that is cut off acts no more"
    result = network.kvctl("table", "create", "u", "--request-timeout", "20s")
    assert result.returncode == 0, result.stderr
    network.heal()

    def whole():
        status = json.loads(network.kvctl("status", "-o", "json").stdout)
        assert all(c["reachable"] for c in status["controllers"]), status["controllers"]
        assert status["verdict"] == "healthy", status["findings"]
        return status
    status = wait_for(whole, what="a healthy cluster")
    assert sum(c["acting"] for c in status["controllers"]) == 1
    tables = json.loads(network.kvctl("table", "list", "-o", "json").stdout)["tables"]
    assert sorted(table["name"] for table in tables) == ["t", "u"]
