"""Writes the Grafana dashboards of the chart: ``deploy/helm/apex/dashboards/*.json``.

    python tools/dashboards.py           write them
    python tools/dashboards.py --check   exit 1 if they are not what this program gives

What they show is in ``dashboard_panels.py``; this program knows how Grafana wants it. Every metric of
``apexrl.telemetry.metric_table`` is shown, or explained in ``NOT_SHOWN`` there; a test compares.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "helm" / "apex" / "dashboards"
sys.path.insert(0, str(ROOT / "tools"))

from dashboard_panels import DASHBOARDS  # noqa: E402
from dashboard_parts import Dashboard, Panel  # noqa: E402

DATASOURCE = {"type": "prometheus", "uid": "$datasource"}
#: What every selector of a panel is narrowed to. A release without the label (no PodMonitor) matches ".*".
SELECTED = 'namespace="$namespace",apex_release=~"$release"'
_WIDTH, _STAT_WIDTH = 24, 4
_HEIGHT, _STAT_HEIGHT = 8, 4


def expression(text: str) -> str:
    """An expression as Grafana sends it: ``metric{}`` and ``metric{label="x"}`` narrowed to the chosen release."""
    return text.replace("{}", f"{{{SELECTED}}}").replace("{+", f"{{{SELECTED},")


def render(dashboard: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in dashboard.rows:
        panels.append(_row(len(panels) + 1, title, y))
        y += 1
        x, height = 0, 0
        for panel in row:
            width = panel.width or (_STAT_WIDTH if panel.kind == "stat" else 8)
            if x + width > _WIDTH:
                x, y, height = 0, y + height, 0
            own_height = _STAT_HEIGHT if panel.kind == "stat" else _HEIGHT
            position = {"x": x, "y": y, "w": width, "h": own_height}
            panels.append(_panel(len(panels) + 1, panel, position))
            x, height = x + width, max(height, own_height)
        y += height
    return {
        "uid": f"apex-{dashboard.name}",
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["apex"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [
            {
                "type": "dashboards",
                "tags": ["apex"],
                "asDropdown": True,
                "title": "apex",
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": _variables()},
        "annotations": {"list": [_restarts()]},
        "panels": panels,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards of the chart.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if they are not up to date")
    check: bool = parser.parse_args(arguments).check
    expected = {FOLDER / f"{d.name}.json": json.dumps(render(d), indent=1) + "\n" for d in DASHBOARDS}
    stale = [path for path in sorted(FOLDER.glob("*.json")) if path not in expected]
    changed = [path for path, text in expected.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if check and (changed or stale):
        names = ", ".join(path.name for path in [*changed, *stale])
        print(f"not up to date: {names}; run: python tools/dashboards.py", file=sys.stderr)
        return 1
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path in changed:
            path.write_text(expected[path], encoding="utf-8")
        for path in stale:
            path.unlink()
    return 0


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    position = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": position, "panels": []}


def _panel(number: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": position,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": expression(expr),
                "legendFormat": legend,
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for i, (expr, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field_defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _field_defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "stat":
        steps: list[dict[str, Any]] = [{"color": "text", "value": None}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        return defaults
    stacking = "percent" if panel.shares else "none"
    defaults["custom"] = {
        "lineWidth": 1,
        "fillOpacity": 60 if panel.shares else 0,
        "stacking": {"mode": stacking, "group": "A"},
        "showPoints": "never",
        "spanNulls": False,
        "scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"},
    }
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _restarts() -> dict[str, Any]:
    return {
        "name": "learner starts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": expression("changes(apex_learner_epoch{}[1m]) > 0"),
        "titleFormat": "the learner started under a new epoch",
    }


def _variables() -> list[dict[str, Any]]:
    def query(name: str, label: str, text: str, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "definition": text,
            "query": {"query": text, "refId": name},
            "refresh": 2,
            "sort": 1,
            **more,
        }

    everything = {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1},
        query("namespace", "Namespace", "label_values(apex_build_info, namespace)", {}),
        query("release", "Release", 'label_values(apex_build_info{namespace="$namespace"}, apex_release)', everything),
    ]


if __name__ == "__main__":
    sys.exit(main())
