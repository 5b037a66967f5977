"""Samples and priority updates per second of the priority structure alone, beside cpprb and torchrl.

    python benchmarks/priority.py --write

A full structure of two million items; a step draws 512 of them in proportion to priority^0.6 and gives those 512 new
priorities. No observation is stored or gathered. Each program runs in a process of its own with one thread, through its
public interface: ours as a shard serves its learner (``peers/priority_apex.py``), cpprb's PrioritizedReplayBuffer,
torchrl's TensorDictReplayBuffer over LazyTensorStorage, and torchrl's PrioritizedSampler asked directly, without the
buffer that users have around it. The fastest of the three is what ours is measured against. Windows take turns.

Then ours alone at five capacities, for the growth with their logarithm, and piece by piece, for what bounds it.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.aggregation import spread
from benchmarks.options import add_write, conclude
from benchmarks.peers.environment import PeerError, peer_python
from benchmarks.peers.priority_work import ALPHA, BATCH_SIZE, INSERT, SAMPLE_UPDATE
from benchmarks.peers.worker import SINGLE_THREAD, PeerProcess, PeerProcessError
from benchmarks.windows import interleave, ratios

OURS = "apex"
ITEMS = 2_000_000
CAPACITIES = (1_000, 10_000, 100_000, 1_000_000, ITEMS)
GOALS = {"ratio_to_fastest_peer": {"at_least": 3.0}, "time_growth_over_log_growth": {"at_most": 1.0}}

PART_SECONDS = 0.3
"""Windows of a piece, of which the median counts."""
PART_WINDOWS = 5


@dataclass
class Program:
    """One kind of work of one process, with what it answered."""

    process: PeerProcess
    work: str = SAMPLE_UPDATE
    answers: list[dict[str, Any]] = field(default_factory=list)

    def window(self, seconds: float) -> float:
        """As :data:`benchmarks.windows.Window`."""
        self.answers.append(self.process.ask({"work": self.work, "seconds": seconds}))
        return float(self.answers[-1]["rate"])

    def cpu_seconds_per_million(self) -> dict[str, float]:
        """Of all windows but the first, which warms up."""
        return spread([1e6 * answer["cpu_seconds"] / answer["units"] for answer in self.answers[1:]])


def start(name: str, items: int) -> PeerProcess:
    """The process of a program: apex, cpprb, torchrl_buffer or torchrl_sampler."""
    package, _, way = name.partition("_")
    python = sys.executable if package == OURS else peer_python(package)
    arguments = [way, str(items)] if way else [str(items)]
    return PeerProcess(python, f"benchmarks/peers/priority_{package}.py", *arguments, environment=SINGLE_THREAD)


def fastest(rates: Mapping[str, Sequence[float]], ours: str = OURS) -> str:
    """Name of the program other than ``ours`` of the highest median rate."""
    return max((name for name in rates if name != ours), key=lambda name: float(np.median(rates[name])))


def growth_over_log_growth(rates: Mapping[int, Sequence[float]]) -> float:
    """Time per step at the largest over that at the smallest capacity, over the ratio of the capacities' logarithms.

    ``rates``: capacity -> steps per second of each window. 1 = time grows as the logarithm does; below: more slowly.
    """
    small, large = min(rates), max(rates)
    times = float(np.median(rates[small]) / np.median(rates[large]))
    return times / (math.log(large) / math.log(small))


def describe_limit(parts: Mapping[str, float], step: float, small_step: float) -> str:
    """What bounds a step, from its pieces; all in microseconds per batch."""
    tree = parts["tree_search"] + parts["tree_set"]
    reads = parts["reads_of_words_that_far_apart"]
    arithmetic = parts["powers"] + parts["random_numbers"] + parts["importance_weights"]
    return (
        f"A step takes {step:.0f} us at {ITEMS:,} items and {small_step:.0f} us at {CAPACITIES[0]:,}, where all is "
        f"cached: {100 * (1 - small_step / step):.0f} % of it are deeper trees and memory that is far away. "
        f"Descending and repairing the tree alone takes {tree:.0f} us; only to read {BATCH_SIZE} words that lie as far "
        f"apart as its leaves takes {reads:.0f} us. Powers, random numbers and importance weights are "
        f"{arithmetic:.0f} us, the rest is per-item arrays and NumPy calls per batch."
    )


def compare(items: int, *, seconds: float, windows: int) -> dict[str, Any]:
    """Metrics of the comparison with the peers."""
    with contextlib.ExitStack() as stack:
        names = (OURS, "cpprb", "torchrl_buffer", "torchrl_sampler")
        processes = {name: stack.enter_context(start(name, items)) for name in names}
        asked = {name: process.ask({}) for name, process in processes.items()}
        facts = {name: {key: said[key] for key in ("version", "items")} for name, said in asked.items()}
        steps = {name: Program(process) for name, process in processes.items()}
        rates = interleave({n: p.window for n, p in steps.items()}, seconds=seconds, windows=windows)
        # The sampler alone stores nothing, so there is nothing to compare.
        inserts = {n: Program(p, INSERT) for n, p in processes.items() if n != "torchrl_sampler"}
        insert_rates = interleave({n: p.window for n, p in inserts.items()}, seconds=seconds / 2, windows=windows)
    peer = fastest(rates)
    found = ratios(rates[OURS], rates[peer])
    return {
        "ratio_to_fastest_peer": float(np.median(found)),
        "fastest_peer": peer,
        "ratio_windows": [round(ratio, 3) for ratio in found],
        "samples_and_updates_per_second": {name: spread(values) for name, values in rates.items()},
        "inserts_per_second": {name: spread(values) for name, values in insert_rates.items()},
        "cpu_seconds_per_million_samples_and_updates": {n: p.cpu_seconds_per_million() for n, p in steps.items()},
        "cpu_seconds_per_million_inserts": {n: p.cpu_seconds_per_million() for n, p in inserts.items()},
        "programs": facts,
    }


def grow(*, seconds: float, windows: int) -> dict[str, Any]:
    """Metrics of ours at all capacities and of its pieces at the largest."""
    with contextlib.ExitStack() as stack:
        processes = {items: stack.enter_context(start(OURS, items)) for items in CAPACITIES}
        programs = {str(items): Program(process).window for items, process in processes.items()}
        rates = interleave(programs, seconds=seconds, windows=windows)
        largest = processes[max(CAPACITIES)]
        names = largest.ask({})["parts"]
        pieces = {name: Program(largest, name).window for name in names}
        piece_rates = interleave(pieces, seconds=PART_SECONDS, windows=PART_WINDOWS)
    steps = {items: [rate / BATCH_SIZE for rate in rates[str(items)]] for items in CAPACITIES}
    microseconds = {items: 1e6 / float(np.median(values)) for items, values in steps.items()}
    parts = {name: 1e6 / float(np.median(values)) for name, values in piece_rates.items()}
    return {
        "time_growth_over_log_growth": growth_over_log_growth(steps),
        "samples_and_updates_per_second_by_capacity": {name: spread(values) for name, values in rates.items()},
        "step_microseconds_by_capacity": {str(items): value for items, value in microseconds.items()},
        "piece_microseconds": parts,
        "limit": describe_limit(parts, microseconds[max(CAPACITIES)], microseconds[min(CAPACITIES)]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=2.0, help="length of a window (%(default)s)")
    made.add_argument("--windows", type=int, default=7, help="windows per program (%(default)s)")
    add_write(made)
    options = made.parse_args(arguments)
    try:
        metrics = compare(ITEMS, seconds=options.seconds, windows=options.windows)
        metrics |= grow(seconds=options.seconds / 2, windows=options.windows)
    except (PeerError, PeerProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    metrics |= {"items": ITEMS, "batch_size": BATCH_SIZE, "alpha": ALPHA, "window_seconds": options.seconds}
    return conclude(
        "priority",
        metrics=metrics,
        goals=GOALS,
        seeds=[0],
        notes="One step = draw 512 items and give them new priorities; rates count items. Every program has one thread "
        "and a process of its own and stores a byte per item. All sides compute importance weights. Ours checks keys, "
        "so that an update cannot hit an item that has taken an old one's place; cpprb's option for that is off, as is "
        "its default. Inserts: ours in chunks of 32 items with all checks and eviction, the peers' in batches of 512.",
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(main())
