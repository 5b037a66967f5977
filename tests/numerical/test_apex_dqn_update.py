"""Ape-X DQN's updates: optimisers, target network, skipping, resuming, devices."""

from __future__ import annotations

import copy

import pytest
import torch
from apex_dqn_scene import (
    ATARI,
    assert_bit_equal,
    make,
    make_batch,
    started,
    tensors,
)

from apexrl.algorithms.apex_dqn import OptimizerConfig
from apexrl.algorithms.base import WindowBatch
from apexrl.config import LearnerConfig
from apexrl.networks.q_networks import NetworkConfig


@pytest.mark.parametrize("kind", ["rmsprop_centered", "rmsprop", "adam"])
def test_updates_reduce_the_loss_on_a_fixed_batch(kind: str) -> None:
    algorithm = make(optimizer=OptimizerConfig(kind=kind, learning_rate=1e-3))  # type: ignore[arg-type]
    state, batch = started(algorithm), make_batch()
    losses = [algorithm.update(state, batch).metrics["loss"].item() for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]


def test_gradient_norm_is_clipped_before_the_step() -> None:
    """Both optimisers see the clipped gradient; the metric shows the norm before clipping."""
    algorithm = make(max_grad_norm=1e-3)
    state = started(algorithm)
    norm = algorithm.update(state, make_batch()).metrics["grad_norm"].item()
    assert norm > 1e-3
    clipped = torch.nn.utils.get_total_norm([p.grad for p in state.modules["online"].parameters()])
    assert clipped.item() == pytest.approx(1e-3, rel=1e-4)


def test_the_target_network_is_copied_every_period() -> None:
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


def test_metrics() -> None:
    algorithm = make(rescaling_epsilon=1e-2)
    state, batch = started(algorithm), make_batch()
    with torch.no_grad():
        q = state.modules["online"](batch.columns["observation"][:, 0])
    output = algorithm.update(state, batch)
    assert output.metrics.keys() >= {"loss", "grad_norm", "nonfinite", "q_mean", "q_max", "td_error_abs_mean"}
    assert all(value.ndim == 0 for value in output.metrics.values())
    assert output.metrics["weight_min"].item() == batch.weights.min().item()
    assert output.metrics["nonfinite"].item() == 0.0
    assert output.metrics["td_error_abs_mean"].item() == pytest.approx(output.priorities.mean().item())
    # Values are logged in real space: near 0, h is about z / 2.
    assert output.metrics["q_max"].item() == pytest.approx(2 * q.max().item(), rel=0.2)


@pytest.mark.parametrize("kind", ["rmsprop_centered", "adam"])
@pytest.mark.parametrize("poison", ["reward", "observation", "weights"])
def test_a_nonfinite_update_is_skipped_to_the_bit(kind: str, poison: str) -> None:
    algorithm = make(optimizer=OptimizerConfig(kind=kind))  # type: ignore[arg-type]
    state = started(algorithm)
    algorithm.update(state, make_batch(seed=1))
    before = tensors(state)
    batch = make_batch(seed=2)
    if poison == "weights":
        batch.weights[3] = float("inf")
    else:
        batch.columns[poison][3, 0] = float("nan")
    output = algorithm.update(state, batch)
    assert output.metrics["nonfinite"].item() == 1.0
    assert_bit_equal(tensors(state), before)
    assert algorithm.update(state, make_batch(seed=3)).metrics["nonfinite"].item() == 0.0
    assert all(value.isfinite().all() for value in tensors(state).values())


def test_init_depends_on_the_seed_alone() -> None:
    algorithm = make()
    torch.manual_seed(1)
    first = started(algorithm, seed=7)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second, third = started(algorithm, seed=7), started(algorithm, seed=8)
    assert_bit_equal(tensors(first), tensors(second))
    assert not torch.equal(*(s.modules["online"].state_dict()["head.hidden.weight"] for s in (first, third)))
    online, target = (first.modules[role].state_dict() for role in ("online", "target"))
    assert all(torch.equal(online[name], target[name]) for name in online)
    assert len(state) == len(torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["rmsprop_centered", "rmsprop", "adam"])
