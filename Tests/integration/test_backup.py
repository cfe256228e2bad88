"""The backup of the metadata: continuous, over changes of the acting controller, to a directory and to
an S3-compatible store; damaged files are named."""

import json
import re
import shutil
import urllib.request

import pytest

from conftest import Cluster, run, wait_for
from s3_double import PAGE, S3Double
from test_controllers import NAMES, Controllers

pytestmark = pytest.mark.fault


def metrics(cluster, name, family="kvcontroller_backup"):
    admin = cluster.daemons[name]["admin"]
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {key: float(value) for key, value in re.findall(
        rf"^({family}\S*) (\S+)$", text, re.MULTILINE)}


def read(*words, place, **options):
    """What `kvctl backup WORDS` tells of a place without any controller, and its exit code."""
    result = run("kvctl", "backup", *words, "--from", place, "-o", "json", **options)
    return json.loads(result.stdout or "null"), result


def create(cluster, *names):
    for name in names:
        result = cluster.kvctl("table", "create", name)
        assert result.returncode == 0, result.stderr


def tables_in(place, *flags, **options):
    contents, result = read("show", *flags, place=place, **options)
    assert result.returncode == 0, result.stderr
    return {table["name"] for table in contents["summary"]["tables"]}


@pytest.fixture
def backed_up(tmp_path):
    place = tmp_path / "backup"
    cluster = Controllers(tmp_path / "cluster", "--controllers", "3",
                          environment={"KVCONTROLLERD_BACKUP_TO": str(place)})
    cluster.place = place
    try:
        cluster.up()
        cluster.wait_for_members(*NAMES)
        yield cluster
    finally:
        cluster.kvctl("playground", "down")


def test_every_change_is_in_the_backup_over_changes_of_the_acting_controller(backed_up):
    cluster, place = backed_up, backed_up.place
    made = set()
    for number in range(3):
        acting = cluster.wait_for_acting()
        name = f"table{number}"
        create(cluster, name)
        made.add(name)
        wait_for(lambda: tables_in(place) == made, 10, f"{made} in the backup")
        cluster.kill(acting)
        cluster.wait_for_acting(acting)
        cluster.start(acting)
    wait_for(lambda: cluster.json("backup", "status")["lagSeconds"] == 0, 20, "a current backup")
    listed, result = read("list", place=place)
    assert result.returncode == 0
    assert len(listed["spans"]) == 1, listed
    # Every revision in between can be shown: there was no gap.
    span = listed["spans"][0]
    seen = [tables_in(place, "--at", str(revision))
            for revision in range(span["from"], span["to"] + 1)]
    assert all(before <= after for before, after in zip(seen, seen[1:])), seen
    assert seen[0] == set() and seen[-1] == made
    result = cluster.kvctl("backup", "verify")
    assert result.returncode == 0 and "all sound" in result.stdout, result.stdout


