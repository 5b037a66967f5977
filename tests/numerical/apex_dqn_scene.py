"""Small Ape-X DQN learners and batches for the tests beside this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from apexrl.algorithms.apex_dqn import ApexDQN, ApexDQNConfig
from apexrl.algorithms.base import LearnerState, WindowBatch
from apexrl.config import EnvConfig, ExperimentConfig, LearnerConfig, ReplayConfig
from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.networks.q_networks import NetworkConfig

VECTOR = EnvSpec((4,), "float32", DiscreteActions(3))
ATARI = EnvSpec((84, 84), "uint8", DiscreteActions(6), action_repeat=4)
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
