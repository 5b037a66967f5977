"""The system learns: CartPole to a modest score in half a minute of serial mode. `make learning` has the real gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apex_cli.serial import SerialSystem
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment

CARTPOLE = Path(__file__).parents[2] / "configs" / "cartpole_apex_dqn.yaml"
#: Updates from early on and as many as ticks: learning within seconds, not within a sample budget.
QUICK = (
    "--algorithm.network.hidden-units", "64", "64",
    "--algorithm.optimizer.learning-rate", "1e-3",
    "--algorithm.target-update-period", "100",
    "--replay.samples-per-insert", "0",
    "--replay.min-items", "500",
    "--actor.exploration.anneal-frames", "3000",
    "--actor.parameter-update-period-frames", "8",
)  # fmt: skip
RANDOM_RETURN = 22.0


def test_cartpole_reaches_a_modest_score() -> None:
    system = SerialSystem(load_experiment(CARTPOLE, QUICK, algorithm_configs=CONFIGS), "ab" * 16)
    before = np.mean(system.evaluate(10))
    for _ in range(1750):
        system.tick()
    after = np.mean(system.evaluate(10))
    assert before < 4 * RANDOM_RETURN
    assert after > 4 * RANDOM_RETURN
