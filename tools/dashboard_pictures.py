"""Draws dashboards as pictures from what a Prometheus has of a real run, for documentation without a Grafana.

    python tools/dashboard_pictures.py http://127.0.0.1:9090 --namespace apex --minutes 30 overview learner

Writes ``docs/images/dashboard_NAME.png``. Panels, queries, places, units and legends are those of the dashboards' JSON;
Grafana draws the same queries in its own style.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = ROOT / "deploy" / "helm" / "apex" / "dashboards"
IMAGES = ROOT / "docs" / "images"

#: A dashboard is 24 columns wide; a panel's height is counted in rows.
COLUMNS, COLUMN_INCHES, ROW_INCHES = 24, 0.66, 0.3
POINTS = 180
RATE_INTERVAL = "1m"
#: Curves of one panel that get a line in its legend.
MOST_LEGENDS = 6

Query = Callable[[str], list["Curve"]]


@dataclass(frozen=True)
class Curve:
    """A series of a range query; NaN where there is none."""

    labels: dict[str, str]
    times: list[datetime]
    values: list[float]


def amount(value: float, unit: str) -> str:
    """A number as Grafana's unit of that name shows it."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms" if abs(value) >= 1e-3 else f"{1e6 * value:.3g} µs"
    if unit == "none":
        return f"{value:.6g}"
    suffix = {"s": " s", "bytes": "B", "Bps": "B/s"}.get(unit, "")
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power and unit != "s":
            return f"{value / 10**power:.3g} {letter}{suffix}"
    return f"{value:.3g}{suffix if suffix != 'B' else ' B'}"


def legend(text: str, labels: dict[str, str]) -> str:
    """Grafana's legend format: ``{{label}}`` is that label's value."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), text)


def chosen(expression: str, namespace: str, release: str) -> str:
    """A query with the dashboard's variables filled in."""
    values = {"$__rate_interval": RATE_INTERVAL, "$namespace": namespace, "$release": release}
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression


def range_query(address: str, end: float, seconds: float) -> Query:
    """Ask a Prometheus for the last ``seconds`` before ``end``."""
    step = max(1.0, seconds / POINTS)

    def ask(expression: str) -> list[Curve]:
        data = urllib.parse.urlencode({"query": expression, "start": end - seconds, "end": end, "step": step}).encode()
        with urllib.request.urlopen(f"{address.rstrip('/')}/api/v1/query_range", data, timeout=60) as answer:
            result = json.load(answer)["data"]["result"]
        return [
            Curve(
                series["metric"],
                [datetime.fromtimestamp(at, UTC) for at, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in result
        ]

    return ask


def draw(dashboard: dict[str, Any], ask: Query, namespace: str, release: str) -> Figure:
    """All panels of a dashboard in their places."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = Figure(figsize=(COLUMNS * COLUMN_INCHES, height * ROW_INCHES + 0.8))
    whole = height * ROW_INCHES + 0.8
    figure.text(0.01, 1 - 0.25 / whole, dashboard["title"], fontsize=13, weight="bold", va="center")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        top = 1 - (0.5 + place["y"] * ROW_INCHES) / whole
        if panel["type"] == "row":
            figure.text(0.01, top - 0.15 / whole, panel["title"], fontsize=10, weight="bold", va="center")
            continue
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        tall = place["h"] * ROW_INCHES / whole
        axes = figure.add_axes((left + 0.035, top - tall + 0.42 / whole, width - 0.045, tall - 0.75 / whole))
        curves = list(curves_of(panel, ask, namespace, release))
        axes.set_title(panel["title"], fontsize=8, loc="left")
        (draw_number if panel["type"] == "stat" else draw_curves)(axes, panel["fieldConfig"]["defaults"], curves)
    return figure


def curves_of(panel: dict[str, Any], ask: Query, namespace: str, release: str) -> Iterator[tuple[str, Curve]]:
    """(legend, curve) of all queries of a panel."""
    for target in panel["targets"]:
        for curve in ask(chosen(target["expr"], namespace, release)):
            yield legend(target["legendFormat"], curve.labels), curve


def draw_number(axes: Axes, defaults: dict[str, Any], curves: list[tuple[str, Curve]]) -> None:
    """The newest value, large."""
    axes.set_axis_off()
    text = amount(curves[0][1].values[-1], defaults.get("unit", "short")) if curves else "no data"
    axes.text(0.0, 0.35, text, fontsize=15, transform=axes.transAxes)


def draw_curves(axes: Axes, defaults: dict[str, Any], curves: list[tuple[str, Curve]]) -> None:
    """Lines over time."""
    unit = defaults.get("unit", "short")
    scale = defaults.get("custom", {}).get("scaleDistribution", {}).get("type", "linear")
    for index, (name, curve) in enumerate(curves):
        axes.plot(curve.times, curve.values, linewidth=0.9, label=name if index < MOST_LEGENDS else None)
    if scale == "log":
        axes.set_yscale("log")
    if not curves:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", fontsize=8, transform=axes.transAxes)
    axes.yaxis.set_major_formatter(lambda value, _: amount(value, unit))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3, linewidth=0.5)
    if any(name for name, _ in curves):
        axes.legend(fontsize=5.5, ncols=3, loc="upper left", bbox_to_anchor=(-0.02, -0.12), frameon=False)


def main() -> int:
    names = sorted(path.stem for path in DASHBOARDS.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="http://HOST:PORT")
    parser.add_argument("dashboards", nargs="*", default=names, help=f"of {', '.join(names)} (all)")
    parser.add_argument("--namespace", default="apex", help="of the release (%(default)s)")
    parser.add_argument("--release", default="apex", help="its name (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0, help="how far back (%(default)s)")
    parser.add_argument("--end", type=float, default=0.0, help="last second, as Unix time; 0 = now")
    options = parser.parse_intermixed_args()
    ask = range_query(options.prometheus, options.end or time.time(), 60 * options.minutes)
    for name in options.dashboards:
        dashboard = json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))
        path = IMAGES / f"dashboard_{name}.png"
        draw(dashboard, ask, options.namespace, options.release).savefig(path, dpi=85)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
