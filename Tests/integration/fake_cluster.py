"""A controller and nodes in one Python process, for tests of kvrouter alone.

They speak the wire protocol of Sources/WireProtocol and keep records in memory. A test scripts
their behaviour by `FakeNode.behave`, which sees each operation before it is done.
"""

import asyncio
import bisect
import random
import socket
import struct
import threading

HELLO, REQUESTS, RESPONSES = 1, 2, 3
WATCH_MAP, MAP_UPDATE, UNREACHABLE, GOODBYE = 12, 13, 16, 17
TABLE_REQUEST, TABLE_RESPONSE = 18, 19
GET, PUT, DELETE, LIST = 1, 2, 3, 4
CONDITIONAL, WANTS_PREVIOUS, QUORUM, WITHOUT_VALUE = 1, 2, 4, 8
CONDITION_FAILED, NOT_LEADER, STALE_EPOCH, UNAVAILABLE = 5, 6, 7, 8
TABLE_NOT_FOUND, TABLE_EXISTS = 3, 4
CLUSTER = 0x1234


def _crc_table():
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def frame(kind, body):
    rest = struct.pack("<BBH", kind, 1, 0) + body
    return struct.pack("<II", len(body), crc32c(rest)) + rest


async def read_frame(reader):
    header = await reader.readexactly(12)
    count, crc, kind, version, _ = struct.unpack("<IIBBH", header)
    body = await reader.readexactly(count)
    assert version == 1 and crc32c(header[8:] + body) == crc, "bad frame"
    return kind, body


def blob(data):
    data = data.encode() if isinstance(data, str) else data
    return struct.pack("<I", len(data)) + data


def sequence(items):
    return struct.pack("<I", len(items)) + b"".join(items)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def raw(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def blob(self):
        return self.raw(self.take("I"))

    def optional(self):
        return self.blob() if self.take("B") else None

    @property
    def more(self):
        return self.at < len(self.data)


class Operation:
    def __init__(self, reader):
        self.token = reader.take("I")
        self.group, self.shard, self.epoch = reader.take("III")
        self.code, self.flags, _, key_count, value_count = reader.take("BBHII")
        self.expected = reader.raw(16) if self.flags & CONDITIONAL else None
        self.key, self.value = reader.raw(key_count), reader.raw(value_count)

    @property
    def is_write(self):
        return self.code in (PUT, DELETE)


def response(token, error=0, flags=0, sequencer=bytes(16), payload=b""):
    return struct.pack("<IBBH", token, error, flags, 0) + sequencer + blob(payload)


def leader_hint(term, node):
    return struct.pack("<QI", term, node)


class FakeNode:
    """One node. `behave(operation)` answers None to have the operation done, bytes to have them
    sent instead, "hang" to leave it unanswered, "drop" to close the connection before doing it."""

    def __init__(self, cluster, number):
        self.cluster, self.number = cluster, number
        self.behave = lambda operation: None
        self.seen = []
        self.frames = 0
        self.server = None
        self.writers = set()
        self.port = None

    async def start(self, port=0):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self):
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        self.writers.add(writer)
        try:
            await read_frame(reader)
            writer.write(frame(HELLO, hello(1, self.number, f"node-{self.number}")))
            while True:
                kind, body = await read_frame(reader)
                if kind == REQUESTS:
                    self.frames += 1
                    self._answer(writer, Reader(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    def _answer(self, writer, reader):
        answers = []
        while reader.more:
            operation = Operation(reader)
            self.seen.append(operation)
            verdict = self.behave(operation)
            if verdict == "hang":
                continue
            if verdict == "drop":
                writer.transport.abort()
                return
            if verdict == "do and drop":
                self.cluster.apply(operation)
                writer.transport.abort()
                return
            answers.append(self.cluster.apply(operation) if verdict is None else verdict)
        if answers:
            writer.write(frame(RESPONSES, b"".join(answers)))


def hello(role, node, name, cluster=CLUSTER):
    return struct.pack("<BQII", role, cluster, node, 0) + blob(name) + sequence([])


class FakeCluster:
    """Three nodes, `groups` groups, group g led by node g (1, 2, ...)."""

    def __init__(self, groups=2, port=0, tables=()):
        self.port = port
        self.group_count = groups
        self.revision = 1
        self.tables = {}  # name -> (id, virtual ranges, [(shard, start, end, group, epoch)])
        self.leaders = {group: (1, group) for group in range(1, groups + 1)}
        self.records = {}  # (shard) -> {key: (value, sequencer)}
        self.next_id = 1
        self.counter = 0
        self.unreachable = []
        self.table_requests = 0
        self.watchers = set()
        for name in tables:
            self.add_table(name)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.nodes = [FakeNode(self, number) for number in (1, 2, 3)]
        self.call(self._start())

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def close(self):
        async def end():
            self.server.close()
            for writer in list(self.watchers):
                writer.transport.abort()
            for node in self.nodes:
                await node.stop()

        self.call(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def _start(self):
        for node in self.nodes:
            await node.start()
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    # Records

    def _sequencer(self):
        self.counter += 1
        return struct.pack("<QII", 1_000_000, self.counter, 1)

    def apply(self, operation):
        if operation.code == LIST:
            return self._list(operation)
        known = self.shard(operation.shard)
        if known is None or known[4] != operation.epoch:
            return response(operation.token, STALE_EPOCH, payload=b"another epoch")
        shard = self.records.setdefault(operation.shard, {})
        before = shard.get(operation.key)
        found = 1 if before else 0
        if operation.code == GET:
            if not before:
                return response(operation.token)
            value = b"" if operation.flags & WITHOUT_VALUE else before[0]
            return response(operation.token, 0, 1, before[1], value)
        current = before[1] if before else bytes(16)
        if operation.expected is not None and operation.expected != current:
            return response(operation.token, CONDITION_FAILED, 0, current, b"condition")
        sequencer = self._sequencer()
        if operation.code == PUT:
            shard[operation.key] = (operation.value, sequencer)
        else:
            shard.pop(operation.key, None)
        flags = found if operation.flags & WANTS_PREVIOUS else 0
        return response(operation.token, 0, flags, sequencer)

    def _list(self, operation):
        reader = Reader(operation.value)
        parts = [reader.take("II") for _ in range(reader.take("I"))]
        start, exclusive = reader.blob(), reader.take("B")
        end, limit, bytes_max, count_only = reader.optional(), *reader.take("IIB")
        merged = {}
        for number, epoch in parts:
            known = self.shard(number)
            if known is None or known[4] != epoch:
                return response(operation.token, STALE_EPOCH, payload=b"another epoch")
            merged.update(self.records.get(number, {}))
        keys = sorted(merged)
        at = bisect.bisect_right(keys, start) if exclusive else bisect.bisect_left(keys, start)
        page, size = [], 0
        while at < len(keys) and len(page) < limit and size < bytes_max:
            if end is not None and keys[at] >= end:
                break
            page.append(keys[at])
            size += len(keys[at]) + len(merged[keys[at]][0])
            at += 1
        more = at < len(keys) and (end is None or keys[at] < end)
        body = struct.pack("<IB", len(page), more) + blob(page[-1] if page else b"")
        listed = [] if count_only else page
        body += sequence([merged[k][1] + blob(k) + blob(merged[k][0]) for k in listed])
        return response(operation.token, payload=body)

    def shard(self, number):
        for _, _, shards in self.tables.values():
            for shard in shards:
                if shard[0] == number:
                    return shard
        return None

    # Map

    def map_update(self):
        changes = []
        for node in self.nodes:
            address = f"127.0.0.1:{node.port}"
            changes.append(
                struct.pack("<BI", 7, node.number)
                + blob(f"node-{node.number}") + blob(address) + blob("") + blob("")
                + struct.pack("<BB", 0, 1))
        for group in range(1, self.group_count + 1):
            places = [struct.pack("<IIB", 10 * group + n, n, 0) for n in (1, 2, 3)]
            changes.append(struct.pack("<BIB", 5, group, 1) + sequence(places) + b"\x02")
        for name, (number, ranges, shards) in self.tables.items():
            changes.append(
                struct.pack("<BI", 1, number) + blob(name) + struct.pack("<HBBB", ranges, 1, 3, 2))
            for shard, start, end, group, epoch in shards:
                edge = b"\x00" if end is None else b"\x01" + blob(end)
                changes.append(
                    struct.pack("<BII", 3, shard, number) + blob(start) + edge
                    + struct.pack("<IIB", group, epoch, 2))
        for group, (term, node) in self.leaders.items():
            changes.append(struct.pack("<BIQI", 9, group, term, node))
        return frame(
            MAP_UPDATE, struct.pack("<BQQIB", 1, 0, self.revision, 0, 1) + sequence(changes))

    def publish(self):
        """Raises the revision and tells every follower; from the test's thread."""

        async def push():
            self.revision += 1
            self._push()

        self.call(push())

    def _push(self):
        for writer in self.watchers:
            writer.write(self.map_update())

    def set_leader(self, group, node):
        """A new term with another leader, published."""
        self.leaders[group] = (self.leaders[group][0] + 1, node)
        self.publish()

    def add_table(self, name, splits=(), virtual_ranges=0):
        """A table over all groups in turn; returns its shards."""
        if virtual_ranges:
            edges = [struct.pack(">H", n) for n in range(1, virtual_ranges)]
        else:
            edges = [split.encode() for split in splits]
        number = self.next_id
        self.next_id += 1
        shards = []
        for place, (start, end) in enumerate(zip([b""] + edges, edges + [None])):
            shards.append((number * 10_000 + place, start, end, place % self.group_count + 1, 1))
        self.tables[name] = (number, virtual_ranges, shards)
        return shards

    # Controller

    async def _serve(self, reader, writer):
        try:
            await read_frame(reader)
            writer.write(frame(HELLO, hello(3, 0, "controller-1")))
            while True:
                kind, body = await read_frame(reader)
                if kind == WATCH_MAP:
                    self.watchers.add(writer)
                    writer.write(self.map_update())
                elif kind == UNREACHABLE:
                    self.unreachable.append(Reader(body).take("I"))
                elif kind == TABLE_REQUEST:
                    self._table(writer, Reader(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.watchers.discard(writer)
            writer.close()

    def _table(self, writer, reader):
        number, kind = reader.take("IB")
        error = b"\x00"
        if kind == 3:  # only an answer is wanted, behind what was published
            self._push()
            writer.write(frame(TABLE_RESPONSE, struct.pack("<I", number) + error))
            return
        self.table_requests += 1
        name = reader.blob().decode()
        if kind == 1:
            ranges, _, _ = reader.take("HBB")
            splits = [reader.blob().decode() for _ in range(reader.take("I"))]
            if name not in self.tables:
                self.add_table(name, splits, ranges)
            elif not reader.take("B"):
                error = bytes([TABLE_EXISTS]) + blob("the table exists")
        elif name in self.tables:
            for shard in self.tables.pop(name)[2]:
                self.records.pop(shard[0], None)
        else:
            error = bytes([TABLE_NOT_FOUND]) + blob("no such table")
        self.revision += 1
        self._push()
        writer.write(frame(TABLE_RESPONSE, struct.pack("<I", number) + error))


def free_port():
    """A port below the range that the kernel hands out by itself: no connection takes it between
    this look and the start of who is to listen there."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


if __name__ == "__main__":
    print(FakeCluster().port, flush=True)
    threading.Event().wait()
