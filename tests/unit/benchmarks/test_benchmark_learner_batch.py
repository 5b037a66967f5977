"""The synthetic batch of the plain torch loop is one that an update accepts as it would a real one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_learner.process import make_state
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import load_experiment
from apexrl.envs import env_spec
from benchmarks.learner_update import synthetic_batch
from benchmarks.machine import ROOT


@pytest.mark.parametrize("name", ["catch_apex_dqn", "pong_small", "pendulum_apex_dpg", "pendulum_d4pg"])
def test_an_update_learns_from_the_synthetic_batch(name: str) -> None:
    torch.set_num_threads(1)
    config = load_experiment(ROOT / "configs" / f"{name}.yaml", algorithm_configs=CONFIGS)
    spec = env_spec(config.env)
    algorithm = make_algorithm(config, spec)
    (table,) = algorithm.tables()
    batch = synthetic_batch(table.config, spec, batch_size=8).as_window_batch()
    assert (batch.lengths == config.algorithm.n_steps).all()
    assert len(np.unique(batch.columns["observation"].numpy())) > 2
    state = make_state(config, algorithm, torch.device("cpu"))
    output = algorithm.update(state, batch)
    assert output.priorities.shape == (8,)
    assert output.priorities.isfinite().all()
    assert float(output.metrics["nonfinite"]) == 0.0
    assert float(output.metrics["grad_norm"]) > 0.0
