"""Random numbers of draws: a function of the run, the table and the number of the request, without state.

Neither shards nor the learner therefore keep a generator that a snapshot would have to hold, and a request that is
asked again gives the same draw of the same table.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=256)
def _key(run_seed: int, table_name: str) -> int:
    text = f"{run_seed}:{table_name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16, person=b"apex draws").digest(), "little")


def uniforms(run_seed: int, table_name: str, request_number: int, n: int) -> npt.NDArray[np.float64]:
    """``n`` numbers in [0, 1) of Philox 4x64 keyed by (run_seed, table_name) and counted by request_number.

    The request number is the counter's second word, so requests share no block below 2^64 blocks each.
    """
    counter = np.array([0, request_number, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(run_seed, table_name), counter=counter)).random(n)


def shares_generator(run_seed: int, table_name: str, request_number: int) -> np.random.Generator:
    """What divides the batches of a request among the shards; shares no numbers with any draw."""
    counter = np.array([0, request_number, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=_key(run_seed, f"{table_name}/shares"), counter=counter))


def shard_seed(run_seed: int, shard: int) -> int:
    """The seed that a shard draws with: the run's for shard 0, far from it for the others."""
    return (run_seed + shard * 0x9E3779B97F4A7C15) % (1 << 64)
