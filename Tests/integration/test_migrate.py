"""The metadata of a running cluster moves into etcd and out of it: controllers are killed at every step of a
move, others are away, and nothing is lost, decided twice, or noticed by clients."""

import json
import re
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import fake_cluster
import pytest

from conftest import BINARIES, is_alive, run, wait_for
from s3_double import S3Double
from test_backup import create as create_on
from test_controllers import NAMES, Controllers, Creator
from test_etcd import ETCD, Client, Etcd, close, create
from test_restore import RestoredControllers
from test_service_manager import Daemon, manager  # noqa: F401

pytestmark = [pytest.mark.fault,
              pytest.mark.skipif(ETCD is None, reason="etcd is not installed (see: make deps)")]


class Proxy:
    """Stands before one member of etcd. Holds the first request whose body matches a pattern, before etcd
    sees it or before its answer is seen, until it is told to drop it; or every such request, until it is told to
    let them go on ("until")."""

    def __init__(self, port):
        self.port = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.pattern, self.when = None, None
        self.caught, self.dropped = threading.Event(), threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, pattern, when):
        with self.lock:
            self.caught.clear()
            self.dropped.clear()
            self.pattern, self.when = re.compile(pattern), when

    def drop(self):
        self.dropped.set()

    def _matches(self, body):
        with self.lock:
            if self.pattern is None or not self.pattern.search(body):
                return None
            if self.when != "until":
                self.pattern = None
            return self.when

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        try:
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            client.close()
            return
        silent = threading.Event()
        threading.Thread(target=self._answer, args=(server, client, silent), daemon=True).start()
        try:
            stream = client.makefile("rb")
            while True:
                head, length = b"", 0
                while not head.endswith(b"\r\n\r\n"):
                    line = stream.readline()
                    if not line:
                        return
                    head += line
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = stream.read(length)
                when = self._matches(body)
                if when == "before":
                    self.caught.set()
                    self.dropped.wait()
                    return
                if when == "until":
                    self.caught.set()
                    self.dropped.wait()
                if when == "after":
                    silent.set()
                server.sendall(head + body)
        except OSError:
            pass
        finally:
            for end in (client, server):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    def _answer(self, server, client, silent):
        try:
            while data := server.recv(1 << 16):
                if silent.is_set():
                    self.caught.set()
                    self.dropped.wait()
                    break
                client.sendall(data)
        except OSError:
            pass
        finally:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.drop()
        self.listener.close()


# `rangekeeper/head` and the first byte of what is put there: 254, 255, 1.
HEAD = b'"cmFuZ2VrZWVwZXIvaGVhZA==","value":"'
INCOMING, MOVED, VALID = (HEAD + first for first in (b"/[g-v]", b"/[w-z0-9+/]", b"AQ|" + HEAD + b"AR"))


class Migrating(Controllers):
    def homes(self):
        return [home for home in self.json("metadata", "show")["controllers"]
                if "error" not in home]

    def form(self):
        """Where the acting controller keeps the metadata; None when none acts."""
        return next((home["form"] for home in self.homes() if home["acting"]), None)

    def wait_for_form(self, form, count=3, seconds=60):
        """All controllers keep the metadata there, and one acts."""
        def check():
            homes = self.homes()
            assert [home["form"] for home in homes] == [form] * count, homes
            assert sum(home["acting"] for home in homes) == 1, homes
            return True
        wait_for(check, seconds, f"{count} controllers on {form}\n{self.log_tails(5)}")

    def migrate(self, to, *flags):
        result = self.kvctl("metadata", "migrate", "--to", to, *flags, timeout=150)
        assert result.returncode == 0, f"{result.stderr}\n{self.log_tails()}"
        return result

    def audit(self):
        verdict = self.kvctl("audit", "verify")
        assert verdict.returncode == 0, verdict.stdout + verdict.stderr
        return self.kvctl("audit", "--limit", "5000").stdout


def check_backup(cluster, place, **options):
    """Every revision since the first snapshot is in the backup, and nothing else."""
    done = cluster.kvctl("backup", "now")
    assert done.returncode == 0, done.stderr
    verdict = cluster.kvctl("backup", "verify", "--from", place, "-o", "json", **options)
    stored = json.loads(verdict.stdout)
    assert verdict.returncode == 0 and not stored["gaps"], (stored, cluster.homes()[0]["move"])
    assert len(stored["spans"]) == 1, stored


