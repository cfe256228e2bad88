"""The contract between what daemons export and what rules, alerts, dashboards and runbooks name.

A metric that is renamed or a label that goes away fails here, instead of an alert that never fires.
"""

import json
import re
import shutil
import subprocess
import urllib.request

import pytest

from conftest import BINARIES, REPOSITORY, Cluster, wait_for
from prometheus import Prometheus, parse, strangers
from test_metrics import documented

SHIPPED = REPOSITORY / "dashboards" / "prometheus"
GRAFANA = REPOSITORY / "dashboards" / "grafana"
RUNBOOKS = REPOSITORY / "Runbooks"
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("*.json"))}
ALERT_FILES = sorted((SHIPPED / "alerts").glob("*.yml"))
ALERTS = {name for path in ALERT_FILES
          for name in re.findall(r"- alert: (\w+)", path.read_text())}
#: It fires always, and is quiet never.
ALWAYS = "KVWatchdog"


def promtool(*arguments, **options):
    result = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True,
                            timeout=60, **options)
    return result.returncode, result.stdout + result.stderr


# What needs no cluster


def test_rules_and_configuration_are_valid():
    assert len(ALERTS) >= 25
    for path in [*ALERT_FILES, *sorted((SHIPPED / "rules").glob("*.yml"))]:
        code, output = promtool("check", "rules", path)
        assert code == 0, output
    code, output = promtool("check", "config", SHIPPED / "prometheus.yml")
    assert code == 0, output
    for job in ("kvnode", "kvrouter", "kvcontrollerd"):
        assert (SHIPPED / "targets" / f"{job}.yml").exists()


def test_alerts_fire_and_are_quiet():
    files = sorted((SHIPPED / "tests").glob("*.yml"))
    assert {path.name for path in files} == {path.name for path in ALERT_FILES}
    running = [subprocess.Popen(["promtool", "test", "rules", path], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
               for path in files]
    for process in running:
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0, output


def test_every_alert_has_both_cases():
    fires, quiet = set(), set()
    for path in (SHIPPED / "tests").glob("*.yml"):
        for case in path.read_text().split("\n  - name: ")[1:]:
            alert, _, kind = case.splitlines()[0].partition(" ")
            asks = f'ALERTS{{alertname="{alert}", alertstate="firing"}}' in case
            if kind == "fires" and asks and "value: 1" in case:
                fires.add(alert)
            if kind == "is quiet" and asks and "exp_samples: []" in case:
                quiet.add(alert)
    assert fires == ALERTS
    assert quiet == ALERTS - {ALWAYS}


def test_every_alert_has_its_runbook():
    pages = {page.stem for page in RUNBOOKS.glob("KV*.md")}
    assert pages == ALERTS
    index = (RUNBOOKS / "README.md").read_text()
    assert [name for name in sorted(ALERTS) if f"({name}.md)" not in index] == []


def test_dashboards_are_current():
    result = subprocess.run(["python3", GRAFANA / "generate.py", "--check"], text=True,
                            capture_output=True, timeout=30)
    assert result.returncode == 0, result.stderr


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("uid", BOARDS)
def test_board(uid):
    board = BOARDS[uid]
    assert board["uid"] == uid and board["schemaVersion"] >= 39 and not board["editable"]
    assert board["graphTooltip"] == 1 and "rangekeeper" in board["tags"] and board["description"]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "runbooks"]
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["job"]["refresh"] == variables["instance"]["refresh"] == 2
    assert len(panels(board)) <= 60
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
               for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not own & cells, panel["title"]
        cells |= own
    for panel in panels(board):
        check_panel(panel)


def check_panel(panel):
    title = panel["title"]
    assert panel["type"] in ("timeseries", "heatmap", "stat", "table"), title
    assert title and panel["description"] and panel["fieldConfig"]["defaults"]["unit"], title
    assert panel["targets"], title
    for target in panel["targets"]:
        assert panel["datasource"] == target["datasource"], title
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        for selector in parse(target["expr"].replace("$__rate_interval", "1m"))[0]:
            # A counter says nothing but by its rate.
            counts = selector.metric.endswith(("_total", "_bucket", "_count", "_sum"))
            assert not counts or selector.has_range, f"{title}: {target['expr']}"
        assert not re.search(r"\[\d+[sm]\]", target["expr"]), f"{title}: $__rate_interval"
    for link in panel["links"]:
        runbook = link["url"].removeprefix("${runbooks}/")
        assert (RUNBOOKS / runbook).exists(), f"{title}: {runbook}"


