"""``apex inspect``: the resolved configuration, the memory it needs, the state of a live shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from apex_cli.view import aligned, shard_heading, shard_rows
from apex_learner.assembler import MAX_HELD
from apex_learner.batches import MAX_DEPTH, mirror_slots
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ConfigError, ExperimentConfig, SecurityConfig, config_digest, dump_yaml, load_experiment
from apexrl.envs import env_spec
from apexrl.experience.records import RecordLayout
from apexrl.transport import security
from apexrl.transport.info_client import UnreachableError, fetch_info
from apexrl.transport.security import Security
from apexrl.types import RemoverKind, TableConfig

#: What an encoded row of an image column was measured to take, of its raw size (84 x 84 Atari frames, chunks of 32).
ENCODED_SHARE = 148 / 7056


@dataclass(frozen=True)
class ConfigArguments:
    """Print the resolved configuration: defaults, file, command line."""

    config: Annotated[Path, tyro.conf.Positional]
    """YAML file of the experiment."""


@dataclass(frozen=True)
class MemoryArguments:
    """Print the memory that replay, mirror and batches of an experiment will need."""

    config: Annotated[Path, tyro.conf.Positional]
    """YAML file of the experiment."""


@dataclass(frozen=True)
class ReplayArguments:
    """Print the state of a live replay shard."""

    address: Annotated[str, tyro.conf.Positional]
    """HOST:PORT of the shard."""
    top: int = 0
    """Also list this many items of highest priority per table."""
    timeout_seconds: float = 5.0
    """Longest wait for an answer."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """As in the configuration of the shard."""


def inspect_config(arguments: ConfigArguments, overrides: Sequence[str]) -> int:
    """``apex inspect config``."""
    config = load_experiment(arguments.config, overrides, algorithm_configs=CONFIGS, prog="apex inspect config CONFIG")
    print(dump_yaml(config), end="")
    print(f"# digest of the shared fields: {config_digest(config)}")
    return 0


def inspect_memory(arguments: MemoryArguments, overrides: Sequence[str]) -> int:
    """``apex inspect memory``."""
    config = load_experiment(arguments.config, overrides, algorithm_configs=CONFIGS, prog="apex inspect memory CONFIG")
    for name, size, remark in memory_table(config):
        print(f"{name:<34}{size / 2**30:9.3f} GiB   {remark}")
    return 0


def memory_table(config: ExperimentConfig[Any]) -> list[tuple[str, float, str]]:
    """(what, bytes, how it comes about) of every large piece of memory of an experiment."""
    algorithm = make_algorithm(config, env_spec(config.env))
    rows: list[tuple[str, float, str]] = []
    for spec in algorithm.tables():
        table = spec.config
        geometry = table.signature.geometry
        shards = len(config.replay.addresses)
        pages = shards * table.num_pages
        slots = mirror_slots(table, shards, config.learner.batch_size, config.learner.mirror_bytes) * shards or pages
        rows += [
            (
                f"replay: chunks of {table.name!r}, each shard",
                min(encoded_bytes(table), table.budget_bytes),
                f"{table.capacity_items:,} items in chunks of {geometry.starts}; estimated, at most "
                f"{table.budget_bytes / 2**30:.2f} GiB",
            ),
            (
                f"replay: index of {table.name!r}, each shard",
                index_bytes(table),
                f"{table.num_pages:,} pages, one leaf per start row",
            ),
            (
                f"learner: mirror of {table.name!r}",
                slots * RecordLayout(table.signature).page_bytes,
                f"{slots:,} of {pages:,} pages of {geometry.rows} rows, decoded",
            ),
            (
                "learner: ring of batches",
                (MAX_DEPTH + MAX_HELD) * batch_bytes(table, config.learner.batch_size),
                f"up to {MAX_DEPTH} batches of {config.learner.batch_size} windows of {geometry.window} rows",
            ),
        ]
    networks = algorithm.make_networks()
    parameters = sum(parameter.numel() for parameter in networks.parameters())
    rows.append(("learner: networks and optimizer", parameters * 4 * 4, f"{parameters:,} parameters, four copies"))
    rows.append(("actor: networks, each", parameters * 4, "one copy for all lanes"))
    return rows


def encoded_bytes(table: TableConfig) -> float:
    """Estimated bytes of a full table at rest."""
    signature = table.signature
    geometry = signature.geometry
    per_chunk = 0.0
    for column in signature.columns:
        raw = signature.block_bytes(column, geometry.rows, geometry.starts)
        per_chunk += raw * (ENCODED_SHARE if column.codec.value == "lz4" else 1.0)
    # Where pages leave in any order, a quarter of the slabs is dead and waits to be compacted.
    dead = 1.0 if table.remover is RemoverKind.FIFO else 4 / 3
    return per_chunk * table.pages_in_use * dead


def index_bytes(table: TableConfig) -> float:
    """Bytes of the sum tree and of the per-item arrays of a table."""
    leaves = table.num_pages * table.signature.geometry.starts
    trees = 1 if table.remover is RemoverKind.FIFO else 2
    tree = trees * 2 * 8 * (1 << (leaves - 1).bit_length())
    return tree + leaves * (2 + 2 + 4)


def batch_bytes(table: TableConfig, batch_size: int) -> int:
    """Bytes of one batch of windows."""
    layout = RecordLayout(table.signature)
    return batch_size * (table.signature.geometry.window * layout.step.num_bytes + layout.item.num_bytes)


def inspect_replay(arguments: ReplayArguments) -> int:
    """``apex inspect replay``."""
    if not 0 <= arguments.top <= 1000:
        raise ConfigError(f"--top is {arguments.top}, must be in [0, 1000]")
    security.use(Security.load(arguments.security))
    try:
        info = fetch_info(arguments.address, timeout_seconds=arguments.timeout_seconds, top=arguments.top)
    except UnreachableError as error:
        print(f"apex inspect replay: {error}")
        return 1
    print(f"shard {arguments.address}, {shard_heading(info)}")
    for line in [*(f"waits: {line}" for line in info.waiting), *aligned(shard_rows(info))]:
        print(line)
    for table in info.tables if arguments.top else ():
        print(f"items of highest priority of table {table.totals.table}:")
        keys = np.frombuffer(table.top_keys, "<u8")
        priorities = np.frombuffer(table.top_priorities, "<f4")
        for key, priority in zip(keys, priorities, strict=True):
            print(f"  key {key:#018x}  priority {priority:.5g}")
    return 0
