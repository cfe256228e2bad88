"""What boards and panels are in Grafana's terms (schema 39: Grafana 10.4 and newer)."""

WIDTH = 24
HEIGHT = 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: The variable with the address of the pages of Runbooks/.
RUNBOOKS_EXAMPLE = "https://wiki.example/rangekeeper/runbooks"

HISTOGRAM_COLORS = {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5,
                    "scale": "exponential", "fill": "dark-orange", "reverse": False}


def row(title, *panels):
    """A heading with the panels below it; they flow from left to right."""
    return {"title": title, "panels": panels}


def timeseries(title, unit, description, *series, width=8, stacked=False, minimum=0,
               maximum=None, runbook=None):
    """Lines over time. Each of `series` is (expression, legend)."""
    defaults = {
        "unit": unit, "min": minimum,
        "custom": {"lineWidth": 1, "fillOpacity": 30 if stacked else 10, "showPoints": "never",
                   "stacking": {"mode": "normal" if stacked else "none", "group": "A"}},
    }
    if minimum is None:
        del defaults["min"]
    if maximum is not None:
        defaults["max"] = maximum
    return _panel("timeseries", title, description, series, width, runbook, defaults, {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"}})


def stat(title, unit, description, expression, width=3, steps=(), decimals=None, runbook=None):
    """One figure. `steps` are (value from which on, color); green below them."""
    colors = [{"color": "green", "value": None}]
    colors += [{"color": color, "value": value} for value, color in steps]
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": colors}}
    if decimals is not None:
        defaults["decimals"] = decimals
    return _panel("stat", title, description, [(expression, "")], width, runbook, defaults, {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if steps else "value", "graphMode": "area",
        "textMode": "auto", "justifyMode": "auto", "orientation": "auto"}, height=4)


def histogram(title, description, expression, width=12, runbook=None):
    """A heat map of durations: `expression` is a rate of buckets, summed to `le` alone."""
    made = _heatmap(title, "s", description, expression, "{{le}}", width, runbook)
    made["targets"][0]["format"] = "heatmap"
    made["options"]["cellValues"] = {"unit": "reqps"}
    return made


def rows_heatmap(title, unit, description, expression, legend, width=24, runbook=None):
    """A heat map with one row for each series of `expression`."""
    made = _heatmap(title, "string", description, expression, legend, width, runbook)
    made["options"]["rowsFrame"] = {"layout": "auto", "value": title}
    made["options"]["cellValues"] = {"unit": unit}
    return made


def table(title, description, expression, columns, width=24, runbook=None):
    """The series of `expression` now, with the labels `columns` in this order."""
    made = _panel("table", title, description, [(expression, "")], width, runbook,
                  {"unit": "short", "custom": {"align": "left", "filterable": True}},
                  {"showHeader": True, "cellHeight": "sm"})
    made["targets"][0] |= {"format": "table", "instant": True, "range": False}
    made["transformations"] = [{"id": "filterFieldsByName", "options": {
        "include": {"names": list(columns)}}}, {"id": "organize", "options": {
            "indexByName": {name: place for place, name in enumerate(columns)},
            "renameByName": {}, "excludeByName": {}}}]
    return made


def _heatmap(title, unit, description, expression, legend, width, runbook):
    return _panel("heatmap", title, description, [(expression, legend)], width, runbook,
                  {"unit": unit}, {
                      "calculate": False, "cellGap": 1, "color": HISTOGRAM_COLORS,
                      "filterValues": {"le": 1e-9}, "legend": {"show": True},
                      "rowsFrame": {"layout": "auto"}, "showValue": "never",
                      "tooltip": {"mode": "single", "yHistogram": False},
                      "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False}})


def _panel(kind, title, description, series, width, runbook, defaults, options, height=HEIGHT):
    targets = [{"refId": chr(ord("A") + place), "datasource": DATASOURCE, "editorMode": "code",
                "expr": expression, "legendFormat": legend, "range": True, "instant": False}
               for place, (expression, legend) in enumerate(series)]
    links = []
    if runbook:
        links.append({"title": f"Runbook {runbook}", "url": "${runbooks}/" + runbook + ".md",
                      "targetBlank": True})
    return {"type": kind, "title": title, "description": description, "datasource": DATASOURCE,
            "gridPos": {"h": height, "w": width}, "targets": targets, "links": links,
            "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options}


def board(uid, title, description, presence, rows):
    """A whole board. `presence` is a metric of the processes that it is about: the variables offer
    its jobs and instances."""
    return {
        "uid": uid, "title": title, "description": description, "tags": ["rangekeeper"],
        "schemaVersion": 39, "version": 1, "editable": False, "graphTooltip": 1,
        "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "fiscalYearStartMonth": 0, "liveNow": False, "weekStart": "",
        "timepicker": {}, "templating": {"list": _variables(presence)},
        "annotations": {"list": _annotations()}, "panels": _placed(rows),
        "links": [{"type": "dashboards", "title": "Rangekeeper", "tags": ["rangekeeper"],
                   "asDropdown": True, "includeVars": False, "keepTime": True,
                   "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""},
                  {"type": "link", "title": "Runbooks", "url": "${runbooks}/README.md",
                   "targetBlank": True, "icon": "doc", "tooltip": "", "tags": [],
                   "asDropdown": False, "includeVars": False, "keepTime": False}],
    }


def _variables(presence):
    def values(name, label, query):
        return {"type": "query", "name": name, "label": label, "datasource": DATASOURCE,
                "definition": query, "query": {"query": query, "refId": "variable"},
                "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".+",
                "current": {"text": ["All"], "value": ["$__all"]}, "options": [], "regex": "",
                "hide": 0, "skipUrlSync": False}
    example = {"text": RUNBOOKS_EXAMPLE, "value": RUNBOOKS_EXAMPLE, "selected": True}
    return [
        {"type": "datasource", "name": "datasource", "label": "Data source",
         "query": "prometheus", "current": {}, "options": [], "regex": "", "refresh": 1,
         "hide": 0, "multi": False, "includeAll": False, "skipUrlSync": False},
        values("job", "Job", f"label_values({presence}, job)"),
        values("instance", "Instance", f'label_values({presence}{{job=~"$job"}}, instance)'),
        {"type": "textbox", "name": "runbooks", "label": "Runbooks at", "hide": 2,
         "query": RUNBOOKS_EXAMPLE, "current": example, "options": [example],
         "skipUrlSync": False},
    ]


def _annotations():
    def marks(name, color, expression, **more):
        return {"name": name, "datasource": DATASOURCE, "enable": True, "hide": False,
                "iconColor": color, "expr": expression, "step": "30s"} | more
    return [
        marks("Alerts", "red", 'ALERTS{alertstate="firing", alertname!="KVWatchdog"}',
              titleFormat="{{alertname}}", textFormat="{{instance}} {{severity}}"),
        marks("Starts", "blue",
              'process_start_time_seconds{job=~"kvnode|kvrouter|kvcontrollerd"} * 1000',
              useValueForTime=True,
              titleFormat="{{instance}} started", textFormat="{{job}}"),
        marks("New versions", "purple",
              "count by (version) (kv_build_info)"
              " unless count by (version) (kv_build_info offset 5m)",
              titleFormat="version {{version}}", textFormat="first daemon of this version"),
    ]


def _placed(rows):
    placed = []
    top = 0

    def place(panel, x, y):
        panel = {"id": len(placed) + 1} | panel
        panel["gridPos"] = panel["gridPos"] | {"x": x, "y": y}
        placed.append(panel)

    for heading in rows:
        place({"type": "row", "title": heading["title"], "collapsed": False, "panels": [],
               "gridPos": {"h": 1, "w": WIDTH}}, 0, top)
        top += 1
        x = height = 0
        for panel in heading["panels"]:
            size = panel["gridPos"]
            if x + size["w"] > WIDTH:
                top += height
                x = height = 0
            place(panel, x, top)
            x += size["w"]
            height = max(height, size["h"])
        top += height
    return placed
