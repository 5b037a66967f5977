"""The scene of ``learner_loop.py``: a learner process fed by a real shard, both on loopback, recorded experience."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apex_cli.processes import Service, stop_in_order
from apex_cli.train import free_ports
from apexrl.algorithms import make_algorithm
from apexrl.config import ExperimentConfig, shared_json
from apexrl.envs import env_spec
from apexrl.runtime.run_directory import RunDirectory
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_client import InsertClient
from apexrl.types import Chunk
from benchmarks.paired_learner import Pair, Schedule, read_pairs
from benchmarks.recordings import record_chunks

START_SECONDS = 120.0
#: Beyond the windows themselves, a pair may take so long.
PAIR_SECONDS = 30.0
TICK_SECONDS = 0.1


class LearnerScene:
    """Shard and learner as processes, started at once; this process inserts and watches.

    Args:
        config: addresses must be those of :func:`scene`; ``samples_per_insert`` 0, so the limiter never binds.
        run: the learner's directory.
        chunks: to insert, again and again.
        samples_per_insert: while the learner runs, so many of its samples per newly inserted item; 0 = no new items.
        schedule: of the learner's windows.
    """

    def __init__(
        self,
        config: ExperimentConfig[Any],
        run: RunDirectory,
        chunks: list[Chunk],
        samples_per_insert: float,
        schedule: Schedule,
    ) -> None:
        self._config = config
        self._chunks = itertools.cycle(chunks)
        self._samples_per_insert = samples_per_insert
        self._schedule = schedule
        self._results = run.path / "pairs.jsonl"
        common = ["--config", str(run.config_yaml)]
        self._replay = Service("replay", "apex_replay", common, run.logs / "replay.log")
        windows = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(schedule).items()]
        own = ["--run-dir", str(run.path), "--results", str(self._results), *windows]
        self._learner = Service("learner", "benchmarks.paired_learner", [*common, *own], run.logs / "learner.log")
        # Processes before clients: gRPC's threads and a fork do not go well together.
        self._replay.start()
        self._learner.start()
        (table,) = make_algorithm(config, env_spec(config.env)).tables()
        handshake = Handshake(run.run_id, shared_json(config))
        self._insert = InsertClient(config.replay.addresses[0], handshake, table.config, 64)
        self._coordinator = CoordinatorClient(config.learner.address)
        self._inserted = 0
        self._owed = 0.0

    def fill(self, items: int) -> None:
        """Put so many items into the table."""
        while self._inserted < items:
            self._put_one()
        self._insert.flush(START_SECONDS)

    def measure(self) -> list[Pair]:
        """All windows, while items are inserted in proportion to the learner's updates.

        Raises:
            TimeoutError: the learner is too slow, or gone; the message ends with its log.
        """
        deadline = time.monotonic() + START_SECONDS
        updates, pairs = 0, 0
        while (measured := len(read_pairs(self._results))) < self._schedule.windows:
            if measured > pairs:
                pairs, deadline = measured, time.monotonic() + 2 * self._schedule.seconds + PAIR_SECONDS
            if time.monotonic() > deadline or not self._learner.running:
                raise TimeoutError(f"the learner measured {pairs} pairs of windows only:\n{self._learner.log_tail()}")
            time.sleep(TICK_SECONDS)
            if self._samples_per_insert > 0:
                now = self._updates()
                self._owed += (now - updates) * self._config.learner.batch_size / self._samples_per_insert
                updates = now
                while self._owed > 0:
                    self._owed -= self._put_one()
        return read_pairs(self._results)

    def stop(self) -> None:
        """End everything."""
        self._insert.close()
        self._coordinator.close()
        stop_in_order([([self._learner], 10.0), ([self._replay], 5.0)])

    def _updates(self) -> int:
        try:
            return int(self._coordinator.get_status(timeout=1.0).learner_updates)
        except TimeoutError:
            return 0

    def _put_one(self) -> int:
        chunk = next(self._chunks)
        if not self._insert.put([chunk], timeout=START_SECONDS):
            raise TimeoutError(f"the shard takes no chunks: {self._insert.waiting()}\n{self._replay.log_tail()}")
        self._inserted += chunk.num_items
        return chunk.num_items


def own_overrides() -> list[str]:
    """Overrides of a configuration for :func:`scene`: free ports, no limiter, no end."""
    replay, learner = (f"127.0.0.1:{port}" for port in free_ports(2))
    settings = {
        "replay.addresses": replay,
        "replay.listen": replay,
        "learner.address": learner,
        "learner.listen": learner,
        "replay.samples-per-insert": "0",
        "replay.slack-items": "0",
        "learner.max-frames": "0",
        "learner.max-updates": "0",
        "learner.max-seconds": "0",
    }
    return [argument for name, value in settings.items() for argument in (f"--{name}", value)]


@contextlib.contextmanager
def scene(
    config: ExperimentConfig[Any],
    directory: Path,
    *,
    samples_per_insert: float,
    recorded_items: int,
    schedule: Schedule,
) -> Iterator[LearnerScene]:
    """A scene with a full table, for a configuration with :func:`own_overrides`."""
    run = RunDirectory.create_or_resume(directory, config)
    made = LearnerScene(config, run, record_chunks(config, recorded_items), samples_per_insert, schedule)
    try:
        made.fill(max(config.replay.min_items + config.learner.batch_size, recorded_items))
        yield made
    finally:
        made.stop()
