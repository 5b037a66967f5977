"""Helm itself: golden renders, refusals that say what to write, what an upgrade restarts, the notes. Needs helm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from chart_scene import CHART, GOLDEN, SCENARIOS, config_file, golden_text, helm, one, render, template

from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden_files_are_what_the_chart_renders(scenario: str) -> None:
    """Render them anew with ``python tests/unit/chart/chart_scene.py``, and read the difference."""
    rendered = golden_text(render("--values", str(SCENARIOS[scenario])))
    assert rendered == (GOLDEN / f"{scenario}.yaml").read_text(encoding="utf-8")


def test_lint_is_content() -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(SCENARIOS["kind"]))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("learner.replicas=2", "a run has exactly one learner"),
        ("replay.replicas=2", "the number of shards is replay.shards"),
        ("actor.relpicas=2", "'relpicas' not allowed"),
        ("actor.replicas=many", "want integer"),
        ("actor.replicas=-1", "at '/actor/replicas'"),
        ("actor.replicasPolicy=never", "'initial', 'managed', 'external'"),
        ("actor.autoscaling.enabled=true", "set that to external"),
        ("actor.autoscaling.enabled=true,actor.replicasPolicy=external", "config.set.replay.samples_per_insert=0"),
        (
            "actor.autoscaling.enabled=true,actor.replicasPolicy=external,actor.autoscaling.maxReplicas=1",
            "must be at least minReplicas, 2",
        ),
        ("actor.autoscaling.ratio=0", "at '/actor/autoscaling/ratio'"),
        ("actor.spot=gcp", "'none', 'gke', 'eks', 'aks', 'karpenter'"),
        ("actor.maxUnavailable=quarter", "does not match pattern"),
        ("actor.image.digest=abc", "does not match pattern"),
        ("replay.shards=0", "at '/replay/shards'"),
        ("replay.persistence.size=big", "does not match pattern"),
        ("replay.persistence.accessMode=ReadWriteMany", "'ReadWriteOncePod', 'ReadWriteOnce'"),
        ("learner.gpu.resource=gpu", "does not match pattern"),
        ("learner.run=a/b", "set learner.run"),
        ("image.tag=latest", "Write a version, or a digest"),
        ("image.pullPolicy=Sometimes", "'Always', 'IfNotPresent', 'Never'"),
        ("config=", "--set config.preset=pong_small"),
        ("config=name: x", "algorithm: {name: apex_dqn}"),
        ("config=[", "config is not valid YAML"),
        ("config.preset=pong", "must be one of cartpole_apex_dqn,"),
        ("config.set.lerner.batch_size=1", "'lerner' not allowed"),
        ("config.set.replay.addresses=a:1", "replay.shards"),
        ("config.set.learner.device=cuda", "learner.gpu.enabled"),
        ("config.set.actor.metrics_port=1", "the chart decides it"),
        ("config.set.replay.selector=rank_based,replay.shards=2", "must be 1 with"),
        ("config.set.replay.remover=prioritized", "replay.persistence.enabled is true, must be false with"),
        ("security.mode=mtls", "security.secrets.replay must name a secret"),
        ("security.mode=ssl", "'none', 'tls', 'mtls'"),
        ("security.certManager.issuer=ca", "set security.mode to tls or mtls"),
        ("security.secrets.shard=x", "'shard' not allowed"),
        ("networkpolicy.enabled=false", "'networkpolicy' not allowed"),
        ("monitoring.dashboard=true", "'dashboard' not allowed"),
    ],
)
def test_a_bad_value_is_refused_with_what_to_write(value: str, said: str) -> None:
    done = template("--set", value)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_cluster_without_cert_manager_is_told() -> None:
    values = ("--values", str(SCENARIOS["mtls"]))
    done = helm("template", "apex", str(CHART), "--kube-version", "1.33.0", *values)
    assert done.returncode != 0
    assert "the cluster has no cert-manager.io/v1" in done.stderr


def test_a_cluster_without_keda_is_told() -> None:
    values = "actor.autoscaling.enabled=true,actor.replicasPolicy=external,config.set.replay.samples_per_insert=0"
    done = helm("template", "apex", str(CHART), "--kube-version", "1.33.0", "--set", values)
    assert done.returncode != 0
    assert "the cluster has no keda.sh/v1alpha1" in done.stderr


@pytest.mark.parametrize("name", ["podMonitor", "rules"])
def test_a_cluster_without_the_operator_is_told(name: str) -> None:
    done = helm("template", "apex", str(CHART), "--kube-version", "1.33.0", "--set", f"monitoring.{name}.enabled=true")
    assert done.returncode != 0
    assert f"monitoring.{name}.enabled is true, but the cluster has no monitoring.coreos.com/v1" in done.stderr


def test_an_old_cluster_is_refused() -> None:
    done = helm("template", "apex", str(CHART), "--kube-version", "1.28.0")
    assert done.returncode != 0
    assert "1.29" in done.stderr


def digests(*arguments: str) -> dict[str, str]:
    """Component -> digest of what it reads of the experiment."""
    found = {}
    for manifest in render("--values", str(SCENARIOS["paper"]), *arguments):
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            metadata = manifest["spec"]["template"]["metadata"]
            component = metadata["labels"]["app.kubernetes.io/component"]
            found[component] = metadata["annotations"]["checksum/config"]
    return found


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        ("learner.batch_size=64", {"learner"}),
        ("evaluator.episodes=7", {"evaluator"}),
        ("actor.lanes=2", {"actor", "evaluator", "learner"}),
        ("relay.poll_period_seconds=3", {"relay"}),
        ("replay.capacity_items=100000", {"actor", "evaluator", "learner", "replay"}),
        ("env.sticky_actions=0.25", {"actor", "evaluator", "learner"}),
    ],
)
def test_a_change_restarts_only_who_reads_it(change: str, restarts: set[str]) -> None:
    before, after = digests(), digests("--set", f"config.set.{change}")
    assert {component for component in before if before[component] != after[component]} == restarts


def test_numbers_of_the_command_line_are_numbers(tmp_path: Path) -> None:
    # Helm's --set makes integers of 64, and text of the others.
    settings = ("learner.publish_period_seconds=0.5", "learner.batch_size=64", "algorithm.optimizer.learning_rate=1e-4")
    manifests = render(*(part for setting in settings for part in ("--set", f"config.set.{setting}")))
    config = load_experiment(config_file(manifests, tmp_path), [], algorithm_configs=CONFIGS)
    assert config.learner.publish_period_seconds == 0.5
    assert config.learner.batch_size == 64
    assert config.algorithm.optimizer.learning_rate == 1e-4


def test_a_file_of_ones_own_arrives_unchanged(tmp_path: Path) -> None:
    text = "# mine\nname: mine\nalgorithm: {name: apex_dqn, discount: 0.995}\nreplay:\n  budget_bytes: 4294967296\n"
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    manifests = render("--set-file", f"config={file}")
    assert one(manifests, "ConfigMap", "apex-config")["data"]["experiment.yaml"].strip() == text.strip()
    learner = one(manifests, "Deployment", "apex-learner")["spec"]["template"]["spec"]["containers"][0]
    assert "--run-dir=/var/lib/apex/runs/mine" in learner["args"]


@pytest.mark.parametrize("provider", ["gke", "eks", "aks", "karpenter"])
def test_spot_actors_go_to_spot_nodes_and_nobody_else_does(provider: str) -> None:
    manifests = render("--set", f"actor.spot={provider}")
    spec = one(manifests, "Deployment", "apex-actor")["spec"]["template"]["spec"]
    assert len(spec["nodeSelector"]) == 1
    assert all("nodeSelector" not in m["spec"]["template"]["spec"] for m in manifests if m["kind"] == "StatefulSet")


def test_rules_keep_their_text_and_find_their_runbooks() -> None:
    arguments = (
        "--set",
        "monitoring.rules.enabled=true",
        "--set",
        "monitoring.rules.runbookBase=https://git.example/x/",
    )
    rendered = one(render(*arguments), "PrometheusRule", "apex-rules")["spec"]
    source = yaml.safe_load((CHART / "rules" / "apex.rules.yaml").read_text(encoding="utf-8"))
    urls = [
        rule["annotations"].pop("runbook_url")
        for group in rendered["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    for group in source["groups"]:
        for rule in group["rules"]:
            rule.get("annotations", {}).pop("runbook_url", None)
    assert rendered == source
    assert all(url.startswith("https://git.example/x/docs/runbooks.md#") for url in urls)


def test_dashboards_arrive_as_json() -> None:
    manifests = render("--set", "monitoring.dashboards.enabled=true")
    for path in (CHART / "dashboards").glob("*.json"):
        data = one(manifests, "ConfigMap", f"apex-dashboard-{path.stem}")["data"]
        assert json.loads(data[path.name]) == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "learner on a GPU"),
        (("--set", "learner.gpu.enabled=false"), "learner on the CPU"),
        (("--set", "replay.persistence.enabled=false"), "begins empty"),
        (("--set", "learner.persistence.enabled=false"), "begins anew"),
        (("--set", "networkPolicy.enabled=false"), "take over as learner"),
        (("--set", "security.tokenSecret=t,networkPolicy.enabled=false"), "services ask for the token"),
        (("--set", "replay.resources.limits.memory=1Gi"), "at least 1610612736"),
        (("--set", "replay.persistence.size=1Gi"), "less than twice"),
        (("--set", "actor.replicas=300"), "Set relay.replicas"),
    ],
)
def test_notes_warn_of_what_will_hurt(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    chart = tmp_path / "apex"
    shutil.copytree(CHART, chart)
    # helm template does not print notes.
    notes = '{{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}'
    (chart / "templates" / "notes.yaml").write_text(f"notes: {notes}\n", encoding="utf-8")
    done = helm(
        "template", "apex", str(chart), "--kube-version", "1.33.0", "--show-only", "templates/notes.yaml", *arguments
    )
    assert done.returncode == 0, done.stderr
    text = yaml.safe_load(done.stdout)["notes"]
    assert said in text
    assert ("WARNING" in text) == (said not in ("learner on a GPU", "learner on the CPU"))
