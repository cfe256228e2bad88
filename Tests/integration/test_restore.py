"""All controllers are lost: the metadata comes back from a backup that is older than the cluster, or from
the nodes alone, and everything that was acknowledged is readable."""

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import Cluster, run, wait_for
from test_backup import create, metrics
from test_controllers import NAMES, Controllers

pytestmark = pytest.mark.fault


class Restored(Cluster):
    def __init__(self, directory, *flags):
        self.place = directory.with_name("backup")
        super().__init__(directory, *flags,
                         environment={"KVCONTROLLERD_BACKUP_TO": str(self.place)})
        self.acknowledged = {}
        self.restarted = []

    def fill(self, table, first, count):
        with self.redis() as client:
            for number in range(first, first + count):
                key, value = f"k{number:05}", f"{table}-{number}"
                client.hset(table, key, value)
                self.acknowledged[table, key] = value

    def missing(self):
        """Acknowledged records that are not read back; retries what is not served yet."""
        lost = []
        with self.redis() as client:
            for (table, key), value in self.acknowledged.items():
                if client.hget(table, key) != value.encode():
                    lost.append((table, key))
        return lost

    def check_everything_is_there(self):
        assert wait_for(lambda: [self.missing()], 60, "answers of all tables") == [[]]

    def work(self, *words):
        result = self.kvctl(*words, timeout=120)
        assert result.returncode == 0, f"{words}: {result.stderr}{result.stdout}"

    def lose_controllers(self, *names):
        self.kill(*names)
        self.lose_data(*names)

    def lose_data(self, *names):
        for name in names:
            data = self.directory / name / "data"
            data.rename(data.with_name("lost"))

    def restart_nodes(self, *names):
        """Kills nodes and starts them again while there is no controller: `playground start` would wait
        for one."""
        commands = [Path(f"/proc/{self.pid(name)}/cmdline").read_bytes().split(b"\0")[:-1]
                    for name in names]
        self.kill(*names)
        return lambda: self.restarted.extend(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for command in commands)

    def rebuild(self, verb, *flags):
        result = self.kvctl(verb, *flags, "-o", "json")
        return json.loads(result.stdout or "null"), result

    def settle(self):
        """Nothing is under way and nothing is left over."""
        def check():
            operations = self.json("ops", "list")["operations"]
            assert all(o["step"] in ("done", "failed", "cancelled") for o in operations), operations
            return True
        wait_for(check, 60, "the end of all operations")
        self.wait_until_healthy(60)


class RestoredControllers(Restored, Controllers):
    """Three of them."""


@pytest.fixture
def restored(tmp_path):
    cluster = Restored(tmp_path / "cluster", "--nodes", "5", "--spares", "1", "--groups", "2")
    try:
        cluster.up()
        yield cluster
    finally:
        for process in cluster.restarted:
            process.terminate()
        for process in cluster.restarted:
            process.wait()
        cluster.kvctl("playground", "down")


def change_much(cluster):
    """Splits, moves, a replaced replica, a node, new and dropped tables: all after the backup."""
    create(cluster, "late")
    cluster.fill("late", 0, 50)
    cluster.work("table", "drop", "doomed", "--yes")
    cluster.work("split", "first", "--at", "k00100", "--wait")
    cluster.fill("first", 200, 50)
    shard = cluster.json("shards", "second")["shards"][0]
    cluster.work("move", str(shard["id"]), "--wait")
    cluster.work("split", "second", "--at", "k00050", "--wait")
    cluster.fill("second", 200, 50)
    node = next(r["node"] for r in cluster.groups()[0]["replicas"])
    cluster.work("replace", node, "--wait")
    cluster.fill("first", 300, 20)


def before(cluster):
    for table in ("first", "second", "doomed"):
        create(cluster, table)
        cluster.fill(table, 0, 200)
    cluster.work("backup", "now")


