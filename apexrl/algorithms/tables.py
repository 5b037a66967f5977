"""The table of algorithms that learn from n-step transitions."""

from __future__ import annotations

from typing import Any

from apexrl.algorithms.base import TableSpec
from apexrl.config import ExperimentConfig
from apexrl.env_types import EnvSpec
from apexrl.experience.windows import NStepWindows
from apexrl.types import (
    COMPRESSION_THRESHOLD_BYTES_PER_CHUNK,
    ROW_COLUMNS,
    Codec,
    ColumnSpec,
    Geometry,
    InitialPriority,
    RemoverKind,
    Scope,
    SelectorConfig,
    SelectorKind,
    Signature,
    TableConfig,
)


def n_step_table(config: ExperimentConfig[Any], spec: EnvSpec, n_steps: int) -> TableSpec:
    """A table ``replay`` of n-step items, with rows of one frame each, as the ``replay`` section wants it."""
    replay, stack = config.replay, config.env.stack
    geometry = Geometry(context=stack - 1, starts=replay.chunk_starts, tail=n_steps)
    observation = ColumnSpec("observation", spec.observation_dtype, spec.observation_shape)
    if observation.value_bytes * geometry.rows > COMPRESSION_THRESHOLD_BYTES_PER_CHUNK:
        observation = ColumnSpec(observation.name, observation.dtype, observation.shape, codec=Codec.LZ4)
    columns = (
        *(ColumnSpec(name, dtype) for name, dtype in ROW_COLUMNS),
        ColumnSpec("action", spec.actions.dtype, spec.actions.shape),
        observation,
        ColumnSpec("parameter_version", "uint64", scope=Scope.ITEM),
    )
    table = TableConfig(
        name="replay",
        signature=Signature(columns, geometry, stack, spec.padding),
        selector=SelectorConfig(SelectorKind(replay.selector), replay.priority_exponent, replay.uniform_mixture),
        capacity_items=replay.shard_capacity_items,
        budget_bytes=replay.budget_bytes,
        remover=RemoverKind(replay.remover),
        remover_exponent=replay.remover_exponent,
        initial_priority=InitialPriority(replay.initial_priority),
    )
    return TableSpec(table, NStepWindows(n_steps))