@contextmanager
def running(tmp_path, kind=Migrating, count=3, flags=(), **options):
    cluster = kind(tmp_path / "cluster", "--controllers", str(count), *flags, **options)
    try:
        cluster.up()
        cluster.wait_for_members(*NAMES[:count])
        yield cluster
    finally:
        close(cluster)


@pytest.fixture
def etcd(tmp_path):
    etcd = Etcd(tmp_path / "etcd", members=1)
    try:
        etcd.leader()
        yield etcd
    finally:
        etcd.close()


def test_there_and_back_under_load(tmp_path):
    etcd = Etcd(tmp_path / "etcd", members=3)
    try:
        etcd.leader()
        backup = tmp_path / "backup"
        with running(tmp_path, environment={"KVCONTROLLERD_BACKUP_TO": str(backup)}) as cluster:
            create(cluster, "t")
            create(cluster, "many", "--partition", "hash", "--vranges", "300")
            before = cluster.tables()
            client, creator = Client(cluster), Creator(cluster)
            client.start()
            creator.start()
            where = ["--etcd-endpoints", etcd.endpoints]
            plan = json.loads(cluster.migrate("etcd", *where, "--dry-run", "-o", "json").stdout)
            assert plan["from"] == "embedded" and sorted(plan["controllers"]) == NAMES, plan
            assert cluster.form() == "embedded"
            told = cluster.migrate("etcd", *where)
            assert "set metadata = etcd" in told.stdout, told.stdout
            cluster.wait_for_form("etcd")
            assert "set metadata = etcd" in cluster.kvctl("status").stdout
            assert "RK061" in cluster.kvctl("doctor").stdout
            made = len(creator.created)
            wait_for(lambda: len(creator.created) > made + 3, what="tables in etcd")
            check_backup(cluster, backup)
            again = cluster.kvctl("metadata", "migrate", "--to", "etcd", *where)
            assert again.returncode != 0 and "in etcd already" in again.stderr, again.stderr
            run("kvctl", "playground", "stop", "controller-1", "--dir", cluster.directory)
            cluster.migrate("embedded")
            cluster.wait_for_form("embedded", count=2)
            made = len(creator.created)
            wait_for(lambda: len(creator.created) > made + 3, what="tables among the controllers")
            creator.stop()
            client.stop()
            # One that was away cannot join by itself: it has no copy.
            # It ends as soon as it has seen the mark, perhaps after it was said to run.
            cluster.kvctl("playground", "start", "controller-1")
            wait_for(lambda: not is_alive(cluster.pid("controller-1")), what="its end")
            assert "controller-1 is none" in cluster.log_of("controller-1"), cluster.log_tails()
            assert not client.failures, client.failures[:5]
            assert client.done > 100
            tables = cluster.tables()
            assert {"t", "many"} | set(creator.created) <= set(tables)
            assert set(tables) <= {"t", "many"} | set(creator.created + creator.uncertain)
            assert tables["many"]["id"] == before["many"]["id"] and tables["many"]["shards"] == 300
            # The backup goes on over both moves.
            check_backup(cluster, backup)
            log = cluster.audit()
            assert "moved to etcd" in log and "moved to embedded" in log
            terms = cluster.terms_acted()
            assert len(terms) == len(set(terms)), f"a term was used twice: {terms}"
    finally:
        etcd.close()


