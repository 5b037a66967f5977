"""The scene of ``learner_loop.py``: a learner process fed by a real shard, both on loopback, recorded experience."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
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
from benchmarks.recordings import record_chunks

START_SECONDS = 120.0
#: After a pause the learner's clocks and queues settle for this long before anything is counted.
SETTLE_SECONDS = 1.5
TICK_SECONDS = 0.1
EDGE_SECONDS = 0.01


class LearnerScene:
    """Shard and learner as processes, started at once; this process inserts and watches.

    Between windows both processes are stopped by SIGSTOP, so that something else can be measured on the same cores.

    Args:
        config: addresses must be those of :func:`scene`; ``samples_per_insert`` 0, so the limiter never binds.
        run: the learner's directory.
        chunks: to insert, again and again.
        samples_per_insert: while the learner runs, so many of its samples per newly inserted item; 0 = no new items.
    """

    def __init__(
        self, config: ExperimentConfig[Any], run: RunDirectory, chunks: list[Chunk], samples_per_insert: float
    ) -> None:
        self._config = config
        self._chunks = itertools.cycle(chunks)
        self._samples_per_insert = samples_per_insert
        common = ["--config", str(run.config_yaml)]
        self._replay = Service("replay", "apex_replay", common, run.logs / "replay.log")
        self._learner = Service(
            "learner", "apex_learner", [*common, "--run-dir", str(run.path)], run.logs / "learner.log"
        )
        # Processes before clients: gRPC's threads and a fork do not go well together.
        self._replay.start()
        self._learner.start()
        (table,) = make_algorithm(config, env_spec(config.env)).tables()
        handshake = Handshake(run.run_id, shared_json(config))
        self._insert = InsertClient(config.replay.addresses[0], handshake, table.config, 64)
        self._coordinator = CoordinatorClient(config.learner.address)
        self._inserted = 0
        self._owed = 0.0
        self.wait_ratios: list[float] = []
        """Share of its time that the learner waited for batches, at the end of each window."""

    def warm_up(self, fill_items: int, warm_updates: int) -> None:
        """Fill the table and let the learner run until its mirror is warm; then pause.

        Raises:
            TimeoutError: the learner has not got that far in time; the message ends with its log.
        """
        while self._inserted < fill_items:
            self._put_one()
        self._insert.flush(START_SECONDS)
        deadline = time.monotonic() + START_SECONDS
        while self._updates() < warm_updates:
            if time.monotonic() > deadline or not self._learner.running:
                raise TimeoutError(f"the learner did not get to {warm_updates} updates:\n{self._learner.log_tail()}")
            time.sleep(TICK_SECONDS)
        self._signal(signal.SIGSTOP)

    def window(self, seconds: float) -> float:
        """Updates per second of the learner over ``seconds``, settling not counted. It is paused before and after."""
        self._signal(signal.SIGCONT)
        try:
            self._run(SETTLE_SECONDS)
            before, first = self._edge()
            self._run(seconds)
            after, last = self._edge()
            self.wait_ratios.append(self._coordinator.get_status(START_SECONDS).batch_wait_ratio)
            return (last - first) / (after - before)
        finally:
            self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        """End everything."""
        self._signal(signal.SIGCONT)
        self._insert.close()
        self._coordinator.close()
        stop_in_order([([self._learner], 10.0), ([self._replay], 5.0)])

    def _updates(self) -> int:
        try:
            return int(self._coordinator.get_status(timeout=1.0).learner_updates)
        except TimeoutError:
            return 0

    def _edge(self) -> tuple[float, int]:
        """The moment at which the reported number of updates changes, and the new number.

        The learner reports every half second; a number read at any other moment may be that old.
        """
        deadline = time.monotonic() + START_SECONDS
        known = self._updates()
        while (now := self._updates()) == known:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the learner makes no updates:\n{self._learner.log_tail()}")
            time.sleep(EDGE_SECONDS)
        return time.monotonic(), now

    def _run(self, seconds: float) -> None:
        """Let the learner learn, and insert in proportion to its updates."""
        end = time.monotonic() + seconds
        updates = self._updates()
        while time.monotonic() < end:
            time.sleep(TICK_SECONDS)
            if self._samples_per_insert > 0:
                now = self._updates()
                self._owed += (now - updates) * self._config.learner.batch_size / self._samples_per_insert
                updates = now
                while self._owed > 0:
                    self._owed -= self._put_one()

    def _put_one(self) -> int:
        chunk = next(self._chunks)
        if not self._insert.put([chunk], timeout=START_SECONDS):
            raise TimeoutError(f"the shard takes no chunks: {self._insert.waiting()}\n{self._replay.log_tail()}")
        self._inserted += chunk.num_items
        return chunk.num_items

    def _signal(self, number: signal.Signals) -> None:
        """Send ``number`` to both process groups (the learner has a child)."""
        for service in (self._learner, self._replay):
            if service.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(service.process.pid, number)


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
    config: ExperimentConfig[Any], directory: Path, *, samples_per_insert: float, recorded_items: int, warm_updates: int
) -> Iterator[LearnerScene]:
    """A paused, warm scene for a configuration with :func:`own_overrides`."""
    run = RunDirectory.create_or_resume(directory, config)
    made = LearnerScene(config, run, record_chunks(config, recorded_items), samples_per_insert)
    try:
        made.warm_up(max(config.replay.min_items + config.learner.batch_size, recorded_items), warm_updates)
        yield made
    finally:
        made.stop()