def test_resume_continues_to_the_bit(kind: str) -> None:
    algorithm = make(optimizer=OptimizerConfig(kind=kind), target_update_period=4)  # type: ignore[arg-type]
    whole = started(algorithm)
    for step in range(12):
        algorithm.update(whole, make_batch(seed=step))

    half = started(algorithm)
    for step in range(6):
        algorithm.update(half, make_batch(seed=step))
    saved = copy.deepcopy(
        (
            {role: module.state_dict() for role, module in half.modules.items()},
            {role: optimizer.state_dict() for role, optimizer in half.optimizers.items()},
            half.step,
        )
    )
    resumed = started(algorithm, seed=99)
    for role, module in resumed.modules.items():
        module.load_state_dict(saved[0][role])
    for role, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(saved[1][role])
    resumed.step = saved[2]
    for step in range(6, 12):
        algorithm.update(resumed, make_batch(seed=step))
    assert resumed.step == whole.step == 12
    assert_bit_equal(tensors(resumed), tensors(whole))


def test_update_reads_no_row_outside_the_window() -> None:
    """Rows behind the bootstrap row may hold another episode: changing them changes nothing."""
    algorithm, batch = make(), make_batch(seed=4)
    batch.lengths.fill_(2)
    other = WindowBatch({name: value.clone() for name, value in batch.columns.items()}, *batch[1:])
    other.columns["observation"][:, 3:] = 1e9
    other.columns["reward"][:, 2:] = -1e9
    other.columns["continuation"][:, 2:] = 0
    first, second = (algorithm.update(started(algorithm), b).priorities for b in (batch, other))
    assert torch.equal(first, second)


def test_gpu_section_switches_nothing_on_a_cpu() -> None:
    """bfloat16 is for CUDA; a CPU update is the same to the bit with it."""
    results = []
    for bfloat16 in (False, True):
        algorithm = make(bfloat16=bfloat16)
        state = started(algorithm)
        algorithm.update(state, make_batch())
        results.append(tensors(state))
    assert_bit_equal(*results)


@pytest.mark.slow
def test_compiled_updates_agree_with_eager_ones() -> None:
    batch = make_batch()
    eager = make()
    compiled = make(learner=LearnerConfig(batch_size=16, compile=True))
    states = started(eager), started(compiled)
    for _ in range(3):
        outputs = [algorithm.update(s, batch) for algorithm, s in zip((eager, compiled), states, strict=True)]
    torch.testing.assert_close(outputs[0].priorities, outputs[1].priorities, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors(states[0]), tensors(states[1]), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("kind", ["rmsprop_centered", "adam"])
def test_gpu_updates_agree_with_the_cpu_and_skip_without_a_sync(bfloat16: bool, kind: str) -> None:
    network = NetworkConfig(conv_filters=(16, 32), hidden_units=(64,))
    algorithm = make(
        ATARI,
        stack=4,
        network=network,
        bfloat16=bfloat16,
        optimizer=OptimizerConfig(kind=kind),  # type: ignore[arg-type]
    )
    batch = make_batch(ATARI, stack=4)
    host = started(algorithm)
    device = algorithm.init(algorithm.make_networks().to("cuda"), 0)
    expected = algorithm.update(host, batch)
    on_device = batch.to(torch.device("cuda"))
    algorithm.update(algorithm.init(algorithm.make_networks().to("cuda"), 0), on_device)  # warm up allocations
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = algorithm.update(device, on_device)
        before = tensors(device)
        on_device.weights.fill_(float("nan"))
        skipped = algorithm.update(device, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert output.priorities.dtype == torch.float32
    tolerance = 0.1 if bfloat16 else 1e-3
    torch.testing.assert_close(output.priorities.cpu(), expected.priorities, rtol=tolerance, atol=tolerance)
    assert skipped.metrics["nonfinite"].item() == 1.0
    assert_bit_equal(tensors(device), before)
