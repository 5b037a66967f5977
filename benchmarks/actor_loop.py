"""Agent steps per second of the actor's loop on one core, against the emulator alone and against emulator and network.

    python benchmarks/actor_loop.py configs/pong_small.yaml --actor.lanes 32

``env`` is ale-py's vector environment with random actions; ``env_and_network`` stacks its frames, evaluates the policy
network and takes the best action, nothing else. ``actor_loop`` is what an actor runs between two sends: rows, stacks,
exploration, chunks, compression, initial priorities. They take turns. Unknown arguments are overrides.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from torch import nn

from apex_actor.exploring import lane_epsilons
from apex_actor.loop import ActorLoop
from apexrl.algorithms import make_algorithm
from apexrl.config import ConfigError, ExperimentConfig
from apexrl.envs import env_spec, make_vec
from apexrl.runtime.malloc import keep_freed_memory
from apexrl.runtime.torch_cpu import configure_torch
from benchmarks.aggregation import spread
from benchmarks.options import conclude, fraction_goal, load, parser, run
from benchmarks.windows import interleave, ratios, repeat

#: Frames at which exploration has long been annealed.
LATE_FRAMES = 1 << 40


@contextlib.contextmanager
def one_core() -> Iterator[int]:
    """Keep this thread, and those that it starts, on one core (whose number it gives)."""
    former = os.sched_getaffinity(0)
    core = max(former)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, former)


def bare_vector_env(config: ExperimentConfig[Any], lanes: int) -> AtariVectorEnv:
    """ale-py's vector environment with the configuration's preprocessing, frames stacked by ale-py, one thread."""
    suite, _, game = config.env.id.partition("/")
    if suite != "atari":
        raise ConfigError(f"env.id is {config.env.id!r}, must be an Atari game (atari/...) for this benchmark")
    env = config.env
    return AtariVectorEnv(
        game,
        lanes,
        num_threads=1,
        max_num_frames_per_episode=env.max_episode_frames,
        repeat_action_probability=env.sticky_actions,
        full_action_space=env.full_action_space,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        stack_num=env.stack,
        frameskip=env.action_repeat,
        noop_max=env.noop_max,
        use_fire_reset=env.fire_reset,
    )


def env_steps(config: ExperimentConfig[Any], lanes: int) -> Callable[[], int]:
    """Steps of the bare environment with random actions that were drawn before."""
    env = bare_vector_env(config, lanes)
    num_actions = env_spec(config.env).num_actions
    actions = np.random.default_rng(config.seed).integers(0, num_actions, (256, lanes))
    env.reset(seed=config.seed)
    turn = 0

    def step() -> int:
        nonlocal turn
        turn += 1
        env.step(actions[turn % len(actions)])
        return lanes

    return step


def env_and_network_steps(config: ExperimentConfig[Any], lanes: int) -> Callable[[], int]:
    """Steps of the bare environment with the best action of an untrained network."""
    env = bare_vector_env(config, lanes)
    networks = make_algorithm(config, env_spec(config.env)).make_networks()
    observations, _ = env.reset(seed=config.seed)

    def step() -> int:
        nonlocal observations
        with torch.inference_mode():
            actions = networks(torch.from_numpy(observations)).argmax(1).numpy()
        observations = env.step(actions)[0]
        return lanes

    return step


def make_loop(config: ExperimentConfig[Any], lanes: int, networks: nn.Module | None = None) -> ActorLoop:
    """The actor's loop as the actor process makes it, with the exploration of ``lanes`` leased lanes.

    ``networks`` stand in for the algorithm's own.
    """
    algorithm = make_algorithm(config, env_spec(config.env))
    loop = ActorLoop(
        config=config,
        env=make_vec(config.env, lanes, num_threads=1),
        algorithm=algorithm,
        networks=networks or algorithm.make_networks(),
        seed=config.seed,
    )
    loop.epsilons = lane_epsilons(config.actor.exploration, list(range(lanes)), LATE_FRAMES)
    return loop


def phase_shares(loop: ActorLoop) -> dict[str, float]:
    """Share of the loop's time in each of its phases."""
    seconds = asdict(loop.phase_seconds)
    total = sum(seconds.values())
    return {name: round(value / total, 4) for name, value in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options, overrides = parser(__doc__, seconds=5.0, windows=5).parse_known_args(arguments)
    config = load(options.config, overrides)
    lanes = config.actor.lanes
    configure_torch(1)
    keep_freed_memory(few_heaps=True)  # as the actor's process does
    with one_core():
        loop = make_loop(config, lanes)
        programs = {
            "env": repeat(env_steps(config, lanes)),
            "env_and_network": repeat(env_and_network_steps(config, lanes)),
            "actor_loop": repeat(lambda: loop.step().env_steps),
        }
        rates = interleave(programs, seconds=options.seconds, windows=options.windows)
    of_both = ratios(rates["actor_loop"], rates["env_and_network"])
    metrics = {
        "agent_steps_per_second": {name: spread(values) for name, values in rates.items()},
        "frames_per_second": float(np.median(rates["actor_loop"])) * config.env.action_repeat,
        "fraction": round(float(np.median(of_both)), 4),
        "fraction_of_env": round(float(np.median(ratios(rates["actor_loop"], rates["env"]))), 4),
        "microseconds_per_step": round(1e6 / float(np.median(rates["actor_loop"])), 1),
        "phase_shares": phase_shares(loop),
        "lanes": lanes,
        "cores": 1,
        "windows": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "window_seconds": options.seconds,
    }
    return conclude(
        f"actor_loop_{config.name}",
        metrics=metrics,
        goals=fraction_goal(options.at_least),
        seeds=[config.seed],
        notes=(
            "One process on one core, nothing is sent. fraction = median over windows of the actor loop's agent "
            "steps/s divided by those of ale-py's vector environment with the same network and nothing else."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
