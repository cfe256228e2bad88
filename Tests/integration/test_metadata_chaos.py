"""Controllers are killed and paused at random, the acting one mostly, while shards are split and moved,
replicas replaced, and clients write: every operation ends once, nothing is decided twice, nothing
acknowledged is lost. With either form of the metadata store."""

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from conftest import is_alive, wait_for
from test_controllers import NAMES, Controllers
from test_etcd import ETCD
from test_split import Traffic, assert_tiled, shards
from workload import Inserts, Workload

pytestmark = pytest.mark.fault

RECORDS = 6_000
#: Slow copies, so that most faults come while one is under way.
ENVIRONMENT = {"KVNODE_COPY_RATE": "256KiB"}
ROUNDS = 6
ENDS = ("done", "failed", "cancelled")


class Chaotic(Controllers):
    """What the run asks of a cluster of any kind."""

    def operations(self):
        return self.json("ops", "list")["operations"]

    def return_spares(self):
        """Nodes that hold nothing any more can take over again."""
        for node in self.json("nodes")["nodes"]:
            if node["state"] == "draining" and node["replicas"] == 0:
                self.kvctl("node", "spare", node["name"])

    def known_to_nodes(self):
        """The map as the nodes alone know it."""
        return self.json("recover", "--dry-run")


class ChaosCluster(Chaotic):
    def etcd_pid(self):
        """The process of the local etcd, None where there is none."""
        data = str(self.directory / "etcd-1" / "data").encode()
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if data in words:
                return int(path.name)
        return None

    def wake_all(self):
        pids = [self.pid(name) for name in NAMES] + [self.etcd_pid()]
        for pid in pids:
            if pid and is_alive(pid):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(params=["embedded", "etcd"])
def cluster(tmp_path, request):
    if request.param == "etcd" and ETCD is None:
        pytest.skip("etcd is not installed (see: make deps)")
    cluster = ChaosCluster(tmp_path / "cluster", "--controllers", "3", "--nodes", "6",
                           "--spares", "2", "--metadata", request.param, environment=ENVIRONMENT)
    try:
        cluster.up()
        yield cluster
    finally:
        if (cluster.directory / "playground.json").exists():
            cluster.wake_all()
        cluster.kvctl("playground", "down")
        for data in cluster.directory.glob("*/data*"):
            shutil.rmtree(data, ignore_errors=True)


class Operator(threading.Thread):
    """Starts one operation after the other, whatever controllers do meanwhile, and watches that what it
    was told about an operation is never taken back."""

    def __init__(self, cluster, seed):
        super().__init__()
        self.cluster, self.generator = cluster, random.Random(seed)
        self.ending = threading.Event()
        self.started, self.refused, self.uncertain = {}, [], []
        self.seen, self.contradictions = {}, []

    def run(self):
        first = iter((self.split, self.replace, self.move))
        while not self.ending.is_set():
            choice = next(first, None) or self.generator.choice(
                (self.split, self.split, self.replace, self.move, self.move, self.merge))
            try:
                words = choice()
                self.note(words, self.cluster.kvctl(*words, "--no-wait", "-o", "json"))
                self.watch(self.cluster.operations())
            except AssertionError:
                # A question without an answer: no controller acts now.
                pass
            self.ending.wait(self.generator.uniform(0.1, 0.8))

    def stop(self):
        self.ending.set()
        self.join()

    def split(self):
        cut = f"a{self.generator.randrange(RECORDS):06d}"
        shard = next(one for one in shards(self.cluster)
                     if one["start"] <= cut and (one["end"] is None or cut < one["end"]))
        target = "none" if self.started and self.generator.random() < 0.3 else 3 - shard["group"]
        return ["split", "table", "--at", cut, "--to", target]

    def move(self):
        shard = self.generator.choice(shards(self.cluster))
        return ["move", shard["id"], "--to", 3 - shard["group"]]

    def merge(self):
        return ["merge", self.generator.choice(shards(self.cluster))["id"]]

    def replace(self):
        self.cluster.return_spares()
        nodes = sorted({replica["node"] for group in self.cluster.groups()
                        for replica in group["replicas"]})
        return ["replace", self.generator.choice(nodes)]

    def note(self, words, result):
        if result.returncode == 0:
            operation = json.loads(result.stdout)["id"]
            assert operation not in self.started, f"{words}: operation {operation} a second time"
            self.started[operation] = words
        elif result.returncode == 7:
            self.refused.append((words, result.stderr))
        else:
            self.uncertain.append((words, result.stderr))

    def watch(self, operations):
        for now in operations:
            before = self.seen.get(now["id"], now)
            same = all(before.get(field) == now.get(field)
                       for field in ("kind", "group", "from", "parent", "startedAt"))
            if before["finished"]:
                same = same and all(before[field] == now[field]
                                    for field in ("step", "outcome", "endedAt"))
            if not same:
                self.contradictions.append((before, now))
            self.seen[now["id"]] = now


