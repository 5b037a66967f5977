"""One node offers a GPU: the learner is there, and nothing else where others have room.

Needs a node with the resource nvidia.com/gpu and one without. On a node that only claims to have a GPU the learner ends
and says so; where it was put is the answer all the same.
"""

from __future__ import annotations

from typing import Any

from cluster import Manifest, NotHere, StepFailed, is_ready, until
from release import READY_SECONDS, Release, restarts
from scene import Scene

RESOURCE = "nvidia.com/gpu"
EXIT_CONFIG, NO_DEVICE = 2, "torch finds no CUDA device"
_WORKLOADS = ("replay", "actor", "evaluator", "learner")


def learner_is_pinned(scene: Scene) -> dict[str, Any]:
    """With one GPU node the learner is put there, and everything else on the others."""
    cluster = scene.namespaced("gpu")
    having, without = nodes(scene)
    release = release_for_gpu(scene)
    cluster.delete_namespace()
    cluster.make_namespace({})
    release.install()
    where = {component: placed(release, component) for component in _WORKLOADS}
    if where["learner"] not in having or any(where[c] not in without for c in _WORKLOADS if c != "learner"):
        raise StepFailed(f"GPU nodes: {having}; pods are on {where}")
    return {"gpu_nodes": len(having), "other_nodes": len(without), "nodes": where}


def learner_starts(scene: Scene) -> dict[str, Any]:
    """The learner's own image runs: it becomes ready, or says that torch finds no device behind the node's claim."""
    release = release_for_gpu(scene)

    def probe() -> str | None:
        (pod,) = release.pods("learner")
        if is_ready(pod):
            return "ready"
        ended = restarts(pod)
        if not ended:
            return None
        log = release.log(pod["metadata"]["name"], "--previous")
        if ended[0]["exitCode"] != EXIT_CONFIG or NO_DEVICE not in log:
            raise StepFailed(f"the learner ended with exit code {ended[0]['exitCode']}: {log[-1000:]}")
        return f"exit code {EXIT_CONFIG}: {NO_DEVICE}"

    return {"learner": until("the learner to be ready or to end", probe, READY_SECONDS)}


def second_learner_stays_pending(scene: Scene) -> dict[str, Any]:
    """When all GPUs are taken another release's learner waits, and says for what."""
    having, _ = nodes(scene)
    free = sum(gpus(node) for node in scene.cluster.items("nodes")) - 1
    if free:
        raise NotHere(f"the cluster has {free} more GPU(s): another learner would find one ({having})")
    release = release_for_gpu(scene, "second")
    release.install()

    def probe() -> str | None:
        for pod in release.pods("learner"):
            for condition in pod.get("status", {}).get("conditions", []):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition["message"])
        return None

    said = until("the second learner to be refused a node", probe, 120)
    if f"Insufficient {RESOURCE}" not in said:
        raise StepFailed(f"the second learner waits for something else: {said}")
    return {"scheduler": said}


def cleaned_up(scene: Scene) -> dict[str, Any]:
    """Both releases go."""
    cluster = scene.namespaced("gpu")
    for name in ("apex", "second"):
        cluster.helm("uninstall", name, "--ignore-not-found")
    cluster.delete_namespace()
    return {}


def release_for_gpu(scene: Scene, name: str = "apex") -> Release:
    """The chart's own GPU settings; in memory only, since volumes of one node would decide where shards go."""
    settings = [
        *scene.release.settings,
        *("--set", "learner.gpu.enabled=true,learner.persistence.enabled=false,replay.persistence.enabled=false"),
        *("--set", "relay.replicas=0"),
    ]
    # Taints of nodes that stand in for real ones.
    for component in _WORKLOADS:
        settings += ["--set-json", f'{component}.tolerations=[{{"key":"kwok.x-k8s.io/node","operator":"Exists"}}]']
    return Release(scene.namespaced("gpu"), settings, name)


def placed(release: Release, component: str) -> str:
    """The node of a component's first pod."""

    def probe() -> str | None:
        found = release.pods(component)
        return str(found[0]["spec"].get("nodeName", "")) or None if found else None

    return until(f"{component} to be put on a node", probe, 120)


def gpus(node: Manifest) -> int:
    return int(node["status"].get("allocatable", {}).get(RESOURCE, 0))


def nodes(scene: Scene) -> tuple[list[str], list[str]]:
    """Names of nodes with a GPU and of those without."""
    found = scene.cluster.items("nodes")
    having = [node["metadata"]["name"] for node in found if gpus(node)]
    without = [node["metadata"]["name"] for node in found if not gpus(node)]
    if not having or not without:
        raise NotHere(f"{len(having)} node(s) with {RESOURCE} and {len(without)} without; one of each is needed")
    return having, without
