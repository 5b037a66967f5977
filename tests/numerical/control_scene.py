"""Small learners with deterministic policies, and batches for them, for the tests beside this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from apexrl.algorithms.apex_dpg import ApexDPG, ApexDPGConfig
from apexrl.algorithms.base import LearnerState, WindowBatch
from apexrl.algorithms.d4pg import D4PG, CriticConfig, D4PGConfig, D4PGNetworkConfig
from apexrl.algorithms.deterministic_policy import DeterministicPolicyAlgorithm
from apexrl.config import EnvConfig, ExperimentConfig, LearnerConfig, ReplayConfig
from apexrl.env_types import ContinuousActions, EnvSpec
from apexrl.networks.actor_critic import ActorCriticConfig

SPEC = EnvSpec((4,), "float32", ContinuousActions(2))
UNITS: dict[str, Any] = {"policy_units": (12, 8), "critic_units": (16, 12)}

#: What the tests of both algorithms run over: Ape-X DPG, and D4PG with either critic.
KINDS = ("apex_dpg", "categorical", "mixture")


def make(
    kind: str = "apex_dpg",
    spec: EnvSpec = SPEC,
    *,
    stack: int = 1,
    learner: LearnerConfig | None = None,
    replay: ReplayConfig | None = None,
    **changes: Any,
) -> DeterministicPolicyAlgorithm:
    sections: dict[str, Any] = {
        "env": EnvConfig(stack=stack),
        "replay": replay or ReplayConfig(chunk_starts=8),
        "learner": learner or LearnerConfig(batch_size=16),
    }
    if kind == "apex_dpg":
        config = ApexDPGConfig(**{"n_steps": 3, "network": ActorCriticConfig(**UNITS), **changes})
        return ApexDPG(ExperimentConfig(algorithm=config, **sections), spec)
    critic = CriticConfig(kind=kind, num_atoms=11, v_min=-5.0, v_max=5.0)  # type: ignore[arg-type]
    defaults = {"n_steps": 3, "network": D4PGNetworkConfig(**UNITS), "critic": critic}
    return D4PG(ExperimentConfig(algorithm=D4PGConfig(**{**defaults, **changes}), **sections), spec)


def started(algorithm: DeterministicPolicyAlgorithm, seed: int = 0) -> LearnerState:
    return algorithm.init(algorithm.make_networks(), seed)


def make_batch(
    spec: EnvSpec = SPEC,
    *,
    size: int = 16,
    stack: int = 1,
    n_steps: int = 3,
    seed: int = 0,
    dtype: type[np.floating[Any]] = np.float32,
) -> WindowBatch:
    rng = np.random.default_rng(seed)
    rows = stack + n_steps
    columns = {
        "kind": np.ones((size, rows), np.uint8),
        "age": np.arange(rows, dtype=np.uint16) + rng.integers(0, 3, (size, 1), dtype=np.uint16),
        "reward": rng.standard_normal((size, rows)).astype(dtype),
        "continuation": (rng.random((size, rows)) < 0.8).astype(np.uint8),
        "action": rng.uniform(-1.0, 1.0, (size, rows, *spec.actions.shape)).astype(dtype),
        "observation": rng.standard_normal((size, rows, *spec.observation_shape)).astype(dtype),
    }
    return WindowBatch(
        columns={name: torch.from_numpy(values) for name, values in columns.items()},
        item_columns={},
        lengths=torch.from_numpy(rng.integers(1, n_steps + 1, size)),
        prefixes=torch.zeros(size, dtype=torch.int64),
        weights=torch.from_numpy(rng.uniform(0.2, 1.0, size).astype(dtype)),
    )
