"""Broken links between real processes: what clients see stays linearizable, service is where a
majority is, everything heals, and terms do not run away.

Every daemon gets a network namespace of its own on one bridge. A link is cut in one direction by
giving the sender a wrong hardware address for the receiver, so packets vanish without a word. Needs
root and veth devices; skipped otherwise.
"""

import itertools
import os
import re
import signal
import subprocess
import time

import pytest
import redis

from conftest import WORKER, BINARIES, Cluster, run, wait_for
from redis.backoff import NoBackoff
from redis.retry import Retry
from workload import Workload

pytestmark = pytest.mark.fault

#: Networks of this process, each with its own addresses and names: two may exist at once.
NETWORKS = itertools.count()
NOWHERE = "02:00:00:00:fe:fe"
PORT = 7000


def ip(*arguments, namespace=None):
    prefix = ["ip", "-n", namespace] if namespace else ["ip"]
    return subprocess.run([*prefix, *map(str, arguments)], capture_output=True, text=True)


class NetworkCluster(Cluster):
    """A controller, three nodes and a router, each at an address of its own. With etcd among the hosts,
    the metadata is there."""

    HOSTS = {"controller-1": 1, "node-1": 11, "node-2": 12, "node-3": 13, "router-1": 21}

    #: For controllers.
    GROUPS = 1
    #: Nodes that wait to take over.
    SPARES = ()

    def __init__(self, directory, environment=None):
        self.directory, self.environment = directory, environment or {}
        number = next(NETWORKS)
        self.tag = f"rk{os.getpid() % 100_000}{chr(ord('a') + number % 26)}"
        self.net = f"10.{177 + WORKER}.{number % 256}"
        self.processes = {}

    def up(self):
        (self.directory / "logs").mkdir(parents=True)
        results = [ip("link", "add", self.tag, "type", "bridge"),
                   ip("addr", "add", f"{self.net}.254/24", "dev", self.tag),
                   ip("link", "set", self.tag, "up")]
        for name, number in self.HOSTS.items():
            space, outer, inner = self.space(name), f"{self.tag}h{number}", f"{self.tag}g{number}"
            results += [
                ip("netns", "add", space),
                ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space),
                ip("link", "set", outer, "master", self.tag, "up"),
                ip("link", "set", "lo", "up", namespace=space),
                ip("addr", "add", f"{self.net}.{number}/24", "dev", inner, namespace=space),
                ip("link", "set", inner, "up", namespace=space)]
        wrong = [result.stderr.strip() for result in results if result.returncode]
        if wrong:
            pytest.skip(f"no network namespaces here: {wrong[0]}")
        for name in self.HOSTS:
            self.start(name)
        wait_for(lambda: self.redis().execute_command("KV.CREATE", "t"), 30, "a table")

    def down(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(timeout=30)
        for name, number in self.HOSTS.items():
            ip("link", "del", f"{self.tag}h{number}")
            ip("netns", "del", self.space(name))
        ip("link", "del", self.tag)

    def space(self, name):
        return f"{self.tag}-{name}"

    def address(self, name):
        return f"{self.net}.{self.HOSTS[name]}:{PORT}"

    def named(self, kind):
        """The hosts of a kind, in order."""
        return [name for name in self.HOSTS if name.startswith(f"{kind}-")]

    def addresses(self, kind):
        return ",".join(map(self.address, self.named(kind)))

    def start(self, name):
        with open(self.directory / "logs" / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *map(str, self.command(name))],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=os.environ | self.environment)

    def command(self, name):
        """The program of a host and its arguments."""
        kind = name.partition("-")[0]
        if kind == "etcd":
            return self.etcd_command(name)
        own, controllers = ["--name", name], ["--controllers", self.addresses("controller")]
        stored = ["--listen-rpc", self.address(name), "--data", self.directory / name]
        if kind == "router":
            return [BINARIES / "kvrouter", *own, "--listen-resp", self.address(name), *controllers]
        if kind == "node":
            spare = ["--spare"] if name in self.SPARES else []
            return [BINARIES / "kvnode", *own, *stored, *controllers, *spare]
        peers = [f"{other}={self.address(other)}" for other in self.named("controller")]
        if self.named("etcd"):
            endpoints = ",".join(f"http://{self.address(one)}" for one in self.named("etcd"))
            stored += ["--metadata", "etcd", "--etcd-endpoints", endpoints]
        elif len(peers) > 1:
            stored += ["--peers", ",".join(peers)]
        return [BINARIES / "kvcontrollerd", *own, *stored, "--groups-initial", self.GROUPS]

    def etcd_command(self, name):
        def peer(member):
            return f"http://{self.net}.{self.HOSTS[member]}:{PORT + 1}"
        client = f"http://{self.address(name)}"
        members = ",".join(f"{one}={peer(one)}" for one in self.named("etcd"))
        return ["etcd", "--name", name, "--data-dir", self.directory / name, "--log-level", "error",
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer(name), "--initial-advertise-peer-urls", peer(name),
                "--initial-cluster", members]

    def pid(self, name):
        return self.processes[name].pid

    def kvctl(self, *arguments, **options):
        return run("kvctl", *arguments, "--controllers", self.addresses("controller"), **options)

    def redis(self, timeout=10, **options):
        return redis.Redis(
            host=f"{self.net}.{self.HOSTS['router-1']}", port=PORT, socket_timeout=timeout,
            socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), **options)

    def terms_led(self, group):
        """The terms in which the controller saw a leader."""
        log = (self.directory / "logs" / "controller-1.log").read_text()
        return set(map(int, re.findall(rf"leads group {group} in term (\d+)", log)))

    # Links

    def cut(self, sender, receiver):
        """Nothing that `sender` sends arrives at `receiver`."""
        result = ip("neigh", "replace", f"{self.net}.{self.HOSTS[receiver]}", "lladdr", NOWHERE, "nud",
                    "permanent", "dev", f"{self.tag}g{self.HOSTS[sender]}",
                    namespace=self.space(sender))
        assert result.returncode == 0, result.stderr

    def cut_both(self, one, other):
        self.cut(one, other)
        self.cut(other, one)

    def heal(self):
        for sender in self.HOSTS:
            ip("neigh", "flush", "nud", "permanent", "dev",
               f"{self.tag}g{self.HOSTS[sender]}", namespace=self.space(sender))


