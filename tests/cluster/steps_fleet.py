"""Hundreds of actors on nodes that kwok pretends to have: what the API server and the chart make of the number.

The pods run nothing, so this is about Kubernetes alone: times of install, scale and upgrade, and objects per actor.
What a fleet asks of learner and shards is measured by ``apex simulate``.
"""

from __future__ import annotations

import time
from typing import Any

from cluster import NotHere, StepFailed, until
from release import Release
from scene import Scene

#: An actor's pod is ready at once there, so the time is the cluster's: a rollout takes four rounds and more.
FLEET_SECONDS = 900.0
_FEW = 10


def installed(scene: Scene) -> dict[str, Any]:
    """The chart with a few actors; they go to kwok's nodes, the services stay away."""
    if not [n for n in scene.cluster.items("nodes", "--selector", "type=kwok")]:
        raise NotHere("there are no nodes with the label type=kwok")
    cluster = scene.namespaced("fleet")
    cluster.delete_namespace()
    cluster.make_namespace({})
    started = time.monotonic()
    release_of_fleet(scene).install()
    wait_available(scene, _FEW)
    return {"seconds": round(time.monotonic() - started, 1), "actors": _FEW}


def scaled(scene: Scene) -> dict[str, Any]:
    """``kubectl scale`` to the fleet's number, until all are available."""
    cluster = scene.namespaced("fleet")
    before = count_objects(scene)
    started = time.monotonic()
    cluster.kubectl("scale", "deployment/apex-actor", f"--replicas={scene.fleet_actors}")
    wait_available(scene, scene.fleet_actors)
    seconds = round(time.monotonic() - started, 1)
    added = {kind: count - before[kind] for kind, count in count_objects(scene).items()}
    per_actor = {kind: round(count / (scene.fleet_actors - _FEW), 3) for kind, count in added.items()}
    if per_actor["endpointslices"] > 0:
        raise StepFailed(f"actors are in EndpointSlices, where no service should select them: {per_actor}")
    return {"seconds": seconds, "actors": scene.fleet_actors, "objects_per_actor": per_actor}


def upgraded(scene: Scene) -> dict[str, Any]:
    """``helm upgrade`` of an actor setting: all are replaced, never more than a quarter at once; their number stays."""
    cluster, release = scene.namespaced("fleet"), release_of_fleet(scene)
    started = time.monotonic()
    release.upgrade("--set", "config.set.actor.parameter_update_period_frames=50")
    command_seconds = round(time.monotonic() - started, 1)
    least = scene.fleet_actors

    def probe() -> bool:
        nonlocal least
        found = cluster.get("deployment", "apex-actor")
        status, wanted = found["status"], found["spec"]["replicas"]
        if wanted != scene.fleet_actors:
            raise StepFailed(f"the upgrade set the number of actors to {wanted}")
        least = min(least, status.get("availableReplicas", 0))
        counts = {status.get(f"{kind}eplicas", 0) for kind in ("r", "updatedR", "availableR")}
        return bool(status.get("observedGeneration", 0) >= found["metadata"]["generation"]) and counts == {wanted}

    until(f"{scene.fleet_actors} replaced actors", probe, FLEET_SECONDS)
    if least < scene.fleet_actors * 3 // 4:
        raise StepFailed(f"only {least} of {scene.fleet_actors} actors were available in between")
    seconds = round(time.monotonic() - started, 1)
    return {"seconds": seconds, "helm_seconds": command_seconds, "least_available": least}


def cleaned_up(scene: Scene) -> dict[str, Any]:
    """The release goes, with all its pods."""
    cluster = scene.namespaced("fleet")
    started = time.monotonic()
    cluster.helm("uninstall", "apex", "--ignore-not-found")
    cluster.delete_namespace()
    return {"seconds": round(time.monotonic() - started, 1)}


def release_of_fleet(scene: Scene) -> Release:
    settings = [
        *scene.release.settings,
        *("--set", f"actor.replicas={_FEW},learner.persistence.enabled=false,replay.persistence.enabled=false"),
        *("--set", "evaluator.enabled=false,relay.replicas=0"),
        *("--set-json", 'actor.nodeSelector={"type":"kwok"}'),
        *("--set-json", 'actor.tolerations=[{"key":"kwok.x-k8s.io/node","operator":"Exists"}]'),
    ]
    return Release(scene.namespaced("fleet"), settings)


def wait_available(scene: Scene, count: int) -> None:
    cluster = scene.namespaced("fleet")

    def probe() -> bool:
        return bool(cluster.get("deployment", "apex-actor")["status"].get("availableReplicas", 0) == count)

    until(f"{count} available actors", probe, FLEET_SECONDS)


def count_objects(scene: Scene) -> dict[str, int]:
    """Of the kinds that a pod may bring with it."""
    kinds = ("pods", "endpointslices", "configmaps", "secrets", "serviceaccounts", "persistentvolumeclaims")
    return {kind: len(scene.namespaced("fleet").items(kind)) for kind in kinds}
