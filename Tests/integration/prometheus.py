"""A Prometheus that runs beside a cluster, and what its expressions say."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request


class Prometheus:
    """The HTTP interface of a Prometheus."""

    def __init__(self, url):
        self.url = url

    def ask(self, path, **parameters):
        """The data of an answer, which must come without error and without warning."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert body["status"] == "success" and not body.get("warnings"), f"{parameters}: {body}"
        return body["data"]

    def query(self, expression):
        """The series of an expression now; a scalar counts as one."""
        data = self.ask("query", query=expression)
        return [data["result"]] if data["resultType"] == "scalar" else data["result"]

    def targets(self):
        return self.ask("targets", state="active")["activeTargets"]

    def rules(self, kind):
        """Rules of a kind, `alert` or `record`, by name; alerts may share one."""
        rules = [rule for group in self.ask("rules", type=kind)["groups"]
                 for rule in group["rules"]]
        by_name = {}
        for rule in rules:
            by_name.setdefault(rule["name"], []).append(rule)
        return by_name

    def alerts(self, state):
        """The labels of the alerts in a state."""
        return [alert["labels"] for alert in self.ask("alerts")["alerts"]
                if alert["state"] == state]

    def series(self):
        """The label sets of every metric, by its name."""
        known = {}
        for labels in self.ask("series", **{"match[]": '{__name__=~".+"}'}):
            known.setdefault(labels["__name__"], []).append(labels)
        return known


TOKEN = re.compile(r"""
    (?P<space> \s+ | \#[^\n]* ) |
    (?P<text> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' ) |
    (?P<number> \d[\w.]* ) |
    (?P<word> [a-zA-Z_:][\w:]* ) |
    (?P<sign> =~ | !~ | != | == | <= | >= | [-+*/%^<>={}()\[\],:] )
""", re.VERBOSE)
LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "sum", "min", "max", "avg", "count", "topk",
         "bottomk", "quantile", "stddev", "group"}


class Selector:
    """A metric as an expression names it."""

    def __init__(self, metric):
        self.metric = metric
        #: (label, operator, value)
        self.matchers = []
        #: Whether it is followed by a range in brackets.
        self.has_range = False


def tokens(expression):
    found = []
    place = 0
    while place < len(expression):
        match = TOKEN.match(expression, place)
        assert match, f"cannot read {expression[place:]!r} of {expression!r}"
        place = match.end()
        if match.lastgroup != "space":
            found.append((match.lastgroup, match.group()))
    return found + [("end", "")]


def parse(expression):
    """The selectors of an expression, and the labels that it groups or joins by."""
    selectors, labels = [], set()
    rest = tokens(expression)
    while rest:
        kind, text = rest.pop(0)
        following = rest[0][1] if rest else ""
        if kind == "sign" and text == "[":
            selectors[-1].has_range = True
            while rest.pop(0)[1] != "]":
                pass
        if kind != "word":
            continue
        if text in LISTS:
            if following == "(":
                while (token := rest.pop(0))[1] != ")":
                    if token[0] == "word":
                        labels.add(token[1])
        elif text not in WORDS and following != "(":
            selectors.append(Selector(text))
            if following == "{":
                rest.pop(0)
                while rest[0][1] != "}":
                    (_, label), (_, operator), (_, value) = rest[:3]
                    selectors[-1].matchers.append((label, operator, value[1:-1]))
                    rest = rest[3:]
                    if rest[0][1] == ",":
                        rest.pop(0)
    return selectors, labels


def strangers(expression, series):
    """What an expression names that does not exist among `series`: metrics, labels, values."""
    found = []
    selectors, grouped = parse(expression)
    known_labels = set()
    for selector in selectors:
        candidates = series.get(selector.metric)
        if not candidates:
            found.append(f"metric {selector.metric}")
            continue
        for labels in candidates:
            known_labels |= set(labels)
        for label, operator, value in selector.matchers:
            values = {labels[label] for labels in candidates if label in labels}
            if not values:
                found.append(f"label {selector.metric}{{{label}}}")
            elif operator in ("=", "!="):
                if value not in values:
                    found.append(f"value {selector.metric}{{{label}{operator}{value!r}}}")
            else:
                found += [f"value {selector.metric}{{{label}{operator}{one!r}}}"
                          for one in value.split("|")
                          if not any(re.fullmatch(one, known) for known in values)]
    return found + [f"label {label} in {expression}" for label in sorted(grouped - known_labels)]
