"""What operators do with shards, through kvctl: split, move, merge, plans, and going back."""

import json
import urllib.request

import pytest
from conftest import _running, wait_for
from test_storage import fill

TABLES = iter(range(1000))


@pytest.fixture
def table(cluster):
    """A table of the test's own on the cluster that tests share."""
    return make(cluster, f"split{next(TABLES)}")


def make(cluster, name, *options, records=400, size=100):
    cluster.redis().execute_command("KV.CREATE", name, *options)
    contents = fill(cluster.redis(), name, records, size=size)
    return Table(cluster, name, contents)


class Table:
    def __init__(self, cluster, name, contents):
        self.cluster, self.name, self.contents = cluster, name, contents

    def shards(self):
        return self.cluster.json("shards", self.name)["shards"]

    def places(self):
        """Of the shards all but what is counted."""
        return [(one["id"], one["start"], one["group"], one["epoch"]) for one in self.shards()]

    def shard(self, number):
        return next(shard for shard in self.shards() if shard["id"] == number)

    def only(self):
        (shard,) = self.shards()
        return shard

    def check(self):
        """The records are what they were, and the shards tile the keys."""
        assert self.cluster.redis().hgetall(self.name) == self.contents
        shards = self.shards()
        assert shards[0]["start"] in ("", "hash:0") and shards[-1]["end"] is None, shards
        assert all(left["end"] == right["start"] for left, right in zip(shards, shards[1:])), shards
        assert all(shard["state"] == "active" for shard in shards), shards


def do(cluster, *words):
    """The operation that a command started, at its end."""
    result = cluster.kvctl(*words, "--wait", "-o", "json")
    assert result.returncode == 0, result.stdout + result.stderr
    operation = json.loads(result.stdout)
    assert operation["finished"] and operation["step"] == "done", operation
    return operation


def begin(cluster, *words):
    result = cluster.kvctl(*words, "--no-wait", "-o", "json")
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def refusal(cluster, *words, code=7, **options):
    result = cluster.kvctl(*words, **options)
    assert result.returncode == code, result.stdout + result.stderr
    assert result.stdout == ""
    return result.stderr


def other_group(cluster, shard):
    return next(group["id"] for group in cluster.groups() if group["id"] != shard["group"])


def test_a_cut_and_a_merge(cluster, table):
    shard = table.only()
    operation = do(cluster, "split", table.name, "--at", "k000100", "--to", "none")
    assert operation["kind"] == "split" and operation["percent"] == 100
    assert operation["work"]["cut"] == "k000100" and operation["work"]["shard"] == shard["id"]
    lower, upper = table.shards()
    assert lower["id"] == shard["id"] and upper["id"] == operation["work"]["upper"]
    assert lower["end"] == upper["start"] == "k000100"
    assert lower["group"] == upper["group"] == shard["group"]
    table.check()
    operation = do(cluster, "merge", lower["id"])
    assert operation["kind"] == "merge" and operation["work"]["neighbour"] == upper["id"]
    assert table.only()["end"] is None
    table.check()


def test_a_move_and_the_way_back(cluster, table):
    shard = table.only()
    target = other_group(cluster, shard)
    operation = do(cluster, "move", shard["id"], "--to", target)
    assert operation["work"] | {"turned": False} == {
        "table": table.name, "shard": shard["id"], "moving": shard["id"],
        "source": shard["group"], "target": target, "turned": False}
    assert operation["bytesDone"] == operation["bytesTotal"] or operation["bytesTotal"] == 0
    assert table.only()["group"] == target
    table.check()
    back = do(cluster, "ops", "reverse", operation["id"])
    assert back["id"] != operation["id"]
    assert table.only()["group"] == shard["group"]
    table.check()
    why = cluster.kvctl("why", "shard", shard["id"]).stdout
    assert f"operation {operation['id']} " in why and f"operation {back['id']} " in why, why


def test_a_split_that_moves_one_half(cluster, table):
    shard = table.only()
    target = other_group(cluster, shard)
    operation = do(cluster, "split", table.name, "--at", "k000200", "--to", target)
    groups = {one["id"]: one["group"] for one in table.shards()}
    assert sorted(groups.values()) == sorted([shard["group"], target])
    assert groups[operation["work"]["moving"]] == target
    table.check()
    listed = next(one for one in cluster.json("ops", "list")["operations"]
                  if one["id"] == operation["id"])
    assert listed == cluster.json("ops", "show", operation["id"]) == operation
    # A merge brings the neighbour back first.
    merged = do(cluster, "merge", table.shards()[0]["id"])
    assert merged["work"]["neighbour"] and table.only()["end"] is None
    table.check()


