"""Dashboards and alerts against the declaration of metrics, both ways, and against the runbooks."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_scene import CHART, ROOT, load_tool, tool

from apexrl.telemetry.metric_table import METRICS, Kind

RULES_FILE = CHART / "rules" / "apex.rules.yaml"
RULES = [rule for group in yaml.safe_load(RULES_FILE.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((CHART / "dashboards").glob("*.json"))
}
RUNBOOKS = ROOT / "docs" / "runbooks.md"
NOT_SHOWN: dict[str, str] = load_tool("dashboard_panels").NOT_SHOWN
DECLARED = {metric.name: metric for metric in METRICS}
_SUFFIXES = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.SUMMARY: ("_sum", "_count")}
#: Series of the declaration, with the suffixes that Prometheus gives them -> their metric.
SERIES = {f"{m.name}{suffix}": m for m in METRICS for suffix in _SUFFIXES.get(m.kind, ("",))}
#: What others export: the Python client's process collector, the kubelet, kube-state-metrics.
OTHERS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "kube_deployment_spec_replicas",
    "kube_deployment_status_replicas_available",
    "kube_pod_container_resource_limits",
    "kubelet_volume_stats_available_bytes",
}
#: Labels that scraping adds.
TARGET_LABELS = {"namespace", "apex_release", "component", "pod", "node"}
_SERIES = re.compile(r"\b(?!apex_release\b)(?:apex|process|kube|kubelet)[_:][a-z0-9_:]+\b")


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of everything that Prometheus will be asked."""
    for where, panel in panels():
        for target in panel["targets"]:
            yield where, target["expr"]
    for name, dashboard in DASHBOARDS.items():
        for annotation in dashboard["annotations"]["list"]:
            yield name, annotation["expr"]
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"]


def series(expression: str) -> set[str]:
    """Names of the series that an expression reads."""
    return set(_SERIES.findall(re.sub(r'"[^"]*"', '""', expression)))


def prometheus_text(expression: str) -> str:
    """An expression of a dashboard with Grafana's variables filled in."""
    for variable, value in (("$__rate_interval", "5m"), ("$namespace", "n"), ("$release", ".*")):
        expression = expression.replace(variable, value)
    return expression


def test_every_series_that_is_asked_for_exists() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    unknown = {
        (where, name) for where, text in expressions() for name in series(text) - set(SERIES) - OTHERS - recorded
    }
    assert unknown == set()


def test_every_declared_metric_is_shown_or_explained() -> None:
    asked = {
        SERIES[name].name for _, panel in panels() for t in panel["targets"] for name in series(t["expr"]) & set(SERIES)
    }
    assert set(DECLARED) - asked - set(NOT_SHOWN) == set()
    assert set(NOT_SHOWN) & asked == set(), "shown and explained as not shown"
    assert set(NOT_SHOWN) <= set(DECLARED)


def test_labels_that_are_asked_for_exist() -> None:
    wrong = []
    for where, text in expressions():
        for name, matchers in re.findall(r"([a-z_:]+)\{([^}]*)\}", text):
            if name in SERIES:
                labels = set(re.findall(r"([a-z_]+)(?:=~|!~|!=|=)", matchers))
                wrong += [(where, name, label) for label in labels - TARGET_LABELS - set(SERIES[name].labels)]
    assert wrong == []


def test_what_groups_a_dashboard_belongs_to_a_label() -> None:
    every_label = {label for metric in METRICS for label in metric.labels} | TARGET_LABELS | {"le", "deployment"}
    wrong = [
        (where, label)
        for where, text in expressions()
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", text)
        for label in re.split(r",\s*", group)
        if label not in every_label
    ]
    assert wrong == []


@pytest.mark.parametrize(("where", "panel"), list(panels()), ids=lambda value: value if isinstance(value, str) else "")
def test_panels_are_complete_and_rates_fit_the_scrape_interval(where: str, panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 5
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "$datasource"
    assert panel["targets"]
    for target in panel["targets"]:
        text = target["expr"]
        assert 'namespace="$namespace"' in text
        # Ten minutes where events are rarer than any interval that Grafana would choose.
        assert set(re.findall(r"\[([^\]]+)\]", text)) <= {"$__rate_interval", "10m"}
        counters = [name for name in series(text) if name.endswith("_total")]
        assert all(re.search(rf"(rate|increase|changes)\({name}\{{", text) for name in counters)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_have_numbers_of_their_own(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells


def test_dashboards_have_addresses_of_their_own() -> None:
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert all(dashboard["editable"] is False for dashboard in DASHBOARDS.values())


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(alert["alert"] for alert in ALERTS) == sorted(sections)
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_alerts_say_what_and_how_bad() -> None:
    for alert in ALERTS:
        assert alert["alert"].startswith("Apex")
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert alert["annotations"]["summary"]


def test_links_within_the_runbooks_are_whole() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8")
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([a-z]+)\)", text)) <= anchors


def test_the_documentation_counts_alerts_and_dashboards_right() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert f"and {len(ALERTS)} alerts" in page
    assert len(DASHBOARDS) == 4
    assert "Four dashboards" in page


def test_promtool_reads_the_rules() -> None:
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(RULES_FILE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_plays_the_alerts_through() -> None:
    tests = Path(__file__).resolve().parent / "apex.rules.test.yaml"
    done = subprocess.run([tool("promtool"), "test", "rules", str(tests)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_played_through() -> None:
    tests = yaml.safe_load((Path(__file__).resolve().parent / "apex.rules.test.yaml").read_text(encoding="utf-8"))
    played = [case for test in tests["tests"] for case in test.get("alert_rule_test", [])]
    assert {case["alertname"] for case in played if case["exp_alerts"]} == {alert["alert"] for alert in ALERTS}
    assert {case["alertname"] for case in played if not case["exp_alerts"]}, "nothing is tested to stay quiet"


def test_promtool_reads_the_expressions_of_dashboards(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": prometheus_text(text)} for i, (_, text) in enumerate(expressions())]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run([tool("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
