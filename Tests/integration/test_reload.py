"""What running daemons take over when their settings are read again (SIGHUP), each setting by what it
does. test_service_manager.py has what systemd is told of it."""

import json
import os
import re
import signal
import threading
import urllib.request

import pytest
import redis
from conftest import Cluster, wait_for

PROGRAMS = ("kvnode", "kvrouter", "kvcontrollerd")


class Reloadable(Cluster):
    """A cluster whose daemons have a settings file for each kind of them."""

    def __init__(self, directory, **texts):
        self.files = {program: directory.with_name(f"{program}.ini") for program in PROGRAMS}
        for program, file in self.files.items():
            file.write_text(texts.get(program, ""))
        super().__init__(directory, environment={
            f"{program.upper()}_CONFIG": str(file) for program, file in self.files.items()})

    def page(self, name, path):
        with urllib.request.urlopen(f"http://{self.daemons[name]['admin']}{path}", timeout=10) as page:
            return page.read().decode()

    def metric(self, name, sample):
        """The sum over the series whose text begins so."""
        values = re.findall(rf"^{re.escape(sample)}\S* (\S+)$", self.page(name, "/metrics"), re.M)
        assert values, sample
        return sum(map(float, values))

    def read_again(self, program, text):
        """Each daemon of this kind has read the new file."""
        self.files[program].write_text(text)
        kind = {"kvnode": "nodes", "kvrouter": "routers", "kvcontrollerd": "controllers"}[program]
        names = [daemon["name"] for daemon in self.info[kind]]
        before = {name: self.reloads(name) for name in names}
        for name in names:
            os.kill(self.pid(name), signal.SIGHUP)
        for name in names:
            wait_for(lambda: self.reloads(name) == before[name] + 1, what=f"the reload of {name}")
            waiting = [one["name"] for one in self.settings(name).values() if one["needs_restart"]]
            assert waiting == []

    def reloads(self, name):
        text = (self.directory / "logs" / f"{name}.log").read_text()
        return sum(json.loads(line)["message"] == "settings read again"
                   for line in text.splitlines())

    def settings(self, name):
        return {one["name"]: one
                for one in json.loads(self.page(name, "/debug/settings"))["settings"]}


@pytest.fixture
def reloadable(tmp_path):
    """Makes a cluster that ends with the test."""
    made = []

    def make(**texts):
        made.append(Reloadable(tmp_path / "cluster", **texts))
        made[-1].up()
        return made[-1]

    yield make
    for cluster in made:
        for daemon in cluster.daemons.values():
            os.kill(daemon["pid"], signal.SIGCONT)
        cluster.down("--wipe", "--yes")


def test_a_router(reloadable):
    cluster = reloadable(kvrouter="[slow]\nrequest = 0\n")
    first = cluster.redis()
    first.hset("t", "k", "v")

    # Requests are tried for less long, and slow ones are told.
    cluster.read_again("kvrouter", "[slow]\nrequest = 200ms\n[request]\ndeadline = 400ms\n")
    nodes = [node["name"] for node in cluster.info["nodes"]]
    for node in nodes:
        cluster.pause(node)
    try:
        with pytest.raises(redis.ResponseError, match=r"after 400 ms"):
            first.hset("t", "k", "w")
    finally:
        for node in nodes:
            cluster.resume(node)
    # A router tells its figures now and then.
    wait_for(lambda: cluster.metric("router-1", 'kvrouter_slow_requests_total{op="put"') == 1,
             what="the slow request")
    cluster.read_again("kvrouter", "")
    wait_for(lambda: first.hget("t", "k") in (b"v", b"w"), what="a read")

    # Fewer clients: those that are connected stay.
    cluster.read_again("kvrouter", "[clients]\nmax = 1\n")
    wait_for(lambda: first.config_get("maxclients") == {"maxclients": "1"}, what="the new limit")
    with pytest.raises(redis.RedisError, match="max number of clients"):
        cluster.redis().hget("t", "k")
    assert first.hget("t", "k")
    cluster.read_again("kvrouter", "")
    wait_for(lambda: cluster.redis().hget("t", "k"), what="another client")

    # A password: who is connected stays, who comes must know it.
    cluster.read_again("kvrouter", "[auth]\npassword = first\n")

    def is_refused(**options):
        try:
            cluster.redis(**options).hget("t", "k")
        except redis.AuthenticationError:
            return True
        return False

    wait_for(is_refused, what="a refusal")
    known = cluster.redis(password="first")
    assert known.hget("t", "k") and first.hget("t", "k")
    cluster.read_again("kvrouter", "[auth]\npassword = second\n")
    wait_for(lambda: is_refused(password="first"), what="a refusal of the old one")
    assert cluster.redis(password="second").hget("t", "k") and known.hget("t", "k")
    # Without any, a connection that was refused is served.
    stranger = cluster.redis(max_connections=1)
    with pytest.raises(redis.AuthenticationError):
        stranger.hget("t", "k")
    cluster.read_again("kvrouter", "")
    wait_for(lambda: stranger.hget("t", "k"), what="a read without a password")


