"""The `console elsewhere` commands of Runbooks/, run as the pages have them and in their order, on the
cluster that install.md makes of a machine without any: the addresses of the pages are all of this
machine, and the daemons of the other machines are further units here. Standard library alone."""

import glob
import os
import pty
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from checks import DATA, ETC, drop_in, journal, pid, run, runs_anew, show, status, systemctl, wait_for
from console_blocks import blocks

RUNBOOKS = Path("/out/Runbooks")
#: By the program, or the beginning of the command: why it is not run here.
NOT_RUN = {
    "smartctl": "asks a disk of its own health; there is none of its own in a container",
    "edac-util": "asks the machine's memory controller",
    "chronyc": "asks a time service, and containers have the clock of their host",
    "mkfs.ext4": "wants a block device",
    "journalctl -k": "containers see nothing of the kernel's log",
}
#: Addresses of the pages: controllers, nodes, the router, etcd.
ADDRESSES = ("10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.2.1", "10.0.2.2", "10.0.2.3", "10.0.3.1",
             "10.0.0.21", "10.0.0.22", "10.0.0.23")
CONTROLLERS = ("kvcontrollerd", "kvcontrollerd-2", "kvcontrollerd-3")
NODES = ("node-1", "node-2", "node-3")
#: Where the operator is: the packages, and files with new secrets.
DESK = Path("/run/desk")
STORE = Path("/etc/credstore")
PKI = Path("/run/pki")
CHECKS = []
#: (page, command) of what was run.
DONE = set()
#: What the operator exported.
exported = {}


def check(function):
    """They run in this order, in one system; each leaves it whole."""
    CHECKS.append(function)
    return function


def is_run(text):
    return not text.startswith(tuple(NOT_RUN))


