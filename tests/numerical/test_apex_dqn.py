"""Ape-X DQN: configuration, tables, acting and initial priorities."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from apex_dqn_scene import (
    ATARI,
    VECTOR,
    make,
    make_batch,
    started,
)
from torch import nn

from apexrl.algorithms import REGISTRY, algorithm_config_class, make_algorithm
from apexrl.algorithms.apex_dqn import ApexDQN, ApexDQNConfig, OptimizerConfig
from apexrl.config import ConfigError, ExperimentConfig
from apexrl.networks.q_networks import NetworkConfig
from apexrl.types import Codec, ItemWindows, Padding, Scope

# Configuration, registry and tables


def test_defaults_are_the_papers() -> None:
    config = ApexDQNConfig()
    assert (config.n_steps, config.discount, config.double, config.network.dueling) == (3, 0.99, True, True)
    assert (config.max_grad_norm, config.target_update_period, config.loss) == (40.0, 2500, "squared")
    assert config.optimizer == OptimizerConfig("rmsprop_centered", 0.00025 / 4, 1.5e-7)


def test_fields_that_change_stored_meaning_are_shared() -> None:
    is_shared = {f.name for f in dataclasses.fields(ApexDQNConfig) if f.metadata.get("shared")}
    assert is_shared == {"name", "n_steps", "discount", "rescaling_epsilon"}
    assert all(f.metadata.get("shared") for f in dataclasses.fields(NetworkConfig))
    assert not any(f.metadata.get("shared") for f in dataclasses.fields(OptimizerConfig))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, r"algorithm\.n_steps is 0, must be in \[1, 256\]"),
        ({"discount": 1.5}, r"algorithm\.discount is 1\.5"),
        ({"rescaling_epsilon": -0.1}, r"algorithm\.rescaling_epsilon is -0\.1"),
        ({"loss": "l1"}, r"algorithm\.loss is 'l1', must be squared or huber"),
        ({"max_grad_norm": 0.0}, r"algorithm\.max_grad_norm is 0\.0"),
        ({"target_update_period": 0}, r"algorithm\.target_update_period is 0"),
        ({"name": "dqn"}, r"algorithm\.name is 'dqn'"),
    ],
)
def test_impossible_sections_are_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ApexDQNConfig(**change)


@pytest.mark.parametrize(
    "change", [{"kind": "sgd"}, {"learning_rate": 0.0}, {"epsilon": 0.0}, {"decay": 1.0}, {"decay": -0.1}]
)
def test_impossible_optimizers_are_refused_by_field(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.optimizer\.{next(iter(change))} is"):
        OptimizerConfig(**change)


def test_registry_knows_the_algorithm_and_names_the_nearest() -> None:
    assert algorithm_config_class("apex_dqn") is ApexDQNConfig
    config = ExperimentConfig(algorithm=ApexDQNConfig())
    assert isinstance(make_algorithm(config, VECTOR), ApexDQN)
    assert all(factory.Config().name == name for name, factory in REGISTRY.items())
    with pytest.raises(ConfigError, match=r"algorithm\.name is 'apexdqn', .* did you mean 'apex_dqn'"):
        algorithm_config_class("apexdqn")


def test_table_of_an_image_environment() -> None:
    (table,) = make(dataclasses.replace(ATARI, padding=Padding.REPEAT_FIRST), stack=4).tables()
    signature = table.config.signature
    assert (signature.geometry.context, signature.geometry.starts, signature.geometry.tail) == (3, 8, 3)
    assert (signature.stack, signature.padding) == (4, Padding.REPEAT_FIRST)
    assert [column.name for column in signature.columns] == [
        "kind",
        "age",
        "reward",
        "continuation",
        "action",
        "observation",
        "parameter_version",
    ]
    assert signature.column("observation").codec is Codec.LZ4
    assert signature.column("action").dtype == "int32"
    assert signature.column("parameter_version").scope is Scope.ITEM
    assert table.windows.tail == 3
    assert table.batch_share == 1.0


def test_small_observations_are_not_compressed() -> None:
    (table,) = make().tables()
    assert table.config.signature.column("observation").codec is Codec.RAW


# Acting


class FixedQ(nn.Module):
    """Gives the observation itself as action values."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return observations[:, :3]


