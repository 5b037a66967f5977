"""Ape-X DQN: tables, acting, priorities, updates, skipping and resuming."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apexrl.algorithms import REGISTRY, algorithm_config_class, make_algorithm
from apexrl.algorithms.apex_dqn import ApexDQN, ApexDQNConfig, OptimizerConfig, Transitions
from apexrl.algorithms.base import LearnerState, WindowBatch
from apexrl.config import ConfigError, EnvConfig, ExperimentConfig, LearnerConfig, ReplayConfig
from apexrl.networks.q_networks import NetworkConfig
from apexrl.types import Codec, EnvSpec, ItemWindows, Padding, Scope

VECTOR = EnvSpec((4,), "float32", 3)
ATARI = EnvSpec((84, 84), "uint8", 6, action_repeat=4)
NETWORK = NetworkConfig(hidden_units=(16, 16))


def make(spec: EnvSpec = VECTOR, *, stack: int = 1, learner: LearnerConfig | None = None, **changes: Any) -> ApexDQN:
    section = ApexDQNConfig(**{"network": NETWORK, **changes})
    config = ExperimentConfig(
        algorithm=section,
        env=EnvConfig(stack=stack),
        replay=ReplayConfig(chunk_starts=8),
        learner=learner or LearnerConfig(batch_size=16),
    )
    return ApexDQN(config, spec)


def started(algorithm: ApexDQN, seed: int = 0) -> LearnerState:
    return algorithm.init(algorithm.make_networks(), seed)


def make_batch(
    spec: EnvSpec = VECTOR, *, size: int = 16, stack: int = 1, n_steps: int = 3, seed: int = 0
) -> WindowBatch:
    rng = np.random.default_rng(seed)
    rows = stack + n_steps
    if spec.observation_dtype == "uint8":
        frames = rng.integers(0, 256, (size, rows, *spec.observation_shape), dtype=np.uint8)
    else:
        frames = rng.standard_normal((size, rows, *spec.observation_shape)).astype(np.float32)
    columns = {
        "kind": np.ones((size, rows), np.uint8),
        "age": np.tile(np.arange(rows, dtype=np.uint16) + rng.integers(0, 3, (size, 1), dtype=np.uint16), 1),
        "reward": rng.standard_normal((size, rows)).astype(np.float32),
        "continuation": (rng.random((size, rows)) < 0.8).astype(np.uint8),
        "action": rng.integers(0, spec.num_actions, (size, rows), dtype=np.int32),
        "observation": frames,
    }
    return WindowBatch(
        columns={name: torch.from_numpy(values) for name, values in columns.items()},
        item_columns={},
        lengths=torch.from_numpy(rng.integers(1, n_steps + 1, size)),
        prefixes=torch.zeros(size, dtype=torch.int64),
        weights=torch.from_numpy(rng.uniform(0.2, 1.0, size).astype(np.float32)),
    )


def tensors(state: LearnerState) -> dict[str, torch.Tensor]:
    """Every tensor of a learner state, cloned."""
    found = {
        f"{role}.{name}": value.clone()
        for role, module in state.modules.items()
        for name, value in module.state_dict().items()
    }
    for role, optimizer in state.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            found |= {f"{role}.{index}.{name}": torch.as_tensor(value).clone() for name, value in entries.items()}
    return found


def assert_bit_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


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


# Updates


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
