"""`kvctl rebalance`: an operator has the cluster evened out."""

import json

import pytest
from conftest import _running, wait_for
from test_operations import create, wait_for_progress
from test_split import shown
from workload import Workload

pytestmark = pytest.mark.fault


@pytest.fixture
def lopsided(tmp_path):
    """Three nodes that hold everything, and one that was a spare; the rule does nothing."""
    for cluster in _running(tmp_path / "cluster", "--nodes", "4", "--spares", "1", "--groups", "4"):
        do(cluster, "config", "set", "rebalance", "off")
        do(cluster, "node", "spare", "node-4", "--end")
        yield cluster


def do(cluster, *words):
    result = cluster.kvctl(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def replicas(cluster):
    return [node["replicas"] for node in cluster.json("nodes")["nodes"]]


def test_a_node_is_filled_while_requests_go_on(lopsided):
    cluster = lopsided
    assert replicas(cluster) == [4, 4, 4, 0]
    create(cluster, "table")
    plan = json.loads(do(cluster, "rebalance", "--dry-run", "-o", "json"))
    assert [one["before"]["replicas"] for one in plan["nodes"]] == [4, 4, 4, 0]
    assert [one["after"]["replicas"] for one in plan["nodes"]] == [3, 3, 3, 3]
    assert "moves to node-4" in plan["steps"][0], plan
    assert "REPLICAS" in do(cluster, "rebalance", "--dry-run")
    assert cluster.json("ops", "list")["operations"] == []
    with Workload(cluster, "table", keys=24) as workload:
        wait_for_progress(workload)
        operation = json.loads(do(cluster, "rebalance", "--no-wait", "-o", "json"))["id"]
        again = cluster.kvctl("rebalance")
        assert again.returncode == 7 and f"kvctl ops cancel {operation}" in again.stderr
        wait_for(lambda: replicas(cluster)[3] > 0, 60, "the first replica on node-4")
        cluster.kill("controller-1")
        cluster.start("controller-1")
        end = wait_for(lambda: (one := shown(cluster, operation))["finished"] and one, 90,
                       "the end of the operation")
        wait_for_progress(workload)
    workload.check()
    assert end["step"] == "done" and "now: 3 replicas" in end["outcome"], end
    assert replicas(cluster) == [3, 3, 3, 3]
    refused = cluster.kvctl("rebalance")
    assert refused.returncode == 7
    assert "nothing to even out: 3 replicas" in refused.stderr
    cluster.wait_until_equal()
    cluster.wait_until_healthy()


def test_it_is_paused_and_stopped_between_steps(lopsided):
    cluster = lopsided
    operation = json.loads(do(cluster, "rebalance", "--no-wait", "-o", "json"))["id"]
    do(cluster, "ops", "pause", operation)
    shown_paused = shown(cluster, operation)
    assert shown_paused["paused"] and not shown_paused["finished"]
    result = cluster.kvctl("ops", "cancel", operation, "--wait")
    assert result.returncode == 0, result.stdout + result.stderr
    end = shown(cluster, operation)
    assert end["step"] == "cancelled" and "stopped by the operator after" in end["outcome"], end
    reverse = cluster.kvctl("ops", "reverse", operation)
    assert reverse.returncode == 7 and "nothing of it is to be undone" in reverse.stderr
    assert replicas(cluster)[3] <= 1
