"""What kvctl says about operations, plans, load and settings, against scripted controllers."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import pytest
from conftest import BINARIES, run

from fake_controller import FakeController, Refusal

MIB = 1 << 20


def operation(step="copying", **changes):
    entry = {
        "id": 7, "kind": "move", "step": step, "finished": step in ("done", "cancelled", "failed"),
        "origin": "operator", "reason": "asked for by the operator", "outcome": "", "note": "",
        "group": 1, "paused": False, "cancelled": False, "percent": 0,
        "work": {"table": "stocks", "shard": 3, "moving": 3, "source": 1, "target": 2,
                 "turned": False},
        "bytesDone": 0, "bytesTotal": 100 * MIB, "bytesPerSecond": None, "secondsLeft": None,
        "startedAt": 1_700_000_000_000,
        "changedAt": 1_700_000_000_000}
    return entry | changes


class Progress:
    """Answers of `ops.show` along a schedule of (seconds, entry)."""

    def __init__(self, *schedule):
        self.schedule = schedule
        self.started = None

    def __call__(self, _):
        self.started = self.started or time.monotonic()
        passed = time.monotonic() - self.started
        return {"operation": [entry(passed) if callable(entry) else entry
                              for at, entry in self.schedule if at <= passed][-1]}


def copying(bytes_per_second, **changes):
    """The controller knows the pace after a second."""
    def entry(passed):
        done = int(passed * bytes_per_second)
        pace = {"bytesPerSecond": bytes_per_second,
                "secondsLeft": -(-(100 * MIB - done) // bytes_per_second)} if passed > 1 else {}
        return operation(bytesDone=done, percent=done // MIB, **pace, **changes)
    return entry


def screens(fake, *words, columns=200):
    """What kvctl writes over its one line of standard error on a terminal, and its exit code."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [BINARIES / "kvctl", *words, *fake.flags], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=secondary)
    os.close(secondary)
    written = b""
    while True:
        try:
            chunk = os.read(primary, 65536)
        except OSError:
            break
        if not chunk:
            break
        written += chunk
    os.close(primary)
    output = process.stdout.read().decode()
    lines = [re.sub(r"\x1b\[[0-9]*[mK]", "", line) for line in written.decode().split("\r")]
    return [line for line in lines if line.strip()], output, process.wait()


def test_the_bar_tells_bytes_rate_and_time_left():
    progress = Progress((0, operation("forming")), (0.5, copying(10 * MIB)),
                        (4, operation("done", outcome="group 2 has it")))
    with FakeController(ops_show=progress) as fake:
        lines, output, code = screens(fake, "ops", "watch", "7")
    assert code == 0
    assert lines[0] == ("operation 7: preparing [....................] 0 %  "
                        "0 B of 100.0 MiB"), lines
    copies = [line for line in lines if ": copying [" in line]
    assert copies[0].endswith("time left unknown"), copies
    last = re.search(r"\[#{6,7}\.+\] 3\d % +3\d\.\d MiB of 100\.0 MiB, (\d+\.\d) MiB/s, (\d+) s left",
                     copies[-1])
    assert last, copies[-1]
    assert 9 <= float(last[1]) <= 11 and 5 <= int(last[2]) <= 8, copies[-1]
    assert output.splitlines()[0] == "operation 7: move shard 3 of stocks: from group 1 to 2"
    assert "  outcome  group 2 has it" in output


@pytest.mark.parametrize("entry, words", [
    (operation(bytesDone=5 * MIB), "time left unknown"),
    (operation(bytesDone=5 * MIB, throttled=True), "throttled"),
    (operation(bytesDone=5 * MIB, paused=True), "paused"),
    (operation("verifying", bytesDone=100 * MIB), "100.0 MiB of 100.0 MiB"),
    (operation("copying", note="group 2 has no leader"), "(group 2 has no leader)"),
])
def test_no_time_is_named_where_nothing_moves(entry, words):
    progress = Progress((0, entry), (1.5, operation("failed", outcome="given up")))
    with FakeController(ops_show=progress) as fake:
        lines, _, code = screens(fake, "ops", "watch", "7")
    assert code == 1
    assert lines and all(line.endswith(words) for line in lines), lines
    assert not any(" left" in line and "unknown" not in line for line in lines), lines


def test_a_throttled_copy_shows_its_pace_and_no_end():
    progress = Progress((0, copying(4 * MIB, throttled=True)), (2, operation("done")))
    with FakeController(ops_show=progress) as fake:
        lines, _, _ = screens(fake, "ops", "watch", "7")
    assert re.search(r"MiB/s, throttled$", lines[-1]), lines
    assert not any("left" in line for line in lines), lines


