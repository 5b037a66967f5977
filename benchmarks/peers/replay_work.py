"""How every process of ``benchmarks/replay_scene.py`` answers; imports nothing but the standard library."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

from benchmarks.peers.worker import serve


class Client(Protocol):
    """One side of a replay."""

    def run(self, seconds: float, units: float) -> int:
        """Work for about so many seconds, or until so many transitions are done; returns how many were."""
        ...


def serve_client(client: Client) -> None:
    """Answer ``{"seconds": s, "units": n}`` with a timed run, and a request without seconds with the process's id."""

    def answer(request: dict[str, Any]) -> Mapping[str, Any]:
        if "seconds" not in request:
            return {"pid": os.getpid()}
        started = time.monotonic()
        units = client.run(float(request["seconds"]), float(request.get("units", math.inf)))
        taken = time.monotonic() - started
        return {"units": units, "seconds": taken, "rate": units / taken}

    serve(answer)