class Page:
    """The commands of a page, each named by how it begins, so that what is expected stands beside it."""

    def __init__(self, name, **words):
        self.name = name
        #: What the reader has for a word in capitals.
        self.words = words
        text = (RUNBOOKS / f"{name}.md").read_text()
        self.left = [command for kind, commands in blocks(RUNBOOKS / f"{name}.md")
                     if kind == "elsewhere" for command in commands if is_run(command.text)]
        #: What the page shows of files, in order.
        self.files = re.findall(r"^```ini\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)

    def take(self, begins):
        command = self.left.pop(0)
        assert command.text.startswith(begins), (self.name, command.text, begins)
        DONE.add((self.name, command.text))
        for word, meaning in self.words.items():
            command.text = re.sub(rf"\b{word}\b", meaning, command.text)
        return command

    def run(self, begins, code=0, says=""):
        """Runs the next command: it ends with `code`, and `says` is in what it prints."""
        command = self.take(begins)
        if command.text.startswith("export "):
            name, value = command.text.removeprefix("export ").split("=")
            exported[name] = value
        result = subprocess.run(
            ["bash", "-c", command.text], cwd=DESK, stdin=subprocess.DEVNULL, text=True, timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | exported)
        told = f"$ {command.text}\n{result.stdout}"
        assert result.returncode == code, f"{told}ended with {result.returncode}"
        assert says in result.stdout, told
        # The page shows what it begins with: a title, a verdict, the names of figures.
        shown = [line.split()[0] for line in command.shown if line]
        assert [line.split()[0] for line in result.stdout.splitlines() if line][:len(shown)] == shown, told
        return result.stdout

    def edit(self, begins, text):
        """Runs the next command, whose editor gets `text` typed into it. At a terminal: systemctl
        refuses to edit elsewhere."""
        command = self.take(begins)
        Path("/run/typed").write_text(text)
        editor = Path("/run/editor")
        editor.write_text('#!/bin/sh\ncp /run/typed "$1"\n')
        editor.chmod(0o755)
        terminal, end = pty.openpty()
        try:
            result = subprocess.run(["bash", "-c", command.text], stdin=end, stdout=end, stderr=end,
                                    timeout=60, env=os.environ | {"SYSTEMD_EDITOR": str(editor)})
        finally:
            os.close(end)
        said = os.read(terminal, 4096).decode() if result.returncode else ""
        os.close(terminal)
        assert result.returncode == 0, said

    def end(self):
        assert not self.left, (self.name, [command.text for command in self.left])


def kvctl(*words):
    return subprocess.run(["kvctl", *words], capture_output=True, text=True,
                          env=os.environ | exported)


def healthy():
    return kvctl("status").returncode == 0


def members():
    """Controllers that are in the metadata group and reached."""
    return len(re.findall(r"^controller-\d .* yes +\d+ +member ", kvctl("controller", "list").stdout, re.M))


def equal():
    """Whether all controllers have the same revision of the metadata."""
    revisions = re.findall(r"^controller-\d .* (\d+)$", kvctl("metadata", "show").stdout, re.M)
    return len(revisions) == 3 and len(set(revisions)) == 1


def another(unit, number, text):
    """The unit of another machine, with its own settings and state."""
    text = text.replace("controller.ini", f"controller-{number}.ini")
    text = re.sub("(StateDirectory=.*)", rf"\1-{number}", text)
    Path(f"/etc/systemd/system/{unit}-{number}.service").write_text(text)


def write_controllers(first, more=""):
    """The settings of all three controllers, made of those of the first."""
    for number in (1, 2, 3):
        text = first.replace("name = controller-1", f"name = controller-{number}")
        text = re.sub(r"(rpc|admin) = 10\.0\.1\.1:", rf"\1 = 10.0.1.{number}:", text)
        suffix = "" if number == 1 else f"-{number}"
        text = text.replace("rangekeeper/controller", f"rangekeeper/controller{suffix}")
        (ETC / f"controller{suffix}.ini").write_text(text + more)


def restart_controllers():
    for unit in CONTROLLERS:
        systemctl("restart", unit)


def lose_the_disk_of_the_second():
    systemctl("stop", "kvcontrollerd-2")
    shutil.rmtree(DATA / "controller-2")
    systemctl("start", "kvcontrollerd-2")


first_controller = ""


@check
def install_makes_a_cluster():
    global first_controller
    for address in ADDRESSES:
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    shutil.rmtree(STORE, ignore_errors=True)
    STORE.mkdir(mode=0o700)
    DESK.mkdir()
    for file in glob.glob("/out/packages/*.deb"):
        (DESK / Path(file).name).symlink_to(file)
    page = Page("install")
    files = iter(page.files)
    page.run("apt-get install ./rangekeeper-common_*.deb")
    page.run("systemctl enable --now rangekeeper.target")
    first_controller = next(files)
    write_controllers(first_controller)
    unit = Path("/lib/systemd/system/kvcontrollerd.service").read_text()
    for number in (2, 3):
        another("kvcontrollerd", number, unit)
    systemctl("daemon-reload")
    page.run("kvcontrollerd --config", says="peers = controller-1=10.0.1.1:7300,")
    page.run("systemctl enable --now kvcontrollerd")
    systemctl("start", *CONTROLLERS)

    node = next(files)
    for number in (1, 2, 3):
        text = node.replace("node-1", f"node-{number}").replace("10.0.2.1", f"10.0.2.{number}")
        if number > 1:
            text = re.sub("data = .*", f"data = {DATA}/node-{number}", text)
        (ETC / f"node-{number}.ini").write_text(text)
    # Two disks, of which the first is a new one, as for who replaces it.
    Path("/etc/fstab").write_text("none /srv/disk1 tmpfs size=1G 0 0\n")
    for disk in ("/srv/disk1", "/srv/disk2"):
        Path(disk).mkdir()
    replaced = Page("replace-a-disk")
    replaced.run("mount /srv/disk1")
    assert os.path.ismount("/srv/disk1")
    replaced.run("install -d")
    replaced.end()
    page.run("install -d -o rangekeeper")
    assert Path("/srv/disk1/rangekeeper").owner() == "rangekeeper"
    page.edit("systemctl edit kvnode@node-1", next(files))
    assert "/srv/disk2/rangekeeper" in show("kvnode@node-1", "ReadWritePaths")
    page.run("kvnode --config", says="zone = rack-1")
    page.run("systemctl enable --now kvnode@node-1")
    assert list(Path("/srv/disk1/rangekeeper").iterdir())
    systemctl("start", *(f"kvnode@{name}" for name in NODES))

    (ETC / "router.ini").write_text(next(files))
    page.edit("systemctl edit kvrouter.socket", next(files))
    page.run("kvrouter --config", says="admin = 10.0.3.1:7501")
    page.run("systemctl enable --now kvrouter.socket kvrouter")
    page.run("export KVCTL_CONTROLLERS=")
    page.end()
    wait_for(healthy, "a healthy cluster")
    assert members() == 3


@check
def a_stopped_daemon_tells_why():
    page = Page("KVControllerDown", CONTROLLER="controller-2", HOST="10.0.1.2")
    systemctl("stop", "kvcontrollerd")
    page.run("systemctl status kvcontrollerd", code=3, says="inactive (dead)")
    page.run("journalctl -u kvcontrollerd", says="Stopped kvcontrollerd.service")
    systemctl("start", "kvcontrollerd")
    wait_for(lambda: members() == 3, "three controllers")
    lose_the_disk_of_the_second()
    page.run("kvctl controller remove")
    page.run("kvctl controller add")
    page.end()
    wait_for(lambda: members() == 3, "three controllers")

    page = Page("KVRouterDown")
    systemctl("stop", "kvrouter")
    page.run("systemctl status kvrouter", code=3, says="inactive (dead)")
    page.run("journalctl -u kvrouter", says="Stopped kvrouter.service")
    page.end()
    systemctl("start", "kvrouter")

    page = Page("KVProcessFlapping", NODE="node-1")
    before = pid("kvnode@node-1")
    systemctl("kill", "--signal=KILL", "kvnode@node-1")
    wait_for(lambda: runs_anew("kvnode@node-1", before), "the restart")
    page.run("systemctl status kvnode@NODE", says="active (running)")
    page.run("journalctl -u kvnode@NODE", says="Failed with result 'signal'")
    page.end()
    page = Page("KVNodeDown", NODE="node-1")
    page.run("journalctl -u kvnode@NODE", says="Started kvnode@node-1.service")
    page.end()
    wait_for(healthy, "a healthy cluster")


@check
def controllers_that_lost_a_majority_come_back():
    for name in ("KVControllerNoQuorum", "KVControllerNotServing"):
        systemctl("stop", *CONTROLLERS)
        page = Page(name)
        page.run("kvctl status --nodes", code=5)
        page.end()
        systemctl("start", *CONTROLLERS)
    page = Page("lose-a-quorum")
    systemctl("stop", *CONTROLLERS[:2])
    page.run("systemctl start kvcontrollerd")
    wait_for(lambda: members() == 2, "a majority of controllers")
    shutil.rmtree(DATA / "controller-2")
    systemctl("start", "kvcontrollerd-2")
    page.run("kvctl controller remove controller-2")
    page.run("kvctl controller add controller-2")
    page.end()
    wait_for(lambda: members() == 3, "three controllers")
    page = Page("KVControllerQuorumAtRisk", CONTROLLER="controller-2", HOST="10.0.1.2")
    lose_the_disk_of_the_second()
    page.run("kvctl controller remove")
    page.run("kvctl controller add")
    page.end()
    wait_for(lambda: members() == 3, "three controllers")
    page = Page("KVReconcileStuck")
    before = pid("kvcontrollerd")
    page.run("systemctl restart kvcontrollerd")
    page.end()
    assert runs_anew("kvcontrollerd", before)
    wait_for(healthy, "a healthy cluster")


@check
def wrong_settings_are_named():
    page = Page("KVConfigReloadFailed", NODE="node-1")
    for unit, program, file in (("kvnode@node-1", "kvnode", "node-1"), ("kvrouter", "kvrouter", "router"),
                                ("kvcontrollerd", "kvcontrollerd", "controller")):
        path = ETC / f"{file}.ini"
        good = path.read_text()
        path.write_text(good + "nonsense = 1\n")
        systemctl("kill", "--signal=HUP", "--kill-whom=main", unit)
        wait_for(lambda: "reload failed" in status(unit), f"{unit}: status")
        page.run(f"{program} --config", code=78, says=f"{path}:")
        run("journalctl", "--sync")
        page.run("journalctl -u", says="nonsense")
        path.write_text(good)
        systemctl("reload", unit)
        wait_for(lambda: "reload failed" not in status(unit), f"{unit}: a good reload")
    page.end()


@check
def a_damaged_node_is_found_in_its_journal():
    unit, place = "kvnode@node-3", DATA / "node-3"
    assert kvctl("node", "scrub", "node-3").returncode == 0
    page = Page("KVScrubStale", NODE="node-3")
    page.run("journalctl -u kvnode@NODE -g scrub", says="scrub")
    page.end()
    systemctl("stop", unit)
    shutil.copytree(place, "/run/whole")
    segment = max((place / "log").glob("*1*"))
    with segment.open("r+b") as file:
        file.write(b"damage" * 100)
    systemctl("start", unit, code=1)
    run("journalctl", "--sync")
    for name in ("KVDiskFailed", "KVChecksumFailure"):
        page = Page(name, NODE="node-3")
        page.run("journalctl -u kvnode@NODE", says=str(segment))
        page.end()
    shutil.rmtree(place)
    run("cp", "-a", "/run/whole", place)
    run("chown", "-R", "rangekeeper:rangekeeper", place)
    systemctl("reset-failed", unit)
    systemctl("start", unit)
    wait_for(healthy, "a healthy cluster")
    page = Page("KVClockOffset")
    page.run("timedatectl status", says="Universal time")
    page.end()


@check
def clients_reach_any_router():
    page = Page("KVNoRouter", HOST="10.0.3.1")
    page.run("redis-cli -h HOST", says="PONG")
    systemctl("stop", "kvrouter.socket", "kvrouter")
    page.words["HOST"] = "10.0.1.1"
    command = page.take("kvrouter --listen-resp")
    page.end()
    router = subprocess.Popen(["bash", "-c", f"exec {command.text}"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: run("redis-cli", "-h", "10.0.3.1", "PING", code=None).stdout == "PONG\n",
                 "a router that answers")
    finally:
        router.terminate()
        router.wait()
    systemctl("start", "kvrouter.socket", "kvrouter")

    page = Page("rotate-certificates")
    make_certificates()
    (DESK / "NEW-KEY").write_text((PKI / "client.key").read_text())
    (DESK / "NEW-KEYS").write_text("aws_access_key_id = a\naws_secret_access_key = b\n")
    (DESK / "NEW-PASSWORD").write_text("open sesame\n")
    page.run("openssl x509 -enddate", says="notAfter=")
    page.run("install -m 600 NEW-KEY ")
    page.run("install -m 600 NEW-KEYS ")
    page.run("kvcontrollerd --config")
    page.run("install -m 600 NEW-PASSWORD ")
    page.end()
    page = Page("KVCertificateExpiring")
    page.run("openssl x509 -enddate", says="notAfter=")
    page.run("journalctl -u kvcontrollerd")
    page.end()
    systemctl("restart", "kvrouter")
    assert "NOAUTH" in run("redis-cli", "HGET", "t", "k", code=None).stdout
    assert "PONG" in run("redis-cli", "-a", "open sesame", "--no-auth-warning", "PING").stdout
    (STORE / "kvrouter.auth.password").unlink()
    systemctl("restart", "kvrouter")


def make_certificates():
    """An authority, and of it the certificates of etcd and of the controllers."""
    PKI.mkdir()

    def openssl(*words):
        run("openssl", *map(str, words))

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca",
            "-keyout", PKI / "ca.key", "-out", PKI / "ca.crt")
    (PKI / "names").write_text("subjectAltName=" + ",".join(
        f"IP:{address}" for address in ADDRESSES if address.startswith("10.0.0.")) + "\n")
    # A certificate with a common name would count as a user of that name.
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/O=rangekeeper",
                "-keyout", PKI / f"{name}.key", "-out", PKI / f"{name}.csr")
        openssl("x509", "-req", "-days", "2", "-in", PKI / f"{name}.csr", "-CA", PKI / "ca.crt",
                "-CAkey", PKI / "ca.key", "-CAcreateserial", "-extfile", PKI / "names",
                "-out", PKI / f"{name}.crt")
    for file, name in (("ca.crt", "etcd-ca.crt"), ("client.crt", "etcd.crt")):
        shutil.copy(PKI / file, ETC / name)
        (ETC / name).chmod(0o644)