def harm(cluster, generator):
    """Kills or pauses one controller or two, or pauses etcd; then all run again."""
    etcd = cluster.etcd_pid()
    if etcd and generator.random() < 0.2:
        how = [("pause", "etcd")]
    else:
        acting = cluster.acting()
        first = acting if acting and generator.random() < 0.75 else generator.choice(NAMES)
        victims = [first]
        if generator.random() < 0.3:
            victims.append(generator.choice([name for name in NAMES if name != first]))
        how = [(generator.choice(("kill", "pause")), victim) for victim in victims]
    # Shorter and longer than the leases of 3 s.
    seconds = generator.choice((0.3, 1.5, 4)) * generator.uniform(0.7, 1.3)
    print(f"{' and '.join(' '.join(one) for one in how)} for {seconds:.1f} s")
    for action, victim in how:
        if action == "kill":
            cluster.kill(victim)
        else:
            os.kill(etcd if victim == "etcd" else cluster.pid(victim), signal.SIGSTOP)
    time.sleep(seconds)
    cluster.wake_all()
    for action, victim in how:
        if action == "kill":
            cluster.start(victim)


def check_that_everything_ended_once(cluster, operator):
    operations = cluster.operations()
    ids = [one["id"] for one in operations]
    assert len(set(ids)) == len(ids), ids
    assert not operator.contradictions, operator.contradictions[:3]
    assert set(operator.started) <= set(ids), "an acknowledged operation is gone"
    by_hand = [one["id"] for one in operations if one["origin"] == "operator" and "parent" not in one]
    unknown = set(by_hand) - set(operator.started)
    assert len(unknown) <= len(operator.uncertain), (unknown, operator.uncertain)

    # The log of decisions is stored with what is decided: it shows what was decided twice.
    decisions = cluster.json("why", "--limit", 1000)["decisions"]
    assert min(one["number"] for one in decisions) <= 1, "the log no longer reaches back"
    numbers = Counter(one["number"] for one in decisions)
    assert max(numbers.values()) == 1, numbers.most_common(3)
    texts = "\n".join(one["text"] for one in decisions)
    ends = Counter(int(number) for number in re.findall(
        rf"^operation (\d+) is (?:{'|'.join(ENDS)}): ", texts, re.MULTILINE))
    assert ends == Counter(ids), "an operation without an end, or with two"
    for what in (r"group \d+ owns (shard \d+ with epoch \d+)", r"has deleted its (.*)",
                 r"has taken (shard \d+) over from group \d+( with epoch \d+)"):
        found = Counter(re.findall(what, texts))
        assert max(found.values(), default=1) == 1, found.most_common(3)

    # One command in the audit log for each operation.
    commands = cluster.json("audit", "--limit", 5000)["commands"]
    answers = Counter(int(number) for command in commands
                      for number in re.findall(r"^operation (\d+)$", command["text"]))
    assert max(answers.values(), default=1) == 1, answers.most_common(3)
    assert set(answers) <= set(by_hand), (answers, by_hand)
    unanswered = sum(command["outcome"] == "unknown" for command in commands)
    assert len(set(by_hand) - set(answers)) <= unanswered
    verdict = cluster.json("audit", "verify")
    assert verdict["isWhole"] and verdict["fault"] is None, verdict


