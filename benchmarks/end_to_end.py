"""The whole system on this machine: steps played and samples learned per second, beside RLlib's Ape-X DQN.

    python benchmarks/end_to_end.py configs/pong_small.yaml

Ours is what ``apex train`` starts (replay, learner, actors; no evaluator), theirs is ``peers/rllib_worker.py``: the
same game and preprocessing, a network of the same sizes, batches of the same size. RLlib runs first for a while, which
gives how many samples it learns from per step played; ours is then held to that ratio. Windows take turns on the same
cores, and who is not measured rests. Unknown arguments are overrides of the configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex_cli.train import LocalRun
from apexrl.config import ConfigError, ExperimentConfig
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.logging import configure_logging
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport.coordinator_client import CoordinatorClient
from benchmarks.aggregation import spread
from benchmarks.options import conclude, load, parser, run
from benchmarks.peers.environment import peer_python
from benchmarks.peers.worker import PeerProcess
from benchmarks.windows import ratios

GOALS = {"env_steps_ratio_to_rllib": {"at_least": 3.0}, "samples_ratio_to_rllib": {"at_least": 3.0}}
START_SECONDS = 300.0
POLL_SECONDS = 0.01
#: After a rest clocks, queues and connections settle for this long before anything is counted.
SETTLE_SECONDS = 2.0


class OwnSystem:
    """A local run that rests (SIGSTOP) unless it is measured."""

    def __init__(self, local: LocalRun, config: ExperimentConfig[Any]) -> None:
        self._local = local
        self._config = config
        self._client = CoordinatorClient(local.learner_address)

    def warm_up(self, updates: int) -> None:
        """Play and learn until so many updates are done; then rest.

        Raises:
            TimeoutError: that took more than five minutes.
        """
        deadline = time.monotonic() + START_SECONDS
        while (status := self._status()) is None or status.learner_updates < updates:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the learner did not get to {updates} updates:\n{self._local.learner.log_tail()}")
            time.sleep(1.0)
        self._signal(signal.SIGSTOP)

    def window(self, seconds: float) -> tuple[float, float]:
        """(environment steps per second, samples per second)."""
        self._signal(signal.SIGCONT)
        try:
            time.sleep(SETTLE_SECONDS)
            begin, first = self._edge()
            time.sleep(seconds)
            end, last = self._edge()
        finally:
            self._signal(signal.SIGSTOP)
        steps = (last.global_frames - first.global_frames) / self._config.env.action_repeat
        samples = (last.learner_updates - first.learner_updates) * self._config.learner.batch_size
        return steps / (end - begin), samples / (end - begin)

    def close(self) -> None:
        """Stop all processes."""
        self._signal(signal.SIGCONT)
        self._client.close()
        self._local.stop()

    def _status(self) -> pb.GetStatusResponse | None:
        try:
            return self._client.get_status(timeout=1.0)
        except TimeoutError:
            return None

    def _edge(self) -> tuple[float, pb.GetStatusResponse]:
        """The moment at which the learner reports anew (twice a second), and its report."""
        deadline = time.monotonic() + START_SECONDS
        known = self._status()
        while time.monotonic() < deadline:
            now = self._status()
            if known is not None and now is not None and now.learner_updates != known.learner_updates:
                return time.monotonic(), now
            known = known or now
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"the learner makes no updates:\n{self._local.learner.log_tail()}")

    def _signal(self, number: signal.Signals) -> None:
        for service in self._local.services:
            if service.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(service.process.pid, number)


@contextlib.contextmanager
def own_system(config: ExperimentConfig[Any], warm_updates: int) -> Iterator[OwnSystem]:
    """Ours, warm and at rest; its run is thrown away."""
    with tempfile.TemporaryDirectory(prefix="apex-end-to-end-") as directory:
        local = LocalRun(config, RunDirectory.create_or_resume(Path(directory) / "run", config))
        local.start()
        system = OwnSystem(local, config)
        try:
            system.warm_up(warm_updates)
            yield system
        finally:
            system.close()


def rllib_settings(config: ExperimentConfig[Any], workers: int, lanes: int) -> dict[str, Any]:
    """What :mod:`benchmarks.peers.rllib_worker` is told, so that it plays and learns what ``config`` says.

    Raises:
        ConfigError: the configuration has something that RLlib's preset cannot be given.
    """
    env, algorithm = config.env, config.algorithm
    suite, _, game = env.id.partition("/")
    if suite != "atari" or algorithm.name != "apex_dqn" or not algorithm.network.conv_filters:
        raise ConfigError(
            f"env.id is {env.id!r} and algorithm.name {algorithm.name!r}: must be an Atari game and apex_dqn with "
            "algorithm.network.conv_filters"
        )
    return {
        "game": f"ALE/{''.join(part.capitalize() for part in game.split('_'))}-v5",
        "sticky": env.sticky_actions,
        "noop_max": env.noop_max,
        "filters": list(algorithm.network.conv_filters),
        "hidden": list(algorithm.network.hidden_units),
        "n_steps": algorithm.n_steps,
        "batch_size": config.learner.batch_size,
        "min_items": config.replay.min_items,
        "capacity": config.replay.capacity_items,
        "workers": workers,
        "lanes": lanes,
    }


def rllib_window(peer: PeerProcess, seconds: float) -> tuple[float, float]:
    """(environment steps per second, samples per second)."""
    answer = peer.ask({"seconds": seconds})
    return float(answer["env_steps"]), float(answer["samples"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    made = parser(__doc__, seconds=16.0, windows=5, fixed_goals=True)
    made.add_argument("--workers", type=int, default=2, help="RLlib's rollout workers (%(default)s)")
    made.add_argument("--lanes", type=int, default=8, help="environments of each of them (%(default)s)")
    made.add_argument("--warm-updates", type=int, default=60, help="of both before the first window (%(default)s)")
    options, overrides = made.parse_known_args(arguments)
    configure_logging("benchmark", log_format="console", level="ERROR")
    own = ["--learner.batch-size", "512", "--replay.min-items", "2000", "--replay.capacity-items", "20000"]
    # The limiter's slack is some multiple of this: with it large, actors or learner run ahead for whole windows.
    own += ["--learner.prefetch-batches", "4"]
    config = load(options.config, overrides, [*own, "--learner.max-seconds", "0", "--local.evaluators", "0"])
    settings = rllib_settings(config, options.workers, options.lanes)
    with PeerProcess(peer_python("rllib"), "benchmarks/peers/rllib_worker.py", json.dumps(settings)) as peer:
        facts = peer.ask({"until_trained": options.warm_updates * config.learner.batch_size})
        steps, samples = rllib_window(peer, 2 * options.seconds)
        ratio = round(samples / steps, 3)
        print(f"RLlib learns from {ratio} samples per step; ours is held to that", file=sys.stderr, flush=True)
        held = dataclasses.replace(config, replay=dataclasses.replace(config.replay, samples_per_insert=ratio))
        with own_system(held, options.warm_updates) as system:
            measured: dict[str, list[tuple[float, float]]] = {"apex": [], "rllib": []}
            for number in range(options.windows):
                measured["apex"].append(system.window(options.seconds))
                measured["rllib"].append(rllib_window(peer, options.seconds))
                shown = ", ".join(f"{name} {one[-1][0]:.0f} {one[-1][1]:.0f}" for name, one in measured.items())
                print(f"window {number + 1} of {options.windows}: steps and samples/s: {shown}", file=sys.stderr)
    rates = {
        name: {"env_steps": [one[0] for one in windows], "samples": [one[1] for one in windows]}
        for name, windows in measured.items()
    }
    metrics = {
        "env_steps_ratio_to_rllib": _ratio(rates, "env_steps"),
        "samples_ratio_to_rllib": _ratio(rates, "samples"),
        "systems": {
            name: {
                "env_steps_per_second": spread(one["env_steps"]),
                "samples_per_second": spread(one["samples"]),
                "samples_per_env_step": round(sum(one["samples"]) / sum(one["env_steps"]), 3),
            }
            for name, one in rates.items()
        },
        "samples_per_insert": ratio,
        "batch_size": config.learner.batch_size,
        "own_actors": config.local.actors,
        "own_lanes": config.actor.lanes,
        "rllib_workers": options.workers,
        "rllib_lanes": options.lanes,
        "rllib_parameters": facts["parameters"],
        "rllib_versions": facts["versions"],
        "window_seconds": options.seconds,
        "num_windows": options.windows,
    }
    return conclude(
        "end_to_end",
        metrics=metrics,
        goals=GOALS,
        seeds=[config.seed],
        notes=(
            "Ratios = medians over neighbouring windows. Both play the same game with the same preprocessing and learn "
            "with networks of the same sizes (float32), batches of the same size and one replay shard of the same "
            "capacity. RLlib learns as fast as it can and sets the samples per environment step; ours is held to that "
            "ratio by its limiter. All processes of a system share the cores; no evaluator."
        ),
        write=options.write,
    )


def _ratio(rates: dict[str, dict[str, list[float]]], what: str) -> float:
    """Median over neighbouring windows of ours by theirs."""
    return round(float(np.median(ratios(rates["apex"][what], rates["rllib"][what]))), 2)


if __name__ == "__main__":
    sys.exit(run(main))
