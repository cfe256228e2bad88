"""A planned stop of a node: clients may wait, but get no error and are never left in doubt of a write,
whatever state the other replicas are in."""

import os
import re
import signal
import threading
import time
import urllib.request

import pytest
import redis
from conftest import Cluster, is_alive, wait_for


class Writers:
    """Clients that write rows of numbers and repeat nothing: each error ends one of them."""

    def __init__(self, cluster, count=8):
        self.cluster = cluster
        self.written = [0] * count
        self.errors = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._write, args=(number,))
                        for number in range(count)]

    def _write(self, number):
        client = self.cluster.redis(timeout=30)
        try:
            while not self.stopping.is_set():
                client.hset("t", f"client-{number}", self.written[number] + 1)
                self.written[number] += 1
        except redis.RedisError as error:
            self.errors.append(f"client {number}: {error}")

    def go_on(self, amount=20):
        before = list(self.written)
        wait_for(lambda: self.errors or all(
            now > then + amount for now, then in zip(self.written, before)),
            what="progress of every client")
        assert not self.errors, self.errors

    def wait_until_all_wait(self):
        """Every client has sent a write that nobody has answered, and so it stays."""
        router = self.cluster.info["routers"][0]["admin"]

        def check():
            before = list(self.written)
            with urllib.request.urlopen(f"http://{router}/metrics", timeout=10) as page:
                sent = re.search(r"^kvrouter_requests_in_flight (\d+)", page.read().decode(), re.M)
            return int(sent[1]) == len(self.written) and self.written == before
        wait_for(check, what="writes of every client that are not answered")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *failure):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        if failure[0] is None:
            assert not self.errors, self.errors
            client = self.cluster.redis()
            for number, value in enumerate(self.written):
                assert int(client.hget("t", f"client-{number}")) == value


def leader_and_followers(cluster):
    group = cluster.group_of("t")
    leader = group["leader"]
    return leader, [replica["node"] for replica in group["replicas"] if replica["node"] != leader]


@pytest.fixture
def calm(fresh_cluster):
    """A cluster with a table; all its processes run in the end."""
    fresh_cluster.redis().hset("t", "k", "v")
    yield fresh_cluster
    for node in fresh_cluster.info["nodes"]:
        if is_alive(node["pid"]):
            os.kill(node["pid"], signal.SIGCONT)


@pytest.mark.parametrize("lag", [0, 0.3, 0.7])
def test_both_followers_pause(calm, lag):
    """Nothing that is logged can be committed for a while, and nobody can take the leadership over."""
    cluster = calm
    leader, followers = leader_and_followers(cluster)
    pid = cluster.pid(leader)
    with Writers(cluster) as writers:
        for follower in followers:
            cluster.pause(follower)
        writers.wait_until_all_wait()
        os.kill(pid, signal.SIGTERM)
        time.sleep(lag)
        for follower in followers:
            cluster.resume(follower)
        wait_for(lambda: not is_alive(pid), what="the end of the node")
        writers.go_on()


def test_the_only_follower_that_answers_lags(stallable_cluster):
    """It hears its leader, but its disk does not take what it is sent: for longer than leaderships are
    handed over. The writes that wait are answered when it catches up, before the node ends."""
    cluster = stallable_cluster
    cluster.redis().hset("t", "k", "v")
    leader, (lagging, paused) = leader_and_followers(cluster)
    pid = cluster.pid(leader)
    with Writers(cluster) as writers:
        cluster.pause(paused)
        try:
            cluster.stall(cluster.daemons[lagging]["data"][0])
            writers.wait_until_all_wait()
            os.kill(pid, signal.SIGTERM)
            begun = time.monotonic()
            wait_for(lambda: time.monotonic() > begun + 3, what="the end of the hand-over")
            assert is_alive(pid) and not writers.errors, writers.errors
            cluster.unstall()
        finally:
            cluster.resume(paused)
        wait_for(lambda: not is_alive(pid), what="the end of the node")
        writers.go_on()


def test_nobody_to_hand_over_to(tmp_path):
    """One node with the only replica: what it answered is there after the restart, and what it did not
    answer waits in the router for it."""
    cluster = Cluster(tmp_path / "cluster", "--nodes", "1", "--spares", "0", "--replicas", "1")
    try:
        cluster.up()
        cluster.redis().hset("t", "k", "v")
        with Writers(cluster) as writers:
            for _ in range(5):
                cluster.kill("node-1", signal_number=signal.SIGTERM)
                cluster.start("node-1")
                writers.go_on()
    finally:
        cluster.down("--wipe", "--yes")


def test_nodes_stop_and_start_again_one_after_the_other(calm):
    """As an upgrade does it; the next one does not wait until the one before has caught up."""
    cluster = calm
    nodes = [replica["node"] for replica in cluster.groups()[0]["replicas"]]
    with Writers(cluster) as writers:
        for node in nodes * 2:
            cluster.kill(node, signal_number=signal.SIGTERM)
            cluster.start(node)
            writers.go_on()
