"""CPU time of a sampled Atari transition, delivered in batches of 512 as tensors, beside dm-reverb and a plain copy.

    python benchmarks/sample.py configs/pong_paper.yaml --trained runs/pong_small

New steps keep coming at one for eight samples; both replays hold that ratio by their own limiters. Counted is the CPU
time of the client that samples and of the server (which also takes the new steps in), by the system's accounting. A
batch of ours holds windows of single frames, from which the update makes stacks; the peer delivers the same windows, or
in the layout ``naive`` ready stacks (``peers/reverb_worker.py``), and its best layout counts. ``copy`` is the memory
bandwidth limit: one thread copies the bytes of a batch to another. Unknown arguments are overrides.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np

from apexrl.experience.batch import BatchBuffer
from apexrl.types import Signature
from benchmarks.aggregation import spread
from benchmarks.options import conclude, run
from benchmarks.replay_comparison import SAMPLES_PER_INSERT, compare, compared, replay_parser, stage, systems
from benchmarks.windows import ratios, repeat

GOALS = {"cpu_ratio_to_reverb": {"at_most": 0.125}, "ratio_to_copy_limit": {"at_most": 2.5}}

#: Batches that are copied round: too many for any cache, as are those of the learner's ring.
COPIED_BATCHES = 16


def copying(signature: Signature, batch_size: int) -> Callable[[], int]:
    """Copies of all records of a batch by one thread; each call returns its transitions."""
    buffers = [BatchBuffer(signature, batch_size) for _ in range(COPIED_BATCHES)]
    for number, buffer in enumerate(buffers):
        for records in buffer.memory.tensors:
            records.fill_(1 + number)  # Memory that was never written to is one page of zeros.
    pairs = itertools.cycle(zip(buffers, buffers[COPIED_BATCHES // 2 :] + buffers, strict=False))

    def copy() -> int:
        source, target = next(pairs)
        np.copyto(target.memory.steps.numpy(), source.memory.steps.numpy())
        np.copyto(target.memory.items.numpy(), source.memory.items.numpy())
        return batch_size

    return copy


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options, overrides = replay_parser(__doc__, seconds=5.0, items=10_000).parse_known_args(arguments)
    with (
        stage(options, overrides, samples_per_insert=SAMPLES_PER_INSERT, capacity=100_000) as on,
        systems(on, options, ["insert", "sample"]) as measured,
    ):
        signature, batch_size = on.table.config.signature, on.config.learner.batch_size
        copies = {"copy": repeat(copying(signature, batch_size))}
        rates = compare(measured, options, ["sample"], feeding=True, beside=copies)
        limits = ratios(rates["copy"], rates[measured[0].name])
        metrics = {
            "ratio_to_copy_limit": round(float(np.median(limits)), 3),
            "copied_transitions_per_second": spread(rates["copy"]),
            "batch_bytes": BatchBuffer(signature, batch_size).num_bytes,
            **compared(on, options, measured, "sample"),
        }
    return conclude(
        "sample",
        metrics=metrics,
        goals=GOALS,
        seeds=[on.config.seed],
        notes=(
            "cpu_ratio_to_reverb = median over windows of our CPU-seconds per sampled transition (sampling client and "
            "server process, user and system) by those of the peer's layout with the lowest median. "
            "ratio_to_copy_limit = median over windows of our time per batch by that of one thread that copies the "
            "same bytes. Priorities are not sent back on either side."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
