"""cpprb's prioritized buffer under the work of ``benchmarks/priority.py``. Argument: how many transitions it holds.

One byte per transition is the least it can store; ``sample`` gathers that byte.
"""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
from cpprb import PrioritizedReplayBuffer  # type: ignore[import-not-found]

from benchmarks.peers.priority_work import ALPHA, BATCH_SIZE, BETA, INSERT, SAMPLE_UPDATE, priority_batches, serve_work


def main() -> None:
    items = int(sys.argv[1])
    buffer = PrioritizedReplayBuffer(items, {"mark": {"dtype": np.uint8}}, alpha=ALPHA)
    priorities = priority_batches()
    marks = np.zeros(BATCH_SIZE, np.uint8)

    def insert() -> int:
        buffer.add(mark=marks, priorities=next(priorities))
        return BATCH_SIZE

    def sample_update() -> int:
        sample = buffer.sample(BATCH_SIZE, beta=BETA)
        buffer.update_priorities(sample["indexes"], next(priorities))
        return BATCH_SIZE

    for _ in range(-(-items // BATCH_SIZE)):
        insert()
    facts = {"version": metadata.version("cpprb"), "items": int(buffer.get_stored_size())}
    serve_work({INSERT: insert, SAMPLE_UPDATE: sample_update}, facts)


if __name__ == "__main__":
    main()
