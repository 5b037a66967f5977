"""Random numbers of draws: a function of the run, the table and the number of the request, without state.

Neither shards nor the learner therefore keep a generator that a snapshot would have to hold, and a request that is
asked again gives the same draw of the same table.
"""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=256)
def _key(run_seed: int, table_name: str) -> int:
    text = f"{run_seed}:{table_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"apex draws").digest(), "little")


_NOTHING_BUFFERED = np.zeros(4, np.uint64)


class _Reused(threading.local):
    """One generator per thread, set to each request's place: to make one takes longer than to draw a batch with it."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.philox)


_reused = _Reused()


@lru_cache(maxsize=256)
def _key_words(run_seed: int, table_name: str) -> npt.NDArray[np.uint64]:
    """The key as Philox's state has it: [2], the lower 64 bits first."""
    return np.frombuffer(_key(run_seed, table_name).to_bytes(16, "little"), "<u8").astype(np.uint64)


def uniforms(run_seed: int, table_name: str, request_number: int, n: int) -> npt.NDArray[np.float64]:
    """``n`` numbers in [0, 1) of Philox 4x64 keyed by (run_seed, table_name) and counted by request_number.

    The request number is the counter's second word, so requests share no block below 2^64 blocks each.
    """
    _reused.philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, request_number, 0, 0], np.uint64),
            "key": _key_words(run_seed, table_name),
        },
        "buffer": _NOTHING_BUFFERED,
        "buffer_pos": _NOTHING_BUFFERED.size,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return _reused.generator.random(n)


def shares_generator(run_seed: int, table_name: str, request_number: int) -> np.random.Generator:
    """What divides the batches of a request among the shards; shares no numbers with any draw."""
    counter = np.array([0, request_number, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(run_seed, f"{table_name}/shares"), counter=counter))


def shard_seed(run_seed: int, shard: int) -> int:
    """The seed that a shard draws with: the run's for shard 0, far from it for the others."""
    return (run_seed + shard * 0x9E3779B97F4A7C15) % (1 << 64)


def stratify(counts: npt.NDArray[np.uint32], numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Points (k + u) / count of each batch by itself (Schaul et al. 2016, section 3.3).

    ``numbers`` [sum(counts)] are the u, in [0, 1).
    """
    if counts.size == 1:
        points: npt.NDArray[np.float64] = (np.arange(numbers.size) + numbers) / numbers.size
        return points
    sizes = counts.astype(np.int64)
    k = np.arange(numbers.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    points = (k + numbers) / np.repeat(sizes, sizes)
    return points
