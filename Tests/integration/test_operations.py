"""Replicas change their places while clients write: replace, drain, transfer, and repair."""

import json
import os
import shutil
import subprocess
import time

import pytest

from conftest import _running, wait_for
from test_storage import fill
from workload import Inserts, Workload

pytestmark = pytest.mark.fault


@pytest.fixture
def spares_cluster(tmp_path):
    """Three nodes and three spares."""
    yield from _running(tmp_path / "cluster", "--nodes", "6", "--spares", "3")


def create(cluster, table, *options):
    cluster.redis().execute_command("KV.CREATE", table, *options)


def wait_for_progress(*clients, count=50, seconds=30):
    goals = [(one, one.succeeded() + count) for one in clients]
    wait_for(lambda: all(one.succeeded() >= goal for one, goal in goals), seconds, "the service")


def operations(cluster):
    return cluster.json("ops", "list")["operations"]


def holders(cluster):
    """Names of the nodes that hold the replicas of each group."""
    return {group["id"]: sorted(replica["node"] for replica in group["replicas"])
            for group in cluster.groups()}


def refusal(cluster, *arguments):
    result = cluster.kvctl(*arguments)
    assert result.returncode == 7, result.stdout + result.stderr
    return result.stderr


@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_replace_of_a_live_node_under_load(fresh_cluster, role, engine):
    cluster = fresh_cluster
    create(cluster, "inserts", "ENGINE", engine)
    create(cluster, "register", "ENGINE", engine)
    group = cluster.group_of("register")
    victim = group["leader"] if role == "leader" else next(
        replica["node"] for replica in group["replicas"] if replica["node"] != group["leader"])
    with Inserts(cluster, "inserts") as inserts, Workload(cluster, "register") as workload:
        wait_for_progress(workload, inserts)
        plan = cluster.json("replace", victim, "--dry-run")["replacements"]
        assert {step["to"] for step in plan} == {"node-4"}, plan
        assert operations(cluster) == []
        result = cluster.kvctl("replace", victim, "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
        wait_for_progress(workload, inserts)
    workload.check()
    inserts.check()
    assert all(victim not in nodes and "node-4" in nodes for nodes in holders(cluster).values())
    cluster.wait_until_equal()
    # The old replicas are gone, and so is their data.
    log = cluster.directory / "logs" / f"{victim}.log"
    wait_for(lambda: log.read_text().count("replica removed") >= 2, what="removed replicas")
    cluster.wait_until_healthy()
    # What the new replica has is enough: it alone is needed for every majority.
    remaining = next(iter(holders(cluster).values()))
    cluster.kill(next(node for node in remaining if node != "node-4"), victim)
    inserts.check()


def test_planned_changes_of_leaders_cost_no_answer(fresh_cluster):
    """Clients wait a little when a leader hands over or is replaced; no answer is an error."""
    cluster = fresh_cluster
    create(cluster, "inserts")
    create(cluster, "register")
    group = cluster.group_of("register")["id"]
    with Inserts(cluster, "inserts") as inserts, Workload(cluster, "register") as workload:
        for _ in range(10):
            wait_for_progress(workload, inserts)
            one = cluster.group_of("register")
            other = next(replica["node"] for replica in one["replicas"]
                         if replica["node"] != one["leader"])
            result = cluster.kvctl("transfer", group, other, "--wait")
            assert result.returncode == 0, result.stdout + result.stderr
        for _ in range(3):
            wait_for_progress(workload, inserts)
            leader = cluster.group_of("register")["leader"]
            # Refused while the only other node still deletes the replica that it had before.
            wait_for(lambda: cluster.kvctl("replace", "--group", group, "--replica", leader,
                                           "--wait").returncode == 0, what="a replacement")
        wait_for_progress(workload, inserts)
    assert workload.errors == {} and inserts.unknown == set()
    workload.check()
    inserts.check()
    cluster.wait_until_equal()


def test_node_killed_for_good_is_repaired(fresh_cluster, record_property):
    cluster = fresh_cluster
    create(cluster, "inserts")
    create(cluster, "register")
    with Inserts(cluster, "inserts") as inserts, Workload(cluster, "register") as workload:
        wait_for_progress(workload, inserts)
        started = time.monotonic()
        cluster.kill("node-2")
        wait_for(lambda: any(one["origin"] == "repair" for one in operations(cluster)), 15,
                 "the beginning of the repair")
        begun = time.monotonic() - started
        wait_for(lambda: all(nodes == ["node-1", "node-3", "node-4"]
                             for nodes in holders(cluster).values()), 60, "whole groups")
        record_property("repair", f"began after {begun:.1f} s")
        wait_for_progress(workload, inserts)
    workload.check()
    inserts.check()
    cluster.wait_until_equal()
    why = cluster.kvctl("why", "node", "node-2").stdout
    assert "node-2 is down" in why and "spare node-4" in why, why

    # The dead comes back: it has no place any more, is told so and says so.
    cluster.start("node-2")
    log = cluster.directory / "logs" / "node-2.log"
    wait_for(lambda: log.read_text().count("replica removed") == 2, what="removed replicas")
    assert "node-4 has taken over" in log.read_text()
    node = next(node for node in cluster.json("nodes")["nodes"] if node["name"] == "node-2")
    assert node["replicas"] == 0
    # A restart finds nothing of them.
    cluster.kill("node-2")
    cluster.start("node-2")
    cluster.wait_until_healthy()
    inserts.check()
    assert holders(cluster)[1] == ["node-1", "node-3", "node-4"]


def test_dead_spares_are_passed_over(spares_cluster):
    cluster = spares_cluster
    create(cluster, "inserts")
    cluster.kill("node-4")
    wait_for(lambda: "node-4" in cluster.kvctl("why").stdout, what="the noticed death")
    with Inserts(cluster, "inserts") as inserts:
        wait_for_progress(inserts)
        result = cluster.kvctl("replace", "--group", 1, "--replica", "node-1", "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
    assert holders(cluster)[1] in (["node-2", "node-3", "node-5"], ["node-2", "node-3", "node-6"])
    why = cluster.kvctl("why", "group", 1).stdout
    assert "skipped node-4" in why and "silent for" in why, why
    inserts.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_of_three_spares_the_one_that_is_neither_dead_nor_full_takes_over(tmp_path):
    directory = tmp_path / "cluster"
    full = directory / "node-5"
    full.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", full], check=True)
    try:
        for cluster in _running(directory, "--nodes", "6", "--spares", "3"):
            create(cluster, "inserts")
            cluster.kill("node-4")
            wait_for(lambda: "node-4 is down" in cluster.kvctl("why").stdout,
                     what="the noticed death")
            with Inserts(cluster, "inserts") as inserts:
                wait_for_progress(inserts)
                cluster.kill("node-1")
                wait_for(lambda: all(nodes == ["node-2", "node-3", "node-6"]
                                     for nodes in holders(cluster).values()), 60, "whole groups")
                wait_for_progress(inserts)
            why = cluster.kvctl("why", "group", 1).stdout
            assert "skipped node-4: down" in why and "node-5: " in why and "MiB free" in why, why
            inserts.check()
    finally:
        subprocess.run(["umount", "--lazy", full], check=True)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.5])
