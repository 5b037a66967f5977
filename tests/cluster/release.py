"""A release of the chart as the steps see it: its pods, their metrics, how the run stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Cluster, Manifest, StepFailed, is_ready, until
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "apex"
VALUES = (CHART / "ci" / "kind-values.yaml", Path(__file__).resolve().parent / "values.yaml")
#: Pods that must learn their part first: images are pulled, kernels compiled, a journal is read.
READY_SECONDS = 600.0
#: In which a training that goes on must show it, pods that were deleted and come back included.
PROGRESS_SECONDS = 300.0

_READ_METRICS = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9090/metrics', timeout=20).read().decode())"
)


class Metrics:
    """What a pod's /metrics said."""

    def __init__(self, text: str) -> None:
        self._samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Sum over the series of a name that have these labels; 0 if there is none."""
        return math.fsum(
            sample.value for sample in self._samples if sample.name == name and labels.items() <= sample.labels.items()
        )


@dataclass(frozen=True)
class Progress:
    """How far the run is."""

    epoch: int
    step: int
    frames: int


@dataclass
class Release:
    """One installed release.

    Args:
        cluster: and namespace.
        settings: ``--set`` options of every install and upgrade of this test (images, what the cluster offers).
    """

    cluster: Cluster
    settings: Sequence[str] = ()
    name: str = "apex"
    values: Sequence[Path] = VALUES

    @property
    def selector(self) -> str:
        return f"app.kubernetes.io/instance={self.name}"

    def install(self, *arguments: str) -> None:
        """``helm install``; does not wait for pods."""
        files = [f"--values={path}" for path in self.values]
        self.cluster.helm("install", self.name, str(CHART), *files, *self.settings, *arguments)

    def upgrade(self, *settings: str) -> None:
        """``helm upgrade`` with more settings than before; does not wait for pods."""
        self.cluster.helm("upgrade", self.name, str(CHART), "--reuse-values", *settings)

    def object(self, kind: str, component: str) -> Manifest:
        found: Manifest = self.cluster.get(kind, f"{self.name}-{component}")
        return found

    def pods(self, component: str) -> list[Manifest]:
        """Pods of a component that are not on their way out, the oldest first."""
        found = self.cluster.items("pods", "--selector", f"{self.selector},app.kubernetes.io/component={component}")
        staying = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(staying, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def wait_ready(self, component: str, count: int, seconds: float = READY_SECONDS) -> list[str]:
        """Names of a component's pods once exactly ``count`` are there and ready."""

        def probe() -> list[str] | None:
            found = self.pods(component)
            ready = [pod["metadata"]["name"] for pod in found if is_ready(pod)]
            return ready if len(ready) == count == len(found) else None

        try:
            return until(f"{count} ready pod(s) of {component}", probe, seconds)
        except StepFailed as error:
            raise StepFailed(f"{error}; {self.describe(component)}") from None

    def describe(self, component: str) -> str:
        """What keeps a component's pods from being ready, in short."""
        said = []
        for pod in self.pods(component):
            status = pod.get("status", {})
            reasons = [c.get("message", c["type"]) for c in status.get("conditions", []) if c["status"] != "True"]
            for container in status.get("containerStatuses", []):
                reasons += [f"{kind}: {state}" for kind, state in container["state"].items() if kind != "running"]
                ended = container.get("lastState", {}).get("terminated")
                reasons += [f"ended before with exit code {ended['exitCode']}"] if ended else []
            said.append(f"{pod['metadata']['name']} {status.get('phase')}: {'; '.join(map(str, reasons))}")
        return " | ".join(said) or "there is no pod"

    def only_pod(self, component: str) -> str:
        (pod,) = self.wait_ready(component, 1)
        return pod

    def metrics(self, pod: str) -> Metrics:
        return Metrics(self.cluster.python(pod, _READ_METRICS))

    def progress(self) -> Progress:
        """Of the learner's pod; the caller looks again if that is being replaced."""
        read = self.metrics(self.pods("learner")[0]["metadata"]["name"])
        return Progress(
            epoch=int(read.total("apex_learner_epoch")),
            step=int(read.total("apex_learner_params_version")),
            frames=int(read.total("apex_learner_global_frames")),
        )

    def wait_progress(self, since: Progress, steps: int = 50, seconds: float = PROGRESS_SECONDS) -> Progress:
        """The run's state once it has made ``steps`` updates and some frames since then."""

        def probe() -> Progress | None:
            now = self.progress() if self.pods("learner") else since
            return now if now.step >= since.step + steps and now.frames > since.frames else None

        return until(f"{steps} updates and new frames after {since}", probe, seconds)

    def replay_size(self, shard: str = "apex-replay-0") -> float:
        return self.metrics(shard).total("apex_replay_size_transitions")

    def log(self, pod: str, *arguments: str) -> str:
        return self.cluster.kubectl("logs", pod, *arguments)


def running(pods: Sequence[Manifest]) -> dict[str, str]:
    """Name -> uid."""
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


def restarts(pod: Manifest) -> list[dict[str, Any]]:
    """How the containers of a pod ended before, if they did."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    ended = [status.get("lastState", {}).get("terminated") for status in statuses]
    return [state for state in ended if state]
