"""Updates of Ape-X DPG and D4PG: targets and gradients against slow references, guards, resuming."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from apex_dqn_scene import assert_bit_equal, tensors
from control_scene import KINDS, SPEC, UNITS, make, make_batch, started

from apexrl.algorithms.base import LearnerState, WindowBatch
from apexrl.algorithms.d4pg import (
    D4PG,
    END_MASS_PERIOD_SECONDS,
    CriticConfig,
    D4PGConfig,
    D4PGNetworkConfig,
    EndMassAlarm,
)
from apexrl.algorithms.deterministic_policy import DeterministicPolicyAlgorithm, LossOutput
from apexrl.config import EnvConfig, ExperimentConfig, LearnerConfig
from apexrl.networks.actor_critic import ActorCritic
from apexrl.runtime.learner_snapshot import restore, snapshot

ATOMS = np.linspace(-5.0, 5.0, 11)


def double(state: LearnerState) -> tuple[ActorCritic, ActorCritic]:
    online, target = state.modules["online"].double(), state.modules["target"].double()
    assert isinstance(online, ActorCritic)
    assert isinstance(target, ActorCritic)
    # Targets that are equal to the online networks would hide which of the two is used.
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return online, target


def loss_in_double(
    kind: str, **changes: Any
) -> tuple[DeterministicPolicyAlgorithm, ActorCritic, ActorCritic, Any, Any]:
    algorithm = make(kind, **changes)
    online, target = double(started(algorithm))
    batch = make_batch(dtype=np.float64)
    noise = algorithm._head.noise(16, torch.Generator().manual_seed(4))
    return algorithm, online, target, algorithm.transitions(batch), None if noise is None else noise.double()


# Targets, losses and priorities


def windows_by_hand(batch: WindowBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R, G and the bootstrap observation of every window, step by step."""
    columns = {name: column.numpy() for name, column in batch.columns.items()}
    returns, discounts, last = [], [], []
    for b, length in enumerate(batch.lengths.tolist()):
        total, factor = 0.0, 1.0
        for k in range(length):
            total += factor * columns["reward"][b, k]
            factor *= 0.99 * columns["continuation"][b, k]
        returns.append(total)
        discounts.append(factor)
        last.append(columns["observation"][b, length])
    return np.array(returns), np.array(discounts), np.array(last)


