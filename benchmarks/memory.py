"""Memory of a million Atari transitions at rest, and bytes on the wire of one, beside dm-reverb and what is naive.

    python benchmarks/memory.py configs/pong_paper.yaml --trained runs/pong_small

At rest: growth of the server process's resident memory from an empty table to ``--items`` items (``--peer-items`` for
the peer, which is slower and grows in proportion), and the table's own count. On the wire: see ``wire_bytes.py``.
Unknown arguments are overrides of the configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from apex_cli.usage import process_usage
from apexrl.transport.info_client import fetch_info
from benchmarks.options import conclude, run
from benchmarks.replay_comparison import SAMPLES_PER_INSERT, Stage, described, replay_parser, stage
from benchmarks.replay_scene import System, ours, reverb
from benchmarks.wire_bytes import naive_bytes, wire_bytes

GOALS = {
    "gb_per_million": {"at_most": 0.3},
    "insert_wire_bytes": {"at_most": 250.0},
    "sample_wire_bytes": {"at_most": 60.0},
}
INFO_SECONDS = 10.0
#: Items of which the growth is not counted: the first ones load and compile code, which does not grow with them.
FIRST_ITEMS = 2_000
NAIVE_ITEMS = 4_000
#: Transitions that are exchanged to count bytes.
EXCHANGED_ITEMS = 50_000


def resident_bytes(system: System) -> int:
    """Of the server process.

    Raises:
        ProcessLookupError: it has ended.
    """
    usage = process_usage(system.server_pid)
    if usage is None:
        raise ProcessLookupError(f"the server of {system.name} has ended")
    return usage.rss_bytes


def growth_bytes(system: System, items: int) -> float:
    """Bytes by which the server grows per item, when so many are inserted behind the first ones."""
    system.fill(FIRST_ITEMS)
    before = resident_bytes(system)
    system.fill(items)
    return (resident_bytes(system) - before) / items


def ours_at_rest(on: Stage, items: int) -> dict[str, float]:
    """GB per million items: the process's growth, the slabs that hold the chunks, and the chunks themselves.

    ``process_resident_gb`` is all of the process, with code and libraries, and not per item.
    """
    with ours(on.config, on.directory / "run", on.recorded, roles=["insert"], items=0) as system:
        growth = growth_bytes(system, items)
        resident = resident_bytes(system)
        (table,) = fetch_info(on.config.replay.addresses[0], timeout_seconds=INFO_SECONDS).tables
    if table.evicted:
        raise RuntimeError(f"{table.evicted} items left the table; --replay.capacity-items must be above --items")
    held = table.totals.num_items
    return {
        "process_growth": round(growth / 1e3, 4),
        "process_resident_gb": round(resident / 1e9, 4),
        "slabs": round(table.slab_bytes / held / 1e3, 4),
        "chunks": round(table.block_bytes / held / 1e3, 4),
    }


def peer_at_rest(on: Stage, layout: str, items: int) -> float:
    """GB per million items, by the growth of the peer's server."""
    peer = reverb(
        layout,
        on.table.config,
        on.recorded,
        roles=["insert"],
        items=0,
        samples_per_insert=0.0,
        batch_size=on.config.learner.batch_size,
    )
    with peer as system:
        return round(growth_bytes(system, items) / 1e3, 4)


def on_the_wire(on: Stage) -> dict[str, float]:
    """Bytes per transition, ours and naive."""
    found = wire_bytes(on.config, on.table, on.chunks, samples_per_insert=SAMPLES_PER_INSERT, items=EXCHANGED_ITEMS)
    signature = on.table.config.signature
    naive = naive_bytes(on.recording, signature.stack, signature.geometry.tail, items=NAIVE_ITEMS)
    return {
        "insert_wire_bytes": round(found.insert, 1),
        "sample_wire_bytes": round(found.sample, 1),
        "priority_wire_bytes": round(found.priority, 1),
        "naive_wire_bytes": round(naive, 1),
    }


def measure(on: Stage, options: argparse.Namespace) -> dict[str, Any]:
    """All metrics but what describes the measurement."""
    own = ours_at_rest(on, options.items)
    raw = on.table.config.signature.column("observation").value_bytes
    return {
        "gb_per_million": own["process_growth"],
        "ours_gb_per_million": own,
        "reverb_gb_per_million": {layout: peer_at_rest(on, layout, options.peer_items) for layout in options.layouts},
        "raw_frames_gb_per_million": round(raw / 1e3, 4),
        **on_the_wire(on),
        "peer_items": options.peer_items,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    made = replay_parser(__doc__, seconds=1.0, items=1_000_000)
    made.add_argument("--peer-items", type=int, default=50_000, help="items in the peer's table (%(default)s)")
    options, overrides = made.parse_known_args(arguments)
    with stage(options, overrides, samples_per_insert=0.0, capacity=options.items + options.items // 10) as on:
        metrics = {**measure(on, options), **described(on, options)}
    return conclude(
        "memory",
        metrics=metrics,
        goals=GOALS,
        seeds=[on.config.seed],
        notes=(
            "gb_per_million = growth of the shard process's resident memory, allocator and indices included. "
            "Wire bytes are the sizes of all serialised messages, both directions, per transition, without gRPC's "
            f"framing: sample_wire_bytes at {SAMPLES_PER_INSERT:g} samples per insert with a mirror of the whole table "
            "(requests and replies; priorities sent back are priority_wire_bytes on top). naive_wire_bytes = both "
            "stacks of a transition, each an lz4 block, for an insert as for a sample. raw = one 84x84 frame."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