def test_a_hash_table_is_cut_between_virtual_ranges(cluster):
    table = make(cluster, f"split{next(TABLES)}", "PARTITION", "HASH", "VRANGES", "8")
    message = refusal(cluster, "split", table.name, "--at", "k000100")
    assert "between virtual ranges" in message, message
    assert "hash:0 to hash:7" in refusal(cluster, "split", table.name, "--at", "hash:8")
    first, second = table.shards()[:2]
    assert (first["start"], first["end"], second["end"]) == ("hash:0", "hash:1", "hash:2")
    do(cluster, "merge", first["id"])
    assert table.shard(first["id"])["end"] == "hash:2"
    plan = cluster.json("split", table.name, "--shard", first["id"], "--to", "none", "--dry-run")
    assert plan["arguments"]["at"] == "hash:1"
    do(cluster, "split", table.name, "--at", "hash:1", "--to", "none")
    assert table.shard(first["id"])["end"] == "hash:1"
    shard = table.shards()[0]
    target = other_group(cluster, shard)
    do(cluster, "move", shard["id"], "--to", target)
    assert table.shard(shard["id"])["group"] == target
    table.check()


def test_keys_of_any_bytes(cluster, table):
    table.cluster.redis().hset(table.name, b"k\x00\xff\\z", b"odd")
    table.contents[b"k\x00\xff\\z"] = b"odd"
    do(cluster, "split", table.name, "--at", r"k\x00\xFF\x5C", "--to", "none")
    assert table.shards()[1]["start"] == r"k\x00\xFF\x5C"
    table.check()


def test_a_dry_run_changes_nothing_and_says_all(cluster, table):
    shard = table.only()

    def state():
        return cluster.json("ops", "list"), cluster.json("why"), table.places()
    before = state()
    plan = cluster.json("split", table.name, "--at", "k000200", "--to",
                        other_group(cluster, shard), "--dry-run")
    assert plan["plan"] == 1 and plan["verb"] == "split"
    assert plan["arguments"] == {
        "table": table.name, "shard": shard["id"], "at": "k000200",
        "to": str(other_group(cluster, shard))}
    assert [one["id"] for one in plan["basis"]["shards"]] == [shard["id"]]
    assert plan["basis"]["shards"][0]["epoch"] == shard["epoch"]
    assert {one["id"] for one in plan["basis"]["groups"]} == {
        shard["group"], other_group(cluster, shard)}
    assert plan["steps"] and plan["pause"] and plan["summary"]
    for forecast in plan["groups"] + plan["nodes"]:
        assert {"operations", "bytes"} <= set(forecast["before"]) & set(forecast["after"])
    text = cluster.kvctl("split", table.name, "--at", "k000200", "--dry-run")
    assert text.returncode == 0 and text.stdout.startswith("plan: cuts shard "), text.stdout
    assert "pause" in text.stdout and "GROUP" in text.stdout
    cut = cluster.json("split", table.name, "--at", "k000200", "--to", "none", "--dry-run")
    assert cut["bytes"] == 0 and cut["pause"] == "none" and cut["arguments"]["to"] == "none"
    move = cluster.json("move", shard["id"], "--dry-run")
    assert move["arguments"]["to"] == "new" or int(move["arguments"]["to"]) != shard["group"]
    assert state() == before


def test_a_plan_is_applied_and_only_once(cluster, table, tmp_path):
    shard = table.only()
    plan = cluster.kvctl("split", table.name, "--at", "k000200", "--dry-run", "-o", "json").stdout
    file = tmp_path / "plan.json"
    file.write_text(plan)
    operation = do(cluster, "apply", file)
    assert operation["kind"] == "split" and operation["work"]["shard"] == shard["id"]
    assert len(table.shards()) == 2
    table.check()
    message = refusal(cluster, "apply", file)
    assert "does not hold any more" in message and f"shard {shard['id']} had the keys" in message
    assert "--dry-run" in message


