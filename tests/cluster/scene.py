"""What steps share: the release under test and what the caller said of the cluster."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field

from cluster import Cluster, Manifest, StepFailed
from release import Release

#: Kinds of which a release makes objects; the last three only where the cluster knows them.
KINDS = (
    "pods,deployments,statefulsets,replicasets,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims,"
    "poddisruptionbudgets,networkpolicies"
)
MONITORING_KINDS = "podmonitors,prometheusrules"


@dataclass
class Scene:
    """One installation under test.

    Args:
        cluster: with the release's namespace.
        release: of the chart.
        image: of actors, for pods that ask questions.
        after_install_command: run in a shell after every install; empty = nothing.
        prometheus: its address, http://HOST:PORT; empty = there is none.
        fleet_actors: how many the part "fleet" scales to.
    """

    cluster: Cluster
    release: Release
    image: str
    after_install_command: str = ""
    prometheus: str = ""
    fleet_actors: int = 500
    #: Of configs/cartpole_apex_dqn.yaml.
    lanes: int = 8
    enforces_policies: bool | None = field(default=None)

    @property
    def has_monitoring(self) -> bool:
        return self.cluster.serves("monitoring.coreos.com/v1")

    def namespaced(self, part: str) -> Cluster:
        """The namespace of another part of the test."""
        return Cluster(f"{self.cluster.namespace}-{part}")

    def objects(self) -> list[str]:
        """KIND/NAME of everything that carries the release's label."""
        kinds = KINDS + ("," + MONITORING_KINDS if self.has_monitoring else "")
        found = self.cluster.items(kinds, "--selector", self.release.selector)
        return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in found)

    def after_install(self) -> None:
        if self.after_install_command:
            done = subprocess.run(
                ["bash", "-c", self.after_install_command], capture_output=True, text=True, check=False, timeout=120
            )
            if done.returncode != 0:
                raise StepFailed(f"the command after the install ended with {done.returncode}: {done.stderr[-1000:]}")

    def idle_pod(self, name: str, labels: dict[str, str] | None = None) -> Manifest:
        """A pod of the actor's image that does nothing, to ask questions from; fits the restricted profile."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 10001,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "idle",
                        "image": self.image,
                        "command": ["tini", "--", "python", "-m", "http.server", "8080"],
                        "ports": [{"containerPort": 8080}],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                    }
                ],
            },
        }
