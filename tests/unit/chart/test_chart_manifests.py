"""What the manifests say, read from the golden files: ports, selectors, the GPU, arguments that the services accept."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from chart_golden import MANIFESTS, every_pod
from chart_scene import (
    CHART,
    COMPONENT,
    GOLDEN,
    SCENARIOS,
    Manifest,
    config_file,
    main_container,
    matches,
    of_kind,
    one,
    overrides,
    pods,
    tool,
)

from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment, load_sections

GPU = {"nvidia.com/gpu", "nvidia.com/mig-3g.40gb"}
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS)


@every_pod
def test_containers_ask_for_memory_and_mount_what_exists(
    scenario: str, name: str, metadata: Manifest, spec: Manifest
) -> None:
    # A volumeClaimTemplate makes a volume that the pod does not list.
    volumes = {volume["name"] for volume in spec["volumes"]} | {"journal"}
    for container in spec["containers"]:
        resources = container["resources"]
        assert "memory" in resources["limits"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        assert "cpu" not in resources["limits"]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert "/tmp" in mounts
        assert len(set(mounts)) == len(mounts)
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"]


@every_pod
def test_probes_ask_ports_that_the_container_has(scenario: str, name: str, metadata: Manifest, spec: Manifest) -> None:
    if metadata["labels"][COMPONENT] == "test":
        return
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert all(probe["port"] in ports for probe in probes.values())
    assert probes["livenessProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == "/readyz"
    # An actor, evaluator or relay is ready only once the learner is: its start must not wait for that.
    alone = metadata["labels"][COMPONENT] in ("replay", "learner")
    assert probes["startupProbe"]["path"] == ("/readyz" if alone else "/healthz")


@every_scenario
def test_selectors_find_their_pods_and_nothing_else(scenario: str) -> None:
    manifests = MANIFESTS[scenario]
    found = list(pods(manifests))
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "PodDisruptionBudget", "Service"):
        selector = manifest["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        hit = [name for name, metadata, _ in found if matches(selector, metadata["labels"])]
        assert hit == [manifest["metadata"]["name"]], manifest["kind"]
    for service in of_kind(manifests, "Service"):
        assert service["spec"]["clusterIP"] == "None"
        (container,) = next(spec for name, _, spec in found if name == service["metadata"]["name"])["containers"]
        names = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


@every_scenario
def test_there_is_one_learner_and_it_may_be_drained(scenario: str) -> None:
    manifests = MANIFESTS[scenario]
    (learner,) = [m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"].endswith("-learner")]
    assert learner["spec"]["replicas"] == 1
    assert learner["spec"]["strategy"] == {"type": "Recreate"}
    budgets = {m["metadata"]["name"].rpartition("-")[2] for m in of_kind(manifests, "PodDisruptionBudget")}
    assert budgets <= {"actor", "replay", "relay"}


@pytest.mark.parametrize(
    ("scenario", "device"), [("default", "cuda"), ("full", "cuda"), ("cpu", "cpu"), ("kind", "cpu")]
)
def test_only_the_learner_has_a_gpu(scenario: str, device: str) -> None:
    for _, metadata, spec in pods(MANIFESTS[scenario]):
        (resources, *_) = [container["resources"] for container in spec["containers"]]
        asked = GPU & resources["limits"].keys()
        is_learner = metadata["labels"][COMPONENT] == "learner"
        assert bool(asked) == (is_learner and device == "cuda")
        assert asked == GPU & resources["requests"].keys()
        assert ("affinity" in spec and "nodeAffinity" in spec["affinity"]) != (
            is_learner or metadata["labels"][COMPONENT] == "test"
        )
    assert f"--learner.device={device}" in main_container(MANIFESTS[scenario], "learner")["args"]


@every_scenario
def test_arguments_are_what_the_services_accept(scenario: str, tmp_path: Path) -> None:
    manifests = MANIFESTS[scenario]
    file = config_file(manifests, tmp_path)
    actor = load_experiment(file, overrides(main_container(manifests, "actor")), algorithm_configs=CONFIGS)
    learner = load_experiment(file, overrides(main_container(manifests, "learner")), algorithm_configs=CONFIGS)
    replay, identity = load_sections(file, ["replay", "security"], overrides(main_container(manifests, "replay")))
    assert identity == learner.security
    assert actor.security.mode == identity.mode
    assert actor.replay.addresses == learner.replay.addresses
    assert actor.learner.address == learner.learner.address
    assert actor.actor.metrics_port == learner.learner.metrics_port == replay.metrics_port == 9090
    (shards,) = [m for m in of_kind(manifests, "StatefulSet") if m["metadata"]["name"].endswith("-replay")]
    name, count = shards["metadata"]["name"], shards["spec"]["replicas"]
    domain = "cluster.example" if scenario == "full" else "cluster.local"
    assert actor.replay.addresses == tuple(f"{name}-{i}.{name}.lab.svc.{domain}:50051" for i in range(count))
    assert replay.listen.rpartition(":")[2] == "50051"
    assert learner.learner.listen.rpartition(":")[2] == actor.learner.address.rpartition(":")[2] == "50061"
    assert bool(replay.journal_directory) == ("volumeClaimTemplates" in shards["spec"])


@pytest.mark.parametrize("scenario", ["default", "kind", "paper"])
def test_evaluator_is_given_what_it_needs(scenario: str, tmp_path: Path) -> None:
    container = main_container(MANIFESTS[scenario], "evaluator")
    assert container["command"][-2:] == ["--role", "evaluator"]
    config = load_experiment(
        config_file(MANIFESTS[scenario], tmp_path), overrides(container), algorithm_configs=CONFIGS
    )
    assert config.evaluator.metrics_port == 9090
    assert config.learner.address == "apex-learner.lab.svc.cluster.local:50061"


@pytest.mark.parametrize(("scenario", "count"), [("paper", 3), ("full", 2), ("default", 0)])
def test_actors_know_every_relay_and_relays_the_learner(scenario: str, count: int, tmp_path: Path) -> None:
    manifests = MANIFESTS[scenario]
    file = config_file(manifests, tmp_path)
    actor = load_experiment(file, overrides(main_container(manifests, "actor")), algorithm_configs=CONFIGS)
    assert len(actor.actor.parameter_addresses) == count
    if count:
        sections = ["relay", "learner", "security"]
        relay, *_ = load_sections(file, sections, overrides(main_container(manifests, "relay")))
        assert relay.upstream == actor.learner.address
        assert all(address.endswith(relay.listen.rpartition(":")[2]) for address in actor.actor.parameter_addresses)


def test_values_of_config_set_arrive_as_they_were_meant(tmp_path: Path) -> None:
    config = load_experiment(config_file(MANIFESTS["full"], tmp_path), algorithm_configs=CONFIGS)
    preset = load_experiment(CHART / "configs" / "pong_small.yaml", algorithm_configs=CONFIGS)
    assert (config.seed, config.learner.batch_size, config.learner.publish_dtype) == (7, 128, "float16")
    assert (config.replay.samples_per_insert, config.replay.budget_bytes) == (0, 2 << 30)
    assert config.algorithm.optimizer.learning_rate == 1e-4
    assert config.algorithm.network == preset.algorithm.network
    assert config.env == preset.env


def test_an_autoscaler_is_left_the_number_of_actors() -> None:
    assert "replicas" not in one(MANIFESTS["least"], "Deployment", "apex-actor")["spec"]
    assert one(MANIFESTS["paper"], "Deployment", "apex-actor")["spec"]["replicas"] == 360


def test_an_autoscaler_holds_the_ratio_of_this_release() -> None:
    scaled = one(MANIFESTS["full"], "ScaledObject", "pong-actor")["spec"]
    assert scaled["scaleTargetRef"] == {"name": "pong-actor"}
    assert "replicas" not in one(MANIFESTS["full"], "Deployment", "pong-actor")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (8, 400)
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["threshold"] == "0.78"
    rules = (CHART / "rules" / "apex.rules.yaml").read_text(encoding="utf-8")
    assert f"record: {trigger['metadata']['query'].partition('{')[0]}\n" in rules
    assert trigger["metadata"]["query"].endswith('{namespace="lab",apex_release="apex"}')


def test_volumes_outlive_the_release_unless_told_otherwise() -> None:
    claim = one(MANIFESTS["default"], "PersistentVolumeClaim", "apex-learner")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    policy = one(MANIFESTS["default"], "StatefulSet", "apex-replay")["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert policy == {"whenDeleted": "Retain", "whenScaled": "Delete"}
    policy = one(MANIFESTS["full"], "StatefulSet", "pong-replay")["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert policy["whenDeleted"] == "Delete"
    assert of_kind(MANIFESTS["full"], "PersistentVolumeClaim") == []
    assert of_kind(MANIFESTS["least"], "PersistentVolumeClaim") == []


def test_a_drain_has_the_time_that_the_services_take() -> None:
    grace: dict[str, int] = {
        m["labels"][COMPONENT]: s.get("terminationGracePeriodSeconds", 0) for _, m, s in pods(MANIFESTS["default"])
    }
    assert grace["actor"] >= 15, "an actor drains for 10 s"
    assert grace["replay"] >= 30
    assert grace["learner"] >= 60


def test_monitor_selects_every_service_and_sets_the_labels_of_the_rules() -> None:
    (monitor,) = of_kind(MANIFESTS["full"], "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {rule["targetLabel"] for rule in endpoint["relabelings"]} >= {"apex_release", "component"}
    for _, metadata, spec in pods(MANIFESTS["full"]):
        assert matches(monitor["spec"]["selector"]["matchLabels"], metadata["labels"])
        if metadata["labels"][COMPONENT] != "test":
            assert endpoint["port"] in {port["name"] for port in spec["containers"][0]["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_dashboards_become_maps_that_the_sidecar_finds() -> None:
    maps = [m for m in of_kind(MANIFESTS["full"], "ConfigMap") if m["metadata"]["labels"].get("grafana_dashboard")]
    assert {key for m in maps for key in m["data"]} == {path.name for path in (CHART / "dashboards").glob("*.json")}
    assert all(m["metadata"]["annotations"] == {"grafana_folder": "apex"} for m in maps)


@pytest.mark.parametrize("version", ["1.29", "1.32", "1.37"])
def test_manifests_are_valid_kubernetes(version: str, tmp_path: Path) -> None:
    program = tool("kubernetes-validate")
    files = []
    # Between them they have every object and every option.
    for scenario in ("full", "mtls", "least"):
        text = (GOLDEN / f"{scenario}.yaml").read_text(encoding="utf-8")
        # Kinds of the Prometheus operator, of cert-manager and of KEDA are not Kubernetes' own.
        foreign = ("apiVersion: monitoring.coreos.com", "apiVersion: cert-manager.io", "apiVersion: keda.sh")
        own = [part for part in text.split("\n---\n") if not part.lstrip("-\n").startswith(foreign)]
        files.append(tmp_path / f"{scenario}.yaml")
        files[-1].write_text("\n---\n".join(own), encoding="utf-8")
    command = [program, "-k", version, "--strict", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "StatefulSet".lower() in (done.stdout + done.stderr).lower()


def test_every_scenario_has_the_same_components_or_says_why_not() -> None:
    components: dict[str, set[Any]] = {
        scenario: {metadata["labels"][COMPONENT] for _, metadata, _ in pods(manifests)}
        for scenario, manifests in MANIFESTS.items()
    }
    usual = {"actor", "replay", "learner", "evaluator", "test"}
    assert components == {
        "default": usual,
        "kind": usual,
        "cpu": usual,
        "tls": usual,
        "mtls": usual | {"relay"},
        "full": usual | {"relay"},
        "paper": usual | {"relay"},
        "least": {"actor", "replay", "learner"},
    }
