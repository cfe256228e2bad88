"""The example for Alertmanager: what amtool says of it, where each alert goes, and what a running
Alertmanager holds back."""

import http.server
import json
import re
import shutil
import subprocess
import threading
import urllib.request

import pytest
from conftest import REPOSITORY, wait_for
from fake_cluster import free_port

SHIPPED = REPOSITORY / "dashboards" / "prometheus"
EXAMPLE = SHIPPED / "alertmanager.example.yml"
#: (name, severity) of every alert; one may have two severities.
ALERTS = sorted({pair for path in (SHIPPED / "alerts").glob("*.yml") for pair in re.findall(
    r"- alert: (\w+)\n.*?severity: (\w+)", path.read_text(), re.DOTALL)})
RECEIVERS = {"critical": "on-call", "warning": "working-day", "none": "dead-mans-switch"}

needs_amtool = pytest.mark.skipif(
    shutil.which("amtool") is None or shutil.which("prometheus-alertmanager") is None,
    reason="no amtool (package prometheus-alertmanager)")


def amtool(*arguments):
    result = subprocess.run(["amtool", *map(str, arguments)], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@needs_amtool
def test_the_example_is_right():
    assert "SUCCESS" in amtool("check-config", EXAMPLE)


@needs_amtool
@pytest.mark.parametrize("name, severity", [*ALERTS, ("SomebodyElses", "unheard-of")])
def test_where_an_alert_goes(name, severity):
    told = amtool("config", "routes", "test", f"--config.file={EXAMPLE}", "cluster=main",
                  f"alertname={name}", f"severity={severity}", "instance=node-1")
    assert told.split() == [RECEIVERS.get(severity, "working-day")]


def test_inhibitions_name_alerts_that_exist():
    names = {name for name, _ in ALERTS}
    text = EXAMPLE.read_text().partition("inhibit_rules:")[2]
    blocks = text.split("- source_matchers:")[1:]
    assert len(blocks) >= 5
    for block in blocks:
        source, _, rest = block.partition("target_matchers:")
        target, _, equal = rest.partition("equal:")
        causes, followers = (set(re.findall(r"KV\w+", part)) for part in (source, target))
        assert causes and followers and causes | followers <= names, block
        # Never across clusters; and nothing that wakes a person is held back by what does not.
        assert "cluster" in equal, block
        weights = {name: {severity for one, severity in ALERTS if one == name}
                   for name in causes | followers}
        for name in causes:
            assert "critical" in weights[name], block
        assert "KVWatchdog" not in followers


class Receiver:
    """What Alertmanager posts to a webhook."""

    def __init__(self):
        self.alerts = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.alerts += [alert["labels"]["alertname"]
                                 for alert in json.loads(body)["alerts"]]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def manager(tmp_path):
    """A running Alertmanager with the example, whose dead man's switch is here; its address and the
    switch."""
    receiver = Receiver()
    text = EXAMPLE.read_text()
    assert text.count("https://deadman.example/rangekeeper") == 1
    config = tmp_path / "alertmanager.yml"
    config.write_text(text.replace("https://deadman.example/rangekeeper", receiver.url))
    address = f"127.0.0.1:{free_port()}"
    log = (tmp_path / "alertmanager.log").open("w")
    process = subprocess.Popen(
        ["prometheus-alertmanager", f"--config.file={config}", f"--storage.path={tmp_path}/data",
         f"--web.listen-address={address}", "--cluster.listen-address="],
        stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://{address}", receiver
    finally:
        process.kill()
        process.wait()
        receiver.server.shutdown()


@needs_amtool
def test_what_follows_from_an_alert_is_held_back(manager):
    url, receiver = manager

    def request(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.read()

    def is_up():
        try:
            return request("/-/ready")
        except OSError:
            return False

    wait_for(is_up, what="Alertmanager")
    severities = dict(ALERTS)

    def alert(name, cluster="main", **labels):
        return {"labels": {"alertname": name, "cluster": cluster, "severity": severities[name],
                           **labels}}

    request("/api/v2/alerts", [
        alert("KVWatchdog"), alert("KVGroupsNoQuorum"),
        # Held back.
        alert("KVNodeDown", instance="node-1"), alert("KVNodeDown", instance="node-2"),
        alert("KVDiskLow", instance="node-3", disk="0", severity="warning"),
        alert("KVDiskLow", instance="node-3", disk="0", severity="critical"),
        alert("KVCertificateExpiring", instance="controller-1", use="etcd_ca", severity="warning"),
        alert("KVCertificateExpiring", instance="controller-1", use="etcd_ca", severity="critical"),
        # Of another cluster, of another disk, of another matter.
        alert("KVNodeDown", cluster="other", instance="node-3"),
        alert("KVDiskLow", instance="node-3", disk="1", severity="warning"),
        alert("KVVersionSkew")])

    def held_back():
        return {(one["labels"]["alertname"], one["labels"].get("instance", ""),
                 one["labels"].get("disk", ""))
                for one in json.loads(request("/api/v2/alerts"))
                if one["status"]["state"] == "suppressed"}

    wanted = {("KVNodeDown", "node-1", ""), ("KVNodeDown", "node-2", ""), ("KVDiskLow", "node-3", "0"),
              ("KVCertificateExpiring", "controller-1", "")}
    wait_for(lambda: held_back() == wanted, what=f"inhibitions: {held_back()}")
    active = amtool("alert", "query", f"--alertmanager.url={url}")
    assert "KVGroupsNoQuorum" in active and "KVVersionSkew" in active
    # It comes again and again, or it would be no dead man's switch; two may take a minute.
    wait_for(lambda: receiver.alerts, what="the dead man's switch")
    assert set(receiver.alerts) == {"KVWatchdog"}