def test_settings_follow_when_the_operator_comes_to_it(tmp_path, etcd):
    with running(tmp_path, count=1) as cluster:
        create(cluster, "t")
        cluster.migrate("etcd", "--etcd-endpoints", etcd.endpoints)
        cluster.wait_for_form("etcd", count=1)

        def restart():
            cluster.kill("controller-1")
            cluster.start("controller-1")
            cluster.wait_for_acting()
        # With the old settings, then with those that were told.
        restart()
        assert cluster.homes()[0]["configured"] == "embedded"
        assert "RK061" in cluster.kvctl("doctor").stdout
        there = {"KVCONTROLLERD_METADATA": "etcd", "KVCONTROLLERD_ETCD_ENDPOINTS": etcd.endpoints}
        cluster.environment = there | {"KVCONTROLLERD_ETCD_PREFIX": "other/"}
        cluster.kill("controller-1")
        refused = cluster.kvctl("playground", "start", "controller-1")
        assert refused.returncode != 0
        assert "set etcd.prefix = rangekeeper/" in cluster.log_of("controller-1")
        cluster.environment = there
        cluster.start("controller-1")
        cluster.wait_for_acting()
        assert "staleness" not in cluster.homes()[0]
        assert "RK061" not in cluster.kvctl("doctor").stdout
        create(cluster, "in_etcd")
        told = cluster.migrate("embedded")
        assert "set metadata = embedded" in told.stdout, told.stdout
        cluster.wait_for_form("embedded", count=1)
        # The settings still name the old place in etcd: no other one is moved to.
        for where, said in [
                ((etcd.endpoints, "newp"), "etcd.prefix = rangekeeper/"),
                (("http://localhost:1", "rangekeeper"), f"etcd.endpoints = {etcd.endpoints}")]:
            for dry in (["--dry-run"], []):
                refused = cluster.kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints",
                                        where[0], "--etcd-prefix", where[1], *dry)
                assert refused.returncode == 7, refused.stdout
                assert f"nothing is moved: controller-1: its settings say {said}; move there" \
                    in refused.stderr, refused.stderr
        assert cluster.form() == "embedded"
        restart()
        cluster.environment = {}
        restart()
        assert "staleness" not in cluster.homes()[0]
        create(cluster, "last")
        assert set(cluster.tables()) == {"t", "in_etcd", "last"}
        assert cluster.audit().count("moved to") == 2


@pytest.mark.parametrize("to, pattern, when, ends", [
    ("etcd", INCOMING, "before", "embedded"),
    ("etcd", INCOMING, "after", "embedded"),
    ("etcd", VALID, "before", "etcd"),
    ("etcd", VALID, "after", "etcd"),
    ("embedded", MOVED, "before", "etcd"),
    ("embedded", MOVED, "after", "embedded"),
], ids=["nothing-there", "not-marked", "marked", "valid", "not-closed", "closed"])
def test_the_acting_controller_is_killed(tmp_path, etcd, to, pattern, when, ends):
    proxy = Proxy(etcd.clients[0])
    where = ["--etcd-endpoints", proxy.endpoint]
    backup = tmp_path / "backup"
    try:
        with running(tmp_path, environment={"KVCONTROLLERD_BACKUP_TO": str(backup)}) as cluster:
            create(cluster, "t")
            if to == "embedded":
                cluster.migrate("etcd", *where)
                cluster.wait_for_form("etcd")
            client = Client(cluster)
            client.start()
            acting = cluster.wait_for_acting()
            proxy.hold(pattern, when)
            moving = subprocess.Popen(
                [BINARIES / "kvctl", "metadata", "migrate", "--to", to, "--dir", cluster.directory,
                 *(where if to == "etcd" else [])],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert proxy.caught.wait(60), cluster.log_tails()
            cluster.kill(acting)
            proxy.drop()
            said, _ = moving.communicate(timeout=150)
            assert (moving.returncode == 0) == (ends == to), said
            cluster.wait_for_form(ends, count=2)
            create(cluster, "without")
            cluster.start(acting)
            cluster.wait_for_form(ends)
            create(cluster, "with")
            # And the same again, to the end.
            if ends != to:
                assert "acts now; begin anew" in said, said
                cluster.migrate(to, *(where if to == "etcd" else []))
                cluster.wait_for_form(to)
                create(cluster, "again")
            client.stop()
            assert not client.failures, client.failures[:5]
            assert {"t", "without", "with"} <= set(cluster.tables())
            assert f"moved to {to}" in cluster.audit()
            cluster.check_nothing_was_decided_twice()
            check_backup(cluster, backup)
    finally:
        proxy.close()


def test_while_the_backup_fails_nothing_is_moved(tmp_path, etcd):
    """It is told before anything stops."""
    backup = tmp_path / "backup"
    with running(tmp_path, count=1,
                 environment={"KVCONTROLLERD_BACKUP_TO": str(backup)}) as cluster:
        create(cluster, "t")
        check_backup(cluster, backup)
        backup.rename(tmp_path / "away")
        backup.write_text("in its place")
        create(cluster, "late")
        wait_for(lambda: cluster.json("backup", "status")["problem"], what="that it fails")
        term = cluster.json("status")["controllers"][0]["term"]
        refused = cluster.kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints",
                                etcd.endpoints)
        assert refused.returncode == 7, refused.stderr
        assert f"nothing is moved: the backup in {backup} fails" in refused.stderr, refused.stderr
        assert cluster.json("status")["controllers"][0]["term"] == term
        backup.unlink()
        (tmp_path / "away").rename(backup)
        wait_for(lambda: not cluster.json("backup", "status")["problem"], what="its return")
        cluster.migrate("etcd", "--etcd-endpoints", etcd.endpoints)
        cluster.wait_for_form("etcd", count=1)
        create(cluster, "there")
        check_backup(cluster, backup)


