"""Disks and event loops that stall: the node is ill and not dead, its leaders go elsewhere, and
nothing is lost or read stale meanwhile."""

import time

import pytest

from conftest import wait_for
from test_faults import wait_for_progress
from workload import Inserts, Workload

pytestmark = pytest.mark.fault

#: Times are recorded, see docs/benchmarks.md; what is asserted is an order of events, and with much
#: room, so that a busy machine does not fail it.
STALL_SECONDS = 10


def state_of(cluster, name):
    return next(node["state"] for node in cluster.json("nodes")["nodes"] if node["name"] == name)


def leads_elsewhere(cluster, table, old):
    return cluster.group_of(table)["leader"] not in (None, "", old)


def decisions(cluster):
    return [entry["text"] for entry in cluster.json("why", "--limit", "200")["decisions"]]


class Stopwatch:
    """Acknowledged writes of one client, one after the other, each with the time of its answer."""

    def __init__(self, cluster, table):
        self.client = cluster.redis(timeout=20)
        self.table = table

    def first_write_from(self, start, seconds=30):
        """Seconds from `start` to the first acknowledgement of a write that began after it."""
        def write():
            self.client.hset(self.table, "stopwatch", "x")
            return True
        wait_for(write, seconds, "an accepted write")
        return time.monotonic() - start


def test_a_leader_whose_disk_stalls_is_relieved(stallable_cluster, record_property):
    cluster = stallable_cluster
    for table in ("inserts", "register"):
        cluster.redis().execute_command("KV.CREATE", table)
    victim = cluster.group_of("register")["leader"]
    with Inserts(cluster, "inserts") as inserts, Workload(cluster, "register", keys=6) as workload:
        wait_for_progress(workload, inserts)
        start = time.monotonic()
        for path in cluster.daemons[victim]["data"]:
            cluster.stall(path)
        # The heartbeats go on: it is never suspect, and known to be ill.
        wait_for(lambda: state_of(cluster, victim) == "ill", what="an ill node")
        noticed = time.monotonic() - start
        wait_for(lambda: leads_elsewhere(cluster, "register", victim), what="another leader")
        moved = time.monotonic() - start
        accepted = Stopwatch(cluster, "register").first_write_from(start)
        wait_for_progress(workload, inserts)
        while time.monotonic() < start + STALL_SECONDS:
            assert state_of(cluster, victim) == "ill"
            assert leads_elsewhere(cluster, "register", victim)
            time.sleep(0.2)
        cluster.unstall()
        wait_for_progress(workload, inserts)
        wait_for(lambda: state_of(cluster, victim) == "up", 60, "a node that is well again")
    print(f"ill after {noticed:.2f} s, leader moved after {moved:.2f} s, "
          f"write accepted after {accepted:.2f} s")
    for name, value in (("noticed", noticed), ("moved", moved), ("accepted", accepted)):
        record_property(f"stall_{name}_seconds", value)
    said = decisions(cluster)
    assert any(f"{victim} is ill: its disk" in text for text in said), said
    assert any(f"off {victim}" in text for text in said), said
    assert not any(f"{victim} is suspect" in text for text in said), said
    workload.check()
    inserts.check()
    cluster.wait_until_equal(60)
    cluster.wait_until_healthy()


def test_a_stalled_leader_fences_itself_without_a_controller(stallable_cluster, record_property):
    cluster = stallable_cluster
    cluster.redis().execute_command("KV.CREATE", "register")
    victim = cluster.group_of("register")["leader"]
    with Workload(cluster, "register", keys=6) as workload:
        wait_for_progress(workload)
        cluster.kill("controller-1")
        wait_for_progress(workload)
        start = time.monotonic()
        for path in cluster.daemons[victim]["data"]:
            cluster.stall(path)
        accepted = Stopwatch(cluster, "register").first_write_from(start, 60)
        wait_for_progress(workload)
        cluster.start("controller-1")
        assert leads_elsewhere(cluster, "register", victim)
        cluster.unstall()
        wait_for_progress(workload)
    print(f"without a controller: write accepted after {accepted:.2f} s")
    record_property("fenced_seconds", accepted)
    workload.check()
    cluster.wait_until_equal(60)


def test_an_ill_follower_is_left_alone_and_gets_well(stallable_cluster):
    cluster = stallable_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "register")
    group = cluster.group_of("register")
    victim = next(replica["node"] for replica in group["replicas"]
                  if replica["node"] != group["leader"])
    with Workload(cluster, "register", keys=6) as workload:
        wait_for_progress(workload)
        for path in cluster.daemons[victim]["data"]:
            cluster.stall(path)
        wait_for(lambda: state_of(cluster, victim) == "ill", what="an ill node")
        wait_for_progress(workload, count=200)
        assert cluster.group_of("register")["leader"] == group["leader"]
        cluster.unstall()
        wait_for(lambda: state_of(cluster, victim) == "up", 60, "a node that is well again")
    workload.check()
    cluster.wait_until_equal(60)


def test_a_node_that_stays_ill_is_replaced(stallable_cluster):
    cluster = stallable_cluster
    cluster.redis().execute_command("KV.CREATE", "register")
    victim = cluster.group_of("register")["leader"]
    with Workload(cluster, "register", keys=6) as workload:
        wait_for_progress(workload)
        for path in cluster.daemons[victim]["data"]:
            cluster.stall(path)

        def replaced():
            return all(victim not in [replica["node"] for replica in group["replicas"]]
                       for group in cluster.groups())
        wait_for(replaced, 120, "a replacement of the ill node")
        wait_for_progress(workload)
        cluster.unstall()
    workload.check()
    said = decisions(cluster)
    assert any(f"{victim} is ill for" in text for text in said), said
    cluster.wait_until_equal(60)
