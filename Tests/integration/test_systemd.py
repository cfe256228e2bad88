"""The packages under real systemd, booted in a container by systemd/boot.sh. All checks run there one
after the other, those of systemd/checks.py and then those of systemd/runbook_checks.py; here is one test
for each."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import BINARIES, REPOSITORY

HERE = Path(__file__).parent
CHECKS = [name for file in ("checks", "runbook_checks") for name in re.findall(
    r"^@check\ndef (\w+)", (HERE / f"systemd/{file}.py").read_text(), re.M)]
SECONDS = 600


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """The directory of the packages, made of the programs that all tests use."""
    if not shutil.which("dpkg-buildpackage") or not shutil.which("dh"):
        pytest.skip("no debhelper")
    directory = tmp_path_factory.mktemp("packages") / "deb"
    made = subprocess.run([REPOSITORY / "scripts/packages.sh", BINARIES, directory],
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return directory


@pytest.fixture(scope="session")
def results(packages, tmp_path_factory):
    directory = tmp_path_factory.mktemp("systemd")
    (directory / "packages").mkdir()
    for package in packages.glob("*.deb"):
        shutil.copy(package, directory / "packages")
    for file in (*(HERE / "systemd").glob("*.py"), HERE / "console_blocks.py"):
        shutil.copy(file, directory)
    shutil.copytree(REPOSITORY / "Runbooks", directory / "Runbooks")
    shutil.copytree(REPOSITORY / "debian/tests", directory / "debian/tests")
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the library that stalls calls")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", directory / "stalled_calls.so",
                    HERE / "stalled_calls.c", "-ldl"], check=True)
    boot = subprocess.Popen([HERE / "systemd/boot.sh", directory], stdout=subprocess.PIPE,
                            text=True, start_new_session=True)
    try:
        word, _ = boot.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(boot.pid, signal.SIGKILL)
        boot.wait()
        word = f"not done after {SECONDS} s"
    if boot.returncode == 77:
        pytest.skip(f"systemd cannot be booted here: {word.strip()}")
    if not (directory / "checks.log").exists():
        console = (directory / "console.log").read_text().strip().splitlines()
        pytest.skip(f"no systemd came up in the container: {(console or [word])[-1]}")
    file = directory / "results.json"
    assert file.exists(), f"{word}\n{(directory / 'console.log').read_text()[-4000:]}"
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_under_systemd(name, results):
    assert name in results, "the container ended before this check"
    assert results[name]["passed"], results[name]["text"]
    # Figures, for those who ask pytest for them with -rP.
    print(results[name]["text"])


def test_packages_have_no_errors(packages):
    if not shutil.which("lintian"):
        pytest.skip("no lintian")
    changes = next(packages.glob("*.changes"))
    found = subprocess.run(["lintian", "--no-cfg", "--allow-root", "--fail-on", "error", changes],
                           capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
