"""What protects a release, read from the golden files: pods, policies, certificates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chart_golden import MANIFESTS, every_pod
from chart_scene import (
    COMPONENT,
    SCENARIOS,
    Manifest,
    config_file,
    main_container,
    matches,
    of_kind,
    one,
    overrides,
    pods,
)

from apexrl.algorithms import CONFIGS
from apexrl.config import SecurityConfig, load_experiment, load_sections
from apexrl.transport.security import CALLERS

#: Kinds of volumes that Pod Security "restricted" allows.
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI", "csi", "ephemeral"}
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS)


@every_pod
def test_pods_fit_pod_security_restricted(scenario: str, name: str, metadata: Manifest, spec: Manifest) -> None:
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all(len(VOLUMES & volume.keys()) == 1 for volume in spec["volumes"])
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["privileged"] is False
        assert own["runAsNonRoot"] is True
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("hostPort" not in port for port in container.get("ports", []))


@every_pod
def test_pods_have_no_way_to_the_api_server(scenario: str, name: str, metadata: Manifest, spec: Manifest) -> None:
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    if "serviceAccountName" in spec:
        account = one(MANIFESTS[scenario], "ServiceAccount", spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False


@every_scenario
def test_nothing_grants_rights_or_holds_secrets(scenario: str) -> None:
    kinds = {manifest["kind"] for manifest in MANIFESTS[scenario]}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "Secret"}
    assert all(manifest["metadata"]["namespace"] == "lab" for manifest in MANIFESTS[scenario])


# --- network policies ---


def edges(manifests: list[Manifest], direction: str) -> Iterator[tuple[str, str, int]]:
    """(client, server, port) that the policies of one direction allow among the release's pods."""
    for policy in of_kind(manifests, "NetworkPolicy"):
        own = policy["spec"]["podSelector"]["matchLabels"].get(COMPONENT)
        for rule in policy["spec"].get(direction, []):
            for peer in rule["to" if direction == "egress" else "from"]:
                other = peer.get("podSelector", {}).get("matchLabels", {}).get(COMPONENT)
                if other is not None:
                    ends = (own, other) if direction == "egress" else (other, own)
                    yield from ((*ends, port["port"]) for port in rule["ports"])


@pytest.mark.parametrize("scenario", ["default", "paper", "full"])
def test_edges_are_these_and_open_at_both_ends(scenario: str) -> None:
    expected = {
        ("actor", "replay", 50051),
        ("learner", "replay", 50051),
        ("test", "replay", 50051),
        ("actor", "learner", 50061),
        ("evaluator", "learner", 50061),
        ("test", "learner", 50061),
    }
    if scenario != "default":
        expected |= {("actor", "relay", 50071), ("relay", "learner", 50061)}
    assert set(edges(MANIFESTS[scenario], "ingress")) == expected
    assert set(edges(MANIFESTS[scenario], "egress")) == expected


@pytest.mark.parametrize("scenario", ["default", "paper", "full"])
def test_everything_else_is_denied(scenario: str) -> None:
    policies = of_kind(MANIFESTS[scenario], "NetworkPolicy")
    (deny,) = [policy["spec"] for policy in policies if policy["metadata"]["name"].endswith("-default-deny")]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny.keys()
    for _, metadata, _ in pods(MANIFESTS[scenario]):
        assert matches(deny["podSelector"]["matchLabels"], metadata["labels"])
    with_egress = {p["spec"]["podSelector"]["matchLabels"].get(COMPONENT) for p in policies if "egress" in p["spec"]}
    assert "replay" not in with_egress


def test_policies_open_no_port_that_nobody_listens_on() -> None:
    manifests = MANIFESTS["full"]
    listening = {
        metadata["labels"][COMPONENT]: {port["containerPort"] for port in spec["containers"][0].get("ports", [])}
        for _, metadata, spec in pods(manifests)
    }
    assert all(port in listening[server] for _, server, port in edges(manifests, "ingress"))


# --- encryption ---


def certificates(scenario: str) -> dict[str, Manifest]:
    """Role -> specification of its certificate."""
    found = {m["spec"]["commonName"]: m["spec"] for m in MANIFESTS[scenario] if m["kind"] == "Certificate"}
    return {name.removeprefix("apex-"): spec for name, spec in found.items()}


def test_certificates_carry_the_names_that_the_services_ask_for() -> None:
    allowed = set().union(*CALLERS.values())
    specs = certificates("mtls")
    assert {f"apex-{role}" for role in specs} == allowed | {"apex-replay"}
    for role, spec in specs.items():
        serves = role in ("replay", "learner", "relay")
        assert spec["dnsNames"] == [f"apex-{role}", *(["apex"] if serves else [])]
        assert ("server auth" in spec["usages"]) == serves
        assert ("client auth" in spec["usages"]) == (role != "replay")
    assert SecurityConfig().server_name == "apex"


@pytest.mark.parametrize("scenario", ["tls", "mtls"])
def test_every_service_gets_its_own_key_and_no_other(scenario: str, tmp_path: Path) -> None:
    manifests = MANIFESTS[scenario]
    file = config_file(manifests, tmp_path)
    for _, metadata, spec in pods(manifests):
        component = metadata["labels"][COMPONENT]
        (volume,) = [volume["secret"] for volume in spec["volumes"] if volume["name"] == "tls"]
        shows = scenario == "mtls" or component in ("replay", "learner", "relay")
        assert ("items" in volume) != shows
        if not shows:
            assert volume["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
        elif scenario == "mtls":
            assert volume["secretName"] == f"apex-{'operator' if component == 'test' else component}-tls"
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        if component != "test":
            arguments = [a for a in spec["containers"][0]["args"] if a.startswith("--security.")]
            (security,) = load_sections(file, ["security"], arguments)
            assert security.mode == scenario
            assert security.ca_file.startswith(mounts["tls"])
            assert bool(security.certificate_file) == shows
            assert bool(security.token_file) == ("token" in mounts) == (scenario == "mtls")


def test_a_file_that_encrypts_at_home_does_not_confuse_the_cluster(tmp_path: Path) -> None:
    """Paths of one's own machine are taken back by arguments, which the golden file of `least` has for that."""
    file = config_file(MANIFESTS["least"], tmp_path)
    security = load_experiment(file, algorithm_configs=CONFIGS).security
    assert security.mode == "tls"
    for component in ("actor", "learner"):
        container = main_container(MANIFESTS["least"], component)
        assert load_experiment(file, overrides(container), algorithm_configs=CONFIGS).security == SecurityConfig()