def test_an_older_backup_and_the_groups_give_the_metadata_back(restored):
    cluster = restored
    before(cluster)
    old = cluster.place.with_name("old")
    shutil.copytree(cluster.place, old)
    change_much(cluster)
    for key in [key for key in cluster.acknowledged if key[0] == "doomed"]:
        del cluster.acknowledged[key]
    shards = {(s["table"], s["start"], s["end"], s["group"], s["epoch"])
              for s in cluster.json("shards")["shards"]}
    groups = {g["id"]: sorted(r["replica"] for r in g["replicas"]) for g in cluster.groups()}
    highest = max(s["id"] for s in cluster.json("shards")["shards"])

    # Refused while a controller acts.
    found, result = cluster.rebuild("restore", "--from", str(old), "--dry-run")
    assert result.returncode == 7, result.stdout
    assert any("stop all controllers" in f["text"] for f in found["findings"]), found
    # And as the target holds metadata, in a dry run as well.
    assert any("holds metadata already" in f["text"] for f in found["findings"]), found

    cluster.lose_controllers("controller-1")
    # The data plane goes on.
    cluster.fill("first", 400, 20)
    assert cluster.missing() == []

    found, result = cluster.rebuild("restore", "--from", str(old), "--dry-run")
    assert result.returncode == 0, result.stderr + result.stdout
    assert not found["written"] and not (cluster.directory / "controller-1" / "data").exists()
    texts = [f["text"] for f in found["findings"]]
    assert any("doomed" in text and "dropped" in text for text in texts), texts
    assert not [f for f in found["findings"] if f["kind"] != "changed"], texts

    found, result = cluster.rebuild("restore", "--from", str(old))
    assert result.returncode == 0 and found["written"], result.stderr
    again, result = cluster.rebuild("restore", "--from", str(old))
    assert result.returncode == 7 and "holds metadata already" in result.stderr
    cluster.start("controller-1")
    cluster.settle()
    cluster.check_everything_is_there()
    assert {(s["table"], s["start"], s["end"], s["group"], s["epoch"])
            for s in cluster.json("shards")["shards"]} == shards
    assert {g["id"]: sorted(r["replica"] for r in g["replicas"])
            for g in cluster.groups()} == groups

    # And it goes on: new tables, splits, moves, under ids that were never there.
    create(cluster, "after")
    cluster.fill("after", 0, 20)
    cluster.work("split", "late", "--at", "k00025", "--wait")
    assert max(s["id"] for s in cluster.json("shards")["shards"]) > highest + 1_000_000
    cluster.check_everything_is_there()
    # The backup goes on behind the old one.
    wait_for(lambda: cluster.json("backup", "status")["lagSeconds"] == 0, 20, "a current backup")
    cluster.work("backup", "verify")


def test_without_any_backup_the_nodes_give_the_metadata_back(restored):
    cluster = restored
    before(cluster)
    change_much(cluster)
    for key in [key for key in cluster.acknowledged if key[0] == "doomed"]:
        del cluster.acknowledged[key]
    shards = {(s["table"], s["start"], s["end"], s["group"], s["epoch"])
              for s in cluster.json("shards")["shards"]}
    cluster.lose_controllers("controller-1")
    shutil.rmtree(cluster.place)
    # Power loss besides: nodes know what is on their disks only.
    names = [name for name in cluster.daemons if name.startswith("node-")]
    cluster.restart_nodes(*names)()

    def dry():
        found, result = cluster.rebuild("recover", "--dry-run")
        assert result.returncode == 0, f"{result.stderr} {result.stdout}"
        return found
    found = wait_for(dry, 60, "nodes that know their groups")
    assert found["tables"] == 3 and not found["unconfirmed"], found
    found, result = cluster.rebuild("recover")
    assert result.returncode == 0 and found["written"], result.stderr
    cluster.start("controller-1")
    cluster.settle()
    cluster.check_everything_is_there()
    assert {(s["table"], s["start"], s["end"], s["group"], s["epoch"])
            for s in cluster.json("shards")["shards"]} == shards