class SparedNetworkCluster(NetworkCluster):
    """A fourth node can take over."""

    HOSTS = NetworkCluster.HOSTS | {"node-4": 14}


@pytest.fixture
def spared_network(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    cluster = SparedNetworkCluster(tmp_path / "cluster")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    cluster = NetworkCluster(tmp_path_factory.mktemp("network") / "cluster")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def from_one_follower(network, leader, followers):
    network.cut_both(leader, followers[0])


def deaf_leader(network, leader, followers):
    for follower in followers:
        network.cut(follower, leader)


def mute_leader(network, leader, followers):
    for follower in followers:
        network.cut(leader, follower)


def from_both_followers(network, leader, followers):
    for follower in followers:
        network.cut_both(leader, follower)


def leader_from_controller(network, leader, followers):
    network.cut_both(leader, "controller-1")


def all_nodes_from_controller(network, leader, followers):
    for node in (leader, *followers):
        network.cut_both(node, "controller-1")


def leader_alone_but_for_the_router(network, leader, followers):
    from_both_followers(network, leader, followers)
    leader_from_controller(network, leader, followers)


def router_from_leader(network, leader, followers):
    network.cut_both("router-1", leader)


#: The cut, how long it lasts, and whether clients are served while it lasts.
@pytest.mark.parametrize("cut, is_served", [
    (from_one_follower, True), (deaf_leader, True), (mute_leader, True),
    (from_both_followers, True), (leader_from_controller, True),
    (all_nodes_from_controller, True), (leader_alone_but_for_the_router, True),
    (router_from_leader, False)])
def test_cut_links(network, cut, is_served):
    wait_for(lambda: network.group_of("t")["leader"], what="a leader")
    table = cut.__name__
    wait_for(lambda: network.redis().execute_command("KV.CREATE", table), 30, "a table")
    before = network.group_of(table)
    leader, led = before["leader"], network.terms_led(before["id"])
    followers = [replica["node"] for replica in before["replicas"] if replica["node"] != leader]
    with Workload(network, table, threads=4) as workload:
        wait_for(lambda: workload.succeeded() > 50, what="the service")
        cut(network, leader, followers)
        try:
            started = time.monotonic()
            if is_served:
                # Some may succeed before the cut is felt.
                time.sleep(1)
                goal = workload.succeeded() + 50
                wait_for(lambda: workload.succeeded() >= goal, 20, "service in spite of the cut")
                print(f"{cut.__name__}: served after {time.monotonic() - started:.1f} s")
            time.sleep(max(0, started + 4 - time.monotonic()))
        finally:
            network.heal()
        goal = workload.succeeded() + 200
        wait_for(lambda: workload.succeeded() >= goal, 30, "service after healing")
        network.wait_until_caught_up()
    workload.check()
    terms = network.terms_led(before["id"]) - led
    print(f"{cut.__name__}: new terms {sorted(terms)}")
    assert len(terms) <= 3, "leadership changes without need"


def test_a_follower_that_its_leader_cannot_reach_is_replaced(spared_network, record_property):
    """Both are well and reach the controller; only the link between them is broken."""
    network = spared_network
    # Leaders are not balanced away meanwhile.
    assert network.kvctl("config", "set", "rebalance", "off").returncode == 0
    assert network.kvctl("config", "set", "lag.after", "8s").returncode == 0
    wait_for(lambda: network.kvctl("status").returncode == 0, 30, "a healthy cluster")
    group = network.group_of("t")
    leader = group["leader"]
    lost = next(one["node"] for one in group["replicas"] if one["node"] != leader)
    with Workload(network, "t", threads=4) as workload:
        wait_for(lambda: workload.succeeded() > 50, what="the service")
        network.cut_both(leader, lost)
        codes = []

        def is_declared():
            findings = network.json("doctor")["findings"]
            codes.extend(one["code"] for one in findings if one["code"] == "RK012")
            return codes or "lags: it is" in network.kvctl("why", "node", lost).stdout

        wait_for(is_declared, 40, "the declaration")
        declared = time.monotonic()
        wait_for(lambda: any(one["origin"] == "repair" and one["from"] == lost
                             for one in network.json("ops", "list")["operations"]),
                 10, "the replacement")
        record_property("lag", f"replaced {time.monotonic() - declared:.1f} s after")
        wait_for(lambda: lost not in [one["node"] for one in network.group_of("t")["replicas"]],
                 60, "a group without it")
        network.heal()
        goal = workload.succeeded() + 200
        wait_for(lambda: workload.succeeded() >= goal, 30, "service after healing")
        network.wait_until_caught_up()
    workload.check()
    why = network.kvctl("why", "node", lost).stdout
    assert re.search(rf"the replica of group \d+ on {lost} lags: it is [\d,]+ entries behind its "
                     r"leader and got nothing for \d+ s", why), why
