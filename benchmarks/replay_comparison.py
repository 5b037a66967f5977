"""What the comparisons of the replay's data path share: options, recorded steps, and all systems measured in turn."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apexrl.algorithms import make_algorithm
from apexrl.algorithms.base import Algorithm, TableSpec
from apexrl.config import ExperimentConfig
from apexrl.envs import env_spec
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.telemetry.logging import configure_logging
from apexrl.types import Chunk
from benchmarks.learner_scene import own_overrides
from benchmarks.options import load, parser
from benchmarks.recordings import (
    GAMES,
    Recording,
    build_chunks,
    is_atari,
    item_priorities,
    record_games,
    record_own,
    save,
)
from benchmarks.replay_scene import LAYOUTS, System, median, ours, reverb
from benchmarks.windows import Window, interleave, ratios

#: Samples drawn of each inserted transition, where the ratio is held.
SAMPLES_PER_INSERT = 8.0
BATCH_SIZE = 512


@dataclass(frozen=True)
class Stage:
    """Everything that a comparison is made with."""

    config: ExperimentConfig[Any]
    algorithm: Algorithm
    table: TableSpec
    recording: Recording
    chunks: list[Chunk]
    """Of the whole recording, in lane order."""
    directory: Path
    """Gone at the end."""

    @property
    def recorded(self) -> Path:
        """The recording's files."""
        return self.directory / "recording"


def replay_parser(description: str | None, *, seconds: float, items: int) -> argparse.ArgumentParser:
    """Options of a comparison; unknown arguments are overrides of the configuration."""
    made = parser(description, seconds=seconds, windows=5, fixed_goals=True)
    made.add_argument(
        "--trained",
        type=Path,
        action="append",
        default=[],
        metavar="RUN",
        help="directory of a run of one of the games: its newest policy plays too; may be repeated",
    )
    made.add_argument("--lanes", type=int, default=8, help="recorded lanes per play (%(default)s)")
    made.add_argument("--steps", type=int, default=512, help="recorded steps per lane (%(default)s)")
    made.add_argument("--items", type=int, default=items, help="items in every table before measuring (%(default)s)")
    made.add_argument(
        "--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="how the peer stores transitions (all)"
    )
    return made


@contextlib.contextmanager
def stage(
    options: argparse.Namespace, overrides: Sequence[str], *, samples_per_insert: float, capacity: int
) -> Iterator[Stage]:
    """Load the configuration, play and record.

    Raises:
        ConfigError: the configuration or a run cannot work.
    """
    configure_logging("benchmark", log_format="console", level="ERROR")
    configure_torch(1)
    atari = is_atari(load(options.config, overrides))
    plays = len(GAMES) + len(options.trained) if atari else 1
    own = {
        "replay.capacity-items": capacity,
        "replay.min-items": max(options.items, BATCH_SIZE),
        "replay.samples-per-insert": samples_per_insert,
        "learner.batch-size": BATCH_SIZE,
        "actor.lanes": options.lanes * plays,
    }
    arguments = [argument for name, value in own.items() for argument in (f"--{name}", str(value))]
    config = load(options.config, overrides, [*own_overrides(), *arguments])
    algorithm = make_algorithm(config, env_spec(config.env))
    (table,) = algorithm.tables()
    if atari:
        recording = record_games(config, options.trained, lanes=options.lanes, steps=options.steps)
    else:
        recording = record_own(config, lanes=options.lanes, steps=options.steps)
    chunks = build_chunks(recording, table, algorithm)
    with tempfile.TemporaryDirectory(prefix="apex-replay-") as directory:
        made = Stage(config, algorithm, table, recording, chunks, Path(directory))
        save(recording, made.recorded, item_priorities(recording, chunks))
        yield made


@contextlib.contextmanager
def systems(on: Stage, options: argparse.Namespace, roles: Sequence[str]) -> Iterator[list[System]]:
    """Ours first, then the peer in every layout; all stay up, and idle unless they are measured."""
    config, items = on.config, options.items
    with contextlib.ExitStack() as stack:
        own = ours(config, on.directory / "run", on.recorded, roles=roles, items=items)
        made = [stack.enter_context(own)]
        for layout in options.layouts:
            peer = reverb(
                layout,
                on.table.config,
                on.recorded,
                roles=roles,
                items=items,
                samples_per_insert=config.replay.samples_per_insert,
                batch_size=config.learner.batch_size,
            )
            made.append(stack.enter_context(peer))
        yield made


def compare(
    measured: Sequence[System],
    options: argparse.Namespace,
    roles: Sequence[str],
    *,
    feeding: bool = False,
    beside: Mapping[str, Window] | None = None,
) -> dict[str, list[float]]:
    """Windows of all systems in turn, and of ``beside``; each of ``roles`` at once. Rates of the first role by name."""
    programs: dict[str, Window] = {
        system.name: partial(system.window, roles=roles, feeding=feeding) for system in measured
    }
    rates = interleave(programs | dict(beside or {}), seconds=options.seconds, windows=options.windows)
    for system in measured:
        # The first was the warm-up.
        system.measured = system.measured[-options.windows :]
    return rates


def best_cpu(peers: Sequence[System]) -> System:
    """The peer with the lowest median of CPU-seconds."""
    return min(peers, key=lambda peer: float(np.median([one.cpu for one in peer.measured])))


def cpu_ratio(own: System, peers: Sequence[System]) -> float:
    """Median over windows of our CPU-seconds per million transitions by those of the best peer."""
    best = best_cpu(peers)
    return float(np.median(ratios([one.cpu for one in own.measured], [one.cpu for one in best.measured])))


def rate_ratio(own: System, peers: Sequence[System], role: str) -> float:
    """Median over windows of our transitions per second by those of the peer whose median is the highest."""
    best = max(peers, key=lambda peer: median(peer.measured).rates[role])
    return float(np.median(ratios([m.rates[role] for m in own.measured], [m.rates[role] for m in best.measured])))


def described(on: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """What every result says about how it was made."""
    return {
        "play": on.recording.play,
        "lanes": on.recording.num_lanes,
        "batch_size": on.config.learner.batch_size,
        "n_steps": on.table.config.signature.geometry.tail,
        "capacity_items": on.table.config.capacity_items,
        "items_before": options.items,
        "samples_per_insert": on.config.replay.samples_per_insert,
        "window_seconds": options.seconds,
        "num_windows": options.windows,
    }


def compared(on: Stage, options: argparse.Namespace, measured: Sequence[System], role: str) -> dict[str, Any]:
    """Metrics of a comparison of one role: ours against the best peer, every system, and how it was made."""
    own, *peers = measured
    return {
        "cpu_ratio_to_reverb": round(cpu_ratio(own, peers), 4),
        "rate_ratio_to_reverb": round(rate_ratio(own, peers, role), 2),
        "best_peer": best_cpu(peers).name,
        "systems": by_system(measured),
        **described(on, options),
    }


def by_system(measured: Sequence[System]) -> dict[str, Any]:
    """For the result: every system's medians, and the rates of each window."""
    found: dict[str, Any] = {}
    for system in measured:
        middle = median(system.measured)
        found[system.name] = {
            **{f"{role}_transitions_per_second": round(rate, 1) for role, rate in middle.rates.items()},
            **{f"{role}_client_cpu_s_per_million": round(cpu, 2) for role, cpu in middle.client_cpu.items()},
            "server_cpu_s_per_million": round(middle.server_cpu, 2),
            **({"samples_per_insert": round(system.sampled / system.fed, 2)} if system.fed else {}),
            "windows": [{role: round(rate, 1) for role, rate in one.rates.items()} for one in system.measured],
        }
    return found
