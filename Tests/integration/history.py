"""Per-key linearizability of recorded reads and writes.

The test is the zone test for registers whose written values are all different (Gibbons and Korach,
"Testing shared memories", SIAM J. Comput. 26(4), 1997). For each value: f is the earliest end and s
the latest start among its write and its reads. If f < s the value was held during the forward zone
[f, s]; otherwise it may have been held for a moment anywhere in the backward zone [s, f]. A history
is linearizable exactly when every read's value was written by a write that began before the read
ended, no two forward zones overlap, and no backward zone lies inside a forward one.

Intervals are closed: an operation precedes another only if it ended strictly before the other began.
"""

from collections import defaultdict
from dataclasses import dataclass
from math import inf

OK = "ok"
#: The write may or may not have been applied, at any time after its start.
UNKNOWN = "unknown"
#: The write was refused before it was applied: nobody may ever read it.
FAILED = "failed"

#: What a key holds before its first write.
ABSENT = None


@dataclass(frozen=True)
class Operation:
    kind: str  # "put" or "get"
    key: bytes
    value: bytes | None
    start: float
    end: float
    status: str = OK
    #: The sequencer that a put or get answered; None when unknown.
    sequencer: str | None = None


@dataclass
class _Value:
    write: Operation
    reads: list


def violations(history):
    """Sentences about what is wrong with a history of any number of keys; empty when nothing is."""
    by_key = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    found = []
    for key, operations in sorted(by_key.items()):
        found += [f"key {key!r}: {problem}" for problem in key_violations(operations)]
    return found


def key_violations(operations):
    """The same for the operations of one key."""
    values = {ABSENT: _Value(Operation("put", b"", ABSENT, -inf, -inf), [])}
    found = []
    refused = set()
    for operation in operations:
        if operation.kind != "put":
            continue
        if operation.value in values or operation.value in refused:
            raise ValueError(f"{operation.value!r} was written twice: the test needs unique values")
        if operation.status == FAILED:
            refused.add(operation.value)
            continue
        end = inf if operation.status == UNKNOWN else operation.end
        write = Operation("put", operation.key, operation.value, operation.start, end,
                          operation.status, operation.sequencer)
        values[operation.value] = _Value(write, [])
    for operation in operations:
        if operation.kind != "get" or operation.status != OK:
            continue
        value = values.get(operation.value)
        if value is None:
            how = "a refused write's value" if operation.value in refused else "never written"
            found.append(f"read {operation.value!r} at {operation.start}..{operation.end}: {how}")
        elif operation.end < value.write.start:
            found.append(f"read {operation.value!r} ended before its write began")
        else:
            value.reads.append(operation)
    return found + _zone_violations(values) + _sequencer_violations(values)


def _zone_violations(values):
    forward, backward = [], []
    for name, value in values.items():
        if value.write.status == UNKNOWN and not value.reads:
            continue
        members = [value.write, *value.reads]
        first_end = min(member.end for member in members)
        last_start = max(member.start for member in members)
        if first_end < last_start:
            forward.append((first_end, last_start, name))
        else:
            backward.append((last_start, first_end, name))
    found = []
    forward.sort(key=lambda zone: zone[:2])
    for (_, end, name), (start, _, other) in zip(forward, forward[1:]):
        if start < end:
            found.append(f"{name!r} was still read after {other!r} was seen, and {other!r} before")
    # Forward zones that do not overlap: at most one can hold a given backward zone.
    for start, end, name in backward:
        for low, high, other in forward:
            if low < start and end < high:
                found.append(f"{name!r} lies wholly within the time in which {other!r} was held")
                break
    return found


def _sequencer_violations(values):
    """Sequencers name one value each and rise from every write to each that began after it ended."""
    found = []
    writes = []
    for name, value in values.items():
        seen = {member.sequencer for member in [value.write, *value.reads] if member.sequencer}
        if len(seen) > 1:
            found.append(f"{name!r} was answered with several sequencers: {sorted(seen)}")
        elif seen:
            writes.append((value.write, seen.pop()))
    owners = defaultdict(set)
    for write, sequencer in writes:
        owners[sequencer].add(write.value)
    for sequencer, owned in owners.items():
        if len(owned) > 1:
            found.append(f"sequencer {sequencer} stands for several values: {sorted(owned)}")
    # Sweep by start: the highest sequencer of all writes that ended before must be lower.
    by_end = sorted((write.end, sequencer) for write, sequencer in writes)
    position, highest = 0, ""
    for write, sequencer in sorted(writes, key=lambda pair: pair[0].start):
        while position < len(by_end) and by_end[position][0] < write.start:
            highest = max(highest, by_end[position][1])
            position += 1
        if sequencer <= highest:
            found.append(f"sequencer {sequencer} of {write.value!r} is not above {highest}")
    return found