@check
def silences_and_upgrades_are_as_the_pages_have_them():
    run("systemd-run", "--unit=alertmanager", "prometheus-alertmanager", "--cluster.listen-address=",
        "--config.file=/usr/share/rangekeeper/dashboards/prometheus/alertmanager.example.yml",
        "--storage.path=/run/alertmanager")
    wait_for(lambda: answers(9093), "an alertmanager")
    page = Page("drain-for-maintenance", NODE="node-1")
    silence = page.run("amtool silence add").strip()
    page.end()
    told = run("amtool", "silence", "query", "--alertmanager.url=http://localhost:9093").stdout
    assert silence in told and 'instance="node-1"' in told
    systemctl("stop", "alertmanager")

    newer = "99.0.0"
    make_repository(newer)
    before = {unit: pid(unit) for unit in ("kvcontrollerd", "kvnode@node-1", "kvrouter")}
    page = Page("rolling-upgrade")
    page.run("printf")
    page.run("apt-get install --only-upgrade")
    page.run("rm /usr/sbin/policy-rc.d")
    page.end()
    assert run("dpkg-query", "--show", "--showformat=${Version}", "kvnode").stdout == newer
    # It runs on until it is started anew.
    assert {unit: pid(unit) for unit in before} == before
    wait_for(healthy, "a healthy cluster")


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def make_repository(version):
    """The packages again with another version, where apt finds them."""
    place = Path("/run/repository")
    place.mkdir()
    for package in glob.glob("/out/packages/*.deb"):
        name, old, _ = Path(package).name.split("_")
        work = Path("/run/package")
        work.mkdir()
        run("ar", "x", "--output", str(work), package)
        control = next(work.glob("control.tar*"))
        run("tar", "-C", str(work), "-xf", str(control), "./control")
        text = (work / "control").read_text().replace(old, version)
        everything = work / "control.d"
        everything.mkdir()
        run("tar", "-C", str(everything), "-xf", str(control))
        (everything / "control").write_text(text)
        control.unlink()
        run("tar", "-C", str(everything), "-cf", str(work / "control.tar"), ".")
        data = next(work.glob("data.tar*"))
        run("ar", "rc", str(place / f"{name}.deb"), str(work / "debian-binary"),
            str(work / "control.tar"), str(data))
        shutil.rmtree(work)
    index = subprocess.run(["dpkg-scanpackages", "."], cwd=place, capture_output=True, text=True)
    (place / "Packages").write_text(index.stdout)
    shutil.rmtree("/etc/apt/sources.list.d", ignore_errors=True)
    Path("/etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{place} ./\n")
    run("apt-get", "update")