def test_controller_killed_during_a_replace(fresh_cluster, delay):
    cluster = fresh_cluster
    create(cluster, "inserts")
    create(cluster, "register")
    with Inserts(cluster, "inserts") as inserts, Workload(cluster, "register") as workload:
        wait_for_progress(workload, inserts)
        result = cluster.kvctl("replace", "node-2", "--no-wait", "-o", "json")
        assert result.returncode == 0, result.stderr
        operation = json.loads(result.stdout)["id"]
        time.sleep(delay)
        cluster.kill("controller-1")
        wait_for_progress(workload, inserts)
        cluster.start("controller-1")
        watch = cluster.kvctl("ops", "watch", operation)
        assert watch.returncode == 0, watch.stdout + watch.stderr
        wait_for_progress(workload, inserts)
    workload.check()
    inserts.check()
    assert all(nodes == ["node-1", "node-3", "node-4"] for nodes in holders(cluster).values())
    cluster.wait_until_equal()


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_cancel_leaves_the_cluster_as_it_was(fresh_cluster, delay):
    cluster = fresh_cluster
    create(cluster, "t")
    records = fill(cluster.redis(), "t", 4000)
    before = holders(cluster)
    group = cluster.group_of("t")["id"]
    result = cluster.kvctl("replace", "--group", group, "--replica", "node-2", "-o", "json")
    operation = json.loads(result.stdout)["id"]
    time.sleep(delay)
    result = cluster.kvctl("ops", "cancel", operation, "--wait")
    end = cluster.json("ops", "show", operation)
    assert end["finished"], end
    if end["step"] == "cancelled":
        assert holders(cluster) == before
        wait_for(lambda: next(node["state"] for node in cluster.json("nodes")["nodes"]
                              if node["name"] == "node-4") == "spare", what="the spare's return")
    else:
        assert end["step"] == "done" and "node-4" in holders(cluster)[group]
        assert result.returncode in (1, 7)
    cluster.wait_until_equal()
    assert cluster.redis().hgetall("t") == records