def test_apex_dpg_follows_its_equations() -> None:
    algorithm = make()
    online, target = double(started(algorithm))
    batch = make_batch(dtype=np.float64)
    output = algorithm.loss(online, target, algorithm.transitions(batch), None)
    returns, discounts, last = windows_by_hand(batch)
    with torch.no_grad():
        s_t = torch.from_numpy(last)
        bootstrap = target.critic(s_t, target.policy(s_t))[:, 0].numpy()
        q = online.critic(batch.columns["observation"][:, 0], batch.columns["action"][:, 0])[:, 0].numpy()
    delta = returns + discounts * bootstrap - q
    np.testing.assert_allclose(output.compared.td_errors, delta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(output.compared.priorities, np.abs(delta), rtol=0, atol=1e-12)
    np.testing.assert_allclose(output.critic_loss, batch.weights.numpy() * 0.5 * delta**2, rtol=0, atol=1e-12)
    np.testing.assert_allclose(output.values, q, rtol=0, atol=1e-12)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def test_d4pg_follows_its_equations() -> None:
    algorithm = make("categorical")
    online, target = double(started(algorithm))
    batch = make_batch(dtype=np.float64)
    output = algorithm.loss(online, target, algorithm.transitions(batch), None)
    returns, discounts, last = windows_by_hand(batch)
    with torch.no_grad():
        s_t = torch.from_numpy(last)
        bootstrap = softmax(target.critic(s_t, target.policy(s_t)).numpy())
        p = softmax(online.critic(batch.columns["observation"][:, 0], batch.columns["action"][:, 0]).numpy())
    m = np.zeros_like(bootstrap)
    for b in range(len(m)):
        for j, z in enumerate(ATOMS):
            place = np.clip(returns[b] + discounts[b] * z, -5.0, 5.0) + 5.0
            low = min(int(place), 9)
            m[b, low] += bootstrap[b, j] * (low + 1 - place)
            m[b, low + 1] += bootstrap[b, j] * (place - low)
    divergence = (np.where(m > 0, m * (np.log(np.where(m > 0, m, 1.0)) - np.log(p)), 0.0)).sum(axis=1)
    losses = -(m * np.log(p)).sum(axis=1)
    np.testing.assert_allclose(output.critic_loss, batch.weights.numpy() * losses, rtol=0, atol=1e-11)
    np.testing.assert_allclose(output.compared.priorities, divergence, rtol=0, atol=1e-11)
    np.testing.assert_allclose(output.compared.td_errors, (m - p) @ ATOMS, rtol=0, atol=1e-11)
    np.testing.assert_allclose(output.compared.details["target_end_mass"], m[:, 0] + m[:, -1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(output.values, p @ ATOMS, rtol=0, atol=1e-12)


def test_mixture_losses_estimate_the_cross_entropy() -> None:
    """The mean of -log density over many samples is the integral over the target's density."""
    critic = CriticConfig(kind="mixture", num_components=2, num_samples=4096, min_stddev=0.3)
    algorithm, online, target, transitions, noise = loss_in_double("mixture", critic=critic)
    output = algorithm.loss(online, target, transitions, noise)
    with torch.no_grad():
        bootstrap = target.critic(transitions.s_t, target.policy(transitions.s_t)).numpy()
        q = online.critic(transitions.s_tm1, transitions.a_tm1).numpy()

    def density(outputs: np.ndarray, at: np.ndarray, shift: float = 0.0, factor: float = 1.0) -> np.ndarray:
        weights, means, scales = softmax(outputs[None, :2])[0], outputs[2:4], 0.3 + np.log1p(np.exp(outputs[4:]))
        means, scales = shift + factor * means, np.maximum(factor * scales, 0.3)
        terms = weights * np.exp(-(((at[:, None] - means) / scales) ** 2) / 2) / (scales * np.sqrt(2 * np.pi))
        return np.asarray(terms.sum(axis=1))

    grid = np.linspace(-40.0, 40.0, 20_001)
    for b in range(16):
        truth = density(bootstrap[b], grid, float(transitions.returns[b]), float(transitions.bootstrap_discounts[b]))
        log_density = np.log(np.maximum(density(q[b], grid), 1e-300))
        expected = -np.trapezoid(truth * log_density, grid)
        spread = np.sqrt(np.trapezoid(truth * log_density**2, grid) - expected**2)
        found = output.critic_loss[b].item() / transitions.weights[b].item()
        assert abs(found - expected) < 5 * spread / np.sqrt(4096) + 1e-6
    td_errors = output.compared.td_errors
    np.testing.assert_array_equal(output.compared.priorities, td_errors.abs())


# Gradients


def gradients_of(output: LossOutput, online: ActorCritic) -> dict[str, torch.Tensor]:
    names, parameters = zip(*online.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(output.loss, parameters), strict=True))


@torch.no_grad()
def difference(function: Any, parameter: torch.Tensor, index: tuple[int, ...], step: float = 1e-6) -> float:
    """Central difference quotient of ``function`` along one element of ``parameter``."""
    value = parameter[index].item()
    parameter[index] = value + step
    above = float(function())
    parameter[index] = value - step
    below = float(function())
    parameter[index] = value
    return (above - below) / (2 * step)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    """The critic's parameters descend the weighted loss only, the policy's ascend the value only."""
    algorithm, online, target, transitions, noise = loss_in_double(kind, action_gradient_clip=0.0)
    gradients = gradients_of(algorithm.loss(online, target, transitions, noise), online)

    def critic_loss() -> torch.Tensor:
        return algorithm.loss(online, target, transitions, noise).critic_loss.mean()

    def negative_value() -> torch.Tensor:
        actions = online.policy(transitions.s_tm1)
        return -algorithm._head.mean(online.critic(transitions.s_tm1, actions)).mean()

    rng = np.random.default_rng(0)
    for name, parameter in online.named_parameters():
        function = critic_loss if name.startswith("critic") else negative_value
        for _ in range(4):
            index = tuple(int(rng.integers(size)) for size in parameter.shape)
            expected = difference(function, parameter, index)
            assert gradients[name][index].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), (name, index)


@pytest.mark.parametrize("kind", KINDS)
def test_policy_gradients_are_clipped_action_gradients_through_the_policy(kind: str) -> None:
    """Sum over the batch of J^T clip(u) / B, with u from finite differences of the value in the action."""
    bound = 0.05
    algorithm, online, target, transitions, noise = loss_in_double(kind, action_gradient_clip=bound)
    output = algorithm.loss(online, target, transitions, noise)
    gradients = gradients_of(output, online)
    actions = online.policy(transitions.s_tm1)
    u = torch.zeros_like(actions)
    with torch.no_grad():
        for a in range(actions.shape[1]):
            step = torch.zeros_like(actions)
            step[:, a] = 1e-6
            ends = [
                algorithm._head.mean(online.critic(transitions.s_tm1, actions + sign * step)) for sign in (1.0, -1.0)
            ]
            u[:, a] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(output.action_gradients, u, rtol=1e-5, atol=1e-8)
    assert 0 < (u.abs() > bound).sum() < u.numel(), "some are clipped, some are not"
    policy = dict(online.policy.named_parameters())
    expected = torch.autograd.grad(actions, list(policy.values()), -u.clamp(-bound, bound) / len(actions))
    for name, gradient in zip(policy, expected, strict=True):
        np.testing.assert_allclose(gradients[f"policy.{name}"], gradient, rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_weights_are_the_critics_alone(kind: str) -> None:
    algorithm, online, target, transitions, noise = loss_in_double(kind)
    weighted = gradients_of(algorithm.loss(online, target, transitions, noise), online)
    halved = transitions._replace(weights=transitions.weights / 2)
    half = gradients_of(algorithm.loss(online, target, halved, noise), online)
    for name, gradient in weighted.items():
        factor = 0.5 if name.startswith("critic") else 1.0
        np.testing.assert_allclose(half[name], factor * gradient, rtol=1e-9, atol=1e-15, err_msg=name)


# Updates


@pytest.mark.parametrize("kind", KINDS)
def test_updates_reduce_the_loss_on_a_fixed_batch(kind: str) -> None:
    algorithm = make(kind, critic_learning_rate=3e-3, target_update_period=1000)
    state, batch = started(algorithm), make_batch()
    batch.columns["continuation"][:] = 0  # targets that stay where they are
    outputs = [algorithm.update(state, batch) for _ in range(300)]
    errors = [output.metrics["td_error_abs_mean"].item() for output in outputs]
    assert errors[-1] < 0.5 * errors[0]
    assert outputs[-1].metrics["loss"] < outputs[0].metrics["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_climbs_a_critic_that_stands_still(kind: str) -> None:
    algorithm = make(kind, critic_learning_rate=1e-12, policy_learning_rate=1e-2)
    state, batch = started(algorithm), make_batch()
    values = [algorithm.update(state, batch).metrics["policy_q_mean"].item() for _ in range(60)]
    assert values[-1] > values[0] + 0.01
    assert np.all(np.diff(values) > -1e-3)


def test_both_networks_are_copied_to_their_targets_every_period() -> None:
    algorithm = make(target_update_period=3)
    state, batch = started(algorithm), make_batch()
    initial = {name: value.clone() for name, value in state.modules["target"].state_dict().items()}
    for step in range(1, 7):
        algorithm.update(state, batch)
        assert state.step == step
        target, online = state.modules["target"].state_dict(), state.modules["online"].state_dict()
        assert all(torch.equal(target[name], online[name]) for name in target) == (step % 3 == 0)
        assert all(torch.equal(target[name], initial[name]) for name in target) == (step < 3)
    assert not any(p.requires_grad for p in state.modules["target"].parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_detached_scalars(kind: str) -> None:
    output = (algorithm := make(kind)).update(started(algorithm), make_batch())
    expected = {"loss", "grad_norm", "policy_grad_norm", "nonfinite", "q_mean", "q_max", "policy_q_mean"}
    assert output.metrics.keys() >= expected | {"td_error_abs_mean", "action_gradient_clipped", "weight_min"}
    assert ("target_end_mass" in output.metrics) == (kind == "categorical")
    assert all(value.ndim == 0 and not value.requires_grad for value in output.metrics.values())
    assert output.priorities.shape == (16,)
    assert not output.priorities.requires_grad
    assert output.metrics["nonfinite"].item() == 0.0


def test_each_networks_gradient_is_clipped_by_itself() -> None:
    algorithm = make(max_grad_norm=1e-3)
    state = started(algorithm)
    metrics = algorithm.update(state, make_batch()).metrics
    assert metrics["grad_norm"] > 1e-3
    assert metrics["policy_grad_norm"] > 1e-3
    online = state.modules["online"]
    assert isinstance(online, ActorCritic)
    for module in (online.policy, online.critic):
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        assert norm.item() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", ["reward", "observation", "weights"])
def test_a_nonfinite_update_is_skipped_to_the_bit(kind: str, poison: str) -> None:
    algorithm = make(kind)
    state = started(algorithm)
    algorithm.update(state, make_batch(seed=1))
    before = tensors(state)
    batch = make_batch(seed=2)
    if poison == "weights":
        batch.weights[3] = float("inf")
    else:
        batch.columns[poison][3, 0] = float("nan")
    assert algorithm.update(state, batch).metrics["nonfinite"].item() == 1.0
    assert_bit_equal(tensors(state), before)
    assert algorithm.update(state, make_batch(seed=3)).metrics["nonfinite"].item() == 0.0
    assert all(value.isfinite().all() for value in tensors(state).values())


@pytest.mark.parametrize("kind", KINDS)
def test_init_depends_on_the_seed_alone(kind: str) -> None:
    algorithm = make(kind)
    torch.manual_seed(1)
    first = started(algorithm, seed=7)
    torch.manual_seed(2)
    second, third = started(algorithm, seed=7), started(algorithm, seed=8)
    assert_bit_equal(tensors(first), tensors(second))
    assert not torch.equal(*(s.modules["online"].state_dict()["policy.head.weight"] for s in (first, third)))
    generators = [torch.rand(1, generator=s.generators["critic"]).item() for s in (first, second, third)]
    assert generators[0] == generators[1] != generators[2]


@pytest.mark.parametrize("kind", KINDS)
def test_resume_continues_to_the_bit(kind: str) -> None:
    """What a checkpoint holds is all there is, the generator of the samples included."""
    algorithm = make(kind, target_update_period=4)
    whole, half = started(algorithm), started(algorithm)
    for step in range(12):
        algorithm.update(whole, make_batch(seed=step))
    for step in range(6):
        algorithm.update(half, make_batch(seed=step))
    resumed = started(algorithm, seed=99)
    restore(resumed, snapshot(half, epoch=1))
    for step in range(6, 12):
        algorithm.update(resumed, make_batch(seed=step))
    assert resumed.step == whole.step == 12
    assert_bit_equal(tensors(resumed), tensors(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_share_a_batch_agree_with_one(kind: str) -> None:
    results = []
    for threads in (1, 3):
        algorithm = make(kind, learner=LearnerConfig(batch_size=16, batch_threads=threads))
        state = started(algorithm)
        results.append((algorithm.update(state, make_batch()), tensors(state)))
    (alone, alone_state), (shared, shared_state) = results
    torch.testing.assert_close(shared.priorities, alone.priorities, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared.metrics, alone.metrics, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shared_state, alone_state, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_update_reads_no_row_outside_the_window(kind: str) -> None:
    """Rows behind the bootstrap row may hold another episode: changing them changes nothing."""
    algorithm, batch = make(kind), make_batch(seed=4)
    batch.lengths.fill_(2)
    other = WindowBatch({name: value.clone() for name, value in batch.columns.items()}, *batch[1:])
    other.columns["observation"][:, 3:] = 1e9
    other.columns["action"][:, 1:] = 1e9
    other.columns["reward"][:, 2:] = -1e9
    other.columns["continuation"][:, 2:] = 0
    states = started(algorithm), started(algorithm)
    for state, seen in zip(states, (batch, other), strict=True):
        algorithm.update(state, copy.deepcopy(seen))
    assert_bit_equal(tensors(states[0]), tensors(states[1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_updates_agree_with_eager_ones(kind: str) -> None:
    batch = make_batch()
    eager, compiled = make(kind), make(kind, learner=LearnerConfig(batch_size=16, compile=True))
    states = started(eager), started(compiled)
    for _ in range(3):
        outputs = [algorithm.update(s, batch) for algorithm, s in zip((eager, compiled), states, strict=True)]
    torch.testing.assert_close(outputs[0].priorities, outputs[1].priorities, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tensors(states[0]), tensors(states[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_updates_agree_with_the_cpu_and_skip_without_a_sync(kind: str) -> None:
    algorithm, batch = make(kind), make_batch()
    host = started(algorithm)
    device = algorithm.init(algorithm.make_networks().to("cuda"), 0)
    on_device = batch.to(torch.device("cuda"))
    expected = algorithm.update(host, batch)
    algorithm.update(algorithm.init(algorithm.make_networks().to("cuda"), 0), on_device)  # warm up allocations
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = algorithm.update(device, on_device)
        before = tensors(device)
        on_device.weights.fill_(float("nan"))
        skipped = algorithm.update(device, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(output.priorities.cpu(), expected.priorities, rtol=1e-3, atol=1e-3)
    assert skipped.metrics["nonfinite"].item() == 1.0
    assert_bit_equal(tensors(device), before)


# The alarm


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_mass_at_the_ends_is_warned_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    alarm = EndMassAlarm(-1.0, 2.0, clock)
    with caplog.at_level(logging.WARNING):
        for second in range(150):
            clock.now = float(second)
            alarm.observe(torch.tensor(0.25))
        assert len(caplog.records) == 2, "at 60 and at 120 seconds"
        message = caplog.records[0].getMessage()
        assert "25 % of the targets' mass lies on the end atoms -1 and 2" in message
        caplog.clear()
        clock.now += 2 * END_MASS_PERIOD_SECONDS
        alarm.observe(torch.tensor(0.25))
        clock.now += END_MASS_PERIOD_SECONDS
        alarm.observe(torch.tensor(0.049))
    assert len(caplog.records) == 1, "a mean below 5 % is none"


@pytest.mark.parametrize(("v_max", "warned"), [(0.01, True), (1e4, False)])
def test_d4pg_warns_of_too_narrow_a_support(v_max: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    critic = CriticConfig(v_min=-v_max, v_max=v_max, num_atoms=101)
    section = D4PGConfig(n_steps=3, network=D4PGNetworkConfig(**UNITS), critic=critic)
    algorithm = D4PG(ExperimentConfig(algorithm=section, env=EnvConfig(stack=1)), SPEC, clock=clock)
    state = started(algorithm)
    with caplog.at_level(logging.WARNING):
        first = algorithm.update(state, make_batch())
        clock.now = END_MASS_PERIOD_SECONDS
        algorithm.update(state, make_batch())
    assert (first.metrics["target_end_mass"].item() > 0.05) == warned
    assert bool(caplog.records) == warned
