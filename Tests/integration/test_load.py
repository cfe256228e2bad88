"""What nodes count of the load on the shards they lead, and where it is seen."""

import http.client
import json
import re
import subprocess
from contextlib import contextmanager

import pytest

from conftest import BINARIES, run, wait_for

RECORDS = 10_000


def key(number):
    return f"{number:016}"


def bench(cluster, table, *flags):
    return ["--port", str(cluster.resp_port), "--table", table, "--records", str(RECORDS),
            "--connections", "8", "--json", *flags]


@contextmanager
def under_load(cluster, table, *flags):
    """A load that goes on until the context is left, without an error."""
    load = subprocess.Popen(
        [BINARIES / "kvbench", *bench(cluster, table, "--duration", "120s", *flags)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield
        assert load.poll() is None, load.communicate()
    finally:
        load.terminate()
        report, _ = load.communicate(timeout=30)
    assert json.loads(report)["errors"] == {}, report


def samples(cluster, family):
    """Of all nodes: {labels: sum}."""
    found = {}
    for node in cluster.info["nodes"]:
        connection = http.client.HTTPConnection(node["admin"], timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        for labels, value in re.findall(rf"^{family}(?:\{{(.*)\}})? (\S+)$", text, re.M):
            found[labels] = found.get(labels, 0) + float(value)
    return found


def totals(cluster):
    found = samples(cluster, "kvnode_group_operations_total")
    return [sum(value for labels, value in found.items() if f'kind="{kind}"' in labels)
            for kind in ("read", "write")]


def line(cluster, table):
    """The table's only shard in `kvctl top`; None while it is not there."""
    lines = [shard for shard in cluster.json("top")["shards"] if shard["table"] == table]
    return lines[0] if lines else None


def test_every_operation_is_counted_once(fresh_cluster):
    # Of its own: totals are told once a second, those of an earlier test too.
    cluster = fresh_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "counted")
    client.execute_command("KV.CREATE", "spread", "PARTITION", "HASH")
    cluster.wait_until_caught_up()
    reads, writes = totals(cluster)
    done = run("kvbench", *bench(cluster, "counted", "--workload", "mixed", "--reads", "0.25",
                                 "--requests", "4000", "--pipeline", "4"))
    assert done.returncode == 0, done.stdout + done.stderr
    client.hset("counted", mapping={f"k{number}": "v" for number in range(500)})
    client.hmget("spread", [f"k{number}" for number in range(300)])
    client.execute_command("KV.LIST", "counted", "LIMIT", 10)
    wait_for(lambda: totals(cluster) == [reads + 1_000 + 300 + 1, writes + 3_000 + 500],
             what=f"the totals to be 1301 and 3500 above {reads} and {writes}")


@pytest.fixture
def unruled_cluster(fresh_cluster):
    """The controller leaves hot shards where they are."""
    assert fresh_cluster.kvctl("config", "set", "split.hot", "off").returncode == 0
    return fresh_cluster


def test_a_hot_part_has_its_median(unruled_cluster):
    cluster = unruled_cluster
    cluster.redis().execute_command("KV.CREATE", "warm")
    with under_load(cluster, "warm", "--workload", "mixed", "--hot", "0.1:0.9"):
        shard = wait_for(lambda: (line(cluster, "warm") or {}).get("median") and
                         line(cluster, "warm"), what="a median", seconds=60)
        assert shard["reads"] > 0 and shard["writes"] > 0, shard
        # Nine tenths of the load lie below key 1000, evenly: half of all lies below key 556.
        assert key(250) < shard["median"] < key(850), shard
        assert not shard.get("hottest"), shard
        rates = samples(cluster, "kvnode_shard_operations_per_second")
        assert rates[f'shard="{shard["id"]}",kind="read"'] > 0, rates
        wait_for(lambda: any(group["id"] == shard["group"] and group["reads"] and group["writes"]
                             for group in cluster.json("top")["groups"]), what="the group's load")
        # The controller splits there, and both halves are known to be busy at once.
        plan = cluster.kvctl("split", "warm", "--to", "none", "--wait", "-o", "json")
        assert plan.returncode == 0, plan.stdout + plan.stderr
        halves = wait_for(
            lambda: [half for half in cluster.json("top")["shards"] if half["table"] == "warm"
                     and half["reads"] + half["writes"] > 0][1:] and
            [half for half in cluster.json("top")["shards"] if half["table"] == "warm"],
            what="loads of both halves")
        operations = [half["reads"] + half["writes"] for half in halves]
        assert min(operations) * 4 > max(operations), halves


def test_a_single_hot_key_is_named(unruled_cluster):
    cluster = unruled_cluster
    cluster.redis().execute_command("KV.CREATE", "single")
    with under_load(cluster, "single", "--workload", "put", "--single-hot-key"):
        shard = wait_for(lambda: (line(cluster, "single") or {}).get("hottest") and
                         line(cluster, "single"), what="a hottest key", seconds=60)
        assert shard["hottest"] == key(RECORDS // 2), shard
        assert 75 <= shard["hottestPercent"] <= 100, shard
        assert not shard.get("median"), shard
        percents = wait_for(lambda: samples(cluster, "kvnode_shard_hottest_key_percent"),
                            what="the metric")
        assert 75 <= percents[f'shard="{shard["id"]}"'] <= 100, percents
