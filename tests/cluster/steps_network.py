"""Who may connect to whom: network policies, and certificates."""

from __future__ import annotations

import base64
import json

import trustme
from cluster import Cluster, Manifest, NotHere, StepFailed, is_ready, run, until
from scene import Scene
from steps_training import SCALED_ACTORS

#: In which a network plugin must have noticed a new pod or policy.
ENFORCED_SECONDS = 60.0
_CONNECT = """
import json, socket, sys
def reached(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
print(json.dumps({target: reached(target) for target in sys.argv[1:]}))
"""
#: Asks a shard's health service and then its state, as a caller without encryption, without a certificate of its own,
#: and with the certificate of an actor. Prints the status of each.
_CALL = """
import json, sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from apexrl.transport import replay_pb2
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
read = lambda name: open(f"/etc/apex-tls/{name}", "rb").read()
options = [("grpc.ssl_target_name_override", "apex")]
channels = {
    "plain": grpc.insecure_channel(sys.argv[1]),
    "no certificate": grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(read("ca.crt")), options),
    "actor": grpc.secure_channel(
        sys.argv[1], grpc.ssl_channel_credentials(read("ca.crt"), read("tls.key"), read("tls.crt")), options),
}
def status(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
print(json.dumps({name: [
    status(lambda: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)),
    status(lambda: ReplayStub(channel).GetInfo(replay_pb2.GetInfoRequest(), timeout=10)),
] for name, channel in channels.items()}))
"""
#: Component -> names in its certificate; the table in docs/configuration.md.
CERTIFICATES = {
    "replay": ("apex",),
    "learner": ("apex", "apex-learner"),
    "relay": ("apex", "apex-relay"),
    "actor": ("apex-actor",),
    "evaluator": ("apex-evaluator",),
    "operator": ("apex-operator",),
}


def reached(cluster: Cluster, pod: str, targets: list[str]) -> dict[str, bool]:
    """Which HOST:PORT answer a TCP connection from a pod."""
    found: dict[str, bool] = json.loads(cluster.python(pod, _CONNECT, *targets))
    return found


def enforcement(scene: Scene) -> dict[str, object]:
    """Whether this cluster enforces policies at all, by a policy of the test's own in a namespace of its own."""
    cluster = scene.namespaced("probe")
    cluster.delete_namespace()
    cluster.make_namespace({})
    try:
        cluster.apply(scene.idle_pod("server"), scene.idle_pod("client"))
        pods = {name: ready_pod(cluster, name) for name in ("server", "client")}
        target = f"{pods['server']['status']['podIP']}:8080"
        until("the probe's server to answer", lambda: reached(cluster, "client", [target])[target], 60)
        cluster.apply(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": "deny"},
                "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
            }
        )
        try:
            until("the probe to be cut off", lambda: not reached(cluster, "client", [target])[target], ENFORCED_SECONDS)
        except StepFailed:
            scene.enforces_policies = False
            raise NotHere("a policy that denies everything does not cut off a pod: not enforced here") from None
        scene.enforces_policies = True
        return {"enforced": True}
    finally:
        cluster.delete_namespace()


def ready_pod(cluster: Cluster, name: str) -> Manifest:
    def probe() -> Manifest | None:
        pod: Manifest = cluster.get("pod", name)
        return pod if is_ready(pod) else None

    return until(f"pod {name} to be ready", probe, 300)


def policies(scene: Scene) -> dict[str, object]:
    """A stranger reaches no service, an actor neither the API server nor other actors, and both what they may."""
    if not scene.enforces_policies:
        raise NotHere("not enforced here")
    release, cluster = scene.release, scene.cluster
    address = {c: release.pods(c)[0]["status"]["podIP"] for c in ("replay", "learner", "relay", "evaluator")}
    services = [f"{address['replay']}:50051", f"{address['learner']}:50061", f"{address['relay']}:50071"]
    metrics = [f"{ip}:9090" for ip in address.values()]
    service = json.loads(run(["kubectl", "--namespace=default", "get", "service", "kubernetes", "--output=json"]))
    api = [f"{service['spec']['clusterIP']}:443"]
    actor = release.wait_ready("actor", SCALED_ACTORS)[0]
    cluster.apply(scene.idle_pod("stranger"))
    try:
        ready_pod(cluster, "stranger")
        denied = [*services, *metrics]
        until(
            "the stranger to be refused",
            lambda: not any(reached(cluster, "stranger", denied).values()),
            ENFORCED_SECONDS,
        )
        # The same addresses answer those who may, and the API server's answers the stranger: it is the policies.
        seen = {"stranger": reached(cluster, "stranger", denied + api), "actor": reached(cluster, actor, denied + api)}
    finally:
        cluster.kubectl("delete", "pod", "stranger", "--ignore-not-found", "--grace-period=1")
    expected = {
        "stranger": {**dict.fromkeys(denied, False), **dict.fromkeys(api, True)},
        "actor": {**dict.fromkeys(services, True), **dict.fromkeys(metrics + api, False)},
    }
    if seen != expected:
        raise StepFailed(f"reached: {seen}; must be {expected}")
    return {"refused": {"stranger": len(denied), "actor": len(metrics) + 1}}


def mtls(scene: Scene) -> dict[str, object]:
    """With certificates training goes on; a caller without one is refused, and an actor may not ask as an operator."""
    release, cluster = scene.release, scene.cluster
    before = release.progress()
    authority = trustme.CA()
    for role, names in CERTIFICATES.items():
        cluster.apply(certificate_secret(authority, role, names))
    named = [f"security.secrets.{role}=apex-test-{role}-tls" for role in CERTIFICATES]
    release.upgrade("--set", ",".join(["security.mode=mtls", *named]))
    for workload in ("statefulset/apex-replay", "statefulset/apex-relay", "deployment/apex-learner",
                     "deployment/apex-evaluator", "deployment/apex-actor"):  # fmt: skip
        cluster.kubectl("rollout", "status", workload, "--timeout=600s", seconds=630)
    actor = release.wait_ready("actor", SCALED_ACTORS)[0]
    now = release.wait_progress(before)
    seen = json.loads(cluster.python(actor, _CALL, "apex-replay-0.apex-replay:50051"))
    expected = {
        "plain": ["UNAVAILABLE", "UNAVAILABLE"],
        "no certificate": ["UNAVAILABLE", "UNAVAILABLE"],
        "actor": ["OK", "PERMISSION_DENIED"],
    }
    if seen != expected:
        raise StepFailed(f"health check and GetInfo gave {seen}, must be {expected}")
    return {"status_of_health_and_getinfo": seen, "updates": now.step - before.step}


def certificate_secret(authority: trustme.CA, role: str, names: tuple[str, ...]) -> Manifest:
    issued = authority.issue_cert(*names)
    data = {
        "ca.crt": authority.cert_pem.bytes(),
        "tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
        "tls.key": issued.private_key_pem.bytes(),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": f"apex-test-{role}-tls"},
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }
