#!/usr/bin/env python3
"""What real processes do with the metadata of 1,000,000 shards.

    scripts/metadata-scale.py embedded [--shards 1000000] [--groups 1000] [--kills 10]
    scripts/metadata-scale.py etcd [--kills 5]
    scripts/metadata-scale.py restore
                              [--binaries .build/release] [--port-base 18300] [--node-port 20000]

The metadata is that of 1,000 groups on simulated nodes (kvsim metadata).

embedded, etcd: three controllers with it, a router and three spare nodes that follow the map. Again and
again the acting controller is ended (kill -9; it is started again). Measured is the time from the kill
until a kvctl command that changes something has returned: the next controller has decided, and stored it.
For etcd the metadata is moved there first (kvctl metadata migrate), into one local etcd.
restore: kvctl restore from a backup, with nodes that tell what they hold: 750 ports of this program.

Everything is below a directory of its own (on the disk of TMPDIR) and ends with the program, after half an
hour at most. Needs nothing but Python.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

GIVE_UP = 300.0
AT_MOST = 1800


def until(condition, what, seconds=GIVE_UP, pause=0.1):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise SystemExit(f"metadata-scale: {what} did not come within {seconds:.0f} s")
        time.sleep(pause)


def memory(pid):
    """Resident memory now and at most, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return [int(re.search(rf"{name}:\s+(\d+)", text)[1]) // 1024 for name in ("VmRSS", "VmHWM")]


def load():
    return f"load average {os.getloadavg()[0]:.1f}"


class Cluster:
    def __init__(self, arguments, directory):
        self.arguments = arguments
        self.binaries = arguments.binaries.resolve()
        self.directory = directory
        self.base = arguments.port_base
        self.processes = {}
        self.names = ["c1", "c2", "c3"]
        self.rpc = {name: f"127.0.0.1:{self.base + place}" for place, name in enumerate(self.names)}
        self.all = ",".join(self.rpc.values())
        self.endpoint = f"http://127.0.0.1:{self.base + 90}"

    def spawn(self, name, *words):
        log = open(self.directory / f"{name}.log", "ab")
        self.processes[name] = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def run(self, *words):
        result = subprocess.run([str(word) for word in words], text=True, capture_output=True,
                                stdin=subprocess.DEVNULL, check=False, timeout=900)
        if result.returncode not in (0, 5):
            raise SystemExit(f"metadata-scale: {' '.join(map(str, words))}: {result.stderr.strip()}")
        return result.stdout

    def kvctl(self, *words):
        return self.run(self.binaries / "kvctl", *words, "--controllers", self.all)

    def make(self, *words):
        began = time.monotonic()
        print(self.run(self.binaries / "kvsim", "metadata", "--shards", self.arguments.shards,
                       "--groups", self.arguments.groups, "--node-port", self.arguments.node_port,
                       *words), end="")
        print(f"made in {time.monotonic() - began:.1f} s", flush=True)

    def make_controller(self):
        # One alone can be moved into etcd.
        names = self.names if self.arguments.mode == "embedded" else self.names[:1]
        peers = ",".join(f"{name}={self.rpc[name]}" for name in names)
        self.make("--into", self.directory / "c1", "--peers", peers)

    def start_etcd(self):
        peer = f"http://127.0.0.1:{self.base + 91}"
        self.spawn(
            "etcd", "etcd", "--data-dir", self.directory / "etcd", "--listen-client-urls",
            self.endpoint, "--advertise-client-urls", self.endpoint, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--logger", "zap", "--log-level", "warn")
        place = ("127.0.0.1", self.base + 90)

        def answers():
            with contextlib.suppress(OSError), socket.create_connection(place, 1):
                return True
        until(answers, "etcd")

    def migrate(self):
        """One controller moves it, and ends: all three are to begin with what is in etcd."""
        self.start_etcd()
        self.start_controller("c1", in_etcd=False)
        until(self.acting, "an acting controller")
        began = time.monotonic()
        print(self.kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints", self.endpoint),
              end="")
        rss, peak = memory(self.processes["etcd"].pid)
        size = sum(file.stat().st_size for file in (self.directory / "etcd").rglob("db"))
        print(f"moved into etcd in {time.monotonic() - began:.1f} s ({load()}); its database "
              f"{size >> 20} MiB, its memory {rss} MiB, at most {peak} MiB", flush=True)
        self.processes["c1"].terminate()
        self.processes["c1"].wait()

    def start_controller(self, name, in_etcd=None):
        if in_etcd is None:
            in_etcd = self.arguments.mode == "etcd"
        words = [
            self.binaries / "kvcontrollerd", "--name", name, "--data", self.directory / name,
            "--listen-rpc", self.rpc[name], "--listen-admin",
            f"127.0.0.1:{self.base + 10 + self.names.index(name)}"]
        if in_etcd:
            words += ["--metadata", "etcd", "--etcd-endpoints", self.endpoint]
        elif name != "c1":
            words += ["--peers", ",".join(f"{n}={a}" for n, a in self.rpc.items())]
        self.spawn(name, *words)

    def start_followers(self):
        for number in range(3):
            name = f"spare-{number}"
            self.spawn(
                name, self.binaries / "kvnode", "--name", name, "--data", self.directory / name,
                "--listen-rpc", f"127.0.0.1:{self.base + 30 + number}", "--listen-admin",
                f"127.0.0.1:{self.base + 40 + number}", "--controllers", self.all, "--spare")
        self.spawn(
            "router", self.binaries / "kvrouter", "--name", "router", "--listen-resp",
            f"127.0.0.1:{self.base + 50}", "--listen-admin", f"127.0.0.1:{self.base + 51}",
            "--controllers", self.all)

    def metric(self, port, name):
        with contextlib.suppress(OSError), urllib.request.urlopen(
                f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.M)
            return float(found[1]) if found else None
        return None

    def controllers(self):
        result = subprocess.run(
            [self.binaries / "kvctl", "controller", "list", "-o", "json", "--controllers", self.all],
            text=True, capture_output=True, check=False)
        try:
            return json.loads(result.stdout)["controllers"]
        except (ValueError, KeyError):
            return []

    def acting(self):
        return next((view["name"] for view in self.controllers() if view["acting"]), None)

    def is_whole(self):
        """All three stand ready with a warm copy, the router and the nodes have the map."""
        views = self.controllers()
        return (len(views) == 3 and any(view["acting"] for view in views)
                and all(view["reachable"] and view["state"] in ("member", "voter")
                        and view["lag"] < 1_000 for view in views)
                and all(self.metric(self.base + 10 + place, "kvcontroller_metadata_records")
                        for place in range(3))
                and self.follows())

    def follows(self):
        acting = self.acting()
        if acting is None:
            return False
        port = self.base + 10 + self.names.index(acting)
        with contextlib.suppress(OSError), urllib.request.urlopen(
                f"http://127.0.0.1:{port}/debug/queues", timeout=5) as answer:
            queues = json.load(answer)
            return queues["map_followers"] >= 4 and queues["unsent_bytes"] == 0
        return False

    def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            process.wait()


def measure(cluster, kills):
    gaps = []
    for number in range(kills):
        until(cluster.is_whole, "a whole cluster", pause=0.5)
        # Those that stand by have read what they need to act at once.
        time.sleep(8 + os.urandom(1)[0] / 500)
        acting = until(cluster.acting, "an acting controller")
        value = "20s" if number % 2 else "30s"
        process = cluster.processes[acting]
        moment = time.monotonic()
        process.send_signal(signal.SIGKILL)
        cluster.kvctl("config", "set", "split.sustain", value, "--request-timeout", "60s")
        gaps.append(time.monotonic() - moment)
        process.wait()
        now = until(cluster.acting, "an acting controller")
        text = (cluster.directory / f"{now}.log").read_text(errors="replace")
        own = re.findall(r'"acts".*?"after_ms":"?(\d+)', text)
        # Whoever asks for the map now gets it from a controller that has just begun.
        followed = until(cluster.follows, "the followers of the map", pause=0.05)
        mapped = time.monotonic() - moment if followed else 0
        print(f"{time.strftime('%H:%M:%S')} kill -9 of {acting}: {now} decides after "
              f"{gaps[-1] * 1000:.0f} ms (of it {own[-1] if own else '?'} ms from its election on); all "
              f"follow its map after {mapped:.1f} s; {load()}", flush=True)
        cluster.start_controller(acting)
    return gaps


def answer_as_nodes(directory):
    """Serves what each file holds on the port that it is named by."""
    async def serve():
        for path in directory.iterdir():
            async def told(reader, writer, path=path):
                with contextlib.suppress(ConnectionError):
                    writer.write(path.read_bytes())
                    await writer.drain()
                    while await reader.read(65536):
                        pass
                writer.close()
            await asyncio.start_server(told, "127.0.0.1", int(path.name))
        ready.set()
        await asyncio.Event().wait()
    ready = threading.Event()
    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    if not ready.wait(30):
        raise SystemExit("metadata-scale: the nodes' ports are taken: --node-port")


def restore(cluster):
    backup, holdings = cluster.directory / "backup", cluster.directory / "holdings"
    cluster.make("--backup", backup, "--holdings", holdings)
    answer_as_nodes(holdings)
    began = time.monotonic()
    child = subprocess.Popen(
        [cluster.binaries / "kvctl", "restore", "--from", backup, "--into", cluster.directory / "c1",
         "--name", "c1", "--peers", f"c1={cluster.rpc['c1']}", "-o", "json", "--request-timeout",
         "60s"], stdout=subprocess.PIPE, text=True)
    cluster.processes["kvctl"] = child
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"metadata-scale: kvctl restore ended with {child.returncode}: {output[-2000:]}")
    told = json.loads(output)
    assert told["shards"] == cluster.arguments.shards and told["written"] and not told["findings"]
    print(f"kvctl restore: {told['shards']} shards, {told['groups']} groups, {len(told['nodes'])} nodes "
          f"asked twice at least, in {time.monotonic() - began:.1f} s; CPU time "
          f"{usage.ru_utime + usage.ru_stime:.1f} s, memory at most {usage.ru_maxrss >> 10} MiB "
          f"({load()}, this program answers for the nodes)")


def take_over(cluster, arguments):
    cluster.make_controller()
    if arguments.mode == "etcd":
        cluster.migrate()
    began = time.monotonic()
    for name in cluster.names:
        cluster.start_controller(name)
    until(cluster.acting, "an acting controller")
    print(f"cold start: one acts after {time.monotonic() - began:.1f} s ({load()})", flush=True)
    cluster.start_followers()
    until(cluster.is_whole, "a whole cluster")
    print(f"three controllers with a warm copy, four followers of the map after "
          f"{time.monotonic() - began:.1f} s", flush=True)
    gaps = measure(cluster, arguments.kills)
    until(cluster.is_whole, "a whole cluster")
    for name, process in cluster.processes.items():
        rss, peak = memory(process.pid)
        print(f"memory of {name}: {rss} MiB, at most {peak} MiB")
    ordered = sorted(gap * 1000 for gap in gaps)
    if ordered:
        print(f"{arguments.mode}, {arguments.shards} shards: decides after p50 "
              f"{statistics.median(ordered):.0f} ms, max {ordered[-1]:.0f} ms of {len(ordered)}")


def give_up(number, _):
    raise SystemExit(f"metadata-scale: ended by {signal.Signals(number).name}, after {AT_MOST} s at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["embedded", "etcd", "restore"])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--binaries", type=Path, default=Path(".build/release"))
    parser.add_argument("--port-base", type=int, default=18300)
    parser.add_argument("--node-port", type=int, default=20000)
    parser.add_argument("--keep", action="store_true", help="leave the directory with its logs")
    arguments = parser.parse_args()
    if not (arguments.binaries / "kvsim").exists():
        raise SystemExit(f"metadata-scale: no {arguments.binaries}/kvsim: build first (make build)")
    if arguments.mode == "etcd" and shutil.which("etcd") is None:
        raise SystemExit("metadata-scale: etcd is not installed (see: make deps)")
    directory = Path(tempfile.mkdtemp(prefix="rangekeeper-scale."))
    cluster = Cluster(arguments, directory)
    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, give_up)
    signal.alarm(AT_MOST)
    try:
        if arguments.mode == "restore":
            restore(cluster)
        else:
            take_over(cluster, arguments)
    finally:
        cluster.close()
        if arguments.keep:
            print(f"kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
