"""Pods that go, and a second learner: training goes on, nothing is lost, one learner writes."""

from __future__ import annotations

import copy
import json

from cluster import Manifest, StepFailed, until
from release import restarts, running
from scene import Scene
from steps_training import SCALED_ACTORS, wait_leases

SHARD = "apex-replay-0"
SECOND = "apex-learner-second"
#: Share of the experience that must be back. A shard that ends in order writes everything, and holds a little more or
#: less than when we looked; one that is killed has written what came up to a second before.
KEPT, KEPT_WHEN_KILLED = 0.99, 0.95
EXIT_FAILURE, EXIT_FENCED = 1, 75
#: Ends the service under tini as a crash would; not process 1, which the kernel shields from its own namespace.
_CRASH = (
    "import os, signal; os.kill(next(int(p) for p in os.listdir('/proc') if p.isdigit() and p != '1' "
    "and int(p) != os.getpid() and b'apex_replay' in open(f'/proc/{p}/cmdline', 'rb').read()), signal.SIGKILL)"
)


def actor_deleted(scene: Scene) -> dict[str, object]:
    """An actor's pod is deleted: its index is lent to the next, and training goes on."""
    release = scene.release
    before = release.progress()
    gone = release.wait_ready("actor", SCALED_ACTORS)[0]
    scene.cluster.kubectl("delete", "pod", gone, "--wait=false")
    until(f"{gone} to go", lambda: gone not in running(release.pods("actor")), 120)
    pods = release.wait_ready("actor", SCALED_ACTORS)
    return {"lowest_indices": wait_leases(scene, pods), "updates": release.wait_progress(before).step - before.step}


def shard_deleted(scene: Scene) -> dict[str, object]:
    """The shard's pod is deleted: the next has its experience from the journal, and training goes on."""
    release = scene.release
    before, items = release.progress(), release.replay_size(SHARD)
    former = running(release.pods("replay"))
    scene.cluster.kubectl("delete", "pod", SHARD, "--wait=false")
    until(f"another {SHARD}", lambda: running(release.pods("replay")).get(SHARD) not in (None, former[SHARD]), 180)
    release.wait_ready("replay", 1)
    kept = require_kept(scene, items, KEPT)
    return {"items": kept, "updates": release.wait_progress(before).step - before.step}


def shard_killed(scene: Scene) -> dict[str, object]:
    """The shard's process is killed: its container starts again with the experience from the journal."""
    release = scene.release
    before, items = release.progress(), release.replay_size(SHARD)
    scene.cluster.python(SHARD, _CRASH)
    (ended,) = until("the container to start again", lambda: restarts(release.pods("replay")[0]) or None, 180)
    release.wait_ready("replay", 1)
    kept = require_kept(scene, items, KEPT_WHEN_KILLED)
    progress = release.wait_progress(before)
    return {"exit_code": ended["exitCode"], "items": kept, "updates": progress.step - before.step}


def require_kept(scene: Scene, before: float, share: float) -> list[float]:
    """Items held before and now, when the shard has just become ready again. New ones come slowly in comparison."""
    recovered, held = logged(scene, SHARD, "experience recovered")["items"], scene.release.replay_size(SHARD)
    if min(recovered, held) < share * before:
        raise StepFailed(f"the shard held {before:.0f} items, recovered {recovered} and holds {held:.0f}")
    return [before, held]


def logged(scene: Scene, pod: str, event: str) -> Manifest:
    """The first line of a pod's log with this event."""
    for line in scene.release.log(pod).splitlines():
        if line.startswith("{"):
            found: Manifest = json.loads(line)
            if found.get("event") == event:
                return found
    raise StepFailed(f"{pod} has not logged {event!r}")


def learner_deleted(scene: Scene) -> dict[str, object]:
    """The learner's pod is deleted: its successor resumes what it saved, under a higher epoch, and goes on."""
    release = scene.release
    before, former = release.progress(), running(release.pods("learner"))
    scene.cluster.kubectl("delete", "pod", *former, "--wait=false")
    until("another learner", lambda: not former.items() & running(release.pods("learner")).items(), 180)
    pod = release.only_pod("learner")
    resumed = logged(scene, pod, "resumed")["version"]
    if int(resumed.rpartition(".")[2]) < before.step:
        raise StepFailed(f"the learner was at step {before.step} and resumed at {resumed}")
    now = release.wait_progress(before)
    if now.epoch <= before.epoch:
        raise StepFailed(f"epoch {now.epoch} after {before.epoch}")
    return {"step_before": before.step, "resumed": resumed, "epochs": [before.epoch, now.epoch]}