def test_a_plan_is_refused_when_the_world_moved(cluster, table, tmp_path):
    shard = table.only()
    target = other_group(cluster, shard)
    plan = cluster.kvctl("split", table.name, "--at", "k000200", "--to", "none", "--dry-run",
                         "-o", "json").stdout
    do(cluster, "move", shard["id"], "--to", target)
    before = table.places()
    message = refusal(cluster, "apply", "-", input=plan)
    assert f"shard {shard['id']} went from group {shard['group']} to group {target}" in message
    changed = json.loads(plan)
    changed["basis"] = {"cluster": changed["basis"]["cluster"], "shards": [], "groups": [],
                        "places": []}
    message = refusal(cluster, "apply", "-", input=json.dumps(changed))
    assert "rests on other records" in message, message
    changed = json.loads(plan)
    changed["basis"]["cluster"] = "0" * 16
    assert "was made for cluster" in refusal(cluster, "apply", "-", input=json.dumps(changed))
    for broken in ('{"plan": 1}', '{"plan": 1, "verb": "split", "arguments": 7, "basis": {}}'):
        message = refusal(cluster, "apply", "-", input=broken, code=2)
        assert "no plan" in message, message
    assert table.places() == before
    table.check()


def test_bad_requests_say_what_would_work(cluster, table):
    shard = table.only()
    refused = [
        (["split", "nosuchtable"], "nosuchtable"),
        (["split", table.name, "--at", "k000100", "--to", "99"], "99"),
        (["split", table.name, "--shard", "999999"], "999999"),
        (["move", shard["id"], "--to", shard["group"]], f"group {shard['group']}"),
        (["move", "999999"], "999999"),
        (["merge", shard["id"]], f"shard {shard['id']}"),
        (["merge", "999999"], "999999"),
        (["ops", "pause", "999999"], "kvctl ops list"),
        (["ops", "resume", "999999"], "kvctl ops list"),
        (["ops", "reverse", "999999"], "kvctl ops list"),
        (["apply", "999999"], "kvctl ops list"),
        (["apply", "999999", "--dry-run"], "kvctl ops list"),
        (["why", "group", "999999"], "there are 1, "),
        (["why", "shard", "999999"], "there is no shard 999999"),
        (["why", "op", "999999"], "there is no operation 999999"),
        (["drain", "node-4"], "there is nothing to drain"),
        (["transfer", "999999", "node-1"], "there are 1, "),
        (["replace", "node-4", "--dry-run"], "nothing to replace"),
        (["transfer", "1", "node-4", "--dry-run"], "holds no replica of group 1"),
    ]
    for words, text in refused:
        result = cluster.kvctl(*words)
        assert result.returncode == 7, (words, result.stdout, result.stderr)
        assert text in result.stderr and result.stdout == "", (words, result.stderr)
    do(cluster, "split", table.name, "--at", "k000100", "--to", "none")
    boundary = refusal(cluster, "split", table.name, "--at", "k000100", "--to", "none")
    assert "k000100" in boundary, boundary
    outside = refusal(cluster, "split", table.name, "--shard", shard["id"], "--at", "k000300",
                      "--to", "none")
    assert "k000300" in outside, outside
    table.check()


def test_dry_runs_of_operations_on_nodes(cluster, table):
    plan = cluster.json("replace", "node-1", "--dry-run")
    assert plan["verb"] == "replace" and {one["to"] for one in plan["replacements"]} == {"node-4"}
    assert [one["id"] for one in plan["basis"]["groups"]] == [
        one["group"] for one in plan["replacements"]]
    node = {one["node"]: one for one in plan["nodes"]}
    assert set(node) == {"node-1", "node-4"}
    assert node["node-1"]["after"]["bytes"] <= node["node-1"]["before"]["bytes"]
    assert node["node-4"]["after"]["bytes"] >= node["node-4"]["before"]["bytes"]
    group = cluster.groups()[0]
    next_leader = next(replica["node"] for replica in group["replicas"]
                       if replica["node"] != group["leader"])
    plan = cluster.json("transfer", group["id"], next_leader, "--dry-run")
    assert plan["basis"]["groups"][0]["leader"] == group["leader"]
    assert plan["bytes"] == 0
    # Three nodes and a spare: nobody else can take the replicas over.
    result = cluster.kvctl("drain", "node-1", "--dry-run", "-o", "json")
    if result.returncode == 0:
        assert json.loads(result.stdout)["verb"] == "drain"
    else:
        assert result.returncode == 7 and "no node can take over" in result.stderr