def check_that_places_are_unique(cluster):
    """By the map, and by what the nodes hold themselves once there are no controllers."""
    cluster.check_nothing_was_decided_twice(shards_per_table=None)
    assert_tiled(cluster)
    known, tables = cluster.json("shards")["shards"], cluster.tables()
    for group in cluster.groups():
        nodes = {replica["node"] for replica in group["replicas"]}
        assert len(nodes) == len(group["replicas"]) == 3, group
    cluster.kill(*NAMES)
    found = cluster.known_to_nodes()
    # That it would not be written beside the metadata that is there says nothing of the map.
    findings = [finding for finding in found["findings"] if finding["kind"] != "refused"]
    assert not findings and not found["unconfirmed"], found
    assert (found["shards"], found["moves"], found["tables"]) == (
        len(known), 0, len(tables)), found


def run_chaos(cluster, harms, record_property):
    """Splits, moves and replacements under load while each of `harms` is done once, in any order: called
    with the cluster and a generator, it returns when everything is whole again."""
    seed = int(os.environ.get("RANGEKEEPER_SEED") or random.randrange(1 << 32))
    print(f"repeat the choices with RANGEKEEPER_SEED={seed}")
    generator = random.Random(seed)
    result = cluster.kvctl("config", "set", "release.after", "1s")
    assert result.returncode == 0, result.stderr
    traffic = Traffic(cluster, records=RECORDS)
    traffic.workload = Workload(cluster, "table", threads=3, keys=24, seed=seed, pause=0.01)
    traffic.inserts = Inserts(cluster, "table", threads=1, pause=0.01)
    operator = Operator(cluster, seed)
    with traffic:
        operator.start()
        try:
            wait_for(lambda: operator.started, what="the first operation")
            for one in generator.sample(harms, len(harms)):
                one(cluster, generator)
                if generator.random() < 0.7:
                    cluster.wait_for_acting()
                    time.sleep(generator.uniform(0, 1.5))
            cluster.wait_for_acting()
        finally:
            operator.stop()

        def ended():
            operations = cluster.operations()
            left = [(one["id"], one["kind"], one["step"], one["note"], one.get("formerCopy"))
                    for one in operations if not one["finished"] or "formerCopy" in one]
            assert not left, left
            return operations
        operations = wait_for(ended, 60, "the end of all operations")
        operator.watch(operations)
        traffic.go_on()
    done = Counter(one["kind"] for one in operations if one["step"] == "done")
    terms = len(cluster.terms_acted())
    text = (f"{terms} controllers acted in turn; done: {dict(done)}; of {len(operations)} operations "
            f"{len(operator.started)} by commands, {len(operator.refused)} refused, "
            f"{len(operator.uncertain)} without an answer")
    print(text)
    record_property("chaos", text)
    assert terms > 1 and done["split"] and done["replaceReplica"], text
    assert all(one["step"] in ENDS for one in operations), operations

    def healthy():
        cluster.return_spares()
        report = cluster.json("doctor")
        assert report == {"verdict": "healthy", "findings": []}, report
        return True
    wait_for(healthy, 30, "a doctor who finds nothing")
    traffic.check()
    check_that_everything_ended_once(cluster, operator)
    cluster.wait_until_equal()
    check_that_places_are_unique(cluster)


def test_controllers_die_and_freeze_during_splits_and_replacements(cluster, record_property):
    run_chaos(cluster, [harm] * ROUNDS, record_property)