@pytest.mark.parametrize("to", ["etcd", "embedded"])
def test_a_move_waits_for_a_backup_that_hangs(tmp_path, etcd, to):
    """For a while; then the old store goes on. What it did meanwhile is in the backup, and so is the move that follows."""
    double, where = S3Double(), ["--etcd-endpoints", etcd.endpoints]
    try:
        with running(tmp_path, count=1, environment={
                "KVCONTROLLERD_BACKUP_TO": double.place(), **double.environment}) as cluster:
            create(cluster, "t")
            if to == "embedded":
                cluster.migrate("etcd", *where)
                cluster.wait_for_form("etcd", count=1)
            before, flags = cluster.form(), where if to == "etcd" else []
            with double.holding("PUT", "log-"):
                create(cluster, "late")
                failed = cluster.kvctl("metadata", "migrate", "--to", to, *flags, timeout=150)
                assert failed.returncode == 7 and "is late with" in failed.stderr, failed.stderr
                cluster.wait_for_form(before, count=1)
                create(cluster, "goes_on")
            cluster.migrate(to, *flags)
            cluster.wait_for_form(to, count=1)
            create(cluster, "there")
            check_backup(cluster, double.place(), env=double.environment)
            assert set(cluster.tables()) == {"t", "late", "goes_on", "there"}
    finally:
        double.close()


