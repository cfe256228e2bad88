"""The checker itself: histories that must pass, histories that must fail, and a model."""

import itertools
import random
from math import inf

import pytest

from history import ABSENT, FAILED, UNKNOWN, Operation, key_violations, violations


def put(value, start, end, status="ok", sequencer=None):
    return Operation("put", b"k", value, start, end, status, sequencer)


def get(value, start, end, sequencer=None):
    return Operation("get", b"k", value, start, end, "ok", sequencer)


LEGAL = {
    "read after write": [put("a", 0, 1), get("a", 2, 3)],
    "absent before the write": [get(ABSENT, 0, 1), put("a", 2, 3)],
    "read during the write sees it": [put("a", 0, 10), get("a", 1, 2)],
    "read during the write does not see it": [put("a", 0, 10), get(ABSENT, 1, 2)],
    "two writes at once, in either order": [put("a", 0, 5), put("b", 0, 5), get("a", 6, 7)],
    "unknown write never seen": [put("a", 0, 1), put("b", 2, 3, UNKNOWN), get("a", 4, 5)],
    "unknown write seen late": [
        put("a", 0, 1), put("b", 2, 3, UNKNOWN), get("a", 4, 5), get("b", 6, 7)],
    "refused write not seen": [put("a", 0, 1), put("b", 2, 3, FAILED), get("a", 4, 5)],
    "ends that touch": [put("a", 0, 1), put("b", 1, 2), get("a", 2, 3)],
    "sequencers rise": [put("a", 0, 1, sequencer="1"), put("b", 2, 3, sequencer="2")],
}

ILLEGAL = {
    "lost write": [put("a", 0, 1), get(ABSENT, 2, 3)],
    "stale read": [put("a", 0, 1), put("b", 2, 3), get("a", 4, 5)],
    "read goes back": [put("a", 0, 1), put("b", 2, 10), get("b", 3, 4), get("a", 5, 6)],
    "absent again after it was seen": [put("a", 0, 10), get("a", 1, 2), get(ABSENT, 3, 4)],
    "never written": [get("x", 0, 1)],
    "refused write seen": [put("a", 0, 1, FAILED), get("a", 2, 3)],
    "read before the write": [get("a", 0, 1), put("a", 2, 3)],
    "unknown write seen, then gone": [
        put("a", 0, 1), put("b", 2, 3, UNKNOWN), get("b", 4, 5), get("a", 6, 7)],
    "write within another value's time": [
        put("a", 0, 1), put("b", 2, 3), get("a", 4, 5), get("a", 6, 7)],
    "sequencer goes back": [put("a", 0, 1, sequencer="2"), put("b", 2, 3, sequencer="1")],
    "sequencer repeats": [put("a", 0, 5, sequencer="1"), put("b", 0, 5, sequencer="1")],
    "two sequencers for one value": [put("a", 0, 1, sequencer="1"), get("a", 2, 3, sequencer="2")],
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal_histories_pass(name):
    assert key_violations(LEGAL[name]) == []


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_histories_fail(name):
    assert key_violations(ILLEGAL[name]) != []


def test_keys_are_independent_and_named():
    history = [
        Operation("put", b"x", "a", 0, 1), Operation("get", b"y", None, 2, 3),
        Operation("put", b"z", "b", 0, 1), Operation("get", b"z", None, 2, 3)]
    assert [text.split(":")[0] for text in violations(history)] == ["key b'z'"]


def test_values_written_twice_are_refused():
    with pytest.raises(ValueError):
        key_violations([put("a", 0, 1), put("a", 2, 3)])


def exhaustive(operations):
    """Whether some order of the operations, each at a moment of its interval, explains all reads."""
    needed = [op for op in operations if op.status == "ok"]
    optional = [op for op in operations if op.status == UNKNOWN]
    for size in range(len(optional) + 1):
        for chosen in itertools.combinations(optional, size):
            if _search(needed + [put(op.value, op.start, inf) for op in chosen], ABSENT):
                return True
    return False


def _search(remaining, value):
    if not remaining:
        return True
    for candidate in remaining:
        if any(other.end < candidate.start for other in remaining):
            continue
        if candidate.kind == "get" and candidate.value != value:
            continue
        rest = [other for other in remaining if other is not candidate]
        if _search(rest, candidate.value if candidate.kind == "put" else value):
            return True
    return False


def test_agrees_with_exhaustive_search():
    verdicts = {True: 0, False: 0}
    for seed in range(4000):
        generator = random.Random(seed)
        history, written = [], [ABSENT]
        for number in range(generator.randint(2, 6)):
            start = generator.randint(0, 8)
            end = start + generator.randint(0, 5)
            if generator.random() < 0.5:
                written.append(f"v{number}")
                status = UNKNOWN if generator.random() < 0.3 else "ok"
                history.append(put(written[-1], start, end, status))
            else:
                history.append(get(generator.choice(written), start, end))
        expected = exhaustive(history)
        verdicts[expected] += 1
        assert (key_violations(history) == []) == expected, f"seed {seed}: {history}"
    assert min(verdicts.values()) > 500, verdicts
