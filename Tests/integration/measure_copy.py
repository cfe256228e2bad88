"""How a move is felt: kvbench on the moving shard before, during and after the copy.

    RANGEKEEPER_BIN=.build/release python3 measure_copy.py --records 300000 --connections 4
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time

from conftest import BINARIES
from test_move import SHARD, ScriptedCluster
from test_router import Router


class Bench:
    """Runs of two seconds, each counted for the phase that it lies in."""

    def __init__(self, port, options):
        self.port, self.options = port, options
        self.phase, self.runs, self.running = "before", [], True

    def once(self, *arguments):
        out = subprocess.run(
            [BINARIES / "kvbench", f"--port={self.port}", "--table=t", "--json",
             f"--records={self.options.records}", f"--value-bytes={self.options.value_bytes}",
             *arguments], capture_output=True, text=True, check=True)
        return json.loads(out.stdout)

    def run(self):
        while self.running:
            phase = self.phase
            figures = self.once("--workload=mixed", "--duration=2s",
                                f"--connections={self.options.connections}")
            if phase == self.phase:
                self.runs.append((phase, figures))

    def report(self, phase):
        runs = [figures for name, figures in self.runs if name == phase]
        if not runs:
            return
        def median(part):
            return statistics.median(run["latencyMicros"][part] for run in runs) / 1_000
        rate = statistics.median(run["throughput"] for run in runs)
        worst = max(run["latencyMicros"]["max"] for run in runs) / 1_000
        print(f"{phase}: {len(runs)} runs, medians: {rate:.0f} requests/s, p50 {median('p50'):.1f} ms,"
              f" p99 {median('p99'):.1f} ms; max {worst:.0f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--value-bytes", type=int, default=500)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--engine", type=int, default=1, help="1: LSM, 2: B+ tree")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cluster = ScriptedCluster(pathlib.Path(directory), options.engine, "256MiB")
        router = Router(cluster, pathlib.Path(directory) / "router.log")
        try:
            measure(cluster, Bench(router.port, options))
        finally:
            router.stop()
            cluster.stop()


def measure(cluster, bench):
    bench.once("--workload=load", "--connections=8", "--pipeline=32")
    thread = threading.Thread(target=bench.run)
    thread.start()
    time.sleep(9)
    began = time.monotonic()
    floor = cluster.fence(1, 1, to=2)
    cluster.activate(2, 2, 1, floor)
    print(f"from the fence to the activation: {1e3 * (time.monotonic() - began):.1f} ms")
    cluster.show((SHARD, b"", None, 2, 2))
    bench.phase, began = "copy", time.monotonic()
    while not (cluster.copy(2) or [False])[0]:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    _, size, records = cluster.copy(2)
    print(f"copied {records} records, {size / 1e6:.0f} MB, in {seconds:.1f} s")
    began = time.monotonic()
    cluster.verify(2, 2)
    print(f"verified on three replicas in {time.monotonic() - began:.1f} s")
    cluster.finish(2, 2)
    cluster.show((SHARD, b"", None, 2, 3))
    bench.phase = "after"
    time.sleep(7)
    bench.running = False
    thread.join()
    for phase in ("before", "copy", "after"):
        bench.report(phase)


if __name__ == "__main__":
    main()