@check
def the_backup_is_switched_on_and_breaks():
    place = Path("/mnt/backup")
    place.mkdir()
    shutil.chown(place, "rangekeeper", "rangekeeper")
    for unit in CONTROLLERS:
        drop_in(unit, "ReadWritePaths=/mnt")
    write_controllers(first_controller, f"[backup]\nto = {place}\n")
    page = Page("back-up")
    page.run("kvcontrollerd --config", says=f"backup.to = {place}")
    page.run("systemctl restart kvcontrollerd")
    page.end()
    restart_controllers()
    wait_for(lambda: "everything" in kvctl("backup", "status").stdout, "a backup")
    place.rename("/mnt/elsewhere")
    place.touch()
    # Something that is to be stored.
    assert kvctl("table", "create", "late").returncode == 0
    wait_for(lambda: "problem" in kvctl("backup", "status").stdout, "a backup that fails")
    page = Page("KVBackupBehind")
    page.run("kvctl backup status", code=5, says="Not a directory")
    page.end()
    place.unlink()
    Path("/mnt/elsewhere").rename(place)
    wait_for(lambda: "everything" in kvctl("backup", "status").stdout, "a backup that has all")


def start_etcd(scheme):
    """One member, at all addresses of the pages; returns what runs etcdctl there."""
    addresses = [address for address in ADDRESSES if address.startswith("10.0.0.")]
    server, client = [], []
    if scheme == "https":
        server = [f"--cert-file={PKI}/server.crt", f"--key-file={PKI}/server.key",
                  "--client-cert-auth", f"--trusted-ca-file={PKI}/ca.crt"]
        client = [f"--cacert={PKI}/ca.crt", f"--cert={PKI}/client.crt", f"--key={PKI}/client.key"]
    run("systemd-run", f"--unit=etcd-{scheme}", "--service-type=notify", "etcd", "--data-dir=/run/etcd",
        f"--listen-client-urls={','.join(f'{scheme}://{address}:2379' for address in addresses)}",
        f"--advertise-client-urls={scheme}://{addresses[0]}:2379", *server)

    def etcdctl(*words, code=0):
        return run("etcdctl", f"--endpoints={scheme}://{addresses[0]}:2379", *client, *words, code=code)

    wait_for(lambda: etcdctl("endpoint", "health", code=None).returncode == 0, "etcd")
    return etcdctl