def test_etcd_ends_while_the_metadata_is_copied(tmp_path, etcd):
    """The old store goes on, under the same controller."""
    proxy = Proxy(etcd.clients[0])
    try:
        with running(tmp_path) as cluster:
            create(cluster, "t")
            acting = cluster.wait_for_acting()
            proxy.hold(INCOMING, "before")
            moving = subprocess.Popen(
                [BINARIES / "kvctl", "metadata", "migrate", "--to", "etcd", "--etcd-endpoints",
                 proxy.endpoint, "--dir", cluster.directory],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert proxy.caught.wait(60), cluster.log_tails()
            assert cluster.form() is None
            etcd.kill(0)
            proxy.drop()
            said, _ = moving.communicate(timeout=150)
            assert moving.returncode == 7 and "etcd does not answer" in said, said
            assert cluster.wait_for_acting() == acting
            cluster.wait_for_form("embedded")
            create(cluster, "after")
            assert set(cluster.tables()) == {"t", "after"}
            assert re.search(r"metadata.migrate .*etcd does not answer", cluster.audit())
            etcd.start(0)
            cluster.migrate("etcd", "--etcd-endpoints", etcd.endpoints)
            cluster.wait_for_form("etcd")
    finally:
        proxy.close()


@pytest.fixture(scope="session")
def refused_threads(tmp_path_factory):
    """The environment that preloads refused_threads.c, and the file that names the thread to refuse."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the library that refuses threads")
    directory = tmp_path_factory.mktemp("preload")
    library, refused = directory / "refused_threads.so", directory / "refused"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library,
                    Path(__file__).with_name("refused_threads.c"), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "REFUSE_THREAD": str(refused)}, refused


@pytest.mark.parametrize("to", ["etcd", "embedded"])
def test_without_a_thread_nothing_is_moved(tmp_path, etcd, refused_threads, to):
    """At every step that needs one: it is told, in the audit log too, and the old store goes on."""
    environment, refused = refused_threads
    where = ["--etcd-endpoints", etcd.endpoints]
    with running(tmp_path, count=1, environment=environment) as cluster:
        create(cluster, "t")
        if to == "embedded":
            cluster.migrate("etcd", *where)
            cluster.wait_for_form("etcd", count=1)
        before, flags = cluster.form(), where if to == "etcd" else []
        threads = {"etcd": ["etcd-check", "meta-move"],
                   "embedded": ["meta-digest", "meta-prepare", "meta-mark"]}[to]
        for number, thread in enumerate(threads):
            refused.write_text(thread)
            try:
                failed = cluster.kvctl("metadata", "migrate", "--to", to, *flags, timeout=150)
            finally:
                refused.unlink()
            said = f"thread {thread}: Resource temporarily unavailable"
            assert failed.returncode == 7 and said in failed.stderr, failed.stderr
            cluster.wait_for_form(before, count=1)
            create(cluster, f"goes_on{number}")
            assert re.search(rf"metadata.migrate .*{said}", cluster.audit()), cluster.audit()
        cluster.migrate(to, *flags)
        cluster.wait_for_form(to, count=1)
        create(cluster, "moved")
        assert set(cluster.tables()) == {"t", "moved"} | {
            f"goes_on{number}" for number in range(len(threads))}


def test_a_controller_without_a_thread_to_take_over_tries_again(tmp_path, refused_threads):
    environment, refused = refused_threads
    with running(tmp_path, count=1, environment=environment) as cluster:
        cluster.kill("controller-1")
        refused.write_text("take-over")
        try:
            cluster.start("controller-1")
            wait_for(lambda: cluster.log_of("controller-1").count("thread take-over") >= 2,
                     what="a second attempt")
        finally:
            refused.unlink()
        cluster.wait_for_acting()


def test_a_controller_that_was_away_follows(tmp_path, etcd):
    with running(tmp_path) as cluster:
        create(cluster, "t")
        away = next(name for name in NAMES if name != cluster.wait_for_acting())
        cluster.kill(away)
        wait_for(lambda: not next(c for c in cluster.json("status")["controllers"]
                                  if c["name"] == away)["reachable"], what="its absence")
        told = cluster.migrate("etcd", "--etcd-endpoints", etcd.endpoints)
        assert f"follow when they start: {away}" in told.stderr, told.stderr
        cluster.wait_for_form("etcd", count=2)
        # Its copy ends before the move: the others tell it.
        cluster.start(away)
        cluster.wait_for_form("etcd")
        # One that has lost its disk, with the old settings, founds nothing.
        acting = cluster.wait_for_acting()
        lost = next(name for name in NAMES if name != acting)
        cluster.kill(lost)
        shutil.rmtree(cluster.directory / lost / "data")
        before = len(cluster.log_of(lost))
        with subprocess.Popen([BINARIES / "kvctl", "playground", "start", lost,
                               "--dir", cluster.directory]) as starting:
            create(cluster, "last")
            wait_for(lambda: "set metadata = etcd" in cluster.log_of(lost)[before:],
                     what="what to set")
            assert set(cluster.tables()) == {"t", "last"}
            cluster.check_nothing_was_decided_twice()
            starting.kill()


def test_a_mark_that_comes_during_a_look_around_is_not_missed(tmp_path):
    """A controller has read a head that was valid, and has no answer yet to the rest of what it looks for."""
    with running(tmp_path, Migrating, 3, flags=["--metadata", "etcd"]) as cluster:
        create(cluster, "t")
        slow = next(name for name in NAMES if name != cluster.wait_for_acting())
        command = [word.decode() for word in Path(
            f"/proc/{cluster.pid(slow)}/cmdline").read_bytes().split(b"\0")[:-1]]
        place = command.index("--etcd-endpoints") + 1
        proxy = Proxy(int(command[place].rpartition(":")[2]))
        command[place] = proxy.endpoint
        cluster.kill(slow)
        proxy.hold(rb'"limit":"?100\D', "until")
        with (cluster.directory / "logs" / f"{slow}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            assert proxy.caught.wait(30), cluster.log_tails()
            wait_for(lambda: len(cluster.homes()) == 3
                     and all(home["revision"] for home in cluster.homes()), what="its copy")
            cluster.migrate("embedded")
            proxy.drop()
            cluster.wait_for_form("embedded")
            create(cluster, "after")
        finally:
            proxy.close()
            process.terminate()
            process.wait(timeout=30)


def test_what_cannot_be_done_is_refused_before_anything_stops(tmp_path, etcd):
    with running(tmp_path) as cluster:
        create(cluster, "t")
        term = cluster.json("status")["controllers"]
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            port = nobody.getsockname()[1]
        refused = cluster.kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints",
                                f"http://127.0.0.1:{port}", timeout=60)
        assert refused.returncode == 7, refused.stderr
        for name in NAMES:
            assert f"{name}: etcd does not answer" in refused.stderr, refused.stderr
        etcd.ask(0, "kv/put", {"key": "cmFuZ2VrZWVwZXIvaGVhZA==", "value": "AQ" + "A" * 53 + "="})
        refused = cluster.kvctl("metadata", "migrate", "--to", "etcd", "--etcd-endpoints",
                                etcd.endpoints)
        assert refused.returncode == 7 and "metadata below rangekeeper/" in refused.stderr, \
            refused.stderr
        refused = cluster.kvctl("metadata", "migrate", "--to", "embedded")
        assert refused.returncode == 7 and "embedded already" in refused.stderr, refused.stderr
        assert [c["term"] for c in cluster.json("status")["controllers"]] == \
            [c["term"] for c in term]
        assert "nothing is moved" in cluster.audit()
        # Elsewhere there is room.
        cluster.migrate("etcd", "--etcd-endpoints", etcd.endpoints, "--etcd-prefix", "other")
        cluster.wait_for_form("etcd")
        assert "etcd.prefix = other" in cluster.kvctl("metadata", "show").stdout


def test_to_the_service_manager_it_is_a_reload(tmp_path, etcd, manager):  # noqa: F811
    port = fake_cluster.free_port()
    daemon = Daemon("kvcontrollerd", tmp_path, manager, environment={"WATCHDOG_USEC": "2000000"},
                    configuration=f"name = controller-1\ndata = {tmp_path / 'data'}\n"
                                  f"[listen]\nrpc = 127.0.0.1:{port}\n")
    try:
        manager.wait("STATUS=acting: ")
        moved = run("kvctl", "metadata", "migrate", "--to", "etcd", "--etcd-endpoints",
                    etcd.endpoints, "--controllers", f"127.0.0.1:{port}")
        assert moved.returncode == 0, moved.stderr
        reloading = manager.wait("RELOADING=1")
        ready = manager.wait("READY=1", since=reloading)
        manager.wait("WATCHDOG=1", since=ready)
        assert daemon.process.poll() is None
        assert not manager.lines("STOPPING=")
        assert daemon.end() == 0
        manager.wait("STOPPING=1", since=ready)
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def test_restored_into_etcd(tmp_path, etcd):
    """From a backup, and from the nodes alone."""
    with running(tmp_path, RestoredControllers, count=1) as cluster:
        create_on(cluster, "first")
        cluster.fill("first", 0, 100)
        cluster.work("backup", "now")
        create_on(cluster, "late")
        cluster.fill("late", 0, 50)
        there = {"KVCONTROLLERD_METADATA": "etcd", "KVCONTROLLERD_ETCD_ENDPOINTS": etcd.endpoints}
        for verb, source, prefix in [("restore", ["--from", cluster.place], "one/"),
                                     ("recover", [], "two/")]:
            flags = ["--metadata", "etcd", "--etcd-endpoints", etcd.endpoints,
                     "--etcd-prefix", prefix]
            cluster.lose_controllers("controller-1")
            _, refused = cluster.rebuild(verb, *source, "--metadata", "etcd")
            assert refused.returncode == 2 and "--etcd-endpoints" in refused.stderr, refused.stderr
            found, result = cluster.rebuild(verb, *source, *flags)
            assert result.returncode == 0 and found["written"], result.stderr
            _, again = cluster.rebuild(verb, *source, *flags)
            assert again.returncode == 7 and f"below {prefix}" in again.stderr, again.stderr
            cluster.environment = cluster.environment | there | {
                "KVCONTROLLERD_ETCD_PREFIX": prefix}
            cluster.start("controller-1")
            cluster.settle()
            cluster.check_everything_is_there()
            assert cluster.json("status")["cluster"] == found["cluster"]
            shutil.rmtree(cluster.directory / "controller-1" / "lost")