def test_a_flipped_bit_in_any_file_is_found_and_named(backed_up, tmp_path):
    cluster, place = backed_up, backed_up.place
    create(cluster, "one")
    result = cluster.kvctl("backup", "now", "-o", "json")
    done = json.loads(result.stdout)
    assert (done["kind"], done["step"]) == ("backup", "done") and str(place) in done["outcome"], done
    assert done["id"] in [operation["id"] for operation in cluster.json("ops", "list")["operations"]]
    # Nothing more is written then, not even how the operation ended.
    wait_for(lambda: cluster.json("backup", "status")["revision"]
             == cluster.json("status")["revision"], 15, "everything in the backup")
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    names = sorted(path.name for path in copy.iterdir())
    assert len(names) >= 3
    for name in names:
        path = copy / name
        whole = path.read_bytes()
        for place_of_bit in {0, len(whole) // 2, len(whole) - 1}:
            flipped = bytearray(whole)
            flipped[place_of_bit] ^= 0x10
            path.write_bytes(flipped)
            found, result = read("verify", place=copy)
            assert result.returncode == 5, result.stderr
            assert name in {finding["name"] for finding in found["findings"]}, found
        path.write_bytes(whole)
    found, result = read("verify", place=copy)
    assert result.returncode == 0 and not found["findings"], found
    # The newest snapshot is not needed where logs lead over it.
    snapshot = max(name for name in names if name.startswith("snapshot"))
    whole = (copy / snapshot).read_bytes()
    (copy / snapshot).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    contents, result = read("show", place=copy)
    assert result.returncode == 0, result.stderr
    assert [table["name"] for table in contents["summary"]["tables"]] == ["one"], contents
    assert [text.split()[0] for text in contents["damaged"]] == [snapshot], contents
    (copy / snapshot).write_bytes(whole)
    # What is missing is named, and a place with nothing in it is a failure.
    (copy / min(name for name in names if name.startswith("log"))).unlink()
    found, result = read("verify", place=copy)
    assert result.returncode == 5, found
    assert any("cannot be restored" in finding["problem"] for finding in found["findings"]), found
    for path in copy.iterdir():
        path.unlink()
    found, result = read("verify", place=copy)
    assert result.returncode == 1 and not found["spans"], found


def test_what_is_gone_from_the_place_is_noticed(tmp_path):
    place = tmp_path / "backup"
    cluster = Cluster(tmp_path / "cluster", "--backup-to", str(place))
    try:
        cluster.up()
        create(cluster, "one")
        wait_for(lambda: tables_in(place) == {"one"}, 10, "the table in the backup")
        # The playground keeps the place.
        cluster.kvctl("playground", "down")
        assert cluster.kvctl("playground", "up", "--detach").returncode == 0
        create(cluster, "two")
        wait_for(lambda: tables_in(place) == {"one", "two"}, 10, "the tables in the backup")
        for path in place.iterdir():
            path.unlink()
        create(cluster, "three")
        wait_for(lambda: any(place.glob("snapshot-*")), 45, "a new snapshot")
        wait_for(lambda: tables_in(place) == {"one", "two", "three"}, 10, "everything")
        assert "is not there any more" in cluster.log_tails(10_000)
        assert cluster.kvctl("backup", "status").returncode == 0
    finally:
        cluster.kvctl("playground", "down")


def test_moments_and_places_as_operators_write_them(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for moment in "10m", "1h30m", "7d", "2026-11-29", "2026-11-29T12:00:00Z", "4711":
        result = run("kvctl", "backup", "show", "--from", empty, "--at", moment)
        assert "holds no snapshot" in result.stderr, result.stderr
    for moment in "1w", "h", "yesterday":
        result = run("kvctl", "backup", "show", "--from", empty, "--at", moment)
        assert result.returncode == 2 and "1h30m, 7d" in result.stderr, result.stderr
    result = run("kvctl", "backup", "list", "--from", "s3://bucket?endpoint=http://127.0.0.1:1")
    assert "--credentials" in result.stderr and "backup.credentials" in result.stderr
    file = tmp_path / "file"
    file.write_text("")
    for place, said in (str(file), "is a file"), ("", "no place is named"):
        result = run("kvcontrollerd", "--data", str(tmp_path), "--name", "c", "--backup-to", place,
                     "--check-config")
        assert result.returncode != 0 and said in result.stdout + result.stderr, result


def test_a_destination_that_is_away_delays_nothing_and_is_caught_up(backed_up):
    cluster, place = backed_up, backed_up.place
    create(cluster, "before")
    wait_for(lambda: tables_in(place) == {"before"}, 10, "the table in the backup")
    away = place.with_name("away")
    place.rename(away)
    place.write_text("in the way")
    try:
        create(cluster, "during")

        def check():
            report = cluster.json("doctor")
            finding = next(f for f in report["findings"] if f["code"] == "RK060")
            assert str(place) in finding["text"], finding
            assert cluster.json("status")["verdict"] == "degraded"
            return True
        wait_for(lambda: any(f["code"] == "RK060" for f in cluster.json("doctor")["findings"])
                 and check(), 20, "the finding")
        acting = cluster.acting()
        figures = metrics(cluster, acting)
        assert sum(value for key, value in figures.items() if "failures_total" in key) > 0
        assert figures["kvcontroller_backup_lag_seconds"] > 0
        result = cluster.kvctl("backup", "status")
        assert result.returncode == 5 and "problem" in result.stdout
        create(cluster, "still")
    finally:
        place.unlink()
        away.rename(place)
    wait_for(lambda: tables_in(place) == {"before", "during", "still"}, 30, "everything")
    wait_for(lambda: metrics(cluster, acting)["kvcontroller_backup_lag_seconds"] == 0, 10, "no lag")
    assert metrics(cluster, acting)["kvcontroller_backup_last_success_timestamp_seconds"] > 0
    assert not [f for f in cluster.json("doctor")["findings"] if f["code"] == "RK060"]


def tell_how_far_they_are(cluster, double):
    """What takes long in the backup: in the operation list, and in the metrics."""
    def under_way(kind, note):
        def check():
            operation = cluster.json("ops", "list")["operations"][-1]
            assert operation["kind"] == kind and not operation["finished"], operation
            assert note in operation["note"] and 0 < operation["percent"] < 100, operation
            shown = metrics(cluster, "controller-1", "kvcontroller_operation")
            percent = shown[f'kvcontroller_operation_progress_percent{{kind="{kind}"}}']
            assert percent == operation["percent"], (percent, operation)
            return operation
        return wait_for(check, 20, f"{note} of {kind}")

    def ended(kind, step):
        def check():
            operation = cluster.json("ops", "list")["operations"][-1]
            assert (operation["kind"], operation["step"]) == (kind, step), operation
            return operation
        return wait_for(check, 20, f"the end of {kind}")

    assert cluster.kvctl("backup", "now").returncode == 0  # Now nothing else needs a snapshot.
    create(cluster, "more")
    with double.holding("PUT", "snapshot-"):
        assert cluster.kvctl("backup", "now", "--no-wait").returncode == 0
        stored = under_way("backup", "storing")
    with double.holding("GET", "snapshot-"):
        again = under_way("backup", "reading back")
        assert again["id"] == stored["id"] and again["percent"] >= stored["percent"]
        assert again["bytesDone"] >= again["bytesTotal"] / 2 > 0, again
    ended("backup", "done")
    with double.holding("GET", "log-"):
        assert cluster.kvctl("backup", "verify", "--no-wait").returncode == 0
        reading = under_way("verifyBackup", "objects")
        refused = cluster.kvctl("backup", "verify")
        assert refused.returncode == 7 and "works on the backup" in refused.stderr, refused.stderr
        assert cluster.kvctl("ops", "cancel", str(reading["id"])).returncode == 0
    ended("verifyBackup", "cancelled")
    sound = cluster.json("backup", "verify")
    assert sound["spans"] and not sound["findings"], sound
    assert ended("verifyBackup", "done")["outcome"] == f"{sound['objects']} objects: all sound"
    shown = metrics(cluster, "controller-1")
    assert shown["kvcontroller_backup_verified_objects"] == sound["objects"]
    assert shown["kvcontroller_backup_verify_findings"] == 0
    assert shown["kvcontroller_backup_last_verify_timestamp_seconds"] > 0
    # What is damaged is told by the operation too.
    with double.lock:
        name = next(key for key in double.objects if "snapshot-" in key)
        whole = double.objects[name]
        double.objects[name] = whole[:-1]
    damaged = cluster.kvctl("backup", "verify", "-o", "json")
    finding = json.loads(damaged.stdout)["findings"][0]
    assert damaged.returncode in (1, 5) and finding["name"] in name, damaged.stdout
    assert finding["name"] in ended("verifyBackup", "failed")["outcome"]
    assert metrics(cluster, "controller-1")["kvcontroller_backup_verify_findings"] >= 1
    with double.lock:
        double.objects[name] = whole


def test_an_object_store_takes_signed_requests(tmp_path):
    double = S3Double()
    cluster = Cluster(tmp_path / "cluster", environment={
        "KVCONTROLLERD_BACKUP_TO": double.place(), **double.environment})
    try:
        cluster.up()
        create(cluster, "stored")
        assert cluster.kvctl("backup", "now").returncode == 0
        environment = {"env": double.environment}
        assert tables_in(double.place(), **environment) == {"stored"}
        assert all(key.startswith("prod/") for key in double.objects)
        assert len(double.objects) > PAGE, "the listing takes several pages"

        def is_read_whole():
            # What the operation itself changed follows it.
            found, result = read("verify", place=double.place(), **environment)
            assert result.returncode == 0, found
            return found["objects"] == len(double.objects)
        wait_for(is_read_whole, 15, "a verification of every object")
        assert not double.refused, double.refused
        # Down and up again.
        double.is_down = True
        create(cluster, "later")
        assert cluster.kvctl("backup", "now").returncode == 1
        failed = cluster.json("ops", "list")["operations"][-1]
        assert (failed["kind"], failed["step"]) == ("backup", "failed") and failed["outcome"], failed
        double.is_down = False
        wait_for(lambda: tables_in(double.place(), **environment) == {"stored", "later"}, 30,
                 "what came meanwhile")
        tell_how_far_they_are(cluster, double)
        # Wrong keys are refused, and no message or argument shows them.
        wrong = tmp_path / "keys"
        wrong.write_text("[default]\naws_access_key_id = AKEXAMPLE\naws_secret_access_key = wrong\n")
        found, result = read("list", "--credentials", str(wrong), place=double.place())
        assert result.returncode != 0 and "SignatureDoesNotMatch" in result.stderr
        pid = cluster.pid("controller-1")
        with open(f"/proc/{pid}/cmdline", "rb") as arguments:
            assert double.secret.encode() not in arguments.read()
        assert double.secret not in cluster.log_tails(10_000)
    finally:
        cluster.kvctl("playground", "down")
        double.close()
