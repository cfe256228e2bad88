"""Clients that write and read while a test does harm, and what they saw."""

import random
import threading
import time

import redis

from history import FAILED, OK, UNKNOWN, Operation, violations

#: First words of errors by which the router promises that nothing was applied.
NOT_APPLIED = ("UNAVAILABLE", "TRYAGAIN", "TOOLARGE", "CONDITION", "ERR")


def outcome_of(error):
    """What an error says about the write that it answers."""
    # The client turns this word into a class and takes it off the message.
    if isinstance(error, redis.exceptions.TryAgainError):
        return FAILED
    if isinstance(error, redis.ResponseError) and str(error).startswith(NOT_APPLIED):
        return FAILED
    return UNKNOWN


class Clients:
    """Threads that each do `_work(number, client)` with a client of their own, again and again, until the
    context is left: then they have ended. Each waits `pause` seconds between its calls."""

    def __init__(self, cluster, table, threads, pause):
        self.cluster = cluster
        self.table = table
        self.pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,))
                         for number in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def _run(self, number):
        client = self.cluster.redis()
        while not self._stop.is_set():
            self._work(number, client)
            self._stop.wait(self.pause)


class Workload(Clients):
    """Threads that each put and get random keys of one table with a client of their own.

    Every written value is unique.
    """

    def __init__(self, cluster, table, threads=6, keys=16, seed=1, pause=0):
        super().__init__(cluster, table, threads, pause)
        self.keys = [b"k%03d" % number for number in range(keys)]
        self.history = []
        self.errors = {}
        self._lock = threading.Lock()
        self._generators = [random.Random(seed * 1000 + number) for number in range(threads)]
        self._counts = [0] * threads

    def succeeded(self):
        """How many operations succeeded so far."""
        with self._lock:
            return sum(operation.status == OK for operation in self.history)

    def check(self, least=50):
        """Reads every key once more, then fails unless the whole history is linearizable."""
        client = self.cluster.redis()
        for key in self.keys:
            self._get(client, key)
        writes = sum(op.kind == "put" and op.status == OK for op in self.history)
        assert writes >= least, f"only {writes} writes succeeded: {self.errors}"
        found = violations(self.history)
        assert not found, "\n".join(found[:20])
        return self.history

    def _work(self, number, client):
        generator = self._generators[number]
        key = generator.choice(self.keys)
        try:
            if generator.random() < 0.5:
                self._counts[number] += 1
                self._put(client, key, b"%d-%d" % (number, self._counts[number]))
            else:
                self._get(client, key)
        except redis.ConnectionError:
            # The router may be down: no need to knock at full speed.
            time.sleep(0.01)

    def _put(self, client, key, value):
        start = time.monotonic()
        try:
            answer = client.execute_command("KV.PUT", self.table, key, value)
        except redis.RedisError as error:
            self._record(Operation("put", key, value, start, time.monotonic(),
                                   outcome_of(error)), error)
            if isinstance(error, redis.ConnectionError):
                raise
        else:
            self._record(Operation("put", key, value, start, time.monotonic(), OK,
                                   answer.decode()))

    def _get(self, client, key):
        start = time.monotonic()
        try:
            answer = client.execute_command("KV.GET", self.table, key)
        except redis.RedisError as error:
            self._record(None, error)
            if isinstance(error, redis.ConnectionError):
                raise
        else:
            value, sequencer = answer if answer else (None, None)
            self._record(Operation("get", key, value, start, time.monotonic(), OK,
                                   sequencer.decode() if sequencer else None))

    def _record(self, operation, error=None):
        with self._lock:
            if operation:
                self.history.append(operation)
            if error is not None:
                word = f"{type(error).__name__}: {str(error)[:60]}"
                self.errors[word] = self.errors.get(word, 0) + 1


class Inserts(Clients):
    """Threads that each insert keys never used before; the acknowledged ones must stay."""

    def __init__(self, cluster, table, threads=4, pause=0):
        super().__init__(cluster, table, threads, pause)
        self.acknowledged = []
        self.unknown = set()
        self._counts = [0] * threads

    def _work(self, number, client):
        self._counts[number] += 1
        key = b"%d-%06d" % (number, self._counts[number])
        try:
            client.hset(self.table, key, b"value of " + key)
            self.acknowledged.append(key)
        except redis.RedisError as error:
            if outcome_of(error) == UNKNOWN:
                self.unknown.add(key)
            time.sleep(0.005)

    def succeeded(self):
        """How many inserts were acknowledged so far."""
        return len(self.acknowledged)

    def check(self, least=50):
        """Fails unless every acknowledged record is there, and nothing that cannot be."""
        assert len(self.acknowledged) >= least, f"only {len(self.acknowledged)} inserts succeeded"
        stored = {}
        client, cursor = self.cluster.redis(timeout=30), b""
        while cursor is not None:
            cursor, fields = client.execute_command(
                "KV.LIST", self.table, "LIMIT", 5000, "CURSOR", cursor)
            stored |= dict(zip(fields[0::3], fields[1::3]))
        lost = [key for key in self.acknowledged if key not in stored]
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged are lost: {lost[:5]}"
        wrong = [key for key, value in stored.items() if value != b"value of " + key]
        assert not wrong, f"wrong values under {wrong[:5]}"
        extra = stored.keys() - set(self.acknowledged) - self.unknown
        assert not extra, f"records of refused writes: {sorted(extra)[:5]}"
