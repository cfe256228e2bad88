"""Disks that fill up or rot: the node says so, the others go on, nothing wrong is served."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import redis

from conftest import run, wait_for
from test_storage import fill, follower_of
from workload import Inserts, Workload

pytestmark = pytest.mark.fault

#: `StartupExitCode.storage`: the disk needs a person. Another one than for a wrong configuration.
EXIT_STORAGE = 65


def arguments_of(pid):
    return [part.decode() for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:-1]]


def flip_byte(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


@pytest.fixture
def small_disk():
    """Mounts a small file system over a directory; needs root."""
    mounted = []

    def mount(directory, size):
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        copy = directory.with_name(directory.name + "-copy")
        shutil.copytree(directory, copy)
        result = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory],
                                capture_output=True, text=True)
        if result.returncode != 0:
            pytest.skip(f"mounting is not possible here: {result.stderr.strip()}")
        mounted.append(directory)
        shutil.copytree(copy, directory, dirs_exist_ok=True)
        shutil.rmtree(copy)

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.parametrize("engine", ["LSM", "BTREE"])
def test_full_disk_stops_one_node_only(small_log_cluster, small_disk, engine):
    cluster = small_log_cluster
    client = cluster.redis(timeout=30)
    client.execute_command("KV.CREATE", "t", "ENGINE", engine)
    fill(client, "t", 500)
    victim = cluster.group_of("t")["leader"]
    directory = Path(cluster.daemons[victim]["data"][0])
    cluster.kill(victim)
    small_disk(directory, "200m")
    small_disk(Path(cluster.daemons[victim]["data"][1]), "200m")
    cluster.start(victim)
    cluster.wait_until_equal()
    client.execute_command("KV.CREATE", "register", "ENGINE", engine)
    with Inserts(cluster, "t") as inserts, Workload(cluster, "register", keys=4) as workload:
        wait_for(lambda: inserts.succeeded() > 100, what="inserts")
        for path in cluster.daemons[victim]["data"]:
            with open(Path(path, "ballast"), "wb") as ballast:
                try:
                    while ballast.write(bytes(1 << 20)):
                        ballast.flush()
                except OSError:
                    pass
                finally:
                    try:
                        ballast.close()
                    except OSError:
                        pass

        def failed():
            nodes = {node["name"]: node for node in cluster.json("nodes")["nodes"]}
            return any(disk["state"] == "failed" for disk in nodes[victim]["disks"])
        more = {"number": 0}

        def push():
            # Large values, so that the disk has to take more than it has room for.
            more["number"] += 1
            try:
                client.hset("ballast", f"{more['number']}", bytes(500_000))
            except redis.RedisError:
                pass
            return failed()
        client.execute_command("KV.CREATE", "ballast", "ENGINE", engine)
        wait_for(push, 60, "a report of the failed disk")
        before = inserts.succeeded()
        wait_for(lambda: inserts.succeeded() > before + 200, what="inserts without the disk")
        log = (cluster.directory / "logs" / f"{victim}.log").read_text()
        assert "disk failed" in log
        # Room is made, and the node started again.
        cluster.kill(victim)
        for path in cluster.daemons[victim]["data"]:
            Path(path, "ballast").unlink(missing_ok=True)
            subprocess.run(["mount", "-o", "remount,size=2g", path], check=True)
        cluster.start(victim)
        before = inserts.succeeded()
        wait_for(lambda: inserts.succeeded() > before + 200, what="inserts with the node")
    # A write whose entry was on its way when the disk failed must not have been repeated.
    workload.check()
    stored = dict(cluster.redis(timeout=60).hgetall("t"))
    lost = [key for key in inserts.acknowledged if key not in stored]
    assert not lost, f"{len(lost)} of {len(inserts.acknowledged)} acknowledged are lost"
    cluster.wait_until_equal(60)
    cluster.wait_until_healthy()


def test_rot_amid_the_log_is_refused_with_a_code_of_its_own(fresh_cluster):
    cluster = fresh_cluster
    client = cluster.redis()
    client.execute_command("KV.CREATE", "t")
    records = fill(client, "t", 3000)
    cluster.wait_until_equal()
    victim = follower_of(cluster, "t")
    arguments = arguments_of(cluster.pid(victim))
    cluster.kill(victim)
    segment = max(Path(cluster.daemons[victim]["data"][0], "log").glob("*.log"))
    # In a record, with other batches behind it: the space between two batches means nothing.
    flip_byte(segment, segment.read_bytes().index(records[b"k001500"]))
    result = run("kvnode", *arguments)
    assert result.returncode == EXIT_STORAGE, result
    said = result.stdout + result.stderr
    assert str(segment) in said and "offset" in said, said
    # Starting again changes nothing, and the others go on.
    assert run("kvnode", *arguments).returncode == EXIT_STORAGE
    assert client.hset("t", "after", "rot") == 1


@pytest.mark.parametrize("count", [1, 4])
def test_rot_in_a_table_file_is_never_served(small_log_cluster, count):
    """Whoever leads: the record itself, or an error until somebody else leads."""
    cluster = small_log_cluster
    client = cluster.redis(timeout=30)
    client.execute_command("KV.CREATE", "t")
    records = fill(client, "t", 20000)
    victim = cluster.group_of("t")["leader"]
    cluster.kill(victim)
    files = sorted((path for directory in cluster.daemons[victim]["data"]
                    for path in Path(directory, "lsm").glob("*.sst")),
                   key=lambda path: path.stat().st_size)[-count:]
    assert files
    for path in files:
        flip_byte(path, path.stat().st_size // 2)
    started = cluster.kvctl("playground", "start", victim).returncode == 0
    others = [replica["node"] for replica in cluster.group_of("t")["replicas"]
              if replica["node"] != victim]
    keys = list(records)

    def read_all():
        answers = cluster.redis(timeout=5)
        for start in range(0, len(keys), 1000):
            part = keys[start:start + 1000]
            for key, value in zip(part, answers.hmget("t", part)):
                assert value == records[key], f"{key} reads as {value!r:.40}"
        return True

    def read_all_or_error():
        try:
            return read_all()
        except redis.RedisError:
            return False
    wait_for(read_all_or_error, 60, "all records")
    if started:
        # Without another node the damaged one is needed, for the majority or as leader.
        for other in others:
            cluster.kill(other)
            for _ in range(5):
                read_all_or_error()
            cluster.start(other)
            wait_for(read_all_or_error, 60, "all records")
    wait_for(read_all_or_error, 60, "all records")
