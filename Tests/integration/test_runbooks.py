"""Every finding and every alert has its runbook, and the commands of every runbook work."""

import os
import re
import signal
from pathlib import Path

import pytest

from conftest import REPOSITORY, Cluster, preloadable, run, wait_for
from runbooks import FOLDER, HEADINGS, Shell, blocks, check_existence
from test_clocks import restart
from test_disk_faults import flip_byte

PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
ALERT_PAGES = [page for page in PAGES if page.name.startswith("KV")]
PROCEDURES = [page for page in PAGES if page.stem[:2] not in ("KV", "RK")]


def codes():
    found = set()
    for source in (REPOSITORY / "Sources" / "ControllerRuntime").glob("*.swift"):
        found |= set(re.findall(r'"(RK\d{3})"', source.read_text()))
    return found


def test_every_finding_has_its_page_and_every_page_its_finding():
    assert len(codes()) >= 13
    assert {page.stem for page in FOLDER.glob("RK*.md")} == codes()


def test_every_page_is_listed_and_every_link_leads_somewhere():
    index = (FOLDER / "README.md").read_text()
    assert [page.name for page in PAGES if f"({page.name})" not in index] == []
    broken = [f"{page.name}: {link}" for page in [*PAGES, FOLDER / "README.md"]
              for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text())
              if not (FOLDER / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem[:2] in ("RK", "KV")],
                         ids=lambda page: page.stem)
def test_headings(page):
    text = page.read_text()
    assert text.startswith(f"# {page.stem}: ")
    assert [line for line in text.splitlines() if line.startswith("## ")] == HEADINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    """Of every kvctl command that the page names, in a block or in a sentence."""
    text = page.read_text()
    commands = re.findall(r"(?:^|`|\$ )kvctl ((?:[a-z]+ ?)+)", text, re.MULTILINE)
    assert commands or blocks(page)
    for command in commands:
        words = command.split()
        # The longest beginning that is a command; what follows are arguments.
        assert any(run("kvctl", *words[:count], "--help").returncode == 0
                   for count in range(len(words), 0, -1)), f"kvctl {command}"
    for kind, listed in blocks(page):
        assert kind in ("", "changes", "elsewhere"), kind
        for command in listed if kind == "elsewhere" else []:
            check_existence(command.text)


def fill(cluster):
    """Gives the cluster a table with records, and something that it has done."""
    client = cluster.redis()
    cluster.kvctl("table", "create", "stocks", "--split", "0500", "--if-missing")
    client.hset("stocks", mapping={f"{number:04}": "x" * 100 for number in range(1000)})
    shell = Shell(cluster)
    assert shell.run("kvctl transfer GROUP OTHER --wait")[1] == 0
    return cluster


def wait_for_sizes(cluster):
    """Until the controller knows a key to cut at: leaders report sizes now and then."""
    wait_for(lambda: Shell(cluster).run("kvctl split TABLE --dry-run")[1] == 0, what="sizes")


def backed_up(directory, *flags):
    """A cluster whose metadata is backed up beside it."""
    return Cluster(directory, *flags, environment={
        "KVCONTROLLERD_BACKUP_TO": str(directory.with_name("backup"))})


@pytest.fixture(scope="module")
def calm_cluster(tmp_path_factory):
    """For commands that only look."""
    cluster = backed_up(tmp_path_factory.mktemp("runbooks") / "cluster")
    try:
        cluster.up()
        wait_for_sizes(fill(cluster))
        yield cluster
    finally:
        cluster.down("--wipe", "--yes")


#: Alerts of what has happened to `broken_cluster`.
OF_THE_BROKEN = {"KVSparePoolEmpty", "KVOperationStuck", "KVNoRouter", "KVRouterDown",
                 "KVControllerDown", "KVControllerQuorumAtRisk", "KVNodeUnwell"}


