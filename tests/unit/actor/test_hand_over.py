"""An actor whose shards take nothing still says how it stands."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apex_actor import process
from apex_actor.membership import Membership
from apex_actor.process import _Acting
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.runtime.lifecycle import Shutdown
from apexrl.telemetry.metrics import ActorMetrics
from apexrl.transport import coordinator_pb2 as pb
from apexrl.types import ParameterVersion

CATCH = Path(__file__).parents[3] / "configs" / "catch_apex_dqn.yaml"
ITEMS = 7


class FullWindow:
    """Shards that take one chunk, then nothing for a while; every attempt takes half a second of a made-up clock."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self.now = 1000.0
        self.unacked = 5
        self.seen: list[tuple[float | None, float | None]] = []
        """Blocked seconds and age of the parameters as they are exported before each attempt."""

    def watch(self, metrics: ActorMetrics) -> None:
        self._metrics = metrics

    @property
    def blocked_seconds(self) -> float:
        return self.now - 1000.0

    def put(self, chunks: list[Any], timeout: float) -> int:
        read = self._metrics.registry.get_sample_value
        wait = read("apex_actor_phase_seconds_total", {"phase": "insert_wait"})
        self.seen.append((wait, read("apex_actor_params_age_seconds")))
        self.now += timeout
        if len(self.seen) == 1:
            return 1
        return len(chunks) if len(self.seen) == self.attempts else 0


def acting(insert: FullWindow, metrics: ActorMetrics, stop: Shutdown) -> _Acting:
    phases = SimpleNamespace(env=1.0, infer=2.0, build=3.0)
    loop = SimpleNamespace(epsilons=np.array([0.5]), version=ParameterVersion(1, 2), phase_seconds=phases)
    peers = SimpleNamespace(
        membership=Membership(pb.ROLE_ACTOR, 1), parameters=SimpleNamespace(fetched_bytes=0, last_fetch_seconds=0.0)
    )
    config = load_experiment(CATCH, algorithm_configs=CONFIGS)
    made: Any = _Acting(config, loop, peers, insert, metrics, stop)  # type: ignore[arg-type]
    made._loaded = 990.0
    return made  # type: ignore[no-any-return]


def test_metrics_go_on_while_chunks_cannot_be_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    insert, metrics = FullWindow(attempts=8), ActorMetrics()
    insert.watch(metrics)
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: insert.now))
    chunks: Any = [SimpleNamespace(num_items=ITEMS)] * 3
    acting(insert, metrics, Shutdown())._hand_over(chunks)
    # Every second, that is with every other attempt.
    assert insert.seen == [
        (None, 0.0),
        (0.5, 10.5),
        (0.5, 10.5),
        (1.5, 11.5),
        (1.5, 11.5),
        (2.5, 12.5),
        (2.5, 12.5),
        (3.5, 13.5),
    ]
    read = metrics.registry.get_sample_value
    assert read("apex_actor_transitions_sent_total") == 3 * ITEMS
    assert (
        read("apex_actor_insert_queue_transitions")
        == 5 * load_experiment(CATCH, algorithm_configs=CONFIGS).replay.chunk_starts
    )


def test_what_cannot_be_handed_over_before_a_stop_is_counted() -> None:
    metrics, stop = ActorMetrics(), Shutdown()

    class StopsMeanwhile(FullWindow):
        def put(self, chunks: list[Any], timeout: float) -> int:
            stop.request("test")
            return 1

    chunks: Any = [SimpleNamespace(num_items=ITEMS)] * 3
    acting(StopsMeanwhile(1), metrics, stop)._hand_over(chunks)
    read = metrics.registry.get_sample_value
    assert read("apex_actor_transitions_sent_total") == ITEMS
    assert read("apex_actor_transitions_dropped_total", {"reason": "stopped"}) == 2 * ITEMS
