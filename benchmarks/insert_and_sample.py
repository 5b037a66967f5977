"""Inserting and sampling at once, one client each, one server, on two cores: transitions per second beside dm-reverb.

    python benchmarks/insert_and_sample.py configs/pong_paper.yaml --trained runs/pong_small

No limiter holds either side: every process takes what it gets of the cores. Each of our rates is divided by the peer's
best of that rate, whichever layout it comes from. See ``insert.py`` and ``sample.py`` for what is inserted and sampled.
Unknown arguments are overrides of the configuration.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from benchmarks.options import conclude, run
from benchmarks.replay_comparison import by_system, compare, described, rate_ratio, replay_parser, stage, systems

GOALS = {"insert_ratio_to_reverb": {"at_least": 15.0}, "sample_ratio_to_reverb": {"at_least": 15.0}}
CORES = 2
ROLES = ("insert", "sample")


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[int]:
    """Keep this thread, and all threads and processes that it starts, on ``count`` cores, or as many as there are."""
    former = os.sched_getaffinity(0)
    kept = set(sorted(former)[:count])
    os.sched_setaffinity(0, kept)
    try:
        yield len(kept)
    finally:
        os.sched_setaffinity(0, former)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options, overrides = replay_parser(__doc__, seconds=5.0, items=10_000).parse_known_args(arguments)
    with (
        on_cores(CORES) as cores,
        stage(options, overrides, samples_per_insert=0.0, capacity=100_000) as on,
        systems(on, options, ROLES) as measured,
    ):
        compare(measured, options, ROLES)
        own, *peers = measured
        metrics = {
            **{f"{role}_ratio_to_reverb": round(rate_ratio(own, peers, role), 2) for role in ROLES},
            "cores": cores,
            "systems": by_system(measured),
            **described(on, options),
        }
    return conclude(
        "concurrent",
        metrics=metrics,
        goals=GOALS,
        seeds=[on.config.seed],
        notes=(
            "ROLE_ratio_to_reverb = median over windows of our transitions per second by those of the peer's layout "
            "with the highest median in that role, while both roles run at once. server_cpu_s_per_million is per "
            "transition of either role. Both cores are busy all the time: CPU time bounds both rates, and what one "
            "role gets the other lacks. A sample costs its client more here than at eight samples per insert "
            "(subject sample), since a chunk that the mirror lacks is sent and decoded for fewer samples."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