@pytest.fixture(scope="module")
def broken_cluster(tmp_path_factory):
    """A cluster without its spare, one of two routers and one of its controllers, with a drain that waits
    for the spare; a shell there that has these two as its words."""
    # Time to ask for the drain while the node stands still.
    cluster = Cluster(tmp_path_factory.mktemp("broken") / "cluster", "--spares", "1",
                      "--routers", "2", "--controllers", "3", environment={
                          "KVCONTROLLERD_NODE_SUSPECT_AFTER": "10s",
                          "KVCONTROLLERD_NODE_DOWN_AFTER": "11s"})
    try:
        cluster.up()
        fill(cluster)
        drained = Shell(cluster).word("NODE")
        target = next(node["name"] for node in cluster.json("nodes")["nodes"]
                      if node["replicas"] == 0)
        # It stands still when it is chosen, so that nothing has moved there when it dies.
        cluster.pause(target)
        assert cluster.kvctl("drain", drained).returncode == 0
        standby = next(controller["name"] for controller in
                       cluster.json("controller", "list")["controllers"]
                       if not controller["acting"])
        cluster.kill(target, "router-1", standby)
        wait_for(lambda: "RK040" in cluster.kvctl("doctor").stdout, what="an operation that waits")
        [drain] = cluster.json("ops", "list", "--open")["operations"]
        yield Shell(cluster, NODE=target, OPERATION=drain["id"])
    finally:
        cluster.down("--wipe", "--yes")


@pytest.fixture(scope="module")
def damaged_cluster(tmp_path_factory):
    """A cluster without a spare, of which a node found damage in its log; a shell there that has that
    node as its word."""
    cluster = Cluster(tmp_path_factory.mktemp("damaged") / "cluster", "--nodes", "3", "--spares", "0")
    try:
        cluster.up()
        fill(cluster)
        cluster.redis().hset("stocks", "0500", "rots")
        cluster.wait_until_equal()
        shell = Shell(cluster, NODE=Shell(cluster).word("OTHER"))
        segment = max(Path(shell.word("DATA"), "log").glob("*.log"))
        flip_byte(segment, segment.read_bytes().index(b"rots"))
        assert cluster.kvctl("node", "scrub", shell.word("NODE")).returncode == 1
        wait_for(lambda: cluster.kvctl("doctor").stdout.startswith("degraded: 3 findings"),
                 what="a failed disk")
        yield shell
    finally:
        cluster.down("--wipe", "--yes")


@pytest.fixture(scope="module")
def shifted_cluster(tmp_path_factory):
    """A cluster with a node whose clock is two seconds ahead; a shell there that has it as its word."""
    directory = tmp_path_factory.mktemp("shifted")
    library = preloadable("shifted_clock", directory)
    cluster = Cluster(directory / "cluster", "--controllers", "3")
    try:
        cluster.up()
        wrong = Shell(fill(cluster)).word("OTHER")
        restart(cluster, wrong, LD_PRELOAD=str(library), CLOCK_SHIFT="2000000000")
        wait_for(lambda: "RK023" in cluster.kvctl("doctor").stdout, what="a wrong clock")
        yield Shell(cluster, NODE=wrong)
    finally:
        cluster.down("--wipe", "--yes")


@pytest.fixture(scope="module")
def stuck_cluster(tmp_path_factory):
    """A cluster whose controller does not get on; a shell there that has its admin address as its word."""
    directory = tmp_path_factory.mktemp("stuck")
    gate = directory / "gate"
    library = preloadable("stalled_calls", directory)
    cluster = Cluster(directory / "cluster")
    try:
        cluster.up()
        fill(cluster)
        restart(cluster, "controller-1", LD_PRELOAD=str(library), STALL_LOOP=str(gate))
        cluster.wait_until_healthy()
        shell = Shell(cluster, ADMIN=cluster.info["controllers"][0]["admin"])
        wait_for(lambda: "\nkvcontroller_reconcile_last" in shell.run("curl -s http://ADMIN/metrics")[0],
                 what="a controller that acts, and says so")
        gate.touch()
        wait_for(lambda: "false" in shell.run("curl -s http://ADMIN/livez")[0], what="a stall that is told")
        yield shell
    finally:
        gate.unlink(missing_ok=True)
        cluster.down("--wipe", "--yes")


@pytest.fixture(scope="module")
def rotten_backup(tmp_path_factory):
    """A cluster whose backup has a log with a wrong byte between two snapshots."""
    directory = tmp_path_factory.mktemp("rotten")
    cluster = backed_up(directory / "cluster")
    try:
        cluster.up()
        fill(cluster)
        assert cluster.kvctl("backup", "now").returncode == 0
        cluster.kvctl("table", "create", "late")
        wait_for(lambda: len(list((directory / "backup").glob("log-*"))) >= 2, what="a later log")
        log = min((directory / "backup").glob("log-*"))
        flip_byte(log, log.stat().st_size - 1)
        assert cluster.kvctl("backup", "verify").returncode == 5
        yield Shell(cluster)
    finally:
        cluster.down("--wipe", "--yes")


