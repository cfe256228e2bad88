"""The boards fit Grafana's own model of a dashboard, as its makers publish it: what a board says and
the model does not know, Grafana would ignore without a word."""

import json

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from conftest import REPOSITORY

# Without them options of panels and queries would pass unread.
register_default_plugins()

BOARDS = sorted((REPOSITORY / "dashboards" / "grafana").glob("*.json"))
#: Belong to the Prometheus data source, which reads its variables and annotations itself; the model
#: has no place for them.
OF_THE_DATA_SOURCE = {"definition", "step", "titleFormat", "textFormat", "useValueForTime"}


def lost(said, known, path=""):
    """Places in `said` that are missing or different in `known`."""
    if isinstance(said, dict) and isinstance(known, dict):
        for field, value in said.items():
            if field in known:
                yield from lost(value, known[field], f"{path}/{field}")
            elif field not in OF_THE_DATA_SOURCE:
                yield f"{path}/{field}"
    elif isinstance(said, list) and isinstance(known, list) and len(said) == len(known):
        for number, (one, other) in enumerate(zip(said, known)):
            yield from lost(one, other, f"{path}/{number}")
    elif said != known:
        yield path


def as_grafana_reads(board):
    return json.loads(JSONEncoder().encode(Dashboard.from_json(board)))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_nothing_in_a_board_is_unknown_to_grafana(path):
    board = json.loads(path.read_text())
    assert not list(lost(board, as_grafana_reads(board)))


def test_a_misspelt_option_is_found():
    board = json.loads(BOARDS[0].read_text())
    panel = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
    panel["options"]["legendary"] = {}
    panel["fieldConfig"]["defaults"]["custom"]["lineWitdh"] = 2
    found = list(lost(board, as_grafana_reads(board)))
    assert [place.rsplit("/", 1)[1] for place in found] == ["lineWitdh", "legendary"], found
