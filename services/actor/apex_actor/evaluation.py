"""Greedy play on one version of the parameters: the return that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from apex_actor.loop import ActorLoop
from apexrl.algorithms.base import Algorithm
from apexrl.config import ExperimentConfig
from apexrl.env_types import VectorEnv
from apexrl.types import EpisodeReport, ParameterVersion


def evaluate(
    *,
    config: ExperimentConfig[Any],
    env: VectorEnv,
    algorithm: Algorithm,
    networks: nn.Module,
    version: ParameterVersion,
    episodes: int,
    epsilon: float,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[EpisodeReport]:
    """Play ``episodes`` whole episodes; empty if ``stop`` said so before the last one ended.

    Every lane plays its fixed share. Taking the first episodes that end, whichever lane they come from, would favour
    short ones.
    """
    loop = ActorLoop(config=config, env=env, algorithm=algorithm, networks=networks, seed=seed, insert=False)
    loop.version = version
    loop.epsilons = np.full(env.num_lanes, epsilon)
    share = [episodes // env.num_lanes + (lane < episodes % env.num_lanes) for lane in range(env.num_lanes)]
    reports: list[EpisodeReport] = []
    while any(share):
        if stop():
            return []
        for report in loop.step().episodes:
            if share[report.lane] > 0:
                share[report.lane] -= 1
                reports.append(report)
        on_step()
    return reports