def test_a_narrow_terminal_cuts_the_line():
    progress = Progress((0, operation("copying", note="x" * 300)), (0.5, operation("done")))
    with FakeController(ops_show=progress) as fake:
        lines, _, _ = screens(fake, "ops", "watch", "7", columns=40)
    assert {len(line) for line in lines} == {39}, lines


def test_on_80_columns_the_bar_gives_way_then_the_note():
    note = "requests on the nodes involved take too long"
    progress = Progress((0, copying(10 * MIB, id=123)), (3, copying(10 * MIB, note=note)),
                        (6, operation("done")))
    with FakeController(ops_show=progress) as fake:
        lines, _, _ = screens(fake, "ops", "watch", "123", columns=80)
    told = [line for line in lines if "MiB/s" in line]
    assert told and all(re.search(r"MiB/s, \d+ s left( {2}\(.*)?$", line) for line in told), lines
    assert any(re.search(r"\[[#.]{3,19}\]", line) for line in told), told
    assert any("  (req" in line for line in told), told
    assert all(len(line) <= 79 for line in lines), lines


def test_ctrl_c_ends_the_watching_only():
    with FakeController(ops_show=Progress((0, operation("copying")))) as fake:
        process = subprocess.Popen([BINARIES / "kvctl", "ops", "watch", "7", *fake.flags],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 130
        assert errors == "kvctl: operation 7 goes on; to see its end: kvctl ops watch 7\n"
        assert set(fake.verbs()) == {"ops.show"}


def test_kinds_are_words_and_a_way_back_is_told_as_it_was_asked_for():
    turned = operation("cancelled", work=operation()["work"] | {
        "source": 2, "target": 1, "turned": True})
    replacing = operation("catchingUp", id=8, kind="replaceReplica", **{"from": "node-1", "to": "node-4"})
    del replacing["work"]
    with FakeController(ops_list={"operations": [turned, replacing]},
                        ops_show={"operation": turned}) as fake:
        rows = run("kvctl", "ops", "list", *fake.flags).stdout.splitlines()
        shown = run("kvctl", "ops", "show", 7, *fake.flags).stdout
    assert "move" in rows[1] and "shard 3 of stocks: from group 1 to 2" in rows[1]
    assert "replace replica  group 1: node-1 to node-4" in rows[2] and "catching up" in rows[2]
    assert shown.startswith("operation 7: move shard 3 of stocks: from group 1 to 2\n")


def test_a_paused_copy_rests_for_the_sake_of_nobody():
    held = operation("copying", paused=True, throttled=True, bytesDone=5 * MIB)
    with FakeController(ops_show={"operation": held}) as fake:
        shown = run("kvctl", "ops", "show", 7, *fake.flags).stdout
    assert "paused, copying" in shown and "for the sake" not in shown


def test_without_a_terminal_each_step_is_one_line():
    progress = Progress((0, operation("splitting")), (0.5, operation("copying")),
                        (1, operation("copying", paused=True)), (1.5, operation("done")))
    with FakeController(ops_show=progress) as fake:
        result = run("kvctl", "ops", "watch", 7, *fake.flags)
    steps = [line.partition(" [")[0] for line in result.stderr.splitlines()]
    assert steps == ["operation 7: cutting", "operation 7: copying",
                     "operation 7: paused, copying"], result.stderr
    assert fake.verbs() == ["ops.show"] * len(fake.asked), "polling changes nothing"


def test_a_rule_s_proposals_are_listed_with_their_reason():
    proposal = operation("proposed", kind="split", origin="split.hot", reason="4310 requests/s",
                         work={"table": "stocks", "shard": 3, "cut": "m\\x00", "source": 1,
                               "turned": False})
    with FakeController(ops_list={"operations": [proposal, operation("done", id=8)]},
                        ops_show={"operation": proposal}) as fake:
        result = run("kvctl", "ops", "list", *fake.flags)
        shown = run("kvctl", "ops", "show", 7, *fake.flags)
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["ID", "KIND", "WHAT", "STEP", "DONE", "BY", "STARTED", "NOTE"]
    assert "shard 3 of stocks at m\\x00" in first and "proposed" in first
    assert first.endswith("4310 requests/s") and "split.hot" in first
    assert "shard 3 of stocks: from group 1 to 2" in second
    assert "kvctl apply 7" in shown.stdout


PLAN = {
    "plan": 1, "verb": "split", "madeAt": 1_700_000_000_000,
    "arguments": {"table": "stocks", "shard": 3, "at": "m", "to": "new"},
    "basis": {"cluster": "00", "shards": [], "groups": [], "places": []},
    "summary": "cuts shard 3 of stocks at m and moves the upper half from group 1 to a new group",
    "grounds": "the key halves 4310 requests/s", "steps": ["a group is formed", "the shard is cut"],
    "pause": "under 50 ms", "bytes": 12 * MIB, "records": 123456, "seconds": 90,
    "groups": [
        {"group": 1, "before": {"operations": 4310, "bytes": 24 * MIB, "shards": 3},
         "after": {"operations": 2155, "bytes": 12 * MIB, "shards": 3}},
        {"before": {"operations": 0, "bytes": 0, "shards": 0},
         "after": {"operations": 2155, "bytes": 12 * MIB, "shards": 1}}],
    "nodes": [{"node": "node-1", "before": {"operations": 4310, "bytes": 24 * MIB},
               "after": {"operations": 2155, "bytes": 24 * MIB}}],
    "skipped": [{"group": 2, "reason": "takes part in operation 5"}]}


def test_a_plan_as_text_and_as_a_file(tmp_path):
    with FakeController(split=PLAN, apply={"operation": operation("forming")}) as fake:
        text = run("kvctl", "split", "stocks", "--to", "new", "--dry-run", *fake.flags)
        assert text.returncode == 0, text.stderr
        document = run("kvctl", "split", "stocks", "--dry-run", "-o", "json", *fake.flags)
        assert json.loads(document.stdout) == PLAN
        file = tmp_path / "plan.json"
        file.write_text(document.stdout)
        for source, words in (file, {}), ("-", {"input": document.stdout}):
            result = run("kvctl", "apply", source, "--no-wait", *fake.flags, **words)
            assert result.returncode == 0, result.stderr
            assert fake.asked[-1] == ("apply", {"plan": PLAN})
        by_id = run("kvctl", "apply", 12, *fake.flags)
        assert by_id.returncode == 2 and fake.asked[-1] == ("ops.apply", {"operation": 12})
        run("kvctl", "apply", 12, "--dry-run", *fake.flags)
        assert fake.asked[-1] == ("ops.apply", {"operation": 12, "dryRun": True})
    assert fake.asked[0] == ("split", {"table": "stocks", "to": "new", "dryRun": True})
    lines = text.stdout.splitlines()
    assert lines[0] == "plan: " + PLAN["summary"]
    assert "  copies   12.0 MiB, 123,456 records" in lines
    assert "  takes    about 1 min 30 s, at the pace of the last copy" in lines
    assert any(re.fullmatch(r"1 +4310 -> 2155 +24\.0 MiB -> 12\.0 MiB +3", line) for line in lines)
    assert any(re.fullmatch(r"new +0 -> 2155 +0 B -> 12\.0 MiB +0 -> 1", line) for line in lines)
    assert lines[-1] == "group 2: takes part in operation 5"


def test_what_is_not_known_of_a_plan_is_not_made_up():
    plan = PLAN | {"bytes": 12 * MIB, "seconds": None}
    with FakeController(split=plan) as fake:
        lines = run("kvctl", "split", "stocks", "--dry-run", *fake.flags).stdout.splitlines()
    assert "  takes    not known: no copy was timed yet" in lines
    unknown = {"operations": None, "bytes": None, "shards": 3}
    plan = PLAN | {"bytes": None, "groups": [PLAN["groups"][0] | {"after": unknown}], "seconds": None}
    with FakeController(split=plan) as fake:
        lines = run("kvctl", "split", "stocks", "--dry-run", *fake.flags).stdout.splitlines()
    assert "  copies   how much is not known: it was not counted yet" in lines
    assert any(re.fullmatch(r"1 +4310 -> - +24\.0 MiB -> - +3", line) for line in lines), lines


def test_an_operation_shows_its_pace():
    entry = operation(bytesDone=5 * MIB, bytesPerSecond=10 * MIB, secondsLeft=10)
    with FakeController(ops_show={"operation": entry}) as fake:
        shown = run("kvctl", "ops", "show", 7, *fake.flags).stdout
    assert "  pace     10.0 MiB/s, 10 s left" in shown


@pytest.mark.parametrize("contents, code, message", [
    ("", 2, "holds no plan"), ("[]", 2, "holds no plan"), ('{"plan": "x"}', 2, "holds no plan"),
    ('{"plan": 2}', 7, "a plan of version 2"), (None, 1, "No such file"),
])
def test_files_that_are_no_plans(tmp_path, contents, code, message):
    file = tmp_path / "plan.json"
    if contents is not None:
        file.write_text(contents)
    with FakeController() as fake:
        result = run("kvctl", "apply", file, *fake.flags)
    assert result.returncode == code and message in result.stderr, result.stderr
    assert fake.asked == []


def test_refusals_keep_their_words_and_exit_code():
    def refuse(_):
        raise Refusal("shard 3 is being moved by operation 5")
    with FakeController(split=refuse, move=refuse, merge=refuse, ops_pause=refuse) as fake:
        for words in (["split", "stocks"], ["move", "3"], ["merge", "3"], ["ops", "pause", "5"]):
            result = run("kvctl", *words, *fake.flags)
            assert result.returncode == 7
            assert result.stderr == "kvctl: shard 3 is being moved by operation 5\n"
            assert result.stdout == ""


def test_what_does_not_exist_is_refused():
    def unknown(code):
        def refuse(_):
            raise Refusal("there is none", code)
        return refuse
    with FakeController(split=unknown("tableNotFound"), move=unknown("refused")) as fake:
        for words in (["split", "nosuch"], ["move", "99"]):
            assert run("kvctl", *words, *fake.flags).returncode == 7


def test_settings():
    settings = [
        {"name": "split.hot", "value": "propose", "default": "auto", "isDefault": False,
         "allowed": "off, propose or auto", "description": "split busy shards"},
        {"name": "split.rate", "value": "2000", "default": "2000", "isDefault": True,
         "allowed": "a number", "description": "requests per second"}]

    def change(arguments):
        settings[1] |= {"value": arguments["value"], "isDefault": False}
        return {}
    with FakeController(config_list=lambda _: {"settings": settings}, config_set=change) as fake:
        bare = run("kvctl", "config", *fake.flags)
        listed = run("kvctl", "config", "list", *fake.flags)
        got = run("kvctl", "config", "get", "split.rate", *fake.flags)
        unknown = run("kvctl", "config", "get", "split.rat", *fake.flags)
        changed = run("kvctl", "config", "set", "split.rate", "500", *fake.flags)
        run("kvctl", *fake.flags, "config", "set", "split.rate", "-1")
        assert fake.asked[-2] == ("config.set", {"name": "split.rate", "value": "-1"})
    assert bare.stdout == listed.stdout
    rows = listed.stdout.splitlines()
    assert "propose *" in rows[1] and "*" not in rows[2]
    assert got.stdout == "2000\n"
    assert unknown.returncode == 7 and "did you mean split.rate?" in unknown.stderr
    assert changed.stdout == "split.rate = 500 (was 2000)\n"


TOP = {
    "groups": [{"id": 1, "leader": "node-1", "reads": 12000, "writes": 300, "shards": 4,
                "bytes": MIB, "records": 9},
               {"id": 2, "leader": None, "shards": 0, "bytes": 0, "records": 0}],
    "shards": [{"id": 3, "table": "stocks", "start": "", "end": None, "group": 1, "reads": 12000,
                "writes": 300, "bytes": MIB, "records": 9, "hottest": "AAPL",
                "hottestPercent": 61}]}


def test_top_is_shown_once_without_a_terminal():
    with FakeController(top=TOP) as fake:
        result = run("kvctl", "top", *fake.flags)
        limited = run("kvctl", "top", "--limit", 3, "-o", "json", *fake.flags)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1] == ["1", "node-1", "12.3k", "12.0k", "300", "4", "9", "1.0", "MiB"]
    assert rows[2][:5] == ["2", "none", "-", "-", "-"]
    assert rows[5][-3:] == ["AAPL", "(61", "%)"]
    assert json.loads(limited.stdout) == TOP
    assert fake.asked == [("top", {"limit": 10}), ("top", {"limit": 3})]


def test_doctor_is_content_with_notices():
    finding = {"code": "RK043", "severity": "notice", "text": "1 proposal waits",
               "advice": "kvctl apply 7"}
    with FakeController(doctor={"verdict": "healthy", "findings": [finding]}) as fake:
        result = run("kvctl", "doctor", *fake.flags)
    assert result.returncode == 0
    assert result.stdout.splitlines()[0] == "healthy: 1 notice"