def test_drain_and_transfer(spares_cluster):
    cluster = spares_cluster
    create(cluster, "inserts")
    with Inserts(cluster, "inserts") as inserts:
        wait_for_progress(inserts)
        group = cluster.group_of("inserts")
        target = next(replica["node"] for replica in group["replicas"]
                      if replica["node"] != group["leader"])
        result = cluster.kvctl("transfer", group["id"], target, "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
        assert cluster.group_of("inserts")["leader"] == target
        result = cluster.kvctl("drain", target, "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
        wait_for_progress(inserts)
    inserts.check()
    assert all(target not in nodes for nodes in holders(cluster).values())
    state = {node["name"]: node["state"] for node in cluster.json("nodes")["nodes"]}
    assert state[target] == "draining"
    assert cluster.kvctl("drain", target, "--end").returncode == 0
    state = {node["name"]: node["state"] for node in cluster.json("nodes")["nodes"]}
    assert state[target] == "up"


def test_refusals_say_what_would_work(fresh_cluster):
    cluster = fresh_cluster
    assert "there are" in refusal(cluster, "replace", "node-9")
    assert "live spares: node-4" in refusal(cluster, "replace", "node-1", "--with", "node-2")
    assert "nothing to replace" in refusal(cluster, "replace", "node-4")
    assert "holds no replica of group 1" in refusal(cluster, "transfer", "1", "node-4")
    assert "kvctl ops list" in refusal(cluster, "ops", "cancel", "99")
    doctor = cluster.json("doctor")
    assert doctor == {"verdict": "healthy", "findings": []}
    cluster.kill("node-1", "node-2")
    message = wait_for(
        lambda: (text := cluster.kvctl("replace", "--group", 1, "--replica", "node-3").stderr)
        and "1 of 3 replicas live" in text and text, what="the refusal")
    assert "start node-" in message
    doctor = cluster.json("doctor")
    assert doctor["verdict"] == "unavailable"
    assert {"RK010", "RK020"} <= {finding["code"] for finding in doctor["findings"]}
    decisions = cluster.json("why")["decisions"]
    assert any(decision["text"].startswith("refused replace") for decision in decisions)


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_replacement_that_needs_a_snapshot(small_log_cluster, engine):
    """The log alone no longer holds what the new replica needs."""
    cluster = small_log_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "t", "ENGINE", engine)
    records = fill(client, "t", 20000, size=400)
    client.hdel("t", "k000007")
    del records[b"k000007"]
    group = cluster.group_of("t")
    with Inserts(cluster, "inserts") as inserts:
        wait_for_progress(inserts)
        result = cluster.kvctl("replace", "--group", group["id"], "--replica", group["leader"],
                               "--wait")
        assert result.returncode == 0, result.stdout + result.stderr
    inserts.check()
    assert "snapshot installed" in (cluster.directory / "logs" / "node-4.log").read_text()
    # One, not another one while that is being installed.
    sent = sum(log.read_text().count("sending a snapshot")
               for log in (cluster.directory / "logs").glob("node-*.log"))
    assert sent == 1, cluster.log_tails(30)
    cluster.wait_until_equal()
    # Whatever majority serves now, the new replica is part of it.
    others = [replica["node"] for replica in cluster.group_of("t")["replicas"]
              if replica["node"] != "node-4"]
    cluster.kill(others[0])
    wait_for(lambda: cluster.redis().hgetall("t") == records, what="all records")
    assert group["leader"] not in holders(cluster)[group["id"]]


def test_wiped_node_is_replaced_and_joins_anew(fresh_cluster):
    cluster = fresh_cluster
    create(cluster, "inserts")
    with Inserts(cluster, "inserts") as inserts:
        wait_for_progress(inserts)
        cluster.kill("node-3")
        for directory in cluster.daemons["node-3"]["data"]:
            shutil.rmtree(directory)
        cluster.start("node-3")
        wait_for(lambda: all("~" not in node for nodes in holders(cluster).values()
                             for node in nodes), 60, "whole groups")
    inserts.check()
    cluster.wait_until_equal()
    cluster.wait_until_healthy()
    why = cluster.kvctl("why").stdout
    assert "node-3~3" in why and "silent for" in why, why


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_spare_killed_during_a_replace(spares_cluster, delay):
    cluster = spares_cluster
    create(cluster, "inserts")
    fill(cluster.redis(), "t", 20000, size=400)
    with Inserts(cluster, "inserts") as inserts:
        wait_for_progress(inserts)
        result = cluster.kvctl("replace", "--group", 1, "--replica", "node-1", "-o", "json")
        operation = json.loads(result.stdout)
        time.sleep(delay)
        cluster.kill(operation["to"])
        watch = cluster.kvctl("ops", "watch", operation["id"])
        assert watch.returncode == 0, watch.stdout + watch.stderr
        # Swapped in before it died or not: in the end it holds nothing.
        wait_for(lambda: operation["to"] not in holders(cluster)[1], 60, "a whole group")
        wait_for_progress(inserts)
    inserts.check()
    assert "node-1" not in holders(cluster)[1]
    cluster.wait_until_equal()


def test_a_group_formed_short_is_filled(tmp_path):
    """Three nodes for a table that asks for five replicas: refused, then allowed; filled by hand
    and by repair from the spares, under load."""
    def sizes():
        return {group["id"]: (len(group["replicas"]), group["replicasWanted"])
                for group in cluster.groups()}

    for cluster in _running(tmp_path / "cluster", "--nodes", "5", "--spares", "2", "--groups", "1"):
        assert "needs 5 live nodes" in cluster.kvctl("table", "create", "five", "--replicas",
                                                     "5").stderr
        for setting in [("repair", "off"), ("replicas.min", "3")]:
            assert cluster.kvctl("config", "set", *setting).returncode == 0
        create(cluster, "five", "REPLICAS", 5)
        group = cluster.group_of("five")["id"]
        assert sizes() == {1: (3, 3), group: (3, 5)}
        assert "2 lacking" in cluster.kvctl("groups").stdout
        finding = next(one for one in cluster.json("doctor")["findings"] if one["code"] == "RK011")
        assert f"kvctl replica add {group}" in finding["advice"], finding
        assert f"replicas are lacking in {group}" in refusal(cluster, "replica", "add", 1)
        with Inserts(cluster, "five") as inserts:
            wait_for_progress(inserts)
            plan = cluster.json("replica", "add", group, "--to", "node-5", "--dry-run")
            assert plan["replacements"][0]["to"] == "node-5", plan
            assert sizes()[group] == (3, 5)
            file = tmp_path / "plan.json"
            file.write_text(json.dumps(plan))
            applied = cluster.kvctl("apply", file, "--wait")
            assert applied.returncode == 0, applied.stdout + applied.stderr
            assert sizes()[group] == (4, 5)
            assert cluster.kvctl("config", "set", "repair", "auto").returncode == 0
            wait_for(lambda: sizes()[group] == (5, 5), 30, "a whole group")
            wait_for_progress(inserts)
            cluster.wait_until_healthy()
            # Two of five may die now.
            cluster.kill(*[node for node in holders(cluster)[group]
                           if node != cluster.group_of("five")["leader"]][:2])
            wait_for_progress(inserts)
        inserts.check()
        kinds = [one["kind"] for one in operations(cluster)]
        assert kinds.count("addReplica") == 2, kinds


def test_an_empty_group_is_dissolved(fresh_cluster):
    """A group formed for a shard that left it again goes with all that it had on disks, under load;
    so does a group of one replica, which nobody can take its leader from."""
    cluster = fresh_cluster
    create(cluster, "inserts")
    create(cluster, "other")
    assert cluster.group_of("inserts")["id"] != cluster.group_of("other")["id"]
    shard = cluster.json("shards", "inserts")["shards"][0]["id"]
    home = cluster.group_of("inserts")["id"]
    for setting, value in (("groups.empty.after", "3s"), ("release.after", "0s")):
        assert cluster.kvctl("config", "set", setting, value).returncode == 0
    with Inserts(cluster, "inserts") as inserts:
        wait_for_progress(inserts)
        moved = cluster.kvctl("move", shard, "--to", "new", "--wait")
        assert moved.returncode == 0, moved.stdout + moved.stderr
        formed = cluster.group_of("inserts")
        nodes = [replica["node"] for replica in formed["replicas"]]
        assert cluster.kvctl("move", shard, "--to", home, "--wait").returncode == 0
        create(cluster, "alone", "REPLICAS", 1)
        alone = [group["id"] for group in cluster.groups() if len(group["replicas"]) == 1]
        assert len(alone) == 2, alone
        assert cluster.kvctl("table", "drop", "alone", "--yes").returncode == 0
        wait_for(lambda: {group["id"] for group in cluster.groups()} == {1, 2}, 30,
                 "the end of the empty groups")
        wait_for_progress(inserts)
    inserts.check()
    for group in [formed["id"], *alone]:
        why = cluster.kvctl("why", "group", group).stdout
        assert "is dissolved: it had no shards for 3s" in why, why

    def deleted():
        why = cluster.kvctl("why", "--limit", 1000).stdout
        return all(why.count(f"of group {group}") and
                   why.count(f"has deleted its retired replica {replica} ") == 1
                   for group, replica in [(formed["id"], one["replica"])
                                          for one in formed["replicas"]])

    wait_for(deleted, 20, "deleted replicas")
    wait_for(lambda: sum("is dissolved" in (cluster.directory / "logs" / f"{node}.log").read_text()
                         for node in nodes) == 3, 20, "the nodes' word")
    cluster.wait_until_healthy()
    assert sum(node["replicas"] for node in cluster.json("nodes")["nodes"]) == 6
    # Restarted nodes find nothing of it.
    cluster.kill(nodes[0])
    cluster.start(nodes[0])
    cluster.wait_until_healthy()
    assert {group["id"] for group in cluster.groups()} == {1, 2}
    inserts.check()
