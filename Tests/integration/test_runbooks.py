"""Every finding of `kvctl doctor` has its runbook, and every runbook names commands that exist."""

import re

import pytest

from conftest import REPOSITORY, run

FOLDER = REPOSITORY / "Runbooks"
HEADINGS = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation", "## Escalation"]


def codes():
    found = set()
    for source in (REPOSITORY / "Sources" / "ControllerRuntime").glob("*.swift"):
        found |= set(re.findall(r'"(RK\d{3})"', source.read_text()))
    return found


def test_every_finding_has_its_page_and_every_page_its_finding():
    assert len(codes()) >= 13
    assert {page.stem for page in FOLDER.glob("RK*.md")} == codes()
    index = (FOLDER / "README.md").read_text()
    assert all(f"({code}.md)" in index for code in codes())


@pytest.mark.parametrize("code", sorted(codes()))
def test_page(code):
    text = (FOLDER / f"{code}.md").read_text()
    assert text.startswith(f"# {code}: ")
    assert [line for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    commands = re.findall(r"kvctl ((?:[a-z]+ ?)+)", text)
    assert commands
    for command in commands:
        words = command.split()
        # The longest beginning that is a command; what follows are arguments.
        assert any(run("kvctl", *words[:count], "--help").returncode == 0
                   for count in range(len(words), 0, -1)), f"kvctl {command}"