def test_a_node_tells_slow_requests_and_makes_its_engines_durable(reloadable):
    cluster = reloadable(kvnode="[slow]\nrequest = 0\n[log]\ncheckpoint = 16GiB\n")
    client = cluster.redis()
    # All but the spare.
    nodes = [replica["node"] for replica in cluster.groups()[0]["replicas"]]

    def slow():
        return sum(cluster.metric(node, "kvnode_slow_requests_total") for node in nodes)

    client.hset("t", "k", "v")
    assert slow() == 0
    cluster.read_again("kvnode", "[slow]\nrequest = 1us\n[log]\ncheckpoint = 64KiB\n")
    before = {node: cluster.metric(node, "kvnode_checkpoint_duration_seconds_count")
              for node in nodes}

    def has_effect():
        client.hset("t", mapping={f"k{number}": "v" * 1000 for number in range(100)})
        return slow() > 0 and all(
            # More than the one that each 30 seconds bring.
            cluster.metric(node, "kvnode_checkpoint_duration_seconds_count") > before[node] + 3
            for node in nodes)

    wait_for(has_effect, what="slow requests and checkpoints")


def test_a_copy_that_is_too_slow_is_made_faster(reloadable):
    cluster = reloadable(kvnode="[copy]\nrate = 4KiB\n")
    client = cluster.redis()
    client.hset("t", mapping={f"k{number:04}": "v" * 500 for number in range(2000)})
    shard = cluster.json("shards", "t")["shards"][0]
    other = next(one["id"] for one in cluster.groups() if one["id"] != shard["group"])
    begun = cluster.kvctl("move", shard["id"], "--to", other, "-o", "json")
    operation = json.loads(begun.stdout)["id"]

    def show():
        return cluster.json("ops", "show", operation)

    # At this rate it would take four minutes.
    wait_for(lambda: show()["bytesDone"] > 0, what="the first chunk")
    assert not show()["finished"]
    cluster.read_again("kvnode", "[copy]\nrate = 64MiB\n")
    wait_for(lambda: show()["finished"], what="the end of the move")
    assert show()["step"] == "done" and client.hlen("t") == 2000


def test_the_times_of_a_backup(reloadable, tmp_path):
    place = f"[backup]\nto = {tmp_path}/backup\n"
    cluster = reloadable(kvcontrollerd=place)

    def times():
        status = cluster.json("backup", "status")
        return status["keepSeconds"], status["snapshotEverySeconds"], status["snapshot"]

    wait_for(lambda: times()[:2] == (7 * 86_400, 3_600) and int(times()[2]) > 0, what="a snapshot")
    first = int(times()[2])
    cluster.read_again("kvcontrollerd", place + "keep = 1d\nsnapshot.every = 10s\n")
    wait_for(lambda: times()[:2] == (86_400, 10), what="the new times")
    cluster.redis().hset("t", "k", "v")
    wait_for(lambda: int(times()[2]) > first, what="the next snapshot")


def test_writers_see_nothing_of_reloads(reloadable):
    """Each program again and again, under load."""
    cluster = reloadable()
    client = cluster.redis()
    client.hset("t", "k", 0)
    done = threading.Event()
    errors = []

    def write():
        try:
            for number in range(1_000_000):
                if done.is_set():
                    return
                client.hset("t", "k", number)
        except redis.RedisError as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            for program in PROGRAMS:
                cluster.read_again(program, f"[log]\nburst = {10 + number}\n")
    finally:
        done.set()
        thread.join()
    assert not errors