@check
def the_metadata_moves_to_etcd_with_credentials_and_back():
    etcdctl = start_etcd("https")
    # With a client certificate and a user: both secrets are credentials, and the files name neither.
    etcdctl("user", "add", "root:secret")
    etcdctl("user", "grant-role", "root", "root")
    etcdctl("auth", "enable")
    (STORE / "kvcontrollerd.etcd.password.file").write_text("secret\n")
    (STORE / "kvcontrollerd.etcd.password.file").chmod(0o600)
    write_controllers(
        first_controller, f"[etcd]\nca = {ETC}/etcd-ca.crt\ncert = {ETC}/etcd.crt\nuser = root\n")
    restart_controllers()
    wait_for(healthy, "a healthy cluster")
    page = Page("move-the-metadata")
    page.run("kvctl metadata migrate --to etcd")
    page.run("kvctl metadata migrate --to etcd")
    page.run("kvctl metadata show", says="etcd")
    wait_for(healthy, "a healthy cluster")
    for unit in CONTROLLERS:
        environment = Path(f"/proc/{pid(unit)}/environ").read_text()
        place = re.search(r"CREDENTIALS_DIRECTORY=([^\0]*)", environment)[1]
        assert {"etcd.key", "etcd.password.file"} <= set(os.listdir(place)), unit
    # Those that do not act follow, also when etcd has forgotten their tokens.
    wait_for(equal, "controllers that have the same")
    systemctl("restart", "etcd-https")
    wait_for(lambda: kvctl("table", "create", "followed", "--if-missing").returncode == 0, "a table")
    wait_for(equal, "controllers that have the same")
    page.run("kvctl metadata migrate --to embedded")
    page.run("kvctl metadata migrate --to embedded")
    page.run("kvctl controller list", says="member")
    page.end()
    etcdctl("--user=root:secret", "auth", "disable")
    systemctl("stop", "etcd-https")
    for file in ("key", "password.file"):
        (STORE / f"kvcontrollerd.etcd.{file}").unlink()
    # Without the files, and without etcd, the units start all the same.
    write_controllers(first_controller, "[backup]\nto = /mnt/backup\n")
    restart_controllers()
    wait_for(healthy, "a healthy cluster")


