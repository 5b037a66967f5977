"""CPU time of an inserted transition, from the recorded row to the acknowledgement, beside dm-reverb.

    python benchmarks/insert.py configs/pong_paper.yaml --trained runs/pong_small
    python benchmarks/insert.py configs/pendulum_apex_dpg.yaml --lanes 100

Ours: chunks built and compressed as an actor does, sent by its client to a replay process on loopback. The peer writes
the same frames in three layouts (``peers/reverb_worker.py``); the best of them counts. Windows take turns. CPU time is
that of client and server process by the system's accounting. Unknown arguments are overrides of the configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.options import conclude, run
from benchmarks.recordings import is_atari
from benchmarks.replay_comparison import compare, compared, replay_parser, stage, systems

#: Of Atari's frames.
GOALS = {"cpu_ratio_to_reverb": {"at_most": 0.05}}
NOTES = (
    "cpu_ratio_to_reverb = median over windows of our CPU-seconds per transition (client and server process, user and "
    "system) by those of the peer's layout with the lowest median. One client each; ours steps all lanes together, as "
    "an actor process does, the peer's takes lane after lane."
)
ATARI_PROFILE = (
    "A sampling profile of ours: the client builds chunks for four fifths of its time (a quarter of the whole is "
    "encoding blocks, another the copy of rows into the lanes' buffers); the shard checks and files chunk by chunk in "
    "Python for more than half of its own."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options, overrides = replay_parser(__doc__, seconds=4.0, items=5_000).parse_known_args(arguments)
    with (
        stage(options, overrides, samples_per_insert=0.0, capacity=200_000) as on,
        systems(on, options, ["insert"]) as measured,
    ):
        compare(measured, options, ["insert"])
        metrics = compared(on, options, measured, "insert")
    atari = is_atari(on.config)
    return conclude(
        "insert" if atari else f"insert_{on.config.name}",
        metrics=metrics,
        goals=GOALS if atari else {},
        seeds=[on.config.seed],
        notes=f"{NOTES} {ATARI_PROFILE}" if atari else NOTES,
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
