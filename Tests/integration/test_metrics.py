"""What the daemons tell of themselves: metrics as docs/metrics.md lists them, health, the look inside,
slow requests, and logs."""

import gzip
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import redis

from conftest import BINARIES, REPOSITORY, Cluster, run, wait_for

OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
SECTIONS = {"kvnode": "kvnode", "kvrouter": "kvrouter", "kvcontrollerd": "kvcontrollerd"}
#: Families that have no series on a cluster where nothing of the kind happened.
MAY_BE_EMPTY = {"kvnode_shard_hottest_key_percent", "kvnode_shard_operations_per_second",
                "kvnode_group_operations_total"}


def fetch(daemon, path, method="GET", **headers):
    """Status, header fields and body of a page of the daemon's admin server."""
    request = urllib.request.Request(
        f"http://{daemon['admin']}{path}", method=method,
        headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def page(daemon, path):
    return json.loads(fetch(daemon, path)[2])


LINE = re.compile(r'([a-z_:]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)$')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def scrape(daemon):
    """Type and series of each family: {name: (type, [(sample name, labels, value)])}."""
    families = {}
    for line in fetch(daemon, "/metrics")[2].decode().splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name not in families, f"{name} comes twice"
            families[name] = (kind, [])
        elif not line.startswith("#"):
            match = LINE.match(line)
            assert match, line
            # All lines of a family stand together, so it is the newest one.
            assert match[1].startswith(name), f"{match[1]} stands under {name}"
            families[name][1].append((match[1], dict(LABEL.findall(match[2] or "")),
                                      float(match[3])))
    return families


def value(daemon, name, **labels):
    """The sum over the series of `name` that have these labels; None when there is none."""
    found = [value for sample, have, value in scrape(daemon).get(name, ("", []))[1]
             if labels.items() <= have.items()]
    return sum(found) if found else None


def documented():
    """The tables of docs/metrics.md: {section: {family: (type, {label: values or None}, meaning)}}."""
    tables = {}
    for line in (REPOSITORY / "docs/metrics.md").read_text().splitlines():
        if line.startswith("## "):
            families = tables.setdefault(line[3:], {})
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 4, line
            labels = {}
            for part in filter(None, (part.strip() for part in cells[2].split(";"))):
                match = re.match(r"`([a-z_]+)`(?:=([A-Za-z0-9_.,]+))?", part)
                assert match, line
                values = match[2]
                if values and ".." in values:
                    first, last = values.split("..")
                    values = ",".join(str(n) for n in range(int(first), int(last) + 1))
                labels[match[1]] = set(values.split(",")) if values and "(" not in part else None
            families[cells[0].strip("`")] = (cells[1], labels, cells[3])
    return tables


def programs(cluster):
    """A daemon of each program, by the program's name."""
    info = cluster.info
    return {"kvnode": info["nodes"][0], "kvrouter": info["routers"][0],
            "kvcontrollerd": info["controllers"][0]}


@pytest.fixture(scope="module")
def used(cluster):
    """The cluster after requests of each kind."""
    client = cluster.redis()
    for number in range(200):
        client.hset("metrics", f"key-{number:03}", "value")
        client.hget("metrics", f"key-{number:03}")
    client.hdel("metrics", "key-000")
    client.execute_command("KV.LIST", "metrics")
    # What loops publish comes after a second at the latest.
    node_sum = lambda: sum(value(node, "kvnode_gets_total") for node in cluster.info["nodes"])
    wait_for(lambda: node_sum() >= 200, what="the gets in the nodes' metrics")
    return cluster


@pytest.mark.parametrize("program", SECTIONS)
def test_families_are_those_of_the_document(used, program):
    tables = documented()
    expected = tables["Every daemon"] | tables[program]
    families = scrape(programs(used)[program])
    assert set(families) == set(expected), "docs/metrics.md and the daemon differ"
    for name, (kind, labels, meaning) in expected.items():
        found_kind, series = families[name]
        assert found_kind == kind, name
        may_be_empty = name in MAY_BE_EMPTY or meaning.startswith("**backup**")
        assert series or may_be_empty, f"{name} has no series"
        seen = set()
        for sample, have, _ in series:
            have = {label: text for label, text in have.items() if label != "le"}
            assert set(have) == set(labels), (name, sample, have)
            for label, text in have.items():
                assert labels[label] is None or text in labels[label], (name, label, text)
            seen.update(have.items())
        # Known labels are told from the start, with zero.
        for label, texts in labels.items():
            for text in (texts or ()) if name != "kv_build_info" else ():
                assert (label, text) in seen or may_be_empty, (name, label, text)


@pytest.mark.parametrize("program", SECTIONS)
def test_promtool_accepts_the_page(used, program):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian package prometheus)")
    text = fetch(programs(used)[program], "/metrics")[2]
    result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr


