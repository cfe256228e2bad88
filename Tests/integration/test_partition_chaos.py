"""Links of controllers are cut at random, in both directions or one, while shards are split and moved,
replicas replaced, and clients write: the same run and the same checks as with kills and pauses. With either
form of the metadata store; every daemon, the members of etcd among them, has a network of its own."""

import os
import shutil
import time

import pytest

from test_controllers import NAMES, ControllerNetwork
from test_etcd import ETCD
from test_metadata_chaos import ENVIRONMENT, Chaotic, run_chaos

pytestmark = pytest.mark.fault


class ChaosNetwork(ControllerNetwork, Chaotic):
    HOSTS = {"controller-1": 1, "controller-2": 2, "controller-3": 3, "node-1": 11, "node-2": 12,
             "node-3": 13, "node-4": 14, "node-5": 15, "node-6": 16, "router-1": 21}
    GROUPS = 2
    SPARES = ("node-5", "node-6")

    def known_to_nodes(self):
        return self.json("recover", "--dry-run", "--nodes", self.addresses("node"),
                         "--into", self.directory / "recovered", "--name", NAMES[0], "--peers",
                         ",".join(f"{name}={self.address(name)}" for name in NAMES))

class EtcdChaosNetwork(ChaosNetwork):
    #: Before the controllers, that they find it.
    HOSTS = {"etcd-1": 31, "etcd-2": 32, "etcd-3": 33} | ChaosNetwork.HOSTS


@pytest.fixture(params=[ChaosNetwork, EtcdChaosNetwork], ids=["embedded", "etcd"])
def network(tmp_path, request):
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if request.param is EtcdChaosNetwork and ETCD is None:
        pytest.skip("etcd is not installed (see: make deps)")
    network = request.param(tmp_path / "network", ENVIRONMENT)
    try:
        network.up()
        yield network
    finally:
        network.down()
        for name in network.HOSTS:
            shutil.rmtree(network.directory / name, ignore_errors=True)


def cut(way, one, others):
    """Cuts `one` off from `others`: what it sends, what is sent to it, or both."""
    def body(network):
        for other in others:
            if way != "deaf":
                network.cut(one, other)
            if way != "mute":
                network.cut(other, one)
    body.text = f"{one} {way} for {', '.join(others)}"
    return body


class Partition:
    """Cuts the acting controller, mostly, off from hosts of a kind."""

    def __init__(self, kinds, ways, seconds):
        self.kinds, self.ways, self.seconds = kinds, ways, seconds

    def __call__(self, network, generator):
        acting = network.acting()
        victim = acting if acting and generator.random() < 0.8 else generator.choice(NAMES)
        cuts = [self.choose(network, generator, victim)]
        if generator.random() < 0.3:
            # Another link, of a controller and a node.
            cuts.append(cut(generator.choice(("cut off", "deaf", "mute")), generator.choice(NAMES),
                            [generator.choice(network.named("node"))]))
        seconds = generator.choice(self.seconds) * generator.uniform(0.8, 1.2)
        print(f"{' and '.join(one.text for one in cuts)}, {seconds:.1f} s")
        for one in cuts:
            one(network)
        try:
            time.sleep(seconds)
        finally:
            network.heal()

    def choose(self, network, generator, victim):
        others = [name for kind in self.kinds for name in network.named(kind) if name != victim]
        if "node" in self.kinds and generator.random() < 0.5:
            # Some of them hear it, some do not.
            others = generator.sample(others, (len(others) + 1) // 2)
        return cut(generator.choice(self.ways), victim, others)


class MemberPartition(Partition):
    """Cuts one member of etcd off from the others, and so those that ask it from the newest."""

    def choose(self, network, generator, victim):
        members = network.named("etcd")
        one = generator.choice(members)
        return cut(generator.choice(self.ways), one, [name for name in members if name != one])


#: Shorter and longer than the leases of 3 s.
ANY, LONG, BOTH, ONE_WAY = (0.5, 1.5, 4), (5,), ("cut off",), ("deaf", "mute")


def test_controllers_are_cut_off_during_splits_and_replacements(network, record_property):
    store = "etcd" if network.named("etcd") else "controller"
    harms = [Partition([store], BOTH, LONG), Partition([store], ONE_WAY, LONG),
             Partition([store], ONE_WAY, ANY), Partition(["node"], BOTH + ONE_WAY, LONG),
             Partition(["controller", "node", "etcd"], BOTH + ONE_WAY, ANY)]
    if store == "etcd":
        harms.append(MemberPartition([store], BOTH + ONE_WAY, ANY))
    run_chaos(network, harms, record_property)
