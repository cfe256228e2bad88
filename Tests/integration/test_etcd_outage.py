"""Etcd is gone for a minute, emptied, or restored from an older backup, under running controllers: the data
plane goes on, and the controllers say what is the matter and decide nothing."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest

from conftest import is_alive, wait_for
from test_controllers import NAMES
from test_etcd import ETCD, Etcd, OneController, close, create, metric
from test_metadata_chaos import ChaosCluster
from test_split import Traffic, shards, shown, start_split, wait_for_end
from workload import Inserts, Workload

pytestmark = [pytest.mark.fault,
              pytest.mark.skipif(ETCD is None, reason="etcd is not installed (see: make deps)")]

MINUTE = 60
#: The copy of half of them takes longer than the time before the outage.
ENVIRONMENT = {"KVNODE_COPY_RATE": "48KiB"}
SILENT = "etcd does not answer"


def page(daemon, path):
    """The status and the JSON of a page of the admin HTTP."""
    try:
        with urllib.request.urlopen(f"http://{daemon['admin']}{path}", timeout=3) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def controllers_of(cluster):
    return [cluster.daemons[name] for name in NAMES if name in cluster.daemons]


def assert_that_nobody_acts(cluster, words, up=None):
    """Every controller says by metrics, page and command why none acts."""
    for daemon in controllers_of(cluster):
        figures = {name: metric(daemon, f"kvcontroller_{name}")
                   for name in ("etcd_up", "serving", "has_leader", "etcd_elected")}
        assert figures == {"etcd_up": figures["etcd_up"] if up is None else up, "serving": 0,
                           "has_leader": 0, "etcd_elected": 0}, f"{daemon['name']}: {figures}"
        status, ready = page(daemon, "/readyz")
        assert status == 503 and words in " ".join(ready["reasons"]), (daemon["name"], ready)
    status = cluster.kvctl("status")
    said = status.stdout + status.stderr
    assert status.returncode != 0 and words in said, said
    return True


class LightTraffic(Traffic):
    """Two clusters share this machine."""

    def __init__(self, cluster):
        super().__init__(cluster)
        self.workload = Workload(cluster, "table", threads=2, keys=24, pause=0.02)
        self.inserts = Inserts(cluster, "table", threads=1, pause=0.02)


class KilledEtcd(ChaosCluster):
    """Three controllers and a local etcd of one member, which is killed."""

    def __init__(self, directory):
        super().__init__(directory, "--controllers", "3", "--nodes", "3", "--spares", "0", "--metadata", "etcd",
                         environment=ENVIRONMENT)

    def take_etcd(self):
        os.kill(self.etcd_pid(), signal.SIGKILL)

    def return_etcd(self):
        self.start("etcd-1")


class PausedEtcd(OneController):
    """One controller and an etcd of three members, which are stopped where they are."""

    def __init__(self, directory):
        self.etcd = Etcd(directory.with_name("members"))
        self.etcd.leader()
        super().__init__(directory, "--nodes", "3", "--spares", "0", environment=ENVIRONMENT | {
            "KVCONTROLLERD_METADATA": "etcd", "KVCONTROLLERD_ETCD_ENDPOINTS": self.etcd.endpoints})

    def take_etcd(self):
        self.etcd.signal_all(signal.SIGSTOP)

    def return_etcd(self):
        self.etcd.signal_all(signal.SIGCONT)


@pytest.fixture
def clusters(tmp_path):
    """Both at once: a minute is long."""
    made = []
    try:
        for form in (KilledEtcd, PausedEtcd):
            made.append(form(tmp_path / form.__name__))
            made[-1].up()
        yield made
    finally:
        for cluster in made:
            close(cluster)
            if isinstance(cluster, PausedEtcd):
                cluster.etcd.close()


def test_etcd_down_for_a_minute(clusters, record_property):
    with ExitStack() as stack:
        traffics = [stack.enter_context(LightTraffic(cluster)) for cluster in clusters]
        under_way = [start_split(cluster, "--to", "2" if cluster.group_of("table")["id"] == 1
                                 else "1") for cluster in clusters]
        for cluster, operation in zip(clusters, under_way):
            wait_for(lambda: shown(cluster, operation)["step"] == "copying", what="a copy")
        leaders = [next(group["leader"] for group in cluster.groups()
                        if group["id"] == shards(cluster)[0]["group"]) for cluster in clusters]
        terms = [cluster.terms_acted() for cluster in clusters]
        for cluster in clusters:
            cluster.take_etcd()
        began = time.monotonic()
        for cluster in clusters:
            wait_for(lambda: assert_that_nobody_acts(cluster, SILENT, up=0), 20, "the word")
            for name in NAMES[:len(controllers_of(cluster))]:
                assert SILENT in cluster.log_of(name)
        print(f"said after {time.monotonic() - began:.1f} s at the latest")
        # Leaders fail over without a controller and without etcd.
        for cluster, leader in zip(clusters, leaders):
            cluster.kill(leader)
        while time.monotonic() < began + MINUTE:
            for traffic in traffics:
                traffic.go_on()
            for cluster in clusters:
                assert_that_nobody_acts(cluster, SILENT, up=0)
            time.sleep(1)
        for cluster in clusters:
            cluster.return_etcd()
        ended = time.monotonic()
        for cluster, operation, leader in zip(clusters, under_way, leaders):
            cluster.wait_for_acting(seconds=30)
            took = time.monotonic() - ended
            record_property("outage", f"{type(cluster).__name__}: acts after {took:.1f} s")
            for daemon in controllers_of(cluster):
                wait_for(lambda: metric(daemon, "kvcontroller_etcd_up") == 1, what="etcd_up 1")
                wait_for(lambda: page(daemon, "/readyz")[0] == 200, what="readiness")
            cluster.start(leader)
            one = wait_for_end(cluster, operation)
            assert one["step"] == "done", one
            create(cluster, "after")
        for traffic in traffics:
            traffic.go_on()
    for cluster, traffic, before in zip(clusters, traffics, terms):
        traffic.check()
        assert len(cluster.terms_acted()) > len(before)
        cluster.check_nothing_was_decided_twice(shards_per_table=None)
        cluster.wait_until_equal()
        for daemon in controllers_of(cluster):
            assert is_alive(daemon["pid"])