def second_on_the_same_volume(scene: Scene) -> dict[str, object]:
    """A second learner that mounts the same volume ends, or is not even scheduled; the first notices nothing."""
    release = scene.release
    before, first = release.progress(), running(release.pods("learner"))
    pod = second_learner(scene)
    scene.cluster.apply(pod)
    try:
        said = until("the second learner to be refused", lambda: refusal(scene), 240)
    finally:
        remove_second(scene)
    now = release.wait_progress(before)
    if now.epoch != before.epoch or running(release.pods("learner")) != first:
        raise StepFailed(f"the first learner was disturbed: {before} became {now}")
    return {"refused": said}


def refusal(scene: Scene) -> str | None:
    pod: Manifest = scene.cluster.get("pod", SECOND)
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"not scheduled: {condition['message']}"
    ended = ending(pod)
    if ended is None:
        return None
    log = scene.release.log(SECOND)
    if ended != EXIT_FAILURE or "another learner is writing" not in log:
        raise StepFailed(f"the second learner ended with exit code {ended}: {log[-1000:]}")
    return "exit code 1: another learner is writing to the checkpoints"


def second_with_a_copy(scene: Scene) -> dict[str, object]:
    """A second learner with a copy of the run takes over, is taken over in turn, and both end with exit code 75."""
    release = scene.release
    before, (first,) = release.progress(), running(release.pods("learner"))
    pod = second_learner(scene, copied=True)
    scene.cluster.apply(pod)
    try:
        ended = until("the first learner to be fenced", lambda: restarts(learner_pod(scene, first)) or None, 300)
        codes = {"first": ended[0]["exitCode"]}
        codes["second"] = until("the second learner to end", lambda: ending(scene.cluster.get("pod", SECOND)), 300)
        taken = logged(scene, SECOND, "learner starts")["epoch"]
    finally:
        remove_second(scene)
    if set(codes.values()) != {EXIT_FENCED}:
        raise StepFailed(f"exit codes are {codes}, must be {EXIT_FENCED}")
    now = release.wait_progress(before)
    obeyed = release.metrics(SHARD).total("apex_replay_learner_epoch")
    if not before.epoch < taken < now.epoch or obeyed != now.epoch:
        raise StepFailed(f"epochs: first {before.epoch}, second {taken}, first again {now.epoch}, shard {obeyed}")
    return {"exit_codes": codes, "epochs": [before.epoch, taken, now.epoch], "steps": [before.step, now.step]}


def second_learner(scene: Scene, *, copied: bool = False) -> Manifest:
    """The learner's pod under another name; with ``copied`` on a volume of its own that holds a copy of the run."""
    template = copy.deepcopy(scene.release.object("deployment", "learner")["spec"]["template"])
    spec = template["spec"]
    spec["restartPolicy"] = "Never"
    (container,) = spec["containers"]
    if copied:
        (run,) = [volume for volume in spec["volumes"] if volume["name"] == "run"]
        spec["volumes"] += [{"name": "source", "persistentVolumeClaim": run.pop("persistentVolumeClaim")}]
        run["emptyDir"] = {}
        container["volumeMounts"] += [{"name": "source", "mountPath": "/source", "readOnly": True}]
        # A checkpoint that is removed while it is copied is missed, as the documentation of backups says.
        start = 'cp -r /source/runs /var/lib/apex/; exec "$@"'
        container["command"] = ["sh", "-c", start, "second", *container["command"]]
    labels = {key: value for key, value in template["metadata"]["labels"].items() if key != "pod-template-hash"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": SECOND, "labels": labels}, "spec": spec}


def learner_pod(scene: Scene, name: str) -> Manifest:
    found: Manifest = scene.cluster.get("pod", name)
    return found


def ending(pod: Manifest) -> int | None:
    """Exit code of a pod's only container, once it has ended."""
    for status in pod.get("status", {}).get("containerStatuses", []):
        if "terminated" in status["state"]:
            return int(status["state"]["terminated"]["exitCode"])
    return None


def remove_second(scene: Scene) -> None:
    scene.cluster.kubectl("delete", "pod", SECOND, "--ignore-not-found", "--grace-period=1", "--timeout=100s")
