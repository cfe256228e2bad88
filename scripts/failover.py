#!/usr/bin/env python3
"""How long a client is without writes when the leader of its group dies or is stopped.

    scripts/failover.py [--kills 30] [--stops 5] [--binaries .build/release] [--port-base 17800]

Starts a playground in a directory of its own (on the disk of TMPDIR) with kvbench as load, and again
and again ends the leader's process (kill -9; it is started again afterwards) or stops it (SIGSTOP, for 5
seconds). Every 5 ms a write sets out through the router, on a connection that waits for nothing else.
Measured is the time from the signal to the first acknowledgement of a write that set out after it.
Needs nothing but Python.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

TABLE = "failover"
PACE = 0.005
SETTLE = 2.0
GIVE_UP = 30.0
#: Shorter than any change of leaders can be: the voters' promises to the old one last longer.
HIT = 0.05


class Cluster:
    def __init__(self, binaries, directory, port_base):
        self.binaries = binaries
        self.directory = directory
        self.port_base = port_base

    def kvctl(self, *arguments):
        result = subprocess.run(
            [self.binaries / "kvctl", *arguments, "--dir", self.directory], text=True,
            capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if result.returncode not in (0, 5):
            raise SystemExit(f"failover: kvctl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def json(self, *arguments):
        return json.loads(self.kvctl(*arguments, "-o", "json"))

    def pid(self, name):
        info = json.loads((self.directory / "playground.json").read_text())
        return next(node["pid"] for node in info["nodes"] if node["name"] == name)

    def groups(self):
        return self.json("groups")["groups"]

    def leader(self):
        shard = self.json("shards", TABLE)["shards"][0]
        return next(group["leader"] for group in self.groups() if group["id"] == shard["group"])

    def is_settled(self):
        nodes = self.json("nodes")["nodes"]
        if any(node["state"] not in ("up", "spare") for node in nodes):
            return False
        return all(group["leader"] and all(
            replica["state"] == "active" and replica["lag"] < 1000
            for replica in group["replicas"]) for group in self.groups())


class Prober:
    """Writes that set out at a steady pace, whatever became of those before."""

    def __init__(self, port):
        self.port = port
        self.free = []
        self.sent = 0
        self.errors = {}
        #: (began, ended) of acknowledged writes.
        self.acknowledged = []

    async def write(self):
        began = time.monotonic()
        if self.free:
            reader, writer = self.free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.sent += 1
        key = f"probe{self.sent % 100}".encode()
        parts = [b"HSET", TABLE.encode(), key, b"%d" % self.sent]
        writer.write(b"*4\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        line = await reader.readline()
        if line.startswith(b":"):
            self.acknowledged.append((began, time.monotonic()))
        else:
            word = line[1:].split(b" ")[0].decode() or "closed"
            self.errors[word] = self.errors.get(word, 0) + 1
        if line:
            self.free.append((reader, writer))
        else:
            writer.close()

    async def run(self):
        tasks = set()
        due = time.monotonic()
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                task = asyncio.create_task(self.write())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                due = max(due + PACE, time.monotonic())
                await asyncio.sleep(due - time.monotonic())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def first_after(self, moment):
        while time.monotonic() < moment + GIVE_UP:
            ends = [ended for began, ended in self.acknowledged if began >= moment]
            if ends:
                return min(ends) - moment
            await asyncio.sleep(0.002)
        raise SystemExit(f"failover: no write within {GIVE_UP} s")


async def until(condition, what):
    end = time.monotonic() + 60
    while not await asyncio.to_thread(condition):
        if time.monotonic() > end:
            raise SystemExit(f"failover: {what} did not come within 60 s")
        await asyncio.sleep(0.1)


async def measure(cluster, prober, kind, count):
    """The gaps after `count` signals of one kind, each to a leader of a settled cluster."""
    gaps = []
    while len(gaps) < count:
        await until(cluster.is_settled, "a settled cluster")
        # The node that was started last has applied what it missed; and signals meet every phase of
        # leases and heartbeats.
        await asyncio.sleep(SETTLE + os.urandom(1)[0] / 1000)
        leader = await asyncio.to_thread(cluster.leader)
        pid = cluster.pid(leader)
        prober.acknowledged.clear()
        moment = time.monotonic()
        os.kill(pid, kind)
        gap = await prober.first_after(moment)
        # A leader may have handed over between the question who leads and the signal.
        hit = gap > HIT
        if hit:
            gaps.append(gap)
        print(f"{time.strftime('%H:%M:%S')} {kind.name} {leader}: {gap * 1000:.0f} ms"
              + ("" if hit else ": it led no more; not counted"), flush=True)
        if kind == signal.SIGSTOP:
            await asyncio.sleep(max(0, moment + 5 - time.monotonic()))
            os.kill(pid, signal.SIGCONT)
        else:
            await asyncio.to_thread(cluster.kvctl, "playground", "start", leader)
    return gaps


def summary(name, gaps):
    if not gaps:
        return
    ordered = sorted(gap * 1000 for gap in gaps)

    def quantile(share):
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    print(f"{name}: {len(ordered)} times, p50 {quantile(0.5):.0f} ms, p90 {quantile(0.9):.0f} ms, "
          f"p99 {quantile(0.99):.0f} ms, max {ordered[-1]:.0f} ms")


async def run(cluster, arguments, directory):
    prober = Prober(arguments.port_base)
    with open(directory / "kvbench.json", "wb") as output:
        load = subprocess.Popen(
            [cluster.binaries / "kvbench", "--port", str(arguments.port_base), "--command", "hset",
             "--workload", "put", "--connections", "8", "--table", TABLE, "--duration", "3600s",
             "--json"], stdout=output, stderr=subprocess.STDOUT)
    probing = asyncio.create_task(prober.run())
    try:
        kills = await measure(cluster, prober, signal.SIGKILL, arguments.kills)
        stops = await measure(cluster, prober, signal.SIGSTOP, arguments.stops)
    finally:
        probing.cancel()
        load.terminate()
        load.wait()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(probing, 10)
    print(f"{prober.sent} probes, not acknowledged: {prober.errors}")
    summary("kill -9", kills)
    summary("SIGSTOP", stops)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--binaries", type=Path, default=Path(".build/release"))
    parser.add_argument("--port-base", type=int, default=17800)
    parser.add_argument("--keep", action="store_true", help="leave the directory with its logs")
    arguments = parser.parse_args()
    if not (arguments.binaries / "kvctl").exists():
        raise SystemExit(f"failover: no {arguments.binaries}/kvctl: build first (make build)")
    directory = Path(tempfile.mkdtemp(prefix="rangekeeper-failover."))
    cluster = Cluster(arguments.binaries.resolve(), directory / "cluster", arguments.port_base)
    try:
        cluster.kvctl("playground", "up", "--detach", "--port-base", str(arguments.port_base))
        # The first write creates the table.
        subprocess.run(
            [cluster.binaries / "kvbench", "--port", str(arguments.port_base), "--command", "hset",
             "--workload", "load", "--records", "1000", "--table", TABLE], check=True,
            stdout=subprocess.DEVNULL)
        asyncio.run(run(cluster, arguments, directory))
    finally:
        subprocess.run(
            [cluster.binaries / "kvctl", "playground", "down", "--dir", cluster.directory],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if arguments.keep:
            print(f"kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
