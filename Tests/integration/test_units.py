"""The files of systemd/ and what the packages are made of, without running a service."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import BINARIES, REPOSITORY, run

UNITS = REPOSITORY / "systemd"
SERVICES = {"kvnode": "kvnode@.service", "kvrouter": "kvrouter.service",
            "kvcontrollerd": "kvcontrollerd.service"}
EXAMPLES = {"kvnode": "node-1", "kvrouter": "router", "kvcontrollerd": "controller"}


def needs(program):
    if shutil.which(program) is None:
        pytest.skip(f"no {program}")


@pytest.mark.parametrize("service", SERVICES.values())
def test_exposure_is_at_most_1_2(service):
    needs("systemd-analyze")
    result = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=12",
                             UNITS / service], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_units_verify_without_a_word(tmp_path):
    """`verify` ends well on unknown keys, so any output is a failure."""
    needs("systemd-analyze")
    units = []
    for unit in filter(Path.is_file, UNITS.iterdir()):
        # Where the programs are, and without the manual pages that packages bring.
        text = re.sub(r"/usr/sbin/(kv\w+)", rf"{BINARIES}/\1", unit.read_text())
        (tmp_path / unit.name).write_text(text)
        units.append(tmp_path / unit.name.replace("@", "@node-1"))
    (tmp_path / "kvnode@node-1.service").symlink_to("kvnode@.service")
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", *sorted(units)],
                            capture_output=True, text=True)
    assert result.stdout + result.stderr == ""


def test_user_and_directories(tmp_path):
    needs("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    said = subprocess.run(["systemd-sysusers", f"--root={tmp_path}", "--dry-run",
                           UNITS / "sysusers.d/rangekeeper.conf"], capture_output=True, text=True)
    assert said.returncode == 0 and "rangekeeper" in said.stdout + said.stderr, said
    # Whoever runs the test stands for the user, who is not on this machine.
    text = (UNITS / "tmpfiles.d/rangekeeper.conf").read_text()
    (tmp_path / "tmpfiles.conf").write_text(text.replace("rangekeeper rangekeeper", "- -"))
    made = subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create",
                           tmp_path / "tmpfiles.conf"], capture_output=True, text=True)
    assert made.returncode == 0, made
    assert (tmp_path / "var/lib/rangekeeper").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("program", SERVICES)
def test_the_example_is_right_and_names_only_what_exists(program, tmp_path):
    example = UNITS / "examples" / f"{EXAMPLES[program]}.ini"
    checked = run(program, "--config", example, "--check-config")
    assert checked.returncode == 0, checked.stderr
    # So are the settings that are commented out.
    lines = [re.sub(r"^# ([a-z.]+ = )", r"\1", line) for line in example.read_text().splitlines()]
    everything = tmp_path / "everything.ini"
    everything.write_text("\n".join(lines))
    checked = run(program, "--config", everything, "--check-config")
    assert checked.returncode == 0, checked.stderr
    assert lines != example.read_text().splitlines()


def test_the_unit_hands_over_every_secret():
    for program, service in SERVICES.items():
        unit = (UNITS / service).read_text()
        page = (REPOSITORY / "docs/systemd.md").read_text()
        told = re.findall(r"^  --([a-z-]+) .*\n +.*\[credential\]", run(program, "--help").stdout, re.M)
        secrets = {flag.replace("-", ".") for flag in told}
        assert secrets == {"kvrouter": {"auth.password"}, "kvnode": set(),
                           "kvcontrollerd": {"etcd.key", "etcd.password.file"}}[program]
        for secret in secrets:
            assert f"LoadCredential={secret}:{program}.{secret}\n" in unit, secret
            assert f"| `{program}.{secret}` | `{secret}` |" in page


def test_exit_codes_that_are_not_tried_again():
    code = (REPOSITORY / "Sources/Configuration/ConfigurationError.swift").read_text()
    codes = set(re.findall(r"case \w+ = (\d+)", code))
    for service in SERVICES.values():
        unit = (UNITS / service).read_text()
        prevented = re.search(r"^RestartPreventExitStatus=(.*)$", unit, re.M)[1].split()
        assert set(prevented) == codes, service


@pytest.mark.parametrize("program", [*SERVICES, "kvctl"])
def test_manual_page(program, tmp_path):
    """Made of --help at the packaging; here: nothing of it is missing, and man has no complaint."""
    needs("man")
    page = subprocess.run([REPOSITORY / "scripts/manpage.py", BINARIES / program],
                          capture_output=True, text=True, check=True).stdout
    file = tmp_path / f"{program}.8"
    file.write_text(page)
    shown = subprocess.run(["man", "--local-file", "--warnings", "--encoding=UTF-8", file],
                           capture_output=True, text=True, env={"MANWIDTH": "200", "LC_ALL": "C.UTF-8",
                                                               "PATH": "/usr/bin:/bin"})
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    text = " ".join(shown.stdout.split())
    for flag in re.findall(r"^ +(--[a-z-]+)", run(program, "--help").stdout, re.M):
        assert flag in text, flag
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"):
        assert heading in text
    if program == "kvctl":
        commands = re.findall(r"^  ((?:[a-z]+ )+)", run("kvctl", "--help").stdout.split("\n\n")[2],
                              re.M)
        assert len(commands) > 30
        for command in commands:
            assert f"kvctl {command.strip()}" in text, command


def test_version_of_the_packages():
    changelog = (REPOSITORY / "debian/changelog").read_text()
    version = re.match(r"rangekeeper \((\S+)\)", changelog)[1]
    assert run("kvnode", "--version").stdout.split()[:2] == ["kvnode", version]


def test_packages_name_every_library_to_build_against():
    makefile = (REPOSITORY / "Makefile").read_text()
    listed = re.search(r"^PACKAGES := ((?:.*\\\n)*.*)$", makefile, re.M)[1]
    control = (REPOSITORY / "debian/control").read_text()
    needed = re.search(r"^Build-Depends: ((?:.*\n )*.*)$", control, re.M)[1]
    assert set(re.findall(r"\S+-dev\b", listed)) == set(re.findall(r"\S+-dev\b", needed))


COMPLETED = [("kvctl ta", "table"), ("kvctl split --d", "--dry-run"), ("kvctl completion ", "bash")]


@pytest.mark.parametrize("line, word", COMPLETED)
def test_bash_completion(line, word, tmp_path):
    words = line.split(" ")
    script = tmp_path / "completion"
    script.write_text(run("kvctl", "completion", "bash").stdout + f"""
COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}') COMP_CWORD={len(words) - 1}
_kvctl
printf '%s\\n' "${{COMPREPLY[@]}}"
""")
    found = subprocess.run(["bash", "--norc", script], capture_output=True, text=True,
                           env={"PATH": f"{BINARIES}:/usr/bin:/bin"})
    assert word in found.stdout.split(), found


@pytest.mark.parametrize("line, word", COMPLETED)
def test_zsh_completion(line, word, tmp_path):
    needs("zsh")
    words = line.split(" ")
    (tmp_path / "_kvctl").write_text(run("kvctl", "completion", "zsh").stdout)
    # The function as the completion system finds it, and what it would offer.
    script = (f"compadd() {{ shift; print -l -- ${{(P)1}} }}; fpath=({tmp_path} $fpath); "
              f"autoload -Uz _kvctl; words=({' '.join(words[:-1])} '{words[-1]}'); "
              f"CURRENT={len(words)}; _kvctl")
    found = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True,
                           env={"PATH": f"{BINARIES}:/usr/bin:/bin"})
    assert word in found.stdout.split(), found


@pytest.mark.parametrize("line, word", [*COMPLETED, ("kvctl apply ", "plan.json")])
def test_fish_completion(line, word, tmp_path):
    """Where kvctl has nothing to say, files are offered."""
    needs("fish")
    (tmp_path / "kvctl.fish").write_text(run("kvctl", "completion", "fish").stdout)
    (tmp_path / "plan.json").touch()
    script = f"source {tmp_path}/kvctl.fish; complete --do-complete '{line}'"
    found = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True,
                           cwd=tmp_path, env={"PATH": f"{BINARIES}:/usr/bin:/bin",
                                              "HOME": str(tmp_path)})
    offered = [one.split("\t")[0] for one in found.stdout.splitlines()]
    assert word in offered and found.stderr == "", found
    assert line.endswith("apply ") or "plan.json" not in offered, found


def test_a_revision_is_written_into_programs_without_a_trace(tmp_path):
    """`swift build` looks at a program's place, times and size to tell whether to link it again."""
    def identity():
        status = program.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode

    def stamp(revision):
        return subprocess.run([REPOSITORY / "scripts/stamp-revision", revision, program],
                              capture_output=True, text=True)

    program = tmp_path / "kvrouter"
    shutil.copy2(BINARIES / "kvrouter", program)
    before = identity()
    assert stamp("abc123-dirty").returncode == 0
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    assert version.endswith("(abc123-dirty)\n") and identity() == before
    # A program that runs is replaced.
    router = subprocess.Popen([program, "--controllers=127.0.0.1:1", "--listen-resp=127.0.0.1:0"],
                              stderr=subprocess.PIPE)
    try:
        router.stderr.readline()
        assert stamp("def456").returncode == 0
    finally:
        router.kill()
        router.wait()
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    assert version.endswith("(def456)\n") and identity()[1:] == before[1:]
    assert stamp("a revision").returncode == 2
    program.write_bytes(b"no program")
    assert stamp("def456").returncode == 1


def test_every_program_tells_its_revision():
    for program in (*SERVICES, "kvctl"):
        said = run(program, "--version").stdout
        assert re.fullmatch(rf"{program} \d+\.\d+\.\d+ \([\w.+-]+\)\n", said), said


def test_the_page_names_what_follows_a_reload():
    page = (REPOSITORY / "docs/systemd.md").read_text().partition("## Reload")[2]
    for program in SERVICES:
        text = " ".join(run(program, "--help").stdout.split("Settings:\n")[1].split())
        follow = {flag for flag, end in re.findall(r"--([a-z-]+) .*?(\[reload\])?(?= --[a-z]|$)", text)
                  if end}
        row = re.search(rf"^\| `{program}` \| (.*) \|$", page, re.M)[1]
        named = {name.replace(".", "-") for name in re.findall(r"`([a-z.]+)`", row)}
        assert named | {"log-level", "log-burst"} == follow, program
