#!/usr/bin/env python3
"""manpage.py PROGRAM: writes the manual page of a program, made of what its --help says."""

import re
import subprocess
import sys
from pathlib import Path

UNITS = {"kvnode": "kvnode@.service", "kvrouter": "kvrouter.service",
         "kvcontrollerd": "kvcontrollerd.service"}
FILES = {"kvnode": "NAME.ini", "kvrouter": "router.ini", "kvcontrollerd": "controller.ini"}


def ask(program, *arguments):
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def roff(text):
    text = text.replace("\\", "\\(rs").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\`")
    return "\n".join("\\&" + line if line.startswith(".") else line for line in text.splitlines())


def paragraph(text):
    return [".PP", roff(text)]


def entry(term, text):
    return [".TP", f".B {roff(term)}", roff(text)]


def literal(lines):
    return [".PP", ".nf", ".RS", *(roff(line) or ".sp" for line in lines), ".RE", ".fi"]


def head(name, section, version, summary):
    return [f'.TH {name.upper()} {section} "" "rangekeeper {version}" "Rangekeeper"',
            ".SH NAME", f"{name} \\- {roff(summary)}"]


def daemon(program, name):
    text = ask(program, "--help")
    first, _, rest = text.partition("\n\n")
    summary = first.partition(": ")[2].rstrip(".")
    usage, _, settings = rest.partition("Settings:\n\n" if "Settings:\n\n" in rest else "Settings:\n")
    page = head(name, 8, ask(program, "--version").split()[1], summary)
    page += [".SH SYNOPSIS", f".B {name}", "[\\fB\\-\\-config\\fR \\fIPATH\\fR] "
             "[\\fB\\-\\-SETTING\\fR \\fIVALUE\\fR ...]"]
    page += [".SH DESCRIPTION", roff(first.partition(": ")[2])]
    page += paragraph(f"It is run by systemd as {UNITS[name]}, with the settings of "
                      f"/etc/rangekeeper/{FILES[name]}.")
    page += paragraph(" ".join(rest[rest.index("A setting"):rest.index("Settings:")].split()))
    page += [".SH OPTIONS"]
    for flag, meaning in re.findall(r"^  (--\S+(?: [A-Z]+)?) +(\S.*)$", usage, re.M):
        page += entry(flag, meaning)
    page += [".SH SETTINGS"]
    for flag, meaning in re.findall(r"^  (--.*)\n      (.*)$", settings, re.M):
        page += entry(flag, meaning)
    page += [".SH SIGNALS",
             *entry("SIGTERM, SIGINT", "Stop in order; a second one ends the process at once."),
             *entry("SIGHUP", "Read the settings again. Of what runs, those marked [reload] follow; wrong "
                    "settings change nothing.")]
    page += [".SH EXIT STATUS",
             *entry("0", "Stopped in order."), *entry("1", "Failed."),
             *entry("2", "The command line was not understood."),
             *entry("65", "A disk failed, or what is on it is damaged."),
             *entry("78", "A setting is wrong or missing.")]
    return page + [".SH SEE ALSO", ".BR kvctl (1),", ".BR systemctl (1)",
                   *paragraph("/usr/share/rangekeeper/docs/systemd.md")]


def tool(program, name):
    text = ask(program, "--help")
    first, _, rest = text.partition("\n")
    page = head(name, 1, ask(program, "version").split()[1], first.partition(" - ")[2])
    page += [".SH SYNOPSIS", f".B {name}", "\\fICOMMAND\\fR [\\fIARGUMENTS\\fR] [\\fIFLAGS\\fR]",
             ".SH COMMANDS"]
    sections = rest.split("\n\n")
    commands = next(part for part in sections if part.startswith("  "))
    for line in commands.splitlines():
        page += entry(*re.match(r"  (.*?)  +(.*)", line).groups())
    for part in sections[sections.index(commands) + 1:]:
        title, *lines = part.strip().splitlines()
        if title == "Flags that every command takes:":
            page += [".SH FLAGS"]
            for line in lines:
                page += entry(*re.match(r"  (.*?)  +(.*)", line).groups())
        elif title == "Examples:":
            page += [".SH EXAMPLES", *literal(line.strip() for line in lines)]
        else:
            page += [".SH DESCRIPTION", *(roff(line) + "\n.br" for line in [title, *lines])]
    for line in commands.splitlines():
        words = []
        for word in re.match(r"  (.*?)  +", line)[1].split():
            if not re.fullmatch(r"[a-z]+", word):
                break
            words.append(word)
        page += [f".SS {name} {' '.join(words)}",
                 *literal(ask(program, *words, "--help").partition("usage: ")[2].partition(
                     "\n\nFlags that every command takes:")[0].splitlines())]
    return page + [".SH SEE ALSO", ".BR kvnode (8),", ".BR kvrouter (8),", ".BR kvcontrollerd (8)"]


def bench(program, name):
    first, _, rest = ask(program, "--help").partition("\n\n")
    usage, flags, *notes, examples = rest.strip().split("\n\n")
    page = head(name, 1, ask(program, "--version").split()[1], first.partition(" - ")[2])
    page += [".SH SYNOPSIS", *literal(line[7:] for line in usage.splitlines()), ".SH OPTIONS"]
    for flag, meaning in re.findall(r"^  (\S.*?)  +(\S.*(?:\n {10,}\S.*)*)", flags, re.M):
        page += entry(flag, " ".join(meaning.split()))
    page += [".SH NOTES"]
    for note in notes:
        page += paragraph(" ".join(note.split()))
    return page + [".SH EXAMPLES", *literal(line.strip() for line in examples.splitlines()[1:]),
                   ".SH SEE ALSO", ".BR kvctl (1)"]


def main():
    program = sys.argv[1]
    name = Path(program).name
    page = {"kvctl": tool, "kvbench": bench}.get(name, daemon)(program, name)
    print("\n".join(page))


main()
