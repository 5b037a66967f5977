"""Ape-X DPG and D4PG: configuration, networks, tables, acting, initial priorities."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from control_scene import KINDS, make, make_batch, started

from apexrl.algorithms import make_algorithm
from apexrl.algorithms.apex_dpg import ApexDPGConfig
from apexrl.algorithms.d4pg import CriticConfig, D4PGConfig, D4PGNetworkConfig
from apexrl.config import ConfigError, ExperimentConfig, ReplayConfig
from apexrl.env_types import ContinuousActions, DiscreteActions, EnvSpec
from apexrl.networks.actor_critic import ActorCritic, ActorCriticConfig, TanhDense
from apexrl.types import ItemWindows, Scope

# Configuration


def test_defaults_are_the_papers() -> None:
    for config in (ApexDPGConfig(), D4PGConfig()):
        assert (config.n_steps, config.discount, config.target_update_period) == (5, 0.99, 100)
        assert (config.policy_learning_rate, config.critic_learning_rate) == (1e-4, 1e-4)
        assert (config.action_gradient_clip, config.max_grad_norm) == (1.0, 40.0)
        assert (config.network.policy_units, config.network.critic_units) == ((300, 200), (400, 300))
    assert not ApexDPGConfig().network.layer_norm
    assert D4PGConfig().network.layer_norm
    critic = D4PGConfig().critic
    assert (critic.kind, critic.num_atoms, critic.v_min, critic.v_max) == ("categorical", 51, -150.0, 150.0)
    assert critic.num_components == 5


def shared_fields(kind: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(kind) if f.metadata.get("shared")}


def test_fields_that_change_stored_meaning_are_shared() -> None:
    assert shared_fields(ApexDPGConfig) == shared_fields(D4PGConfig) == {"name", "n_steps", "discount"}
    for network in (ActorCriticConfig, D4PGNetworkConfig):
        assert shared_fields(network) == {"policy_units", "critic_units", "layer_norm"}
    assert shared_fields(CriticConfig) == {f.name for f in dataclasses.fields(CriticConfig)} - {"num_samples"}


@pytest.mark.parametrize("section", [ApexDPGConfig, D4PGConfig])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, r"algorithm\.n_steps is 0, must be in \[1, 256\]"),
        ({"discount": 1.5}, r"algorithm\.discount is 1\.5"),
        ({"policy_learning_rate": 0.0}, r"algorithm\.policy_learning_rate is 0\.0, must be above 0"),
        ({"critic_learning_rate": -1.0}, r"algorithm\.critic_learning_rate is -1\.0"),
        ({"adam_epsilon": 0.0}, r"algorithm\.adam_epsilon is 0\.0"),
        ({"max_grad_norm": 0.0}, r"algorithm\.max_grad_norm is 0\.0"),
        ({"action_gradient_clip": -1.0}, r"algorithm\.action_gradient_clip is -1\.0, must be 0 \(no clipping\)"),
        ({"target_update_period": 0}, r"algorithm\.target_update_period is 0"),
        ({"name": "ddpg"}, r"algorithm\.name is 'ddpg'"),
    ],
)
def test_impossible_sections_are_refused_by_field(section: type[Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "quantile"}, r"critic\.kind is 'quantile', must be categorical or mixture"),
        ({"num_atoms": 1}, r"critic\.num_atoms is 1"),
        ({"v_min": 3.0, "v_max": 3.0}, r"critic\.v_max is 3\.0, must be above algorithm\.critic\.v_min = 3\.0"),
        ({"num_components": 0}, r"critic\.num_components is 0"),
        ({"min_stddev": 0.0}, r"critic\.min_stddev is 0\.0"),
        ({"num_samples": 0}, r"critic\.num_samples is 0"),
    ],
)
def test_impossible_critics_are_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CriticConfig(**change)


@pytest.mark.parametrize("field", ["policy_units", "critic_units"])
@pytest.mark.parametrize("sizes", [(), (0,), (20_000,)])
def test_impossible_networks_are_refused_by_field(field: str, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"algorithm\.network\.{field} is"):
        ActorCriticConfig(**{field: sizes})


@pytest.mark.parametrize("section", [ApexDPGConfig(), D4PGConfig()])
def test_environments_that_do_not_fit_are_refused(section: Any) -> None:
    config = ExperimentConfig(algorithm=section)
    with pytest.raises(ConfigError, match=f"'{section.name}', which needs continuous actions"):
        make_algorithm(config, EnvSpec((4,), "float32", DiscreteActions(3)))
    with pytest.raises(ConfigError, match=f"'{section.name}', which needs observations that are vectors"):
        make_algorithm(config, EnvSpec((3, 84, 84), "uint8", ContinuousActions(2)))


# Networks


@pytest.mark.parametrize("layer_norm", [False, True])
def test_networks_are_what_the_papers_say(layer_norm: bool) -> None:
    """Policy: 300, (LayerNorm) tanh, 200, ELU, tanh. Critic of [s; a]: 400, (LayerNorm) tanh, 300, ELU, outputs."""
    networks = ActorCritic(ActorCriticConfig(layer_norm=layer_norm), 4, 2, 7)
    s, a = torch.randn(5, 4), torch.rand(5, 2) * 2 - 1

    def slow(dense: TanhDense, head: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        weights = {name: value.numpy() for name, value in dense.state_dict().items()}
        x = x @ weights["first.weight"].T + weights["first.bias"]
        if layer_norm:
            x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
            x = x * weights["norm.weight"] + weights["norm.bias"]
        x = np.tanh(x) @ weights["layers.0.weight"].T + weights["layers.0.bias"]
        x = np.where(x > 0, x, np.expm1(x))
        return x @ head.weight.detach().numpy().T + head.bias.detach().numpy()

    with torch.no_grad():
        policy = np.tanh(slow(networks.policy.dense, networks.policy.head, s.numpy()))
        np.testing.assert_allclose(networks(s), policy, rtol=0, atol=1e-5)
        critic = slow(networks.critic.dense, networks.critic.head, np.concatenate([s, a], axis=1))
        np.testing.assert_allclose(networks.critic(s, a), critic, rtol=0, atol=1e-5)
    sizes = [tuple(p.shape) for name, p in networks.named_parameters() if name.endswith("weight") and p.ndim == 2]
    assert sizes == [(300, 4), (200, 300), (2, 200), (400, 6), (300, 400), (7, 300)]


def test_first_actions_are_near_the_middle() -> None:
    torch.manual_seed(0)
    networks = ActorCritic(ActorCriticConfig(), 4, 2, 1)
    with torch.no_grad():
        actions = networks.policy(torch.randn(1000, 4) * 3.0)
    assert actions.abs().max() < 0.1
    assert actions.std() > 0.0


# Tables


def test_table_holds_action_vectors_and_passes_the_replay_section_on() -> None:
    replay = ReplayConfig(chunk_starts=1, selector="uniform", remover="prioritized", remover_exponent=-0.7)
    (table,) = make(replay=replay, stack=2).tables()
    signature = table.config.signature
    assert (signature.geometry.context, signature.geometry.starts, signature.geometry.tail) == (1, 1, 3)
    action = signature.column("action")
    assert (action.dtype, action.shape) == ("float32", (2,))
    assert signature.column("parameter_version").scope is Scope.ITEM
    assert (table.config.selector.kind, table.config.remover) == ("uniform", "prioritized")
    assert table.config.remover_exponent == -0.7
    assert (table.windows.tail, table.batch_share) == (3, 1.0)


# Acting


@pytest.mark.parametrize("kind", KINDS)
def test_act_adds_noise_of_each_lanes_strength_and_keeps_what_the_critic_says(kind: str) -> None:
    algorithm = make(kind)
    networks = algorithm.make_networks()
    observations = torch.randn(6, 4)
    epsilons = np.array([0.0, 0.0, 0.1, 0.3, 0.3, 1.0])
    output = algorithm.act(networks, observations, {}, epsilons, np.random.default_rng(0))
    with torch.no_grad():
        means = networks.policy(observations)
        taken = networks.critic(observations, torch.from_numpy(output.actions))
        best = networks.critic(observations, means)
    assert output.actions.dtype == np.float32
    assert np.abs(output.actions).max() <= 1.0
    np.testing.assert_array_equal(output.actions[:2], means[:2])
    assert np.all(output.actions[2:] != means[2:].numpy())
    np.testing.assert_allclose(output.scratch["critic_taken"], taken, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.scratch["critic_policy"], best, rtol=1e-5, atol=1e-6)
    assert (output.step_columns, output.item_columns, output.core_state) == ({}, {}, {})
    again = algorithm.act(networks, observations, {}, epsilons, np.random.default_rng(0))
    np.testing.assert_array_equal(again.actions, output.actions)


@pytest.mark.parametrize(
    ("replay", "estimates"),
    [
        (ReplayConfig(), True),
        (ReplayConfig(selector="rank_based"), True),
        (ReplayConfig(selector="uniform"), False),
        (ReplayConfig(selector="uniform", remover="prioritized"), True),
        (ReplayConfig(initial_priority="max"), False),
    ],
)
def test_actors_evaluate_the_critic_only_where_somebody_reads_priorities(replay: ReplayConfig, estimates: bool) -> None:
    algorithm = make(replay=replay)
    networks = algorithm.make_networks()
    output = algorithm.act(networks, torch.zeros(3, 4), {}, np.zeros(3), np.random.default_rng(0))
    assert (output.scratch != {}) == estimates
    if not estimates:
        windows = ItemWindows(np.ones((3, 3), np.float32), np.ones((3, 3), np.float32), np.array([3, 2, 1]), {})
        np.testing.assert_array_equal(algorithm.initial_priorities(windows), np.ones(3, np.float32))


# Initial priorities


def item_windows() -> ItemWindows:
    """Three windows of a five-step episode: a full one, one across a termination, a short one before a truncation."""
    taken = np.zeros((3, 4, 1), np.float32)
    taken[:, 0, 0] = [0.5, 1.5, -2.0]
    policy = np.full((3, 4, 1), 1e6, np.float32)
    policy[0, 3], policy[1, 3], policy[2, 1] = 2.5, 7.0, 4.0
    return ItemWindows(
        rewards=np.array([[1, 0, 2], [2, -1, 5], [5, 0, 0]], np.float32),
        continuations=np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32),
        lengths=np.array([3, 3, 1]),
        scratch={"critic_taken": taken, "critic_policy": policy},
    )


def test_initial_priorities_bootstrap_from_truncations_and_not_from_terminations() -> None:
    priorities = make().initial_priorities(item_windows())
    expected = [abs(2.9602 + 0.970299 * 2.5 - 0.5), abs(5.9105 - 1.5), abs(5.0 + 0.99 * 4.0 + 2.0)]
    np.testing.assert_allclose(priorities, expected, rtol=1e-6)
    assert priorities.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_actor_and_learner_agree_on_fresh_priorities(kind: str) -> None:
    """With one network in all roles and the same window, the priority is the same number on both sides."""
    algorithm = make(kind)
    state = started(algorithm)
    batch = make_batch(size=12)
    networks = state.modules["online"]
    assert isinstance(networks, ActorCritic)
    rows, actions = batch.columns["observation"].flatten(0, 1), batch.columns["action"].flatten(0, 1)
    with torch.no_grad():
        taken = networks.critic(rows, actions).reshape(12, 4, -1).numpy()
        policy = networks.critic(rows, networks.policy(rows)).reshape(12, 4, -1).numpy()
    windows = ItemWindows(
        rewards=batch.columns["reward"][:, :3].numpy(),
        continuations=batch.columns["continuation"][:, :3].float().numpy(),
        lengths=batch.lengths.numpy(),
        scratch={"critic_taken": taken, "critic_policy": policy},
    )
    ours = algorithm.update(state, batch).priorities.numpy()
    np.testing.assert_allclose(algorithm.initial_priorities(windows), ours, rtol=1e-4, atol=1e-5)
    assert ours.min() >= 0.0