@check
def metadata_that_etcd_lost_is_made_anew():
    etcdctl = start_etcd("http")
    page = Page("KVMetadataStoreDown")
    page.run("etcdctl", says="is healthy")
    page.run("etcdctl", says="10.0.0.21:2379")
    page.end()
    etcdctl("del", "--prefix", "rangekeeper/")
    in_etcd = re.sub("peers = .*", "metadata = etcd", first_controller)
    more = "[backup]\nto = /mnt/backup\n[etcd]\nendpoints = http://10.0.0.21:2379\n"
    moved = kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints", "http://10.0.0.21:2379")
    assert moved.returncode == 0, moved.stderr
    write_controllers(in_etcd, more)
    restart_controllers()
    wait_for(lambda: "everything" in kvctl("backup", "status").stdout, "a backup that has all")
    etcdctl("del", "--prefix", "rangekeeper/")
    wait_for(lambda: journal("kvcontrollerd", "--priority=err", "--lines=1"), "a controller that notices")
    page = Page("KVMetadataWentBack", PLACE="/mnt/backup", INTO=f"{DATA}/controller")
    page.run("etcdctl")
    page.run("journalctl -u kvcontrollerd -p err", says="etcd")
    systemctl("stop", *CONTROLLERS[1:])
    page.run("systemctl stop kvcontrollerd")
    page.run("mv INTO INTO.lost")
    for number in (2, 3):
        (DATA / f"controller-{number}").rename(DATA / f"controller-{number}.lost")
    page.run("etcdctl")
    page.run("kvctl restore --from PLACE")
    page.run("kvctl restore --from PLACE")
    systemctl("start", *CONTROLLERS[1:])
    page.run("systemctl start kvcontrollerd")
    wait_for(healthy, "a healthy cluster")
    page.run("kvctl status", says="healthy: 3 nodes")
    page.run("kvctl doctor")
    page.run("kvctl metadata show", says="etcd")
    page.run("kvctl backup now", says="is in /mnt/backup, read back")
    page.end()


@check
def every_command_was_run_or_is_named():
    wanted = {(file.stem, command.text) for file in RUNBOOKS.glob("*.md")
              for kind, commands in blocks(file) if kind == "elsewhere" for command in commands}
    missing = {(page, text) for page, text in wanted if is_run(text)} - DONE
    assert not missing, sorted(missing)
    named = {start for start in NOT_RUN if any(text.startswith(start) for _, text in wanted)}
    assert named == set(NOT_RUN), "no page has these any more"
    return f"{len(DONE)} of {len(wanted)} commands were run"
