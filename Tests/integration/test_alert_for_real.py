"""A node dies, its alert fires in a real Prometheus, and the alert's own runbook clears it."""

import re
import shutil
from pathlib import Path

import pytest

from conftest import REPOSITORY, Cluster, wait_for
from prometheus import Prometheus
from runbooks import Shell, blocks

ALERT = "KVNodeDown"


@pytest.fixture
def impatient_rules(tmp_path):
    """The shipped rules, with alerts that fire after a second."""
    rules = tmp_path / "rules"
    shutil.copytree(REPOSITORY / "dashboards" / "prometheus", rules)
    for path in (rules / "alerts").glob("*.yml"):
        path.write_text(re.sub(r"for: \w+", "for: 1s", path.read_text()))
    return rules


def named(prometheus, alert):
    """The alerts of a name that fire or are about to."""
    return [one for one in prometheus.ask("alerts")["alerts"]
            if one["labels"]["alertname"] == alert]


def test_killed_node(tmp_path, impatient_rules):
    cluster = Cluster(tmp_path / "cluster", "--nodes", "5", "--with-prometheus", "--rules",
                      impatient_rules)
    try:
        cluster.up()
        prometheus = Prometheus(cluster.info["prometheus"]["url"])
        cluster.redis().hset("stocks", mapping={f"{number:04}": "x" for number in range(100)})
        wait_for(lambda: len(prometheus.query("up == 1")) == 7, 60, "all targets up")
        # The case of the runbook: nobody replaces the node by himself.
        assert cluster.kvctl("config", "set", "repair", "off").returncode == 0
        victim = Shell(cluster).word("NODE")
        assert not named(prometheus, ALERT)
        cluster.kill(victim)

        def fires():
            return [one for one in named(prometheus, ALERT) if one["state"] == "firing"]
        [alert] = wait_for(fires, 30, f"{ALERT} firing")
        assert alert["labels"]["instance"] == victim
        assert victim in alert["annotations"]["summary"]
        wait_for(lambda: named(prometheus, "KVShardsUnderReplicated"), 30, "shards that lack one")

        # The page that the alert names, with the node that the alert names.
        page = Path(alert["annotations"]["runbook_url"].removeprefix("file://"))
        shell = Shell(cluster, NODE=alert["labels"]["instance"])
        done = [command for kind, commands in blocks(page) if kind != "elsewhere"
                for command in commands]
        assert any(command.text == "kvctl replace NODE --wait" for command in done)
        for command in done:
            shell.check(command)
        assert victim not in {node["name"] for node in cluster.json("nodes")["nodes"]}
        wait_for(lambda: not named(prometheus, "KVShardsUnderReplicated"), 30, "whole groups")

        # The machine comes back as a new node with an empty data directory.
        shell.run("find DATA -mindepth 1 -delete")
        cluster.start(victim)
        wait_for(lambda: not named(prometheus, ALERT), 30, f"the end of {ALERT}")
        assert cluster.redis().hlen("stocks") == 100
    finally:
        cluster.down("--wipe", "--yes")
