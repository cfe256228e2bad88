"""`kvctl debug bundle` and `kvctl wait`: on a cluster that is well, and on one that is not."""

import json
import tarfile
import threading

import pytest
from conftest import run

pytestmark = pytest.mark.fault

PAGES = ["readyz.json", "livez.json", "metrics.txt", "debug-settings.json", "debug-stages.json", "log.txt"]


def unpacked(archive):
    """Contents by path, without the folder that everything is below."""
    with tarfile.open(archive) as tar:
        return {member.name.partition("/")[2]: tar.extractfile(member).read().decode()
                for member in tar if member.isfile()}


def test_a_bundle_holds_what_every_daemon_tells_and_names_what_is_missing(fresh_cluster, tmp_path):
    cluster = fresh_cluster
    cluster.wait_until_healthy()
    result = cluster.kvctl("debug", "bundle", "--to", tmp_path / "well.tar.gz")
    assert result.returncode == 0, result.stderr
    files = unpacked(tmp_path / "well.tar.gz")
    assert result.stdout == f"{tmp_path}/well.tar.gz: {len(files)} files\n"
    for name in cluster.daemons:
        assert not [page for page in PAGES if not files.get(f"{name}/{page}")], name
        assert json.loads(files[f"{name}/readyz.json"])["ready"] is True
        assert "kv_build_info" in files[f"{name}/metrics.txt"]
    assert json.loads(files["cluster/status.json"])["verdict"] == "healthy"
    assert json.loads(files["cluster/why.json"])["decisions"]
    # A playground has no backup unless it is told to.
    summary = json.loads(files["summary.json"])
    assert [gap["name"] for gap in summary["missing"]] == ["cluster/backup.json"]
    assert set(summary["files"]) == set(files) - {"summary.json"}

    cluster.kill("node-2", "controller-1")
    result = cluster.kvctl("debug", "bundle", "--to", tmp_path / "ill.tar.gz", "-o", "json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["archive"] == f"{tmp_path}/ill.tar.gz"
    files = unpacked(answer["archive"])
    missing = {gap["name"]: gap["reason"] for gap in answer["summary"]["missing"]}
    assert "refused" in missing["node-2/readyz.json"]
    assert "no controller answers" in missing["cluster/status.json"]
    assert files["node-2/log.txt"] and files["controller-1/log.txt"]
    assert not [page for page in PAGES if not files.get(f"node-1/{page}")]


def test_a_bundle_overwrites_nothing_and_says_where_it_cannot_be(cluster, tmp_path):
    there = tmp_path / "there.tar.gz"
    there.write_text("mine")
    result = cluster.kvctl("debug", "bundle", "--to", there)
    assert result.returncode == 7 and "exists" in result.stderr
    assert there.read_text() == "mine"
    result = cluster.kvctl("debug", "bundle", "--to", tmp_path / "nowhere" / "a.tar.gz")
    assert result.returncode == 7 and "No such file" in result.stderr
    nobody = run("kvctl", "debug", "bundle", "--controllers", "127.0.0.1:1", "--to", tmp_path / "none.tar.gz")
    assert nobody.returncode == 3 and not (tmp_path / "none.tar.gz").exists()


def test_waiting_ends_when_the_cluster_is_healthy(fresh_cluster):
    cluster = fresh_cluster
    assert cluster.kvctl("wait").stdout == "healthy\n"
    assert cluster.json("wait", "--for", "idle") == {"idle": True}
    cluster.kill("node-2")
    late = cluster.kvctl("wait", "--timeout", "1s")
    assert late.returncode == 6 and "not healthy after 1 s" in late.stderr and late.stdout == ""
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(cluster.kvctl("wait", timeout=60)))
    thread.start()
    cluster.start("node-2")
    thread.join()
    assert waiting[0].stdout == "healthy\n", waiting[0].stderr


def test_waiting_ends_when_nothing_is_under_way(fresh_cluster):
    cluster = fresh_cluster
    cluster.wait_until_healthy()
    # A spare that does not answer keeps the operation where it is.
    cluster.pause("node-4")
    replacement = cluster.kvctl("replace", "--group", "1", "--replica", "node-2", "--no-wait")
    busy = cluster.kvctl("wait", "--for", "idle", "--timeout", "1s")
    cluster.resume("node-4")
    assert replacement.returncode == 0, replacement.stderr
    assert busy.returncode == 6 and "1 operation under way" in busy.stderr
    assert cluster.kvctl("wait", "--for", "idle", timeout=60).stdout == "idle\n"
    assert [one["finished"] for one in cluster.json("ops", "list")["operations"]] == [True]
