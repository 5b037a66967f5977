"""Pictures of dashboards: every query is asked as Grafana would, and numbers read as there."""

from __future__ import annotations

import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import dashboard_pictures  # noqa: E402
from dashboard_pictures import Curve, amount, legend  # noqa: E402

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.25, "percentunit", "25 %"),
        (0.0042, "s", "4.2 ms"),
        (0.000042, "s", "42 µs"),
        (90.0, "s", "90 s"),
        (5.1e9, "bytes", "5.1 GB"),
        (12.0, "bytes", "12 B"),
        (2300.0, "Bps", "2.3 kB/s"),
        (1234567.0, "short", "1.23 M"),
        (128819.0, "none", "128819"),
        (math.nan, "short", "-"),
    ],
)
def test_numbers_carry_their_unit(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_a_legend_names_the_series() -> None:
    assert legend("{{pod}} {{ kind }}", {"pod": "apex-replay-0", "kind": "frames"}) == "apex-replay-0 frames"


def test_every_panel_is_asked_for_and_drawn() -> None:
    dashboard = json.loads((dashboard_pictures.DASHBOARDS / "overview.json").read_text(encoding="utf-8"))
    asked: list[str] = []

    def ask(expression: str) -> list[Curve]:
        asked.append(expression)
        return [] if "apex_eval" in expression else [Curve({"pod": "a"}, [NOW], [0.5])]

    figure = dashboard_pictures.draw(dashboard, ask, "lab", "apex")
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [panel["title"] for panel in panels]
    assert len(asked) == sum(len(panel["targets"]) for panel in panels)
    assert not any("$" in expression for expression in asked)
    assert any('namespace="lab"' in expression for expression in asked)