def test_what_is_missing_is_said_and_not_restored_unasked(restored):
    cluster = restored
    before(cluster)
    cluster.lose_controllers("controller-1")
    start = cluster.restart_nodes("node-1", "node-2", "node-3")
    found, result = cluster.rebuild("restore", "--from", str(cluster.place))
    assert result.returncode == 7 and not found["written"], result.stdout
    assert found["unconfirmed"], found
    assert any(f["kind"] == "incomplete" for f in found["findings"]), found
    start()

    def whole():
        found, result = cluster.rebuild("restore", "--from", str(cluster.place), "--dry-run")
        assert result.returncode == 0, result.stdout
        return found
    found = wait_for(whole, 60, "groups that all answer")
    found, result = cluster.rebuild("restore", "--from", str(cluster.place))
    assert result.returncode == 0, result.stderr
    cluster.start("controller-1")
    cluster.settle()
    cluster.check_everything_is_there()


def test_three_controllers_are_lost_and_three_come_back(tmp_path):
    cluster = RestoredControllers(tmp_path / "cluster", "--controllers", "3")
    try:
        cluster.up()
        cluster.wait_for_members(*NAMES)
        create(cluster, "first")
        cluster.fill("first", 0, 100)
        cluster.work("backup", "now")
        peers = ",".join(f"{name}={cluster.daemons[name]['rpc']}" for name in NAMES)
        cluster.kill(*NAMES)
        cluster.lose_data(NAMES[0])
        # The others would go on with what they have, beside the restored one.
        _, refused = cluster.rebuild("restore", "--from", str(cluster.place))
        assert refused.returncode == 7, refused.stdout
        assert refused.stderr.count(f"{NAMES[1]}, {NAMES[2]}: metadata in ") == 1, refused.stderr
        assert not (cluster.directory / NAMES[0] / "data").exists()
        cluster.lose_data(*NAMES[1:])
        cluster.fill("first", 100, 20)
        # By the flags of a cluster that is no playground.
        into = cluster.directory / NAMES[0] / "data"
        flags = ["--from", cluster.place, "--name", NAMES[0], "--peers", peers]
        result = run("kvctl", "restore", *flags, "--into", into, "-o", "json")
        assert result.returncode == 0 and json.loads(result.stdout)["written"], result.stderr
        for name in NAMES:
            cluster.start(name)
        cluster.wait_for_members(*NAMES, seconds=60)
        cluster.settle()
        cluster.check_everything_is_there()
        # Who restored it stands in the audit log, behind what the backup has of it.
        assert cluster.kvctl("audit", "verify").returncode == 0
        asked = cluster.json("audit")["commands"]
        assert [c["verb"] for c in asked][:3] == ["table.create", "backup.now", "restore"], asked
        restored = asked[2]
        assert "@" in restored["caller"] and restored["outcome"] == "done", restored
        assert json.loads(restored["arguments"])["from"] == str(cluster.place)
        # And in the operation list, with the time in a metric.
        listed = next(o for o in cluster.json("ops", "list")["operations"] if o["kind"] == "restore")
        assert listed["step"] == "done" and str(cluster.place) in listed["outcome"], listed
        shown = metrics(cluster, cluster.wait_for_acting(), "kvcontroller_metadata_restored")
        assert shown == {"kvcontroller_metadata_restored_timestamp_seconds":
                         listed["endedAt"] // 1000}, shown
        # Any of them carries on without the one that was restored.
        cluster.kill(cluster.wait_for_acting())
        cluster.wait_for_acting()
        create(cluster, "after")
        cluster.fill("after", 0, 10)
        cluster.check_everything_is_there()
    finally:
        cluster.kvctl("playground", "down")


def test_old_controllers_that_were_not_taken_away_are_told_of(tmp_path):
    cluster = RestoredControllers(tmp_path / "cluster", "--controllers", "3")
    try:
        cluster.up()
        cluster.wait_for_members(*NAMES)
        cluster.work("backup", "now")
        peers = ",".join(f"{name}={cluster.daemons[name]['rpc']}" for name in NAMES)
        cluster.kill(*NAMES)
        cluster.lose_data(NAMES[0])
        into = cluster.directory / NAMES[0] / "data"
        result = run("kvctl", "restore", "--from", cluster.place, "--name", NAMES[0],
                     "--peers", peers, "--into", into)
        assert result.returncode == 0, result.stderr
        for name in NAMES:
            cluster.start(name)

        def acting():
            names = [a["name"] for a in cluster.list()["answers"] if a.get("acting")]
            assert len(names) == 2 and NAMES[0] in names, names
            return names

        def findings(name):
            status = json.loads(run("kvctl", "status", "-o", "json", "--controllers",
                                    cluster.daemons[name]["rpc"]).stdout)
            assert status["verdict"] != "healthy"
            return " ".join(status["findings"])
        names = wait_for(acting, 30, "two that act")
        for name, said in [(NAMES[0], "may act beside it"),
                           (max(names), "belongs to a newer metadata group")]:
            wait_for(lambda: said in findings(name), what=f"'{said}' from {name}")
    finally:
        cluster.kvctl("playground", "down")


def churn(cluster, count, threads=8):
    """Raises the revision by `count`: clients create and drop tables."""
    goal, passed = cluster.json("status")["revision"] + count, threading.Event()

    def work(number):
        with cluster.redis(timeout=30) as client:
            while not passed.is_set():
                client.execute_command("KV.CREATE", f"churn{number}", "IFMISSING")
                client.execute_command("KV.DROP", f"churn{number}")
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        wait_for(lambda: cluster.json("status")["revision"] >= goal, 120, f"revision {goal}")
    finally:
        passed.set()
        for worker in workers:
            worker.join()


def test_a_state_10000_revisions_old_is_restored(tmp_path, record_property):
    cluster = RestoredControllers(tmp_path / "cluster", "--controllers", "3", "--nodes", "5",
                                  "--spares", "1", "--groups", "2")
    try:
        cluster.up()
        cluster.wait_for_members(*NAMES)
        before(cluster)
        old = cluster.json("backup", "status")["revision"]
        started = time.monotonic()
        churn(cluster, 5_000)
        change_much(cluster)
        for key in [key for key in cluster.acknowledged if key[0] == "doomed"]:
            del cluster.acknowledged[key]
        churn(cluster, 5_000)
        cluster.fill("second", 300, 20)
        distance = cluster.json("status")["revision"] - old
        rate = distance / (time.monotonic() - started)
        print(f"restores a state that is {distance} revisions old, made at {rate:.0f}/s")
        record_property("revisions", distance)
        assert distance >= 10_000
        cluster.settle()
        shards = {(s["table"], s["start"], s["end"], s["group"], s["epoch"])
                  for s in cluster.json("shards")["shards"]}
        groups = {g["id"]: sorted(r["replica"] for r in g["replicas"]) for g in cluster.groups()}
        highest = max(s["id"] for s in cluster.json("shards")["shards"])

        cluster.lose_controllers(*NAMES)
        # The data plane goes on.
        cluster.fill("first", 400, 20)
        found, result = cluster.rebuild("restore", "--from", str(cluster.place), "--at", str(old),
                                        "--dry-run")
        assert result.returncode == 0, result.stderr + result.stdout
        assert not [f for f in found["findings"] if f["kind"] != "changed"], found["findings"]
        found, result = cluster.rebuild("restore", "--from", str(cluster.place), "--at", str(old))
        assert result.returncode == 0 and found["written"], result.stderr
        assert found["tables"] == 3, found
        for name in NAMES:
            cluster.start(name)
        cluster.wait_for_members(*NAMES, seconds=60)
        cluster.settle()
        cluster.check_everything_is_there()
        assert set(cluster.tables()) == {"first", "second", "late"}
        assert {(s["table"], s["start"], s["end"], s["group"], s["epoch"])
                for s in cluster.json("shards")["shards"]} == shards
        assert {g["id"]: sorted(r["replica"] for r in g["replicas"])
                for g in cluster.groups()} == groups

        # And it goes on, under ids and revisions that were never there.
        create(cluster, "after")
        cluster.fill("after", 0, 20)
        cluster.work("split", "late", "--at", "k00025", "--wait")
        assert max(s["id"] for s in cluster.json("shards")["shards"]) > highest + 1_000_000
        assert cluster.json("status")["revision"] > old + distance
        cluster.check_everything_is_there()
        wait_for(lambda: cluster.json("backup", "status")["lagSeconds"] == 0, 20,
                 "a current backup")
        cluster.work("backup", "verify")
    finally:
        cluster.kvctl("playground", "down")