#: Where the alert of a page fires; nothing is wrong where the others are run.
BROKEN = {page: "broken_cluster" for page in OF_THE_BROKEN} | {
    "KVDiskFailed": "damaged_cluster", "KVChecksumFailure": "damaged_cluster",
    "KVClockOffset": "shifted_cluster", "KVReconcileStuck": "stuck_cluster",
    "KVBackupDamaged": "rotten_backup"}


#: Of these every line that the page shows is printed here too.
MADE_ALIKE = set(BROKEN) - OF_THE_BROKEN


@pytest.mark.parametrize("page", ALERT_PAGES, ids=lambda page: page.stem)
def test_diagnosis(page, request):
    is_broken = page.stem in BROKEN
    shell = (request.getfixturevalue(BROKEN[page.stem]) if is_broken
             else Shell(request.getfixturevalue("calm_cluster")))
    for kind, commands in blocks(page):
        for command in commands if kind == "" else []:
            output = shell.check(command)
            # What is made here for the page is as the page shows it.
            if is_broken and command.shown:
                assert verdict(output.splitlines()) == verdict(command.shown), command.text
            if page.stem in MADE_ALIKE:
                printed = {gist(line) for line in output.splitlines()}
                assert {gist(line) for line in command.shown} <= printed, f"{command.text}\n{output}"


def gist(line):
    """A line of output without what differs from cluster to cluster: numbers, places, units."""
    line = re.sub(r"/[\w./-]+", "PATH", line)
    line = re.sub(r"(log|snapshot)-[-\da-f]+\.rkb", r"\1-OBJECT", line)
    line = re.sub(r"\d[\d.:]*", "N", line)
    return " ".join(re.sub(r"N ([KMGT]iB|B|ms|s|min)\b", "N U", line).split())


def verdict(lines):
    """How the cluster is by the first line of `kvctl status` and `kvctl doctor`."""
    return re.match("(healthy|degraded|unavailable|)", lines[0])[1]


@pytest.mark.parametrize("page", ALERT_PAGES, ids=lambda page: page.stem)
def test_no_alert_shows_that_all_is_well(page):
    """Outputs are of when the alert fires."""
    assert "\nhealthy: " not in page.read_text()


CHANGING = [page for page in ALERT_PAGES if any(kind == "changes" for kind, _ in blocks(page))]


@pytest.mark.parametrize("page", CHANGING, ids=lambda page: page.stem)
def test_mitigation(page, tmp_path):
    cluster = backed_up(tmp_path / "cluster", "--nodes", "5", "--spares", "2")
    try:
        cluster.up()
        shell = Shell(fill(cluster))
        if "kvctl node remove NODE" in page.read_text():
            # Only a node that is gone can be forgotten.
            cluster.kvctl("config", "set", "repair", "off")
            cluster.kill(shell.word("NODE"))
            wait_for(lambda: state_of(cluster, shell.word("NODE")) == "down", what="a dead node")
        for kind, commands in blocks(page):
            for command in commands if kind == "changes" else []:
                shell.check(command)
        assert cluster.redis().hget("stocks", "0001") == b"x" * 100
    finally:
        cluster.down("--wipe", "--yes")


@pytest.mark.parametrize("page", PROCEDURES, ids=lambda page: page.stem)
def test_procedure(page, tmp_path):
    """A procedure from its first command to its last, on a cluster of its own."""
    cluster = backed_up(tmp_path / "cluster", "--nodes", "5", "--spares", "2")
    try:
        cluster.up()
        shell = Shell(fill(cluster))
        shell.take_settings(page)
        if "kvctl split" in page.read_text():
            wait_for_sizes(cluster)
        if page.stem == "lose-a-quorum":
            cluster.kill(shell.word("NODE"), shell.word("OTHER"))
            wait_for(lambda: state_of(cluster, shell.word("OTHER")) == "down", what="dead nodes")
        for kind, commands in blocks(page):
            for command in commands if kind != "elsewhere" else []:
                shell.check(command)
        wait_for(lambda: cluster.redis().hget("stocks", "0001") == b"x" * 100, what="a read")
    finally:
        for started in cluster.directory.glob("*.pid"):
            os.kill(int(started.read_text()), signal.SIGKILL)
        cluster.down("--wipe", "--yes")


def state_of(cluster, name):
    return next((node["state"] for node in cluster.json("nodes")["nodes"] if node["name"] == name),
                None)
