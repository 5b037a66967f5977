"""What the distribution costs the learner: its updates per second, fed by a real shard, against a plain torch loop.

    python benchmarks/learner_loop.py configs/pong_small.yaml --learner.threads 2

A is ``Algorithm.update`` on one batch that lies ready. B is the learner process, with its serving child, prefetching,
decoding, priorities, publishing and checkpoints, drawing from a shard process over gRPC; new chunks keep coming in at
``--samples-per-insert``, and no limiter holds it back. A and B take turns in one process
(:mod:`benchmarks.paired_learner`) on the same cores with the same number of threads. Unknown arguments are overrides.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# As the learner does, and before torch loads OpenMP; the learner inherits it.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import numpy as np

from apex_learner.devices import pick_device
from apexrl.telemetry.logging import configure_logging
from benchmarks.aggregation import spread
from benchmarks.learner_scene import own_overrides, scene
from benchmarks.options import conclude, fraction_goal, load, parser, run
from benchmarks.paired_learner import Schedule
from benchmarks.windows import ratios


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options_parser = parser(__doc__, seconds=6.0, windows=5)
    options_parser.add_argument(
        "--samples-per-insert", type=float, default=8.0, help="samples per new item; 0 = no new items (%(default)s)"
    )
    options_parser.add_argument("--items", type=int, default=16_384, help="recorded items in the table (%(default)s)")
    options_parser.add_argument("--warm-updates", type=int, default=300, help="updates before the first window")
    options, overrides = options_parser.parse_known_args(arguments)
    configure_logging("learner-loop", log_format="console", level="ERROR")
    config = load(options.config, overrides, own_overrides())
    schedule = Schedule(options.warm_updates, options.windows, options.seconds)
    with (
        tempfile.TemporaryDirectory(prefix="apex-learner-loop-") as directory,
        scene(
            config,
            Path(directory) / "run",
            samples_per_insert=options.samples_per_insert,
            recorded_items=options.items,
            schedule=schedule,
        ) as learner,
    ):
        pairs = learner.measure()
    fed, plain = [pair.learner for pair in pairs], [pair.plain for pair in pairs]
    fractions = ratios(fed, plain)
    metrics = {
        "fraction": round(float(np.median(fractions)), 4),
        "fractions": [round(value, 4) for value in fractions],
        "learner_updates_per_second": spread(fed),
        "plain_updates_per_second": spread(plain),
        "batch_wait_ratio": spread([pair.batch_wait_ratio for pair in pairs]),
        "samples_per_insert": options.samples_per_insert,
        "batch_size": config.learner.batch_size,
        "threads": config.learner.threads,
        "gomp_spincount": os.environ["GOMP_SPINCOUNT"],
        "device": pick_device(config.learner.device).type,
        "recorded_items": options.items,
        "window_seconds": options.seconds,
    }
    return conclude(
        f"learner_loop_{config.name}",
        metrics=metrics,
        goals=fraction_goal(options.at_least),
        seeds=[config.seed],
        notes=(
            "fraction = median over window pairs of the learner process's updates/s divided by those of "
            "Algorithm.update on one resident batch, in turns in the same process. Shard, learner and its serving "
            "child share the cores with nothing but this inserter."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
