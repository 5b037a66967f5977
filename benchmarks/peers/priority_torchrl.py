"""torchrl's prioritized replay under the work of ``benchmarks/priority.py``. Arguments: buffer or sampler, and items.

``buffer`` is what its documentation shows: a TensorDictReplayBuffer over LazyTensorStorage with a PrioritizedSampler.
``sampler`` asks the same sampler directly, so that no sample is gathered and no tensordict made: the priority
structure alone, as far as its public interface goes.
"""

from __future__ import annotations

import sys
from importlib import metadata

import torch
from tensordict import TensorDict  # type: ignore[import-not-found]
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer  # type: ignore[import-not-found]
from torchrl.data.replay_buffers.samplers import PrioritizedSampler  # type: ignore[import-not-found]

from benchmarks.peers.priority_work import ALPHA, BATCH_SIZE, BETA, INSERT, SAMPLE_UPDATE, priority_batches, serve_work


def main() -> None:
    way, items = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    storage = LazyTensorStorage(items)
    sampler = PrioritizedSampler(items, alpha=ALPHA, beta=BETA)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=BATCH_SIZE)
    priorities = priority_batches()
    rows = TensorDict({"mark": torch.zeros(BATCH_SIZE, dtype=torch.uint8)}, [BATCH_SIZE])

    def insert() -> int:
        buffer.update_priority(buffer.extend(rows), torch.from_numpy(next(priorities)))
        return BATCH_SIZE

    def with_buffer() -> int:
        buffer.update_priority(buffer.sample()["index"], torch.from_numpy(next(priorities)))
        return BATCH_SIZE

    def with_sampler() -> int:
        index, _ = sampler.sample(storage, BATCH_SIZE)
        sampler.update_priority(index, torch.from_numpy(next(priorities)), storage=storage)
        return BATCH_SIZE

    for _ in range(-(-items // BATCH_SIZE)):
        insert()
    facts = {"version": metadata.version("torchrl"), "items": len(storage)}
    serve_work({INSERT: insert, SAMPLE_UPDATE: with_buffer if way == "buffer" else with_sampler}, facts)


if __name__ == "__main__":
    main()
