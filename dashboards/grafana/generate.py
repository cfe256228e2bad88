#!/usr/bin/env python3
"""Writes the dashboards beside this file; with --check it only tells whether they are current."""

import json
import sys
from pathlib import Path

from boards import control_plane, node, overview, router, troubleshoot

FOLDER = Path(__file__).resolve().parent


def files():
    """The text of each dashboard by its path."""
    return {FOLDER / f"{made['uid']}.json": json.dumps(made, indent=1) + "\n"
            for made in (module.BOARD for module in
                         (overview, node, control_plane, router, troubleshoot))}


def main():
    wanted = files()
    if sys.argv[1:] == ["--check"]:
        old = [path.name for path, text in wanted.items()
               if not path.exists() or path.read_text() != text]
        old += [path.name for path in FOLDER.glob("*.json") if path not in wanted]
        if old:
            sys.exit(f"not current: {', '.join(sorted(old))}; run {Path(__file__).name}")
        return
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
