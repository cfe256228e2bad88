"""Reads the command blocks of a page of Runbooks/; see runbooks.py for what they are. Standard library
alone: the checks under systemd use it too."""

import re


class Command:
    def __init__(self, text):
        self.text = text
        #: The lines that the page shows as its output.
        self.shown = []


def blocks(page):
    """The console blocks of a page as (kind, commands); the kind is "" for the plain ones."""
    found = []
    for kind, body in re.findall(r"^```console ?(\w*)\n(.*?)^```$", page.read_text(),
                                 re.DOTALL | re.MULTILINE):
        commands = []
        for line in body.splitlines():
            if line.startswith("$ "):
                commands.append(Command(line[2:]))
            else:
                commands[-1].shown.append(line)
        found.append((kind, commands))
    return found
