"""The audit log: every command that changes something, and its answer, in a chain that shows tampering."""

import json

import pytest
import redis

from conftest import Cluster, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("audit") / "cluster", "--controllers", "3")
    cluster.up()
    yield cluster
    cluster.down()


def commands(cluster):
    result = cluster.kvctl("audit", "--limit", 5000, "-o", "json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["commands"]


def last(cluster, verb):
    return [command for command in commands(cluster) if command["verb"] == verb][-1]


def test_commands_of_operators_and_clients_are_noted_with_their_answers(cluster):
    assert cluster.kvctl("table", "create", "orders").returncode == 0
    created = last(cluster, "table.create")
    assert created["outcome"] == "done" and "@" in created["caller"]
    assert json.loads(created["arguments"])["name"] == "orders"

    assert cluster.kvctl("table", "create", "orders").returncode == 7
    refused = last(cluster, "table.create")
    assert refused["outcome"] == "refused" and refused["text"].startswith("tableExists")

    client = cluster.redis()
    client.execute_command("KV.CREATE", "carts", "PARTITION", "HASH")
    by_client = last(cluster, "table.create")
    assert by_client["caller"].startswith("router"), by_client
    assert json.loads(by_client["arguments"])["partitioning"] == "HASH"

    started = cluster.kvctl("drain", "node-1", "--no-wait")
    assert started.returncode == 0, started.stderr
    assert last(cluster, "drain")["text"].startswith("operation ")
    assert cluster.kvctl("drain", "node-1", "--end").returncode in (0, 7)


def test_questions_are_not_noted(cluster):
    before = len(commands(cluster))
    for question in (["status"], ["ops", "list"], ["why"], ["drain", "node-2", "--dry-run"]):
        cluster.kvctl(*question)
    assert len(commands(cluster)) == before


def test_the_log_outlives_its_controller_and_can_be_checked_against_a_noted_head(cluster):
    assert cluster.kvctl("config", "set", "repair", "auto").returncode == 0
    verdict = json.loads(cluster.kvctl("audit", "verify", "-o", "json").stdout)
    assert verdict["isWhole"] and verdict["fault"] is None
    noted = verdict["head"]

    status = json.loads(cluster.kvctl("status", "-o", "json").stdout)
    acting = next(one["name"] for one in status["controllers"] if one["acting"])
    cluster.kill(acting)
    wait_for(lambda: cluster.kvctl("config", "set", "repair", "propose").returncode == 0,
             what="a controller that acts")
    assert last(cluster, "config.set")["outcome"] == "done"

    since = cluster.kvctl("audit", "verify", "--since", noted)
    assert since.returncode == 0 and "whole" in since.stdout, since.stdout
    number, seal = noted.split(":")
    forged = f"{number}:{'0' * len(seal)}"
    broken = cluster.kvctl("audit", "verify", "--since", forged)
    assert broken.returncode == 5 and "another one" in broken.stdout
    later = cluster.kvctl("audit", "verify", "--since", f"{10 ** 9}:{seal}")
    assert later.returncode == 5 and "missing" in later.stdout
    nonsense = cluster.kvctl("audit", "verify", "--since", "yesterday")
    assert nonsense.returncode == 2 and "NUMBER:SEAL" in nonsense.stderr
