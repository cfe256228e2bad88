"""The contract of `kvctl playground` and of kvctl's conventions, over built binaries."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from conftest import BINARIES, Cluster, free_port_base, is_alive, run, wait_for


def test_playground_json_names_every_daemon(cluster):
    info = cluster.info
    assert set(info) == {"routers", "nodes", "controllers"}
    assert [router["name"] for router in info["routers"]] == ["router-1"]
    assert [node["name"] for node in info["nodes"]] == ["node-1", "node-2", "node-3", "node-4"]
    assert [node["spare"] for node in info["nodes"]] == [False, False, False, True]
    assert [one["name"] for one in info["controllers"]] == ["controller-1"]
    for router in info["routers"]:
        assert set(router) == {"name", "pid", "resp", "admin"}
    for node in info["nodes"]:
        assert set(node) == {"name", "id", "pid", "rpc", "admin", "data", "log", "spare"}
        assert node["id"] > 0
        assert all(Path(path).is_dir() for path in node["data"])
        assert Path(node["log"]).is_file()
    for controller in info["controllers"]:
        assert set(controller) == {"name", "pid", "rpc", "admin"}
    programs = {"router": "kvrouter", "node": "kvnode", "controller": "kvcontrollerd"}
    for name, daemon in cluster.daemons.items():
        program = os.readlink(f"/proc/{daemon['pid']}/exe").rpartition("/")[2]
        assert program == programs[name.partition("-")[0]]
    assert info["routers"][0]["resp"] == f"127.0.0.1:{cluster.port_base}"
    assert info["routers"][0]["admin"] == f"127.0.0.1:{cluster.port_base + 1}"


def test_prometheus_beside_an_old_playground(tmp_path):
    one = Cluster(tmp_path / "one", "--nodes", "3", "--spares", "0")
    try:
        one.up()
        assert "prometheus" not in one.info
        wrong = one.kvctl("playground", "up", "--detach", "--rules", tmp_path)
        assert wrong.returncode == 2 and "--with-prometheus" in wrong.stderr
        wrong = one.kvctl("playground", "up", "--detach", "--with-prometheus", "--rules", tmp_path)
        assert wrong.returncode == 1 and "alerts" in wrong.stderr
        added = one.kvctl("playground", "up", "--detach", "--with-prometheus")
        assert added.returncode == 0, added.stderr
        prometheus = one.info["prometheus"]
        assert prometheus["url"] == f"http://127.0.0.1:{one.port_base + 18}"
        assert prometheus["url"] in added.stdout and is_alive(prometheus["pid"])
        # It stays with the directory: the next start needs no flag.
        one.down()
        assert not is_alive(prometheus["pid"])
        one.up()
        assert is_alive(one.info["prometheus"]["pid"])
    finally:
        one.down("--wipe", "--yes")
    assert not (tmp_path / "one").exists()


def test_accepts_writes_at_once(tmp_path):
    one = Cluster(tmp_path / "one")
    try:
        one.up()
        assert one.redis().hset("t", "k", "v") == 1
    finally:
        one.down()


def test_status_of_a_healthy_cluster(fresh_cluster):
    cluster = fresh_cluster
    cluster.wait_until_healthy()
    text = cluster.kvctl("status")
    assert text.stdout.startswith("healthy: 4 nodes (1 spare), 2 groups")
    status = cluster.json("status")
    assert status["verdict"] == "healthy" and status["findings"] == []
    nodes = {node["name"]: node for node in cluster.json("nodes")["nodes"]}
    assert nodes["node-4"]["state"] == "spare"
    assert all(nodes[f"node-{number}"]["state"] == "up" for number in (1, 2, 3))
    for node in nodes.values():
        assert {"name", "id", "state", "replicas", "leaders", "disks"} <= set(node)
    groups = cluster.groups()
    assert len(groups) == 2
    for group in groups:
        assert {"id", "term", "leader", "replicas"} <= set(group)
        assert group["leader"] in nodes
        assert len({replica["node"] for replica in group["replicas"]}) == 3
        for replica in group["replicas"]:
            assert {"node", "role", "state", "lag"} <= set(replica)


def test_tables_by_kvctl(cluster):
    created = cluster.kvctl("table", "create", "logs", "--split", "g", "--split", "p",
                            "--engine", "btree")
    assert created.returncode == 0, created.stderr
    again = cluster.kvctl("table", "create", "logs")
    assert again.returncode == 7 and "logs" in again.stderr
    shards = cluster.json("shards", "logs")["shards"]
    assert [(shard["start"], shard["end"]) for shard in shards] == [
        ("", "g"), ("g", "p"), ("p", None)]
    for shard in shards:
        assert {"id", "table", "start", "end", "group", "state", "epoch", "bytes",
                "records"} <= set(shard)
    cluster.kvctl("table", "create", "hashed", "--partition", "hash", "--vranges", "8")
    table = cluster.json("table", "describe", "hashed")
    assert table["partitioning"] == "HASH" and table["virtualRanges"] == 8
    names = {table["name"] for table in cluster.json("table", "list")["tables"]}
    assert {"logs", "hashed"} <= names
    for number in range(50):
        assert cluster.redis().hset("hashed", f"k{number:02}", number) == 1
    listed = [record["key"] for record in cluster.json("list", "hashed", "--all")["records"]]
    assert listed == [f"k{number:02}" for number in range(50)]
    refused = cluster.kvctl("table", "drop", "logs")
    assert refused.returncode == 7 and "--yes" in refused.stderr
    assert cluster.kvctl("table", "drop", "logs", "--yes").returncode == 0
    # Its records go in the background; the table is listed as dropping until they are gone.
    wait_for(lambda: "logs" not in {
        table["name"] for table in cluster.json("table", "list")["tables"]}, what="the drop's end")


def test_records_by_kvctl(cluster):
    put = cluster.json("put", "records", "A", "120")
    got = cluster.json("get", "records", "A")
    assert got == {"key": "A", "value": "120", "sequencer": put["sequencer"]}
    assert cluster.kvctl("get", "records", "A").stdout == "120\n"
    changed = cluster.json("put", "records", "A", "121", "--if", put["sequencer"])
    assert changed["sequencer"] > put["sequencer"]
    stale = cluster.kvctl("put", "records", "A", "122", "--if", put["sequencer"])
    assert stale.returncode == 7, stale.stderr
    assert cluster.kvctl("put", "records", "A", "1", "--if", "0").returncode == 7
    text = "two\nlines"
    assert cluster.kvctl("put", "records", "B", "-", input=text).returncode == 0
    assert cluster.kvctl("get", "records", "B", "--raw").stdout == text
    assert cluster.json("del", "records", "A") == {"deleted": True}
    assert cluster.json("del", "records", "A") == {"deleted": False}
    assert cluster.kvctl("get", "records", "A").returncode == 1


def test_list_in_pages(cluster):
    client = cluster.redis()
    client.hset("paged", mapping={f"{number:05}": "x" for number in range(1200)})
    everything = cluster.json("list", "paged", "--all")
    assert [record["key"] for record in everything["records"]] == [
        f"{number:05}" for number in range(1200)]
    assert everything["more"] is False
    part = cluster.json("list", "paged", "--from", "00010", "--to", "00020", "--limit", "3")
    assert [record["key"] for record in part["records"]] == ["00010", "00011", "00012"]
    assert part["more"] is True


def test_down_and_up_keep_the_data(fresh_cluster):
    client = fresh_cluster.redis()
    client.hset("kept", mapping={f"{number:04}": f"v{number}" for number in range(500)})
    ids = [node["id"] for node in fresh_cluster.info["nodes"]]
    fresh_cluster.down()
    assert all(daemon["pid"] is None for daemon in fresh_cluster.daemons.values())
    assert fresh_cluster.down().stderr.startswith("nothing runs")
    result = fresh_cluster.kvctl("playground", "up", "--detach")
    assert result.returncode == 0, result.stderr
    assert [node["id"] for node in fresh_cluster.info["nodes"]] == ids
    assert fresh_cluster.redis().hgetall("kept") == {
        f"{number:04}".encode(): f"v{number}".encode() for number in range(500)}


def test_up_while_it_runs(cluster):
    pids = {name: daemon["pid"] for name, daemon in cluster.daemons.items()}
    again = cluster.kvctl("playground", "up", "--detach")
    assert again.returncode == 0 and "already runs" in again.stderr
    assert pids == {name: daemon["pid"] for name, daemon in cluster.daemons.items()}
    contradiction = cluster.kvctl("playground", "up", "--detach", "--nodes", "7")
    assert contradiction.returncode == 7
    assert "--nodes 4" in contradiction.stderr and "--nodes 7" in contradiction.stderr


def test_second_cluster_beside_the_first(cluster, tmp_path):
    second = Cluster(tmp_path / "second", "--nodes", "1", "--spares", "0", "--replicas", "1",
                     "--groups", "1")
    try:
        second.up()
        second.redis().hset("side", "k", "second")
        cluster.redis().hset("side", "k", "first")
        assert second.redis().hget("side", "k") == b"second"
        assert cluster.redis().hget("side", "k") == b"first"
    finally:
        second.down("--wipe", "--yes")
    assert not second.directory.exists()
    assert cluster.redis().hget("side", "k") == b"first"


def test_start_brings_a_killed_daemon_back(fresh_cluster):
    fresh_cluster.kill("node-2")
    assert fresh_cluster.kvctl("playground", "status").returncode == 5
    states = {daemon["name"]: daemon["state"]
              for daemon in fresh_cluster.json("playground", "status")["daemons"]}
    assert states.pop("node-2") == "died" and set(states.values()) == {"running"}
    old = fresh_cluster.pid("node-2")
    fresh_cluster.start("node-2")
    new = fresh_cluster.pid("node-2")
    assert new != old and is_alive(new)
    fresh_cluster.start("node-2")
    assert fresh_cluster.pid("node-2") == new
    unknown = fresh_cluster.kvctl("playground", "start", "node-22")
    assert unknown.returncode == 2 and "did you mean node-2?" in unknown.stderr


def test_start_does_not_punish_a_daemon_for_others(fresh_cluster):
    fresh_cluster.kill("controller-1", "node-2")
    result = fresh_cluster.kvctl("playground", "start", "node-2")
    assert result.returncode == 0, result.stderr
    assert "node-2 runs; the cluster does not serve yet: " in result.stderr, result.stderr
    assert is_alive(fresh_cluster.pid("node-2"))
    fresh_cluster.start("controller-1")
    fresh_cluster.wait_until_healthy(60)


def test_down_leaves_a_foreign_process_alone(fresh_cluster):
    """A pid that was given to another program since is not signalled."""
    fresh_cluster.kill("router-1")
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        path = fresh_cluster.directory / "playground-state.json"
        state = json.loads(path.read_text())
        state["processes"]["router-1"]["pid"] = bystander.pid
        path.write_text(json.dumps(state))
        fresh_cluster.down()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_taken_port_is_named(tmp_path):
    base = free_port_base()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base))
        taken.listen()
        result = Cluster(tmp_path / "x", port_base=base).kvctl(
            "playground", "up", "--port-base", base, "--detach")
    assert result.returncode == 7
    assert f"port {base} " in result.stderr and "--port-base" in result.stderr
    assert not (tmp_path / "x").exists()


def test_wipe_removes_only_what_it_made(fresh_cluster):
    own = fresh_cluster.directory / "notes.txt"
    own.write_text("mine")
    refused = fresh_cluster.kvctl("playground", "down", "--wipe")
    assert refused.returncode == 7 and "--yes" in refused.stderr
    assert all(is_alive(daemon["pid"]) for daemon in fresh_cluster.daemons.values())
    fresh_cluster.down("--wipe", "--yes")
    assert [path.name for path in fresh_cluster.directory.iterdir()] == ["notes.txt"]


def test_wipe_refuses_a_directory_without_playground(tmp_path):
    (tmp_path / "data").write_text("precious")
    result = run("kvctl", "playground", "down", "--wipe", "--yes", "--dir", tmp_path)
    assert result.returncode == 7
    assert (tmp_path / "data").exists()


def test_foreground_stops_all_on_interrupt(tmp_path):
    one = Cluster(tmp_path / "one")
    process = subprocess.Popen(
        [BINARIES / "kvctl", "playground", "up", "--dir", one.directory,
         "--port-base", str(one.port_base)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        pids = [daemon["pid"] for daemon in one.daemons.values()]
        assert all(is_alive(pid) for pid in pids)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert not any(is_alive(pid) for pid in pids)
    finally:
        process.kill()
        process.wait()
        one.down()


def test_redis_benchmark_and_cli_work_unmodified(cluster):
    if not all(Path(f"/usr/bin/{name}").exists() for name in ("redis-cli", "redis-benchmark")):
        pytest.skip("redis-tools is not installed")
    port = str(cluster.resp_port)
    subprocess.run(["redis-cli", "-p", port, "HSET", "stocks", "A", "120"], check=True)
    got = subprocess.run(["redis-cli", "-p", port, "HGET", "stocks", "A"], check=True,
                         capture_output=True, text=True)
    assert got.stdout == "120\n"
    bench = subprocess.run(
        ["redis-benchmark", "-p", port, "-n", "2000", "-c", "10", "-r", "1000", "-q", "HSET",
         "rb", "__rand_int__", "value"], check=True, capture_output=True, text=True, timeout=120)
    assert "requests per second" in bench.stdout and "ERR" not in bench.stdout


def test_kvbench_loads_every_record(cluster):
    result = run("kvbench", "--port", cluster.resp_port, "--workload", "load", "--records", "5000",
                 "--pipeline", "8", "--table", "loaded", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["requests"] == 5000 and report["errors"] == {}
    assert cluster.redis().hlen("loaded") == 5000


def test_unreachable_cluster_exits_3():
    result = run("kvctl", "status", "--controllers", "127.0.0.1:1")
    assert result.returncode == 3 and "127.0.0.1:1" in result.stderr


def test_timeout_exits_6(fresh_cluster):
    fresh_cluster.pause("controller-1")
    try:
        result = fresh_cluster.kvctl("nodes", "--request-timeout", "300ms")
        assert result.returncode == 6, result.stderr
    finally:
        fresh_cluster.resume("controller-1")


def test_unhealthy_cluster_exits_5(fresh_cluster):
    fresh_cluster.kill("node-1")
    wait_for(lambda: fresh_cluster.kvctl("status").returncode == 5, what="the verdict")
    first_line = fresh_cluster.kvctl("status").stdout.splitlines()[0]
    assert "node-1" in first_line and not first_line.startswith("healthy")


def test_without_a_router_nothing_is_healthy(fresh_cluster):
    fresh_cluster.kill("router-1")
    for verb in ("status", "doctor"):
        wait_for(lambda: fresh_cluster.json(verb)["verdict"] == "unavailable", what="the verdict")
        assert "no router is connected" in fresh_cluster.kvctl(verb).stdout
    fresh_cluster.start("router-1")
    fresh_cluster.wait_until_healthy()
    assert fresh_cluster.json("doctor")["verdict"] == "healthy"
