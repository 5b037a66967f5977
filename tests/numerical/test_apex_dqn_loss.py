"""Ape-X DQN's loss: against a slow reference and against numbers worked out by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from apex_dqn_scene import (
    ATARI,
    make,
    make_batch,
    started,
)
from torch import nn

from apexrl.algorithms.apex_dqn import ApexDQN, OptimizerConfig, Transitions
from apexrl.algorithms.base import LearnerState, WindowBatch
from apexrl.config import LearnerConfig
from apexrl.networks.q_networks import NetworkConfig


def reference_loss(
    algorithm: ApexDQN, state: LearnerState, batch: WindowBatch, *, stack: int = 1
) -> tuple[torch.Tensor, list[float]]:
    """The loss item by item and step by step, straight from the definition."""
    config, context = algorithm._config, stack - 1
    online, target = state.modules["online"], state.modules["target"]

    def stacked(item: int, row: int) -> torch.Tensor:
        frames, age = batch.columns["observation"][item], int(batch.columns["age"][item, row])
        planes = [frames[row - j] if j <= age else torch.zeros_like(frames[0]) for j in reversed(range(stack))]
        return (torch.stack(planes) if frames.ndim == 3 else torch.cat(planes))[None]

    total, errors = torch.zeros(()), []
    for item in range(len(batch.lengths)):
        length = int(batch.lengths[item])
        value, factor = 0.0, 1.0
        for step in range(context, context + length):
            value += factor * float(batch.columns["reward"][item, step])
            factor *= config.discount * float(batch.columns["continuation"][item, step])
        with torch.no_grad():
            bootstrap = target(stacked(item, context + length))[0]
            best = online(stacked(item, context + length))[0].argmax() if config.double else bootstrap.argmax()
        action = int(batch.columns["action"][item, context])
        delta = value + factor * float(bootstrap[best]) - online(stacked(item, context))[0, action]
        small = config.loss == "squared" or float(delta.detach().abs()) <= 1.0
        total = total + batch.weights[item] * (0.5 * delta**2 if small else delta.abs() - 0.5)
        errors.append(abs(float(delta.detach())))
    return total / len(batch.lengths), errors


def perturb(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("double", [True, False])
def test_loss_gradients_and_priorities_equal_the_slow_reference(loss: str, double: bool) -> None:
    algorithm = make(loss=loss, double=double, stack=2, max_grad_norm=1e9)
    state = started(algorithm)
    perturb(state.modules["target"], 1)
    batch = make_batch(stack=2)
    expected, errors = reference_loss(algorithm, state, batch, stack=2)
    reference = torch.autograd.grad(expected, list(state.modules["online"].parameters()))
    output = algorithm.update(state, batch)
    assert output.metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    np.testing.assert_allclose(output.priorities.numpy(), errors, rtol=1e-3, atol=1e-5)
    for parameter, gradient in zip(state.modules["online"].parameters(), reference, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_loss_on_images_equals_the_slow_reference() -> None:
    network = NetworkConfig(conv_filters=(4, 8), hidden_units=(16,))
    algorithm = make(ATARI, stack=4, network=network)
    state = started(algorithm)
    batch = make_batch(ATARI, size=4, stack=4)
    expected, errors = reference_loss(algorithm, state, batch, stack=4)
    output = algorithm.update(state, batch)
    assert output.metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-3)
    np.testing.assert_allclose(output.priorities.numpy(), errors, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("batch_threads", [1, 3])
def test_an_update_of_convolutions_moves_parameters_as_plain_torch_does(batch_threads: int) -> None:
    """Gradients of convolutions come in another memory order than their parameters; fused optimisers do not look."""
    network = NetworkConfig(conv_filters=(4, 8), hidden_units=(16,))
    adam = OptimizerConfig("adam", learning_rate=1e-3, epsilon=1e-2)
    learner = LearnerConfig(batch_size=8, threads=1, batch_threads=batch_threads)
    algorithm = make(ATARI, stack=4, network=network, optimizer=adam, learner=learner, max_grad_norm=1e9)
    state, batch = started(algorithm), make_batch(ATARI, size=8, stack=4)
    plain = copy.deepcopy(state.modules["online"])
    loss, _ = reference_loss(algorithm, state, batch, stack=4)
    gradients = torch.autograd.grad(loss, list(state.modules["online"].parameters()))
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3, betas=(0.9, 0.999), eps=1e-2)
    for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
        parameter.grad = gradient.contiguous()
    optimizer.step()
    algorithm.update(state, batch)
    for updated, expected in zip(state.modules["online"].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(updated, expected, rtol=1e-4, atol=1e-6)


def test_double_and_plain_targets_differ_where_the_networks_disagree() -> None:
    batch, priorities = make_batch(), []
    for double in (True, False):
        algorithm = make(double=double)
        state = started(algorithm)
        perturb(state.modules["target"], 1)
        priorities.append(algorithm.update(state, batch).priorities)
    assert not torch.allclose(*priorities)


class TableQ(nn.Module):
    """Action values that the test sets, one row per observation index."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(values))

    def prepare(self, observations: torch.Tensor) -> torch.Tensor:
        return observations[:, 0].long()

    def values(self, prepared: torch.Tensor) -> torch.Tensor:
        return self.table[prepared]

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.values(self.prepare(observations))


@pytest.mark.parametrize(
    ("double", "target", "epsilon"),
    [(True, 22.36618, 0.0), (False, 32.06917, 0.0), (True, 2.8609166431400386, 1e-3), (True, 2.896289688240031, 1e-2)],
)
def test_reference_targets(double: bool, target: float, epsilon: float) -> None:
    """Five-step episode, first item: R = 2.9602, G = 0.970299."""
    best = 20.0 if epsilon == 0.0 else 2.5
    online, other = TableQ([[0.0, 0.0, 0.0], [1.0, 3.0, 2.0]]), TableQ([[0.0, 0.0, 0.0], [10.0, best, 30.0]])
    transitions = Transitions(
        s_tm1=torch.tensor([[0.0]]),
        a_tm1=torch.tensor([1]),
        returns=torch.tensor([2.9602]),
        bootstrap_discounts=torch.tensor([0.970299]),
        s_t=torch.tensor([[1.0]]),
        weights=torch.tensor([0.5]),
    )
    algorithm = make(double=double, rescaling_epsilon=epsilon)
    output = algorithm.loss(online, other, transitions)  # type: ignore[arg-type]
    assert output.td_errors.item() == pytest.approx(target, rel=1e-5)
    assert output.loss.item() == pytest.approx(0.5 * 0.5 * target**2, rel=1e-5)
    output.loss.backward()
    assert online.table.grad is not None
    expected = torch.tensor([[0.0, -0.5 * target, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(online.table.grad, expected, rtol=1e-4, atol=1e-6)
    assert other.table.grad is None
