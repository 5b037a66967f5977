"""Exported policies: programs of torch that act as the algorithm does without exploration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apex_cli.export import CARD, describe, example_observations, save_program
from apex_cli.play import Player
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import load_experiment
from apexrl.envs import env_spec
from apexrl.types import ParameterVersion

CONFIG_FILES = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", ["catch_apex_dqn", "pong_small", "pendulum_apex_dpg", "pendulum_d4pg"])
def test_a_program_acts_as_its_algorithm_does(name: str, tmp_path: Path) -> None:
    config = load_experiment(CONFIG_FILES / f"{name}.yaml", algorithm_configs=CONFIGS)
    spec = env_spec(config.env)
    algorithm = make_algorithm(config, spec)
    torch.manual_seed(0)
    networks = algorithm.make_networks()
    player = Player(config, algorithm, networks, ParameterVersion(1, 2), 100, spec.actions)
    card, example, path = describe(player, spec), example_observations(spec, config.env.stack), tmp_path / "policy.pt2"
    save_program(algorithm.greedy_policy(networks), example, card, path)
    assert list(tmp_path.iterdir()) == [path]

    extra = {CARD: ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra[CARD]) == card
    assert card["observations"]["shape"] == list(example.shape[1:])
    rng = np.random.default_rng(0)
    for count in (1, 5):
        shape = (count, *example.shape[1:])
        values = rng.integers(0, 256, shape) if spec.observation_dtype == "uint8" else rng.normal(size=shape)
        observations = torch.from_numpy(values.astype(spec.observation_dtype))
        expected = algorithm.act(networks, observations, {}, np.zeros(count), rng).actions
        actions = program(observations)
        assert f"torch.{card['actions']['dtype']}" == str(actions.dtype)
        np.testing.assert_allclose(actions, expected.astype(np.float64), rtol=0, atol=1e-6)
