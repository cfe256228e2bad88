"""kvbench alone, against a server that stalls and refuses on purpose."""

import asyncio
import json
import threading
import time

import pytest
from conftest import run

from fake_cluster import free_port

RECORDS = 20


class SlowServer:
    """Answers SET and GET. `verdict(key)` says with what: None stands for an OK, a number for one after
    so many seconds, no bytes for a connection that is closed."""

    def __init__(self, verdict):
        self.verdict = verdict
        self.keys = {}
        self.commands = {}
        self.port = free_port()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self.serve, "127.0.0.1", self.port), self.loop).result(10)

    async def serve(self, reader, writer):
        try:
            while True:
                words = []
                for _ in range(int((await reader.readline())[1:])):
                    count = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(count + 2))[:-2])
                key, command = int(words[1]), words[0].decode()
                self.keys[key] = self.keys.get(key, 0) + 1
                self.commands[command] = self.commands.get(command, 0) + 1
                answer = self.verdict(key)
                if isinstance(answer, float):
                    await asyncio.sleep(answer)
                    answer = None
                if answer == b"":
                    break
                writer.write(answer or b"+OK\r\n")
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        writer.close()

    def close(self):
        async def end():
            self.server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def bench():
    servers = []

    def start(verdict, *flags, code=0):
        server = SlowServer(verdict)
        servers.append(server)
        done = run("kvbench", "--port", server.port, "--command", "set", "--records", RECORDS,
                   "--connections", "4", "--json", *flags)
        assert done.returncode == code, done.stdout + done.stderr
        return server, json.loads(done.stdout)

    yield start
    for server in servers:
        server.close()


def test_the_stall_of_a_key_goes_on_until_it_is_served(bench):
    refused = {}

    def verdict(key):
        # Key 7 is refused for its first 300 ms.
        if key == 7 and time.monotonic() - refused.setdefault(key, time.monotonic()) < 0.3:
            return b"-TRYAGAIN later\r\n"
        return None

    server, report = bench(verdict, "--duration", "1s", code=1)
    assert set(report["errors"]) == {"TRYAGAIN"}
    assert report["stallMicros"]["keys"] == RECORDS
    assert report["stallMicros"]["max"] >= 300_000
    assert report["stallMicros"]["p50"] < report["stallMicros"]["max"]
    assert report["requests"] == sum(server.keys.values())


def test_a_key_that_was_refused_is_asked_for_again_at_once(bench):
    """Else its stall would last until chance asks for it, long after it is served again."""
    refused = []

    def verdict(key):
        if not refused:
            refused.append(key)
            return b"-UNKNOWN try again\r\n"
        return None

    _, report = bench(verdict, "--duration", "2s", "--keys", "sequential", "--connections", "1",
                      "--records", "1000000", code=1)
    assert report["errors"] == {"UNKNOWN": 1}
    assert report["stallMicros"]["max"] < 1_000_000


def test_a_silent_server_is_told_from_a_slow_key(bench):
    waits = [0.4]

    def verdict(key):
        return waits.pop() if key == 3 and waits else None

    _, report = bench(verdict, "--duration", "1s")
    assert report["stallMicros"]["max"] >= 400_000
    assert report["silenceMicros"] < report["stallMicros"]["max"]

    _, report = bench(lambda key: 0.3, "--requests", "8", "--connections", "1")
    assert report["silenceMicros"] >= 300_000


def test_a_key_that_is_never_served_stalls_to_the_end(bench):
    _, report = bench(lambda key: b"-ERR no\r\n" if key == 5 else None, "--duration", "1s", code=1)
    assert report["errors"].keys() == {"ERR"}
    assert report["stallMicros"]["max"] > report["latencyMicros"]["max"]


def test_broken_connections_are_counted(bench):
    dropped = []

    def verdict(key):
        if not dropped:
            dropped.append(key)
            return b""
        return None

    _, report = bench(verdict, "--duration", "1s", code=1)
    assert report["errors"] == {"closed": 1}


def test_hot_keys_get_their_share(bench):
    server, report = bench(lambda key: None, "--requests", "8000", "--pipeline", "16",
                           "--hot", "0.2:0.8", "--workload", "mixed", "--reads", "0.25")
    assert report["requests"] == sum(server.keys.values()) == 8_000
    assert server.commands == {"GET": 2_000, "SET": 6_000}
    hot = sum(count for key, count in server.keys.items() if key < 4)
    assert 0.76 < hot / 8_000 < 0.84
    assert set(server.keys) == set(range(RECORDS))

    server, _ = bench(lambda key: None, "--requests", "8000", "--pipeline", "16",
                      "--single-hot-key", "--workload", "get")
    assert server.commands == {"GET": 8_000}
    assert 0.87 < server.keys[RECORDS // 2] / 8_000 < 0.93
    assert len(server.keys) > RECORDS // 2
