"""Recorded play: what an actor hands over turn by turn, kept so that synthetic actors can send it again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from apex_actor.loop import ActorLoop
from apexrl.algorithms import make_algorithm
from apexrl.config import ExperimentConfig
from apexrl.envs import env_spec, make_vec
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.types import Chunk

#: The first turns load libraries and compile; they say nothing about an actor's speed.
WARM_SHARE = 0.25
#: Fewer bursts would show neither how large nor how far apart they are.
LEAST_BURSTS = 4


@dataclass(frozen=True)
class Burst:
    """The chunks of one turn: lanes step together, so their chunks are full together."""

    chunks: tuple[Chunk, ...]
    items: int
    """Transitions in them."""


@dataclass(frozen=True)
class Recording:
    """Bursts in the order of play, and what it took to play them."""

    bursts: tuple[Burst, ...]
    steps_per_second: float
    """Environment steps per second of all lanes together, in this process, on an actor's threads."""
    cpu_seconds_per_step: float
    """CPU time of one environment step: emulator, policy, chunks."""

    @property
    def chunks(self) -> list[Chunk]:
        return [chunk for burst in self.bursts for chunk in burst.chunks]

    @property
    def bytes_per_item(self) -> float:
        """Encoded bytes per transition."""
        return sum(chunk.num_bytes for chunk in self.chunks) / sum(burst.items for burst in self.bursts)


def record_play(config: ExperimentConfig[Any], env_steps: int) -> Recording:
    """Random play of ``config.env`` over about ``env_steps`` steps of all lanes, encoded as actors encode it.

    The policy network is evaluated as an actor evaluates it, and then ignored (epsilon is 1).
    """
    configure_torch(config.actor.inference_threads)
    algorithm = make_algorithm(config, env_spec(config.env))
    env = make_vec(config.env, config.actor.lanes, num_threads=config.actor.env_threads)
    try:
        loop = ActorLoop(
            config=config, env=env, algorithm=algorithm, networks=algorithm.make_networks(), seed=config.seed
        )
        loop.epsilons = np.ones(env.num_lanes)
        bursts: list[Burst] = []
        steps = 0
        warm_steps: int | None = None
        started = cpu_started = 0.0
        while steps < env_steps or len(bursts) < LEAST_BURSTS:
            if warm_steps is None and steps >= WARM_SHARE * env_steps:
                warm_steps, started, cpu_started = steps, time.perf_counter(), time.process_time()
            turn = loop.step()
            steps += turn.env_steps
            items = sum(chunk.num_items for chunk in turn.chunks)
            if items:
                bursts.append(Burst(tuple(turn.chunks), items))
    finally:
        env.close()
    timed = steps - (warm_steps or 0)
    return Recording(
        bursts=tuple(bursts),
        steps_per_second=timed / (time.perf_counter() - started),
        cpu_seconds_per_step=(time.process_time() - cpu_started) / timed,
    )


def from_burst(recording: Recording, first: int) -> Iterator[Burst]:
    """The recording again and again, beginning with burst number ``first``."""
    number = first
    while True:
        yield recording.bursts[number % len(recording.bursts)]
        number += 1