@pytest.mark.parametrize("program", SECTIONS)
def test_formats_and_encodings(used, program):
    daemon = programs(used)[program]
    _, headers, text = fetch(daemon, "/metrics")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Encoding"] is None
    assert len(text) < 1_000_000
    _, headers, packed = fetch(daemon, "/metrics", Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert len(packed) < len(text) / 3
    assert gzip.decompress(packed).startswith(b"# HELP ")

    _, headers, packed = fetch(daemon, "/metrics", Accept=OPEN_METRICS, Accept_Encoding="gzip")
    kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert headers["Content-Type"] == kind
    lines = gzip.decompress(packed).decode().splitlines()
    assert lines[-1] == "# EOF"
    assert lines.count("# EOF") == 1
    types = dict(line.split()[2:] for line in lines if line.startswith("# TYPE "))
    assert types["process_cpu_seconds"] == "counter"
    assert types["kv_build"] == "info"
    assert not [name for name in types if name.endswith(("_total", "_info"))]
    samples = {LINE.match(line)[1] for line in lines if not line.startswith("#")}
    for name in (name for name, kind in types.items() if kind == "counter"):
        assert name not in samples
    # Both formats tell the same families.
    plain = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE ")}
    assert {re.sub("_(total|info)$", "", name) for name in plain} == set(types)


def test_counters_count(used):
    nodes = used.info["nodes"]
    router = used.info["routers"][0]

    def everywhere(name, **labels):
        return sum(value(node, name, **labels) or 0 for node in nodes)

    assert everywhere("kvnode_requests_total", op="put", result="ok") >= 200
    assert everywhere("kvnode_requests_total", op="get", result="ok") >= 200
    assert everywhere("kvnode_requests_total", op="delete", result="ok") >= 1
    assert everywhere("kvnode_requests_total", op="list", result="ok") >= 1
    for stage in ("loop", "propose", "log", "apply"):
        histogram = [sample for node in nodes
                     for sample in scrape(node)["kvnode_queue_wait_seconds"][1]]
        assert sum(v for name, labels, v in histogram
                   if name.endswith("_count") and labels["stage"] == stage) > 0, stage
    for name in ("kvnode_commit_duration_seconds", "kvnode_apply_duration_seconds",
                 "kvnode_wal_fsync_duration_seconds"):
        count = sum(v for node in nodes for sample, _, v in scrape(node)[name][1]
                    if sample == f"{name}_count")
        assert count > 0, name
    assert value(router, "kvrouter_requests_total", op="put", result="ok") >= 200
    assert value(router, "kvrouter_map_updates_total") >= 1
    assert value(router, "kvrouter_groups_unroutable") == 0
    before = value(router, "kv_metrics_render_bytes")
    assert before > 1_000
    assert 0 < value(router, "kv_metrics_render_seconds") < 10
    for daemon in programs(used).values():
        assert value(daemon, "kv_ready") == 1
        assert value(daemon, "kv_loop_turns_total") > 0
        assert value(daemon, "kv_stage_last_progress_timestamp_seconds") > time.time() - 60


def test_leaderships_and_log_entries_tell_how_they_ended(fresh_cluster):
    cluster = fresh_cluster

    def changes(node, reason):
        return value(cluster.daemons[node], "kvnode_leader_changes_total", reason=reason)

    def entries(result):
        return sum(value(node, "kvnode_proposals_total", result=result)
                   for node in cluster.info["nodes"])

    client = cluster.redis()
    client.hset("t", "k", "v")
    group = cluster.group_of("t")
    leader = group["leader"]
    # The controller named the first leaders, and entries are counted when they are applied.
    assert changes(leader, "nominated") >= 1
    assert entries("committed") >= 1
    target = next(replica["node"] for replica in group["replicas"] if replica["node"] != leader)
    assert [changes(node, "transfer") for node in (leader, target)] == [0, 0]
    assert cluster.kvctl("transfer", group["id"], target, "--wait").returncode == 0
    # It ended at the one, and began at the other.
    wait_for(lambda: [changes(node, "transfer") for node in (leader, target)] == [1, 1],
             what="the hand-over in both nodes' metrics")
    # Its followers stand still: the entry is in its log and nowhere else, and it gives up.
    followers = [replica["node"] for replica in group["replicas"] if replica["node"] != target]
    for node in followers:
        cluster.pause(node)
    with pytest.raises(redis.RedisError):
        client.hset("t", "k", "w")
    wait_for(lambda: changes(target, "quorum_lost") >= 1, what="the end of its leadership")
    wait_for(lambda: value(cluster.daemons[target], "kvnode_proposals_total",
                           result="unknown") >= 1, what="an entry of which nothing is known")
    for node in followers:
        cluster.resume(node)
    cluster.wait_until_healthy()


def test_data_is_told_by_kind(used):
    def fits(node):
        kinds = {labels["kind"]: size for _, labels, size in scrape(node)["kvnode_data_bytes"][1]}
        assert kinds["log"] > 0 and kinds["live"] >= 0 and kinds["garbage"] >= 0
        files = sum(file.stat().st_size for file in Path(node["data"][0]).rglob("*")
                    if file.is_file())
        assert sum(kinds.values()) <= files, (kinds, files)
        return True

    for node in used.info["nodes"]:
        # Measured once a second, and a checkpoint may have cut the log since.
        wait_for(lambda: fits(node), what="figures that the files bear out")


def test_health_and_pages(used):
    for program, daemon in programs(used).items():
        assert page(daemon, "/livez") == {"live": True, "reasons": []}
        assert page(daemon, "/readyz") == {"ready": True, "reasons": []}
        pages = page(daemon, "/debug")["pages"]
        assert page(daemon, "/debug/")["pages"] == pages
        index = fetch(daemon, "/")[2].decode().splitlines()
        assert index[0] + "\n" == run(program, "--version").stdout
        assert index[1:] == ["/metrics", "/livez", "/readyz", *pages]
        assert {"/debug/log", "/debug/queues", "/debug/settings", "/debug/stages"} <= set(pages)
        for path in pages:
            assert isinstance(page(daemon, path), dict), (program, path)
        settings = {line["name"]: line for line in page(daemon, "/debug/settings")["settings"]}
        assert settings["listen.admin"]["value"] == daemon["admin"]
    nodes = used.info["nodes"]
    groups = [group for node in nodes for group in page(node, "/debug/groups")["groups"]]
    leaders = [group["group"] for group in groups if group["role"] == "leader"]
    assert sorted(leaders) == sorted(str(group["id"]) for group in used.groups())
    assert all(group["applied"] <= group["commit"] <= group["last"] for group in groups)
    one = page(nodes[0], "/debug/groups?group=1")["groups"]
    assert {group["group"] for group in one} <= {"1"}
    assert fetch(nodes[0], "/debug/groups?group=x")[0] == 400
    queues = page(nodes[0], "/debug/queues")
    assert [peer["connected"] for peer in queues["peers"]] == [True] * (len(nodes) - 1)
    assert page(used.info["controllers"][0], "/debug/queues")["acting"] is True


def test_versions_of_daemons_are_told(used):
    told = used.json("version", "--all")
    assert {one["name"] for one in told["daemons"]} == set(used.daemons)
    expected = f"{told['kvctl']} ({told['revision']})"
    assert {one["version"] for one in told["daemons"]} == {expected}
    lines = used.kvctl("version", "--all").stdout.splitlines()
    assert lines[0] == f"kvctl {expected}" and lines[3].split()[0] == "controller-1"
    assert "daemons" not in used.json("version")


def test_secrets_are_shown_to_nobody(tmp_path):
    checked = run("kvrouter", "--controllers", "127.0.0.1:1", "--auth-password", "hush-hush",
                  "--check-config")
    assert checked.returncode == 0, checked.stderr
    assert "auth.password" in checked.stdout
    assert "hush-hush" not in checked.stdout + checked.stderr


def test_the_log_level_changes_while_running(used):
    router = used.info["routers"][0]
    assert page(router, "/debug/log")["level"] == "info"
    written = value(router, "kv_log_messages_total", level="notice")
    status, _, body = fetch(router, "/debug/log?level=debug", method="POST")
    assert (status, json.loads(body)["level"]) == (200, "debug")
    assert page(router, "/debug/log")["level"] == "debug"
    assert value(router, "kv_log_messages_total", level="notice") == written + 1
    assert fetch(router, "/debug/log?level=loud", method="POST")[0] == 400
    assert fetch(router, "/debug/log", method="POST")[0] == 400
    assert fetch(router, "/debug/log?level=info", method="POST")[0] == 200
    assert page(router, "/debug/log")["level"] == "info"
    log = used.directory / "logs" / "router-1.log"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    changes = [event for event in events if event.get("event") == "log_level_changed"]
    assert [(change["from"], change["to"]) for change in changes[-2:]] == [
        ("info", "debug"), ("debug", "info")]


def test_a_build_is_stamped_with_its_revision(tmp_path):
    if shutil.which("objcopy") is None:
        pytest.skip("no objcopy (Debian package binutils)")
    program = tmp_path / "kvrouter"
    shutil.copy(BINARIES / "kvrouter", program)

    def version():
        return subprocess.run([program, "--version"], capture_output=True, text=True,
                              check=True).stdout

    stamp = REPOSITORY / "scripts/stamp-revision"
    subprocess.run([stamp, "1a2b3c4d", program], check=True)
    assert version().endswith(" (1a2b3c4d)\n")
    # A shorter one leaves nothing of the longer.
    subprocess.run([stamp, "v1", program], check=True)
    assert version().endswith(" (v1)\n")
    assert subprocess.run([stamp, "no spaces", program], capture_output=True).returncode == 2


def log_events(cluster, name, kind):
    text = (cluster.directory / "logs" / f"{name}.log").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    return [event for event in events if event.get("event") == kind]


def test_slow_requests_tell_where_the_time_went(tmp_path):
    cluster = Cluster(tmp_path / "cluster", environment={
        "KVNODE_SLOW_REQUEST": "1us", "KVROUTER_SLOW_REQUEST": "1us",
        "KVNODE_LOG_BURST": "20", "KVROUTER_LOG_BURST": "20"})
    try:
        cluster.up()
        client = cluster.redis()
        for number in range(100):
            client.hset("slow", f"key-{number}", "value")
        client.hget("slow", "key-1")
        router = cluster.info["routers"][0]
        wait_for(lambda: value(router, "kvrouter_slow_requests_total", op="get") == 1,
                 what="the slow get")
        told = log_events(cluster, "router-1", "slow_request")
        # The burst, and no more.
        assert len(told) == 20
        for event in told:
            assert event["message"] == "slow request"
            assert event["op"] in ("put", "get", "table", "other")
        puts = [event for event in told if event["op"] == "put" and "node" in event]
        assert puts, told
        for event in puts:
            assert event["result"] == "ok"
            assert int(event["took_ms"]) + 2 >= int(event["queue_ms"]) + int(event["upstream_ms"])
        assert log_events(cluster, "router-1", "messages_left_out")
        assert value(router, "kv_log_messages_dropped_total", level="warning") >= 80

        writes = [event for node in cluster.info["nodes"]
                  for event in log_events(cluster, node["name"], "slow_request")
                  if event["op"] == "put"]
        assert writes
        staged = [event for event in writes if "commit_ms" in event]
        assert staged, writes
        for event in staged:
            stages = [int(event[f"{stage}_ms"]) for stage in ("propose", "commit", "wait", "apply")]
            assert sum(stages) <= int(event["took_ms"]) + 1, event
    finally:
        cluster.kvctl("playground", "down")


def test_only_the_acting_controller_tells_of_the_cluster(tmp_path):
    acting_only = {name for name, (_, _, meaning) in documented()["kvcontrollerd"].items()
                   if meaning.startswith("**acting**")}
    assert len(acting_only) > 8
    cluster = Cluster(tmp_path / "cluster", "--controllers", "3")

    def told(daemon):
        return {name for name, (_, series) in scrape(daemon).items()
                if name in acting_only and series}

    def acting():
        controllers = [each for each in cluster.info["controllers"]
                       if each["name"] not in stopped]
        leaders = [each for each in controllers
                   if value(each, "kvcontroller_is_leader") == 1]
        if len(leaders) != 1 or told(leaders[0]) != acting_only:
            return None
        others = [each for each in controllers if each is not leaders[0]]
        return (leaders[0], others) if all(told(each) == set() for each in others) else None

    stopped = set()
    try:
        cluster.up()
        first, others = wait_for(acting, what="one controller that tells of the cluster")
        assert all(value(each, "kvcontroller_has_leader") == 1 for each in others)
        # A step-down without an end: the standby that hears nothing elects another.
        cluster.pause(first["name"])
        stopped.add(first["name"])
        second, _ = wait_for(acting, what="another controller that tells of the cluster")
        assert second["name"] != first["name"]
        cluster.resume(first["name"])
        stopped.clear()
        again, others = wait_for(acting, what="the first controller silent about the cluster")
        assert again["name"] == second["name"]
        assert first["name"] in [each["name"] for each in others]
        assert value(second, "kvcontroller_groups", health="ok") == len(cluster.groups())
    finally:
        for name in stopped:
            cluster.resume(name)
        cluster.kvctl("playground", "down")
