"""What operators change while the control plane runs: settings, nodes, and what rules propose."""

import json
import threading
import time

import pytest
from conftest import _running, run, wait_for
from test_service_manager import Daemon, Manager
from test_storage import fill


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three nodes and two spares, shared by the tests of this file."""
    yield from _running(tmp_path_factory.mktemp("pool"), "--nodes", "5", "--spares", "2")


def do(cluster, *words):
    result = cluster.kvctl(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def refusal(cluster, *words):
    result = cluster.kvctl(*words)
    assert result.returncode == 7, result.stdout + result.stderr
    assert result.stdout == ""
    return result.stderr


def setting(cluster, name):
    return next(one for one in cluster.json("config")["settings"] if one["name"] == name)


def node(cluster, name):
    return next(one for one in cluster.json("node", "list")["nodes"] if one["name"] == name)


def test_settings_are_kept_over_a_restart_and_go_back(pool):
    cluster = pool
    before = setting(cluster, "split.sustain")
    assert before["isDefault"] and before["value"] == before["default"]
    assert set(before) == {"name", "value", "default", "isDefault", "description", "allowed"}
    changed = do(cluster, "config", "set", "split.sustain", "45s")
    assert changed.stdout == f"split.sustain = 45s (was {before['value']})\n"
    cluster.kill("controller-1")
    cluster.start("controller-1")
    cluster.wait_until_healthy()
    assert do(cluster, "config", "get", "split.sustain").stdout == "45s\n"
    row = next(line for line in do(cluster, "config").stdout.splitlines()
               if line.startswith("split.sustain"))
    assert "45s *" in row, row
    do(cluster, "config", "set", "split.sustain", "default")
    assert setting(cluster, "split.sustain") == before
    assert "split.sustain" in cluster.kvctl("why").stdout


def test_settings_refuse_what_they_do_not_allow(pool):
    before = pool.json("config")
    assert "off, propose or auto" in refusal(pool, "config", "set", "repair", "maybe")
    assert "such as 30s" in refusal(pool, "config", "set", "split.sustain", "soon")
    assert "did you mean repair?" in refusal(pool, "config", "set", "repiar", "off")
    assert "at most half of split.bytes" in refusal(pool, "config", "set", "merge.bytes", "64GiB")
    assert pool.json("config") == before


def test_repair_that_is_off_is_a_finding(pool):
    do(pool, "config", "set", "repair", "off")
    try:
        findings = pool.json("doctor")["findings"]
        off = next(one for one in findings if one["code"] == "RK031")
        assert off["advice"] == "kvctl config set repair auto"
    finally:
        do(pool, "config", "set", "repair", "default")
    assert all(one["code"] != "RK031" for one in pool.json("doctor")["findings"])


def test_weights(pool):
    assert node(pool, "node-1")["weight"] == 10
    assert "WEIGHT" not in do(pool, "nodes").stdout
    do(pool, "node", "weight", "node-1", "20")
    assert node(pool, "node-1")["weight"] == 20
    assert "WEIGHT" in do(pool, "nodes").stdout
    assert "0 to 100" in refusal(pool, "node", "weight", "node-1", "101")
    assert pool.kvctl("node", "weight", "node-1", "heavy").returncode == 2
    assert "there are node-1" in refusal(pool, "node", "weight", "node-9", "1")
    do(pool, "node", "weight", "node-1", "10")


def test_the_spare_pool(pool):
    assert node(pool, "node-5")["state"] == "spare"
    assert "is a spare already" in refusal(pool, "node", "spare", "node-5")
    do(pool, "node", "spare", "node-5", "--end")
    assert node(pool, "node-5")["state"] == "up"
    do(pool, "node", "spare", "node-5")
    assert node(pool, "node-5")["state"] == "spare"
    assert "kvctl drain node-1" in refusal(pool, "node", "spare", "node-1")


def test_maintenance_moves_leaders_and_ends(pool):
    leader = pool.groups()[0]["leader"]
    assert pool.kvctl("node", "maintenance", leader).returncode == 2
    do(pool, "node", "maintenance", leader, "--for", "30m")
    entry = node(pool, leader)
    assert entry["state"] == "maintenance" and entry["maintenanceUntil"] > 0
    assert "maintenance until" in do(pool, "nodes").stdout
    wait_for(lambda: all(group["leader"] not in (None, leader) for group in pool.groups()),
             what="other leaders")
    do(pool, "node", "maintenance", leader, "--end")
    assert node(pool, leader)["state"] == "up"
    assert "maintenanceUntil" not in node(pool, leader)
    refusal(pool, "node", "maintenance", leader, "--end")


def test_removal_of_a_node(pool):
    assert "kvctl drain node-2" in refusal(pool, "node", "remove", "node-2", "--yes")
    assert "still runs" in refusal(pool, "node", "remove", "node-5", "--yes")
    pool.kvctl("playground", "stop", "node-5")
    assert "--yes" in refusal(pool, "node", "remove", "node-5")
    wait_for(lambda: pool.kvctl("node", "remove", "node-5", "--yes").returncode == 0,
             what="the removal")
    assert "node-5" not in [one["name"] for one in pool.json("nodes")["nodes"]]
    assert "node-5" in pool.kvctl("why").stdout


def completed(cluster, *words, environment=None):
    """What completion offers, for the cluster that the environment or the words name."""
    return run("kvctl", "__complete", *words, env=environment or {}).stdout.split()


def test_names_are_completed_from_the_cluster(pool):
    controllers = ",".join(one["rpc"] for one in pool.json("controller", "list")["controllers"])
    named = {"KVCTL_CONTROLLERS": controllers}
    nodes = [one["name"] for one in pool.json("nodes")["nodes"]]
    assert len(nodes) >= 4
    for words in (["drain"], ["replace"], ["transfer", "1"], ["node", "weight"]):
        assert completed(pool, *words, "", environment=named) == nodes, words
        assert completed(pool, *words, "--controllers", controllers, "") == nodes, words
        assert completed(pool, *words, "--dir", pool.directory, "") == nodes, words
    assert completed(pool, "controller", "remove", "", environment=named) == ["controller-1"]
    assert completed(pool, "transfer", "", environment=named) == [
        str(group["id"]) for group in pool.groups()]
    assert "router-1" in completed(pool, "playground", "stop", "--dir", pool.directory, "")


def test_a_node_that_no_controller_takes_says_so(pool, tmp_path):
    manager = Manager(tmp_path)
    controllers = ",".join(one["rpc"] for one in pool.json("controller", "list")["controllers"])

    def start():
        return Daemon("kvnode", tmp_path, manager, configuration=(
            f"name = node-4\ndata = {tmp_path}/data\nspare = true\n"
            f"controllers = {controllers}\n[listen]\nrpc = 127.0.0.1:0\n"))

    def is_refused(daemon, why):
        status, body = daemon.page("/readyz")
        return status == 503 and "refused by the controllers: " in body and why in body

    rival = start()
    try:
        manager.wait("READY=1")
        wait_for(lambda: is_refused(rival, "stop it or choose another name"), what="the refusal")
        assert rival.metric("kv_ready") == 0
        manager.wait("STATUS=refused by the controllers: a node named node-4 is live")
        # The name is free: the next attempt succeeds, and nothing is left of the refusal.
        pool.kill("node-4")
        wait_for(lambda: rival.page("/readyz")[0] == 200, what="the registration")
        manager.wait("STATUS=spare: holds no replica")
        # A controller that is not there refuses nothing.
        pool.kill("controller-1")
        wait_for(lambda: rival.metric("kvnode_controllers_connected") == 0, what="the loss")
        time.sleep(2)
        assert rival.page("/readyz")[0] == 200
        pool.start("controller-1")
        # A node that the cluster has forgotten.
        rival.end()
        wait_for(lambda: pool.kvctl("node", "remove", "node-4", "--yes").returncode == 0,
                 what="the removal")
        began = len(manager.messages)
        rival = start()
        manager.wait("READY=1", since=began)
        wait_for(lambda: is_refused(rival, "empty the data directories"), what="the refusal")
        manager.wait("empty the data directories of node-4")
        time.sleep(2)
        assert is_refused(rival, "empty the data directories")
    finally:
        rival.end()


class Load:
    """Reads spread over the keys of a table until it is closed."""

    def __init__(self, cluster, table, keys):
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._read, args=(cluster.redis(), table, keys))
                        for _ in range(4)]

    def _read(self, client, table, keys):
        at = 0
        while not self.stop.is_set():
            pipeline = client.pipeline(transaction=False)
            for _ in range(100):
                at = (at + 7919) % len(keys)
                pipeline.hget(table, keys[at])
            pipeline.execute()

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_a_proposal_is_shown_dropped_and_applied(fresh_cluster):
    cluster = fresh_cluster
    for name, value in [("split.hot", "propose"), ("split.rate", "200"), ("split.sustain", "1s"),
                        ("hold.cancel", "0s")]:
        do(cluster, "config", "set", name, value)
    cluster.redis().execute_command("KV.CREATE", "busy")
    records = fill(cluster.redis(), "busy", 2000, size=60)

    def proposals():
        return [one for one in cluster.json("ops", "list")["operations"]
                if one["step"] == "proposed"]

    with Load(cluster, "busy", list(records)):
        first = wait_for(proposals, 60, "a proposal")[0]
        assert first["origin"] == "split.hot" and not first["finished"], first
        listed = do(cluster, "ops", "list").stdout
        assert "proposed" in listed and "split.hot" in listed, listed
        assert f"kvctl apply {first['id']}" in do(cluster, "ops", "show", first["id"]).stdout
        plan = cluster.json("apply", first["id"], "--dry-run")
        assert plan["verb"] == first["kind"] and plan["steps"], plan
        assert plan["grounds"] == first["reason"]
        finding = next(one for one in cluster.json("doctor")["findings"]
                       if one["code"] == "RK043")
        assert finding["severity"] == "notice"
        dropped = cluster.kvctl("ops", "cancel", first["id"], "--wait", "-o", "json")
        assert json.loads(dropped.stdout)["step"] == "cancelled", dropped.stdout

        def applied():
            for one in proposals():
                result = cluster.kvctl("apply", one["id"], "--wait", "-o", "json")
                if result.returncode == 0:
                    return json.loads(result.stdout)
        done = wait_for(applied, 90, "an applied proposal")
    assert done["step"] == "done" and done["origin"] == "split.hot", done
    assert cluster.redis().hgetall("busy") == records
    assert f"operation {done['id']} " in cluster.kvctl("why", "op", done["id"]).stdout
