"""What every program of ``benchmarks/priority.py`` does alike: the batches, the new priorities, the answers.

Needs NumPy only, so that it can be imported in every peer's environment.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers.worker import serve, timed

BATCH_SIZE = 512
ALPHA = 0.6
#: Exponent of the importance weights that come with a sample.
BETA = 0.4

SAMPLE_UPDATE = "sample_update"
INSERT = "insert"

_PREPARED = 64


def priority_batches(seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Priorities [512] in [0.01, 1.01) without end; made beforehand, as a learner's come from elsewhere."""
    generator = np.random.default_rng(seed)
    made = [generator.random(BATCH_SIZE, dtype=np.float32) + np.float32(0.01) for _ in range(_PREPARED)]
    return itertools.cycle(made)


def serve_work(work: Mapping[str, Callable[[], int]], facts: Mapping[str, Any]) -> None:
    """Answer ``{"work": NAME, "seconds": s}`` with a timed window of it; a request without seconds with ``facts``."""

    def answer(request: dict[str, Any]) -> Mapping[str, Any]:
        if "seconds" not in request:
            return facts
        return timed(work[request.get("work", SAMPLE_UPDATE)], float(request["seconds"]))

    serve(answer)