def figures(cluster):
    """The controller's metrics."""
    controller = cluster.info["controllers"][0]
    with urllib.request.urlopen(f"http://{controller['admin']}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, _, value in
            (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def test_operations_are_counted(cluster, table):
    def ended(kind):
        return figures(cluster)[
            f'kvcontroller_operations_total{{kind="{kind}",result="done"}}']
    shard = table.only()
    before = ended("split"), ended("move"), figures(cluster)["kvcontroller_copied_records_total"]
    do(cluster, "split", table.name, "--at", "k000100", "--to", "none")
    do(cluster, "move", shard["id"], "--to", other_group(cluster, shard))
    # Those of the test before may be counted only now.
    wait_for(lambda: ended("split") > before[0] and ended("move") > before[1],
             what="counted operations")
    now = figures(cluster)
    assert now['kvcontroller_operations_in_flight{kind="move"}'] == 0
    assert now['kvcontroller_proposals{kind="split"}'] == 0
    assert 'kvcontroller_shard_requests_per_second{rank="1"}' in now
    assert 'kvcontroller_group_requests_per_second{rank="10"}' in now
    assert now["kvcontroller_copied_records_total"] >= before[2]


SLOW_COPY = {"KVNODE_COPY_RATE": "256KiB"}


@pytest.fixture
def slow_cluster(tmp_path):
    """Copies take long enough to be stopped, paused and looked at."""
    yield from _running(tmp_path / "cluster", environment=SLOW_COPY)


def start_slow_move(cluster):
    table = make(cluster, "slow", records=4000, size=500)
    shard = wait_for(lambda: (one := table.only())["bytes"] and one, what="a first count")
    operation = begin(cluster, "move", shard["id"], "--to", other_group(cluster, shard))
    wait_for(lambda: show(cluster, operation)["step"] == "copying", what="the copy")
    return table, shard, operation


def show(cluster, operation):
    return cluster.json("ops", "show", operation["id"])


def test_pause_resume_and_cancel_of_a_copy(slow_cluster):
    cluster = slow_cluster
    table, shard, operation = start_slow_move(cluster)
    message = refusal(cluster, "move", shard["id"])
    assert f"operation {operation['id']}" in message and "ops cancel" in message, message

    paused = json.loads(cluster.kvctl("ops", "pause", operation["id"], "-o", "json").stdout)
    assert paused["paused"] and not paused["finished"]
    codes = {finding["code"] for finding in cluster.json("doctor")["findings"]}
    assert "RK041" in codes, codes
    assert "paused, copying" in cluster.kvctl("ops", "list").stdout
    table.check()
    resumed = begin(cluster, "ops", "resume", operation["id"])
    assert not resumed["paused"]
    wait_for(lambda: show(cluster, operation)["bytesDone"] > 0, what="copied bytes")
    entry = show(cluster, operation)
    if entry["step"] == "copying":
        assert 0 <= entry["percent"] < 100 and entry["bytesTotal"] >= entry["bytesDone"]

    end = cluster.kvctl("ops", "cancel", operation["id"], "--wait", "-o", "json")
    operation = json.loads(end.stdout)
    assert operation["finished"], operation
    if operation["step"] == "cancelled":
        assert end.returncode == 0
        assert table.only()["group"] == shard["group"]
    else:
        assert operation["step"] == "done" and end.returncode == 1
    table.check()
    assert "has ended" in refusal(cluster, "ops", "pause", operation["id"])
    assert "has ended" in refusal(cluster, "ops", "cancel", operation["id"])


def test_reverse_of_a_copy_under_way(slow_cluster):
    cluster = slow_cluster
    table, shard, operation = start_slow_move(cluster)
    result = cluster.kvctl("ops", "reverse", operation["id"], "--wait", "-o", "json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["finished"]
    assert table.only()["group"] == shard["group"]
    table.check()
    wait_for(lambda: cluster.kvctl("doctor").returncode in (0, 5), what="an answer")
    decisions = cluster.json("why", "op", operation["id"])["decisions"]
    assert {decision["operation"] for decision in decisions} == {operation["id"]}


def test_load_is_shown(fresh_cluster):
    cluster = fresh_cluster
    table = make(cluster, "busy")
    client = cluster.redis()

    def loaded():
        for _ in range(200):
            client.hget("busy", "k000001")
        top = cluster.json("top")
        return next((one for one in top["shards"] if one["table"] == "busy"
                     and one["reads"] > 0), None)
    line = wait_for(loaded, what="load of the shard")
    shard = table.only()
    assert line["id"] == shard["id"] and line["group"] == shard["group"]
    assert {"reads", "writes"} <= set(shard)
    group = next(one for one in cluster.groups() if one["id"] == shard["group"])
    assert {"reads", "writes"} <= set(group)
    text = cluster.kvctl("top").stdout
    assert "busy" in text and "OPS/S" in text and "HOTTEST KEY" in text
