"""Prometheus scrapes every pod, and what dashboards and alerts ask for is there."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import yaml
from cluster import NotHere, StepFailed, until
from release import CHART
from scene import Scene

#: Three times the interval at which targets are looked for and scraped, in all operators' defaults.
SCRAPED_SECONDS = 180.0
RATE_INTERVAL = "2m"
#: Series that a healthy run need not have, and why. Whatever else is empty fails the step.
QUIET = {
    r"kube_": "needs kube-state-metrics",
    r"kubelet_volume_stats_": "needs the kubelet's metrics in the same Prometheus",
    r"apex_actor_transitions_dropped_total": "counts by reason; nothing was given up",
    r"apex_replay_rejected_total": "counts by reason; no message was refused since the shard started",
    r"apex_actor_lease_info\{.*hash": "every actor has its lease",
    r"apex_actor_episode_(return|length_steps)": "by exploration; no lane of this kind has ended an episode",
    r"apex_grpc_server_handled_total\{.*code!=\"OK\"": "counts by code; no call has failed since the service started",
}
#: A part of such a selector without which there must be data: calls that did not fail were counted.
NARROWED = re.compile(r',code!="OK"')
SELECTOR = re.compile(r"\b(?:apex_(?!release\b)|process_|kube_|kubelet_)[a-z0-9_]+(?:\{[^}]*\})?")
_COMPARISON = re.compile(r"(==|>|<)")


class Prometheus:
    """Instant queries."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now.

        Raises:
            StepFailed: Prometheus refuses it.
        """
        data = urllib.parse.urlencode({"query": expression}).encode()
        try:
            with urllib.request.urlopen(f"{self._address}/api/v1/query", data, timeout=30) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise StepFailed(f"{expression}: {error.read().decode()[:500]}") from None
        except OSError as error:
            raise StepFailed(f"Prometheus at {self._address} does not answer: {error}") from None
        # NaN, as of 0/0, is no data to whoever looks at a panel.
        return [series for series in found if series["value"][1] != "NaN"]


def scraped(scene: Scene) -> dict[str, object]:
    """Every pod of the release is a target, and up."""
    prometheus = reach(scene)
    labels = f'namespace="{scene.cluster.namespace}"'
    wanted = {pod["metadata"]["name"] for pod in scene.cluster.items("pods", "--selector", scene.release.selector)}

    def probe() -> bool:
        return {series["metric"].get("pod") for series in prometheus.query(f"up{{{labels}}} == 1")} == wanted

    until(f"targets that are up to be {sorted(wanted)}", probe, SCRAPED_SECONDS, every=5)
    return {"targets": len(wanted), "series": int(float(prometheus.query(f"count({{{labels}}})")[0]["value"][1]))}


def dashboards_and_alerts(scene: Scene) -> dict[str, object]:
    """Every panel has data, every alert has what it looks at, or it is said why there is none."""
    prometheus = reach(scene)
    quiet: dict[str, str] = {}
    firing: list[str] = []
    missing: list[str] = []
    asked = list(expressions(scene))
    for where, expression, is_alert in asked:
        found = prometheus.query(expression)
        if found:
            firing += [where] if is_alert else []
            continue
        absent = [s for s in sorted(set(SELECTOR.findall(expression))) if not prometheus.query(f"count({s})")]
        reasons = {reason for s in absent for pattern, reason in QUIET.items() if re.match(pattern, s)}
        unexplained = [s for s in absent if not is_quiet(prometheus, s)]
        if unexplained or not (absent or _COMPARISON.search(expression)):
            missing.append(f"{where}: {expression} (no data of {', '.join(unexplained) or 'the whole'})")
        elif absent:
            quiet[where] = "; ".join(sorted(reasons))
        elif not is_alert:
            quiet[where] = "its condition does not hold"
    if missing:
        raise StepFailed("no data: " + " | ".join(missing))
    return {"expressions": len(asked), "quiet": quiet, "alerts_whose_condition_holds": firing}


def is_quiet(prometheus: Prometheus, selector: str) -> bool:
    """Whether a selector without data is excused, and, if it only looks at some of its series, has others."""
    if not any(re.match(pattern, selector) for pattern in QUIET):
        return False
    wider = NARROWED.sub("", selector)
    return wider == selector or bool(prometheus.query(f"count({wider})"))


def reach(scene: Scene) -> Prometheus:
    if not scene.prometheus:
        raise NotHere("no Prometheus was named")
    return Prometheus(scene.prometheus)


def expressions(scene: Scene) -> Iterator[tuple[str, str, bool]]:
    """(where, expression, whether of an alert) as Grafana and Prometheus ask for them in this release.

    Recorded series are replaced by what records them, so that a Prometheus that has not loaded the rules can answer.
    """
    text = (CHART / "rules" / "apex.rules.yaml").read_text(encoding="utf-8")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    recorded = {rule["record"]: rule["expr"] for rule in rules if "record" in rule}
    for rule in rules:
        name = rule.get("record") or rule["alert"]
        yield name, _unrecorded(rule["expr"], recorded), "alert" in rule
    for path in sorted((CHART / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.stem}: {panel['title']}", _chosen(scene, target["expr"]), False


def _unrecorded(expression: str, recorded: dict[str, str]) -> str:
    for name in sorted(recorded, key=len, reverse=True):
        if name in expression:
            expression = expression.replace(name, f"({_unrecorded(recorded[name], recorded)})")
    return expression


def _chosen(scene: Scene, expression: str) -> str:
    chosen = {"$__rate_interval": RATE_INTERVAL, "$namespace": scene.cluster.namespace, "$release": scene.release.name}
    for variable, value in chosen.items():
        expression = expression.replace(variable, value)
    return expression