# What needs one


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A cluster under light load that a Prometheus has scraped a few times."""
    assert shutil.which("prometheus"), "Debian's package prometheus is missing: make deps"
    directory = tmp_path_factory.mktemp("watched")
    cluster = Cluster(directory / "cluster", "--with-prometheus", environment={
        "KVCONTROLLERD_BACKUP_TO": str(directory / "backup")})
    try:
        cluster.up()
        assert cluster.kvctl("backup", "now").returncode == 0
        assert cluster.kvctl("backup", "verify").returncode == 0
        cluster.prometheus = Prometheus(cluster.info["prometheus"]["url"])
        with subprocess.Popen(
                [BINARIES / "kvbench", "--port", str(cluster.resp_port), "--workload", "mixed",
                 "--connections", "4", "--duration", "10m", "--single-hot-key"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
            try:
                wait_for(lambda: is_settled(cluster.prometheus), 60, "scrapes and evaluations")
                yield cluster
            finally:
                load.kill()
    finally:
        cluster.down("--wipe", "--yes")


def is_settled(prometheus):
    """Whether every target was scraped a few times under load, and rules evaluated since."""
    targets = prometheus.targets()
    scrapes = prometheus.query(
        "min(count_over_time(up[1h])) >= 4 and sum(rate(kvrouter_requests_total[10s])) > 0")
    rules = [rule for kind in ("record", "alert")
             for named in prometheus.rules(kind).values() for rule in named]
    return (len(targets) == 6 and all(target["health"] == "up" for target in targets)
            and scrapes and all(rule["health"] == "ok" for rule in rules)
            and prometheus.query("job:kvrouter_slow:ratio_rate5m >= 0")
            and prometheus.query("kvcontroller_backup_last_verify_timestamp_seconds > 0"))


def test_what_daemons_export_is_in_order(watched):
    for daemon in watched.daemons.values():
        address = f"http://{daemon['admin']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            page = answer.read().decode()
        code, output = promtool("check", "metrics", input=page)
        assert code == 0, f"{daemon['name']}: {output}"


def test_prometheus_scrapes_open_metrics(watched):
    """By what it took over: the text format knows no type "info", and calls the family a gauge."""
    types = {name: {entry["type"] for entry in entries}
             for name, entries in watched.prometheus.ask("metadata").items()}
    assert types["kv_build"] == {"info"}, types.get("kv_build_info")
    # Counters are named without their ending there.
    assert types["process_cpu_seconds"] == {"counter"} and "process_cpu_seconds_total" not in types
    for name in ("kvnode_requests", "kvrouter_requests", "kvcontroller_heartbeats"):
        assert types[name] == {"counter"}, name
    for target in watched.prometheus.targets():
        assert target["health"] == "up" and not target["lastError"], target
    # One series for each daemon: nothing came in two formats.
    assert len(watched.prometheus.query("kv_build_info")) == len(watched.daemons)


def test_rules_run(watched):
    records = watched.prometheus.rules("record")
    alerts = watched.prometheus.rules("alert")
    assert set(alerts) == ALERTS
    for named in [*records.values(), *alerts.values()]:
        for rule in named:
            assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
    for name, (rule, *others) in records.items():
        assert not others, f"{name} is recorded twice"
        assert re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", name)
        assert watched.prometheus.query(name), f"{name}: {rule['query']}"
    for name, named in alerts.items():
        for rule in named:
            notes = rule["annotations"]
            assert rule["labels"]["severity"] in ("critical", "warning", "none"), name
            assert notes["summary"] and notes["description"], name
            assert notes["runbook_url"] == "{{ $externalLabels.runbooks }}/" + name + ".md"
            # Empty where no address of Grafana is set.
            uid = re.fullmatch(r"\{\{ with \$externalLabels\.grafana \}\}\{\{ \. \}\}/d/([\w-]+)"
                               r"(\?.*)?\{\{ end \}\}", notes["dashboard_url"])
            assert uid and uid[1] in BOARDS, f"{name}: {notes['dashboard_url']}"


def test_an_alert_is_rendered(watched):
    """The links have their beginnings from the configuration."""
    [watchdog] = [alert for alert in watched.prometheus.ask("alerts")["alerts"]
                  if alert["labels"]["alertname"] == ALWAYS]
    assert watchdog["annotations"]["runbook_url"] == f"file://{RUNBOOKS / ALWAYS}.md"


def expressions():
    """Every expression of the repository as (place, expression, whether it must have series)."""
    for uid, board in BOARDS.items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{uid}, {panel['title']}", target["expr"], True
        for mark in board["annotations"]["list"]:
            yield f"{uid}, annotation {mark['name']}", mark["expr"], False
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, label = re.fullmatch(
                    r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
                yield (f"{uid}, variable {variable['name']}",
                       f"count by ({label}) ({selector})", True)
    for page in sorted(RUNBOOKS.glob("*.md")):
        for block in re.findall(r"```promql\n(.*?)```", page.read_text(), re.DOTALL):
            yield page.name, block.strip(), False


def of_etcd():
    """Families that only controllers with metadata in etcd have, which the cluster here is not; test_etcd.py
    holds those to the document."""
    series = {}
    for name, (_, labels, _) in documented()["kvcontrollerd with metadata in etcd"].items():
        series[name] = [{"job": "kvcontrollerd", "instance": "controller-1"}]
        for label, values in labels.items():
            series[name] = [known | {label: value} for known in series[name] for value in values]
    return series


def test_every_expression_names_what_exists(watched):
    etcd = of_etcd()
    series = watched.prometheus.series() | etcd
    wrong = []
    for kind in ("record", "alert"):
        for name, rules in watched.prometheus.rules(kind).items():
            wrong += [f"{name}: {stranger}" for rule in rules
                      for stranger in strangers(rule["query"], series)]
    for place, expression, is_alive in expressions():
        filled = re.sub(r"\$(job|instance)\b", ".+", expression.replace("$__rate_interval", "30s"))
        wrong += [f"{place}: {stranger}" for stranger in strangers(filled, series)]
        try:
            is_alive = is_alive and not {one.metric for one in parse(filled)[0]} & set(etcd)
            if not watched.prometheus.query(filled) and is_alive:
                wrong.append(f"{place}: no series of {filled}")
        except AssertionError as error:
            wrong.append(f"{place}: {error}")
    assert not wrong, "\n".join(wrong)
