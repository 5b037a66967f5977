"""Random numbers of draws: a function of the run, the table and the number of the request, without state.

A shard therefore keeps no generator that a snapshot would have to hold, and a request that is asked again gives the
same draw of the same table.
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
