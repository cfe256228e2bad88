"""A controller answers a router about tables only behind the map: a router takes the tables that a
confirmed map does not name for missing, and answers nil for their records."""

import asyncio
import struct

from fake_cluster import (
    HELLO, MAP_UPDATE, TABLE_REQUEST, TABLE_RESPONSE, WATCH_MAP, Reader, blob, frame, hello,
    read_frame, sequence)

ROUTER = 2
CONFIRM = struct.pack("<IB", 7, 3)
#: A sorted LSM table, unless there is one of that name.
CREATE = struct.pack("<IB", 7, 1) + blob("t0") + struct.pack("<HBB", 0, 1, 0) + sequence([]) + b"\1"
WHOLE_MAP = struct.pack("<Q", 0)


def succeeded(body):
    reader = Reader(body)
    token, has_error = reader.take("IB")
    assert token == 7 and not has_error, body


async def answers(port, *requests):
    """The frames that answer `requests`, one router's, up to that about a table: for each its kind, and of
    a map whether it is the last piece."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(frame(HELLO, hello(ROUTER, 0, "router-test", cluster=0)))
        assert (await read_frame(reader))[0] == HELLO
        for request in requests:
            writer.write(frame(*request))
        answers = []
        while True:
            kind, body = await read_frame(reader)
            if kind == TABLE_RESPONSE:
                succeeded(body)
                return answers + [kind]
            assert kind == MAP_UPDATE, kind
            is_full, _, _, _, is_last = Reader(body).take("BQQIB")
            answers.append((kind, is_full and is_last))
    finally:
        writer.close()


def ask(cluster, *requests):
    port = int(cluster.info["controllers"][0]["rpc"].rpartition(":")[2])
    return asyncio.run(asyncio.wait_for(answers(port, *requests), 30))


def test_answers_about_tables_come_behind_the_map(fresh_cluster):
    # Large enough to be made for a while, as soon as somebody asks for it.
    for number in range(4):
        fresh_cluster.redis().execute_command(
            "KV.CREATE", f"t{number}", "PARTITION", "HASH", "VRANGES", 1000)
    # The router would ask first.
    fresh_cluster.kill("controller-1", "router-1")
    fresh_cluster.start("controller-1")
    watch = (WATCH_MAP, WHOLE_MAP)
    confirm, create = (TABLE_REQUEST, CONFIRM), (TABLE_REQUEST, CREATE)
    for requests in ((watch, confirm), (confirm, watch), (create, watch), (watch, create)):
        assert ask(fresh_cluster, *requests)[-2:] == [(MAP_UPDATE, 1), TABLE_RESPONSE]
