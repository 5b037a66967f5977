"""From nothing to a run that learns, is scaled and is upgraded."""

from __future__ import annotations

import json

from cluster import StepFailed, until
from release import running
from scene import Scene

#: Mean return of the evaluator that says that CartPole is being learned; random play gets about 22.
LEARNED_RETURN = 195.0
LEARNING_SECONDS = 900.0
SCALED_ACTORS = 6
#: Of configs/cartpole_apex_dqn.yaml: actor.exploration.anneal_frames. From there on an epsilon is its index's alone.
ANNEALED_FRAMES = 5000
COMPONENTS = {"replay": 1, "relay": 1, "learner": 1, "evaluator": 1, "actor": 2}
_READ_CONFIG = "import pathlib; print(next(pathlib.Path('/var/lib/apex/runs').glob('*/config.yaml')).read_text())"


def install(scene: Scene) -> dict[str, object]:
    """``helm install`` of the CPU profile with CartPole, in a namespace that enforces the restricted profile."""
    scene.cluster.delete_namespace()
    scene.cluster.make_namespace({"pod-security.kubernetes.io/enforce": "restricted"})
    scene.release.install()
    scene.after_install()
    return {"objects": len(scene.objects())}


def all_ready(scene: Scene) -> dict[str, object]:
    """Every pod becomes ready."""
    return {component: scene.release.wait_ready(component, count) for component, count in COMPONENTS.items()}


def learns(scene: Scene) -> dict[str, object]:
    """Updates are made, and the evaluator's return rises to far above random play."""
    release = scene.release
    release.wait_progress(release.progress())
    evaluator = release.only_pod("evaluator")
    seen: list[tuple[float, float]] = [(0.0, 0.0)]
    means: list[float] = []

    def probe() -> bool:
        metrics = release.metrics(evaluator)
        count = metrics.total("apex_eval_episode_return_count")
        total = metrics.total("apex_eval_episode_return_sum")
        if count > seen[-1][0]:
            means.append(round((total - seen[-1][1]) / (count - seen[-1][0]), 1))
            seen.append((count, total))
        return bool(means) and means[-1] >= LEARNED_RETURN and means[-1] > means[0]

    try:
        until(f"evaluations of {LEARNED_RETURN} and more, above the first one", probe, LEARNING_SECONDS, every=3)
    except StepFailed as error:
        raise StepFailed(f"{error}; evaluations: {means}") from None
    return {"evaluations": means, "updates": release.progress().step, "frames": release.progress().frames}


def scale(scene: Scene) -> dict[str, object]:
    """``kubectl scale``: six actors have leases and insert; indices and epsilon of the two stay."""
    release = scene.release
    until("exploration to be annealed", lambda: release.progress().frames > ANNEALED_FRAMES, seconds=300)
    first = release.wait_ready("actor", 2)
    # Actors hear of the run's frames with their heartbeats.
    before = until("both actors to have heard of it", lambda: settled(scene, first), seconds=60)
    scene.cluster.kubectl("scale", "deployment/apex-actor", f"--replicas={SCALED_ACTORS}")
    pods = release.wait_ready("actor", SCALED_ACTORS)
    indices = wait_leases(scene, pods)
    sent = {pod: release.metrics(pod).total("apex_actor_transitions_sent_total") for pod in pods}
    for pod in pods:
        until(
            f"{pod} to insert more",
            lambda pod=pod: release.metrics(pod).total("apex_actor_transitions_sent_total") > sent[pod],  # type: ignore[misc]
            seconds=120,
        )
    after = {pod: exploration(scene, pod) for pod in before}
    if after != before:
        raise StepFailed(f"exploration of the first actors changed from {before} to {after}")
    return {"lowest_indices": indices, "unchanged": before}


def settled(scene: Scene, pods: list[str]) -> dict[str, tuple[float, float]] | None:
    """Exploration of actors, once no epsilon is that of the beginning, and none changes any more."""
    read, again = ({pod: exploration(scene, pod) for pod in pods} for _ in range(2))
    return again if read == again and all(epsilon < 1.0 for _, epsilon in again.values()) else None


def exploration(scene: Scene, pod: str) -> tuple[float, float]:
    """(lowest index, mean epsilon) of an actor."""
    read = scene.release.metrics(pod)
    return read.total("apex_actor_slot"), round(read.total("apex_actor_epsilon"), 9)


def wait_leases(scene: Scene, pods: list[str]) -> list[int]:
    """The lowest index of each actor, once they are the lowest possible and all insert streams are open."""
    lanes = scene.lanes

    def probe() -> list[int] | None:
        indices = sorted(int(exploration(scene, pod)[0]) for pod in pods)
        learner = scene.release.metrics(scene.release.only_pod("learner"))
        streams = scene.release.metrics("apex-replay-0").total("apex_replay_insert_streams")
        held = learner.total("apex_learner_actor_leases", state="held")
        complete = held == lanes * len(pods) and streams == len(pods)
        return indices if complete and indices == [lanes * i for i in range(len(pods))] else None

    return until(f"{len(pods)} actors to hold the lowest indices and an insert stream each", probe, seconds=180)


def upgrade(scene: Scene) -> dict[str, object]:
    """``helm upgrade`` of a learner setting: the learner is replaced and has it, the six actors run on untouched."""
    release = scene.release
    actors, learner = running(release.pods("actor")), running(release.pods("learner"))
    before = release.progress()
    period = 0.5
    release.upgrade("--set", f"config.set.learner.publish_period_seconds={period}")
    until("the former learner to go", lambda: not learner.items() & running(release.pods("learner")).items(), 180)
    pod = release.only_pod("learner")
    text = scene.cluster.python(pod, _READ_CONFIG)
    if f"publish_period_seconds: {period}" not in text:
        raise StepFailed(f"the learner's config.yaml does not have publish_period_seconds: {period}")
    replicas = release.object("deployment", "actor")["spec"]["replicas"]
    if replicas != SCALED_ACTORS or running(release.pods("actor")) != actors:
        raise StepFailed(f"the upgrade touched the actors: {replicas} wanted, {json.dumps(actors)} before")
    now = release.wait_progress(before)
    return {"actors": replicas, "epochs": [before.epoch, now.epoch]}
