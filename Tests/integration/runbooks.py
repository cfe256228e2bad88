"""The command blocks of Runbooks/, and how they are run.

    ```console             commands that only look; run on a healthy cluster
    ```console changes     commands that change the cluster; run on one of the page's own, in order
    ```console elsewhere   commands for another machine, or for when something is broken: checked to
                           exist, and run under real systemd by systemd/runbook_checks.py, which
                           names the few that it does not run, and why

In a block a line that begins with "$ " is a command, and what follows is the beginning of what it
printed once. Words in capitals stand for what the reader has; the test fills in what its cluster
has. Settings of new nodes (```ini) are written as the page shows them, with addresses and paths of
here. `systemctl` is a stand-in that acts on the processes of the playground.
"""

import os
import re
import subprocess
from pathlib import Path

from conftest import BINARIES, REPOSITORY, run
from console_blocks import blocks

FOLDER = REPOSITORY / "Runbooks"
HEADINGS = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation", "## Escalation"]
STAND_INS = Path(__file__).with_name("stand_ins")
#: What these commands find may be that something is not well.
MAY_FIND_FAULTS = ("kvctl status", "kvctl doctor", "kvctl controller list", "kvctl backup verify")


class Shell:
    """Runs commands of a page on a cluster."""

    def __init__(self, cluster, **words):
        self.cluster = cluster
        #: Words in capitals by what they stand for on this page.
        self.words = words

    def filled(self, text):
        text = text.replace("/etc/rangekeeper", str(self.cluster.directory))
        return re.sub(r"\b[A-Z]{4,}\b", lambda match: str(self.word(match[0])), text)

    def word(self, name):
        if name not in self.words:
            value = getattr(self, f"find_{name.lower()}", lambda: None)()
            if value is None:
                return name
            # Operations come and go; everything else stays for the page.
            if name == "OPERATION":
                return value
            self.words[name] = value
        return self.words[name]

    def find_table(self):
        return "stocks"

    def find_shard(self):
        return self.cluster.json("shards", "stocks")["shards"][0]["id"]

    def find_group(self):
        return self.cluster.json("shards", "stocks")["shards"][0]["group"]

    def find_node(self):
        """The leader of the table's group."""
        group = self.word("GROUP")
        return next(one["leader"] for one in self.cluster.groups() if one["id"] == group)

    def find_other(self):
        """Another node of that group."""
        group = next(one for one in self.cluster.groups() if one["id"] == self.word("GROUP"))
        return next(replica["node"] for replica in group["replicas"]
                    if replica["node"] != self.word("NODE"))

    def find_spare(self):
        return next(node["name"] for node in self.cluster.json("nodes")["nodes"]
                    if node["state"] == "spare")

    def find_operation(self):
        return max(int(one["id"]) for one in self.cluster.json("ops", "list")["operations"])

    def find_data(self):
        return self.cluster.daemons[self.word("NODE")]["data"][0]

    def find_place(self):
        return self.cluster.environment["KVCONTROLLERD_BACKUP_TO"]

    def find_into(self):
        return self.cluster.directory / "controller-1" / "data"

    def find_peers(self):
        return f"controller-1={self.cluster.info['controllers'][0]['rpc']}"

    def find_port(self):
        return self.cluster.resp_port

    def find_admin(self):
        return self.cluster.daemons[self.word("NODE")]["admin"]

    def run(self, text):
        """Runs one command line; standard output and error together, and the exit code."""
        controllers = ",".join(one["rpc"] for one in self.cluster.info["controllers"])
        environment = os.environ | self.cluster.environment | {
            "PATH": f"{STAND_INS}:{BINARIES}:{os.environ['PATH']}",
            "KVCTL_CONTROLLERS": controllers, "PLAYGROUND": str(self.cluster.directory)}
        result = subprocess.run(
            ["bash", "-c", self.filled(text)], text=True, timeout=120, env=environment,
            cwd=self.cluster.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        return result.stdout, result.returncode

    def take_settings(self, page):
        """Writes the settings of nodes that a page shows, with addresses and paths of here."""
        controllers = ",".join(one["rpc"] for one in self.cluster.info["controllers"])
        for name, body in re.findall(r"^```ini\n# /etc/rangekeeper/(node-\d+).ini\n(.*?)^```$",
                                     page.read_text(), re.DOTALL | re.MULTILINE):
            if name in self.cluster.daemons:
                continue
            text = re.sub("controllers = .*", f"controllers = {controllers}", body)
            text = re.sub("data = .*", f"data = {self.cluster.directory / name}", text)
            # Ports of the playground that no daemon of it has.
            for offset, use in enumerate(("rpc", "admin")):
                address = f"127.0.0.1:{self.cluster.port_base + 50 + offset}"
                text = re.sub(f"{use} = .*", f"{use} = {address}", text)
            (self.cluster.directory / name).mkdir()
            (self.cluster.directory / f"{name}.ini").write_text(text)

    def check(self, command):
        """Runs a command that must succeed, and print what the page says it prints."""
        output, code = self.run(command.text)
        allowed = (0, 5) if command.text.startswith(MAY_FIND_FAULTS) else (0,)
        if command.shown and command.shown[0].startswith("kvctl: no controller answers"):
            allowed = (6,)
        if command.text.startswith("kvctl node scrub") and "damaged" in "".join(command.shown):
            allowed = (1,)
        assert code in allowed, f"$ {self.filled(command.text)}\n{output}"
        titles = column_titles(command.shown)
        # "no operations" is what a table without rows is.
        assert not titles or output.startswith("no ") \
            or column_titles(output.splitlines()) == titles, (
            f"$ {command.text}\nthe page shows {titles}\n{output}")
        return output


def column_titles(lines):
    """The words of the first line when they are titles of columns."""
    first = lines[0] if lines else ""
    return first.split() if re.fullmatch(r"[A-Z][A-Z/ ]+", first) else []


def check_existence(text):
    """Of a built program, that it has the verb and the flags; of a unit, that there is one."""
    words = text.split()
    program = words[0].rpartition("/")[2]
    if program == "systemctl":
        units = [word for word in words[2:] if not word.startswith("-")]
        assert units and all(re.fullmatch(
            r"kvcontrollerd|kvrouter(\.socket)?|kvnode@[\w-]+|rangekeeper\.target", unit)
            for unit in units), text
    if not (BINARIES / program).exists():
        return
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    plain = words[1:] if program == "kvctl" else []
    verb = [word for word in plain if re.fullmatch("[a-z-]+", word) and not word.startswith("-")]
    for count in range(len(verb), -1, -1):
        help_text = run(program, *verb[:count], "--help")
        if help_text.returncode == 0 and (count or program != "kvctl"):
            missing = [flag for flag in flags if flag not in help_text.stdout]
            assert not missing, f"{text}: no {missing}"
            return
    raise AssertionError(f"no such command: {text}")
