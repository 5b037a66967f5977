"""The cluster test, as far as it can be looked at without a cluster."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import yaml
from chart_scene import CHART, HELM_OPTIONS, ROOT, helm, of_kind, pods

from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.telemetry.metric_table import METRICS
from apexrl.transport.security import CALLERS

sys.path.insert(0, str(ROOT / "tests" / "cluster"))

import cluster
import release
import run
import scene
import steps_ending
import steps_monitoring
import steps_network
import steps_training

CARTPOLE = load_experiment(CHART / "configs" / "cartpole_apex_dqn.yaml", [], algorithm_configs=CONFIGS)


@pytest.fixture
def example() -> scene.Scene:
    here = cluster.Cluster("lab")
    return scene.Scene(here, release.Release(here), image="apex-actor:1")


def test_steps_say_what_they_show_and_are_told_apart() -> None:
    steps = [step for part in run.PARTS.values() for step in part]
    assert all((step.__doc__ or "").strip() for step in steps)
    assert len({(step.__module__, step.__name__) for step in steps}) == len(steps)


def test_what_a_step_raises_becomes_its_outcome(example: scene.Scene) -> None:
    def passes(_: scene.Scene) -> dict[str, Any]:
        return {"seen": 1}

    def fails(_: scene.Scene) -> dict[str, Any]:
        return {"seen": cluster.until("what never comes", lambda: None, seconds=0)}

    def lacks(_: scene.Scene) -> dict[str, Any]:
        raise cluster.NotHere("no such thing")

    outcomes = run.take_all([passes, fails, lacks], example)
    assert [outcome.result for outcome in outcomes] == ["PASS", "FAIL", "NOT HERE"]
    assert outcomes[1].evidence == {"reason": "waited 0 s for what never comes"}


def test_nothing_is_done_behind_an_install_that_failed(example: scene.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: scene.Scene) -> dict[str, Any]:
        raise cluster.StepFailed("no")

    monkeypatch.setattr(run, "ESSENTIAL", (fails,))
    assert len(run.take_all([fails, fails], example)) == 1


def test_values_of_the_test_make_a_release_of_two_cores() -> None:
    files = [f"--values={path}" for path in release.VALUES]
    done = helm("template", "apex", str(CHART), *HELM_OPTIONS, *files)
    assert done.returncode == 0, done.stderr
    manifests = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    replicas = {m["metadata"]["name"]: m["spec"]["replicas"] for m in of_kind(manifests, "Deployment", "StatefulSet")}
    assert replicas == {f"apex-{component}": count for component, count in steps_training.COMPONENTS.items()}
    replicas["apex-actor"] = steps_training.SCALED_ACTORS
    millicores = 0
    for name, _, spec in pods(manifests):
        for container in spec["containers"]:
            asked = re.fullmatch(r"(\d+)m", container["resources"]["requests"]["cpu"])
            assert asked is not None
            millicores += int(asked[1]) * replicas.get(name, 1)
    # A second learner of 200 beside them.
    assert millicores + 200 <= 2000
    claims = {m["metadata"]["name"] for m in of_kind(manifests, "PersistentVolumeClaim")}
    claims |= {
        f"{claim['metadata']['name']}-{m['metadata']['name']}-0"
        for m in of_kind(manifests, "StatefulSet")
        for claim in m["spec"].get("volumeClaimTemplates", [])
    }
    assert sorted(f"PersistentVolumeClaim/{name}" for name in claims) == steps_ending.KEPT


def test_what_is_assumed_of_the_experiment_is_in_it() -> None:
    assert CARTPOLE.actor.exploration.anneal_frames == steps_training.ANNEALED_FRAMES
    assert CARTPOLE.actor.lanes == scene.Scene.lanes


def test_certificates_carry_the_names_that_calls_ask_for() -> None:
    carried = {name for names in steps_network.CERTIFICATES.values() for name in names} - {"apex"}
    assert carried == {name for names in CALLERS.values() for name in names}


def test_every_expression_is_asked_with_names_that_exist(example: scene.Scene) -> None:
    asked = list(steps_monitoring.expressions(example))
    assert len(asked) > 100
    for where, expression, _ in asked:
        assert "$" not in re.sub(r'"[^"]*"', "", expression), where
        assert "apex:" not in expression, where
        assert steps_monitoring.SELECTOR.findall(expression), where
    assert sum(is_alert for *_, is_alert in asked) == 19


def test_only_series_that_exist_are_excused() -> None:
    declared = {metric.name for metric in METRICS}
    for pattern in steps_monitoring.QUIET:
        if pattern.startswith("apex_"):
            plain = re.match(r"[a-z_]+", pattern)
            assert plain is not None
            assert any(name.startswith(plain[0]) for name in declared), pattern


def test_a_part_of_a_series_may_be_missing_only_where_the_rest_is_there() -> None:
    class Having:
        def __init__(self, *series: str) -> None:
            self.series = series

        def query(self, expression: str) -> list[str]:
            return [name for name in self.series if expression == f"count({name})"]

    failed = 'apex_grpc_server_handled_total{namespace="lab",code!="OK",method=~"apex.v1.(Replay)/.*"}'
    counted = 'apex_grpc_server_handled_total{namespace="lab",method=~"apex.v1.(Replay)/.*"}'
    assert steps_monitoring.is_quiet(Having(counted), failed)  # type: ignore[arg-type]
    assert not steps_monitoring.is_quiet(Having(), failed)  # type: ignore[arg-type]
    assert not steps_monitoring.is_quiet(Having(), counted)  # type: ignore[arg-type]
    assert steps_monitoring.is_quiet(Having(), "apex_replay_rejected_total")  # type: ignore[arg-type]
