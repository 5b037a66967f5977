"""Proves the chart on the cluster that KUBECONFIG names: installs it, breaks it, and looks at what happens.

    make cluster-test ARGS="--image-command 'docker build -f docker/Dockerfile --target {target} -t {image} . &&
        kind load docker-image {image}'"

Prints a line for every step, writes ``benchmarks/results/cluster_*.json`` with ``--write``, and ends with exit code 1
if a step failed. kubectl and helm must be in PATH. It makes, and deletes, the namespaces NAME, NAME-probe,
NAME-gpu and NAME-fleet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import steps_ending as ending  # noqa: E402
import steps_failures as failures  # noqa: E402
import steps_fleet as fleet  # noqa: E402
import steps_gpu as gpu  # noqa: E402
import steps_monitoring as monitoring  # noqa: E402
import steps_network as network  # noqa: E402
import steps_training as training  # noqa: E402
from cluster import Cluster, NotHere, StepFailed  # noqa: E402
from release import Release  # noqa: E402
from scene import Scene  # noqa: E402

from benchmarks.record import make_record, write_record  # noqa: E402

#: Part -> build targets that it needs. In the CPU profile the learner runs the actor's image.
TARGETS = {"run": ("replay", "actor"), "gpu": ("replay", "actor", "learner"), "fleet": ("replay", "actor")}

Step = Callable[[Scene], dict[str, Any]]

#: Part -> its steps, in order. Those behind one that fails are still done, but for the first two of all.
PARTS: dict[str, list[Step]] = {
    "run": [
        training.install,
        training.all_ready,
        training.learns,
        training.scale,
        training.upgrade,
        failures.actor_deleted,
        failures.shard_deleted,
        failures.shard_killed,
        failures.learner_deleted,
        failures.second_on_the_same_volume,
        failures.second_with_a_copy,
        network.enforcement,
        network.policies,
        network.mtls,
        monitoring.scraped,
        monitoring.dashboards_and_alerts,
        ending.helm_test,
        ending.drained_and_uninstalled,
        ending.resumes_after_reinstall,
        ending.cleaned_up,
    ],
    "gpu": [gpu.learner_is_pinned, gpu.learner_starts, gpu.second_learner_stays_pending, gpu.cleaned_up],
    "fleet": [fleet.installed, fleet.scaled, fleet.upgraded, fleet.cleaned_up],
}
#: Part -> its result's name.
RESULT = {"run": "cluster_test", "gpu": "cluster_gpu", "fleet": "cluster_fleet"}
ESSENTIAL: tuple[Step, ...] = (training.install, training.all_ready)


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    result: str
    seconds: float
    evidence: dict[str, Any]

    def line(self) -> str:
        said = ", ".join(f"{key}: {value}" for key, value in self.evidence.items())
        return f"{self.result:<9} {self.name:<34} {self.seconds:6.1f} s  {said[:600]}"


def take(step: Step, scene: Scene) -> Outcome:
    """Do a step."""
    name = f"{step.__module__.removeprefix('steps_')}.{step.__name__}"
    started = time.monotonic()
    try:
        result, evidence = "PASS", step(scene)
    except NotHere as reason:
        result, evidence = "NOT HERE", {"reason": str(reason)}
    except StepFailed as error:
        result, evidence = "FAIL", {"reason": str(error)}
    return Outcome(name, result, round(time.monotonic() - started, 1), evidence)


def take_all(steps: Sequence[Step], scene: Scene) -> list[Outcome]:
    """Do steps in order, each with a line; end where going on makes no sense."""
    outcomes = []
    for step in steps:
        outcomes.append(take(step, scene))
        print(outcomes[-1].line(), flush=True)
        if outcomes[-1].result == "FAIL" and step in ESSENTIAL:
            break
    return outcomes


def make_images(command: str, registry: str, tag: str, parts: Sequence[str]) -> list[Outcome]:
    """Run the caller's command for each image: it builds a target and brings it to the cluster's nodes."""
    outcomes = []
    for target in dict.fromkeys(target for part in parts for target in TARGETS[part]):
        image = f"{registry}/apex-{target}:{tag}" if registry else f"apex-{target}:{tag}"
        started = time.monotonic()
        done = subprocess.run(["bash", "-c", command.format(target=target, image=image)], cwd=ROOT, check=False)
        result = "FAIL" if done.returncode else "PASS"
        seconds = round(time.monotonic() - started, 1)
        outcomes.append(Outcome(f"images.{target}", result, seconds, {"exit_code": done.returncode}))
        print(outcomes[-1].line(), flush=True)
    return outcomes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--image-command",
        default="",
        help="shell command that builds {target} as {image} and loads it; without it images must be there",
    )
    parser.add_argument("--registry", default="", help="value image.registry of the chart")
    parser.add_argument("--tag", default="0.1.0", help="value image.tag of the chart (%(default)s)")
    parser.add_argument("--namespace", default="apex-cluster-test", help="made and deleted (%(default)s)")
    parser.add_argument("--prometheus", default="", help="http://HOST:PORT of a Prometheus that scrapes the cluster")
    parser.add_argument(
        "--after-install", default="", help="shell command after each install, for a Prometheus without its operator"
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["run"], help="what to do (%(default)s)")
    parser.add_argument("--fleet-actors", type=int, default=500, help="actors of the part fleet (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], help="names of steps, for looking at one again; writes nothing"
    )
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/cluster_*.json, one for each part"
    )
    return parser.parse_args()


def scene_of(options: argparse.Namespace) -> Scene:
    cluster = Cluster(options.namespace)
    settings = ["--set", f"image.registry={options.registry},image.tag={options.tag}"]
    if cluster.serves("monitoring.coreos.com/v1"):
        switched = "monitoring.annotations=false,monitoring.podMonitor.enabled=true,monitoring.rules.enabled=true"
        settings += ["--set", f"{switched},monitoring.dashboards.enabled=true,monitoring.podMonitor.interval=5s"]
    image = "/".join(part for part in (options.registry, f"apex-actor:{options.tag}") if part)
    return Scene(
        cluster=cluster,
        release=Release(cluster, settings),
        image=image,
        after_install_command=options.after_install,
        prometheus=options.prometheus,
        fleet_actors=options.fleet_actors,
    )


def record(part: str, outcomes: Sequence[Outcome], scene: Scene) -> dict[str, Any]:
    """The result of a part in the form of all others."""
    failed = sum(outcome.result == "FAIL" for outcome in outcomes)
    steps = {o.name: {"result": o.result, "seconds": o.seconds, "evidence": o.evidence} for o in outcomes}
    return make_record(
        RESULT[part],
        metrics={
            "steps_passed": sum(outcome.result == "PASS" for outcome in outcomes),
            "steps_failed": failed,
            "steps_not_here": sum(outcome.result == "NOT HERE" for outcome in outcomes),
            "kubernetes": server_version(scene),
            "nodes": len(scene.cluster.items("nodes")),
            "steps": steps,
        },
        goals={"steps_failed": {"at_most": 0}},
        command=f'make cluster-test ARGS="--parts {part} ..."',
        notes=(
            "Each step of tests/cluster/run.py with what it saw. NOT HERE: the cluster cannot show it, and why. "
            "Seconds are waiting times on a busy machine, not a measurement of speed."
        ),
    )


def server_version(scene: Scene) -> str:
    return str(json.loads(scene.cluster.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"])


def main() -> int:
    options = parse()
    scene = scene_of(options)
    images: list[Outcome] = []
    if options.image_command and not options.only:
        images = make_images(options.image_command, options.registry, options.tag, options.parts)
    outcomes = list(images)
    for part in options.parts if all(outcome.result == "PASS" for outcome in images) else ():
        done = take_all([step for step in PARTS[part] if not options.only or step.__name__ in options.only], scene)
        outcomes += done
        if options.write and not options.only:
            print(write_record(record(part, [*images, *done], scene)))
    failed = [outcome.name for outcome in outcomes if outcome.result == "FAIL"]
    print(f"{len(outcomes)} steps, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
