"""``helm test``, and how a release ends."""

from __future__ import annotations

from cluster import StepFailed, until
from scene import Scene

KEPT = ["PersistentVolumeClaim/apex-learner", "PersistentVolumeClaim/journal-apex-replay-0"]


def helm_test(scene: Scene) -> dict[str, object]:
    """The chart's own test passes: shards and learner answer."""
    output = scene.cluster.helm("test", scene.release.name, "--timeout=300s", seconds=330)
    if "Phase:          Succeeded" not in output:
        raise StepFailed(output[-1500:])
    return {"phase": "Succeeded"}


def drained_and_uninstalled(scene: Scene) -> dict[str, object]:
    """Actors hand over what they hold and go; after ``helm uninstall`` only the volumes are there."""
    release, cluster = scene.release, scene.cluster
    cluster.kubectl("scale", "deployment/apex-actor", "--replicas=0")
    until("the actors to go", lambda: not cluster.items("pods", "--selector", _actors(scene)), 120)
    learner = release.metrics(release.only_pod("learner"))
    held = learner.total("apex_learner_actor_leases", state="held")
    if held:
        raise StepFailed(f"the actors have gone, but {held:.0f} exploration indices are still lent")
    cluster.helm("uninstall", release.name, "--wait", "--timeout=300s", seconds=330)
    left = until("nothing but volumes to be left", lambda: left_over(scene), 180)
    return {"left": left}


def resumes_after_reinstall(scene: Scene) -> dict[str, object]:
    """The next release of the same name finds the volumes and continues the run."""
    release = scene.release
    release.install()
    for component in ("replay", "learner", "actor"):
        release.wait_ready(component, 2 if component == "actor" else 1)
    start = release.progress()
    now = release.wait_progress(start)
    if start.epoch < 2 or start.step < 1:
        raise StepFailed(f"the run began anew: {start}")
    scene.cluster.helm("uninstall", release.name, "--wait", "--timeout=300s", seconds=330)
    until("nothing but volumes to be left", lambda: left_over(scene), 180)
    return {"resumed": [start.epoch, start.step], "later": now.step}


def cleaned_up(scene: Scene) -> dict[str, object]:
    """Claims go by their label, as the documentation says, and nothing of the release is left."""
    scene.cluster.kubectl("delete", "pvc", "--selector", scene.release.selector, "--timeout=100s")
    left = scene.objects()
    scene.cluster.delete_namespace()
    if left:
        raise StepFailed(f"left: {left}")
    return {"left": left}


def left_over(scene: Scene) -> list[str] | None:
    left = scene.objects()
    return left if left == KEPT else None


def _actors(scene: Scene) -> str:
    return f"{scene.release.selector},app.kubernetes.io/component=actor"
