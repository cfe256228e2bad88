"""The contract test is worth what its parser finds."""

import pytest

from prometheus import parse, strangers

SERIES = {
    "a_total": [{"__name__": "a_total", "job": "x", "op": "get"},
                {"__name__": "a_total", "job": "x", "op": "put"}],
    "level:b:max": [{"__name__": "level:b:max", "disk": "/srv/1"}],
}


@pytest.mark.parametrize("expression", [
    'sum by (op) (rate(a_total{job="x", op=~"get|put"}[5m])) > 1e3',
    "level:b:max / on (job) group_left (op) sum without (job) (a_total offset 5m)",
    'time() - max(a_total{op!="get"}) and vector(1) # a_comment',
])
def test_what_exists_is_found(expression):
    assert strangers(expression, SERIES) == []


@pytest.mark.parametrize("expression, stranger", [
    ("rate(b_total[5m])", "metric b_total"),
    ('a_total{table="t"}', "label a_total{table}"),
    ('a_total{op="list"}', "value a_total{op='list'}"),
    ('a_total{op=~"get|list"}', "value a_total{op=~'list'}"),
    ("sum by (table) (a_total)", "label table in sum by (table) (a_total)"),
    ("level:b:min > 0", "metric level:b:min"),
])
def test_what_does_not_exist_is_told(expression, stranger):
    assert strangers(expression, SERIES) == [stranger]


def test_ranges_are_seen():
    selectors, _ = parse("rate(a_total[5m]) / level:b:max")
    assert [(one.metric, one.has_range) for one in selectors] == [
        ("a_total", True), ("level:b:max", False)]