def test_act_is_epsilon_greedy_and_keeps_scratch() -> None:
    observations = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).repeat(3000, 1)
    epsilons = np.full(3000, 0.3)
    output = make().act(FixedQ(), observations, {}, epsilons, np.random.default_rng(0))
    counts = np.bincount(output.actions, minlength=3) / 3000
    np.testing.assert_allclose(counts, [0.1, 0.8, 0.1], atol=0.03)
    assert output.actions.dtype == np.int64
    np.testing.assert_array_equal(output.scratch["q_max"], np.full(3000, 3.0, np.float32))
    np.testing.assert_array_equal(output.scratch["q_action"], np.float32([1, 3, 2])[output.actions])
    assert {values.dtype for values in output.scratch.values()} == {np.dtype(np.float32)}
    assert (output.step_columns, output.item_columns, output.core_state) == ({}, {}, {})


def test_act_repeats_with_the_generator() -> None:
    algorithm, observations = make(), torch.randn(64, 4)
    networks = algorithm.make_networks()
    epsilons = np.full(64, 0.5)
    first, second = (
        algorithm.act(networks, observations, {}, epsilons, np.random.default_rng(5)).actions for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


# Initial priorities


def item_windows() -> ItemWindows:
    """Three windows of the five-step episode: a full one, one across a termination, a short one."""
    q_action = np.zeros((3, 4), np.float32)
    q_action[:, 0] = [0.5, 1.5, -2.0]
    q_max = np.full((3, 4), 1e6, np.float32)
    q_max[0, 3], q_max[1, 3], q_max[2, 1] = 2.5, 7.0, 4.0
    return ItemWindows(
        rewards=np.array([[1, 0, 2], [2, -1, 5], [5, 0, 0]], np.float32),
        continuations=np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32),
        lengths=np.array([3, 3, 1]),
        scratch={"q_action": q_action, "q_max": q_max},
    )


def test_initial_priorities() -> None:
    priorities = make().initial_priorities(item_windows())
    expected = [abs(2.9602 + 0.970299 * 2.5 - 0.5), abs(5.9105 - 1.5), abs(5.0 + 0.99 * 4.0 + 2.0)]
    np.testing.assert_allclose(priorities, expected, rtol=1e-6)
    assert priorities.dtype == np.float32


@pytest.mark.parametrize(("epsilon", "target"), [(1e-3, 2.8609166431400386), (1e-2, 2.896289688240031)])
def test_initial_priorities_with_rescaling(epsilon: float, target: float) -> None:
    priorities = make(rescaling_epsilon=epsilon).initial_priorities(item_windows())
    assert priorities[0] == pytest.approx(abs(target - 0.5), rel=1e-5)


def test_actor_and_learner_agree_on_fresh_priorities() -> None:
    """With one network in all roles, plain targets, and the same window, |delta| is the same number on both sides."""
    algorithm = make(double=False)
    state = started(algorithm)
    batch = make_batch(size=12)
    with torch.no_grad():
        q = state.modules["online"](batch.columns["observation"].flatten(0, 1)).reshape(12, 4, 3).numpy()
    actions = batch.columns["action"].long().numpy()
    windows = ItemWindows(
        rewards=batch.columns["reward"][:, :3].numpy(),
        continuations=batch.columns["continuation"][:, :3].float().numpy(),
        lengths=batch.lengths.numpy(),
        scratch={"q_action": np.take_along_axis(q, actions[..., None], 2)[..., 0], "q_max": q.max(axis=2)},
    )
    ours = algorithm.update(state, batch).priorities.numpy()
    np.testing.assert_allclose(algorithm.initial_priorities(windows), ours, rtol=1e-4, atol=1e-6)
