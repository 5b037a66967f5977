"""A client process of a served shard: what an actor does from row to acknowledgement, or a learner from draw to batch.

Started by ``replay_scene.py`` as ``replay_worker.py insert|sample RUN_DIRECTORY RECORDING``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apex_learner.sampling import Sampling
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ExperimentConfig, load_experiment, shared_json
from apexrl.envs import env_spec
from apexrl.experience.batch import CPU
from apexrl.runtime.malloc import keep_freed_memory
from apexrl.runtime.run_directory import RunDirectory
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_client import InsertClient
from apexrl.transport.sample_client import LearnerIdentity
from apexrl.types import Chunk
from benchmarks.peers.replay_work import Client, serve_client
from benchmarks.recordings import Recording, load, make_builder, rows_in_turn

#: The longest that an inserter waits at the end of its time for acknowledgements: at an insert limit none may come.
FLUSH_SECONDS = 0.5
WAIT_SECONDS = 0.05


class Inserter:
    """Turns recorded rows into chunks and hands them to the shard, lanes in lockstep, again and again."""

    def __init__(self, config: ExperimentConfig[Any], run: RunDirectory, recording: Recording) -> None:
        self._recording = recording
        self._algorithm = make_algorithm(config, env_spec(config.env))
        (self._table,) = self._algorithm.tables()
        handshake = Handshake(run.run_id, shared_json(config))
        self._client = InsertClient(
            config.replay.addresses[0], handshake, self._table.config, config.actor.max_unacked_chunks
        )
        self._turns = self._endless()
        self._waiting: list[Chunk] = []

    def run(self, seconds: float, units: float) -> int:
        """See :class:`Client`; units are items. Ends with all of them acknowledged, unless the limiter holds them."""
        end = time.monotonic() + seconds
        items = 0
        while items < units and (left := end - time.monotonic()) > 0:
            if not self._waiting:
                self._waiting = next(self._turns)
                continue
            taken = self._client.put(self._waiting, timeout=left)
            items += sum(chunk.num_items for chunk in self._waiting[:taken])
            del self._waiting[:taken]
        self._client.flush(FLUSH_SECONDS)
        return items

    def _endless(self) -> Iterator[list[Chunk]]:
        """The chunks of each turn. At the recording's end open windows are closed, as by an actor that stops."""
        recording = self._recording
        builder = make_builder(self._table, self._algorithm, recording.num_lanes)
        while True:
            *rows, final = rows_in_turn(recording)
            for row in rows:
                yield builder.append(*row)
            yield builder.drain(*final)


class Sampler:
    """Takes batches as the trainer does, and gives them back at once."""

    def __init__(self, config: ExperimentConfig[Any], run: RunDirectory) -> None:
        algorithm = make_algorithm(config, env_spec(config.env))
        (table,) = algorithm.tables()
        self._batch_size = config.learner.batch_size
        instance = os.urandom(16)
        self._sampling = Sampling(
            config,
            table,
            Handshake(run.run_id, shared_json(config)),
            LearnerIdentity(run.epoch_file.take_next(instance), instance),
            discard_other_run=False,
            importance_sampling_exponent=lambda: config.replay.importance_sampling_exponent,
            requests_made=0,
            device=CPU,
            on_totals=lambda shard, totals, boot: None,
            on_latency=lambda shard, seconds: None,
        )

    def run(self, seconds: float, units: float) -> int:
        """See :class:`Client`; units are items."""
        end = time.monotonic() + seconds
        items = 0
        taken_at = time.monotonic()
        while items < units and (now := time.monotonic()) < end:
            batch = self._sampling.next(WAIT_SECONDS)
            if batch is None:
                continue
            batch.as_window_batch()
            self._sampling.learned(batch, None)
            self._sampling.depth.observe(now - taken_at)
            taken_at = now
            items += self._batch_size
        return items


def make_client(role: str, directory: Path, recording: Path) -> Client:
    """The client of that role, connected to the shard of the run's configuration."""
    run = RunDirectory.open(directory)
    config = load_experiment(run.config_yaml, algorithm_configs=CONFIGS)
    makers: dict[str, Callable[[], Client]] = {
        "insert": lambda: Inserter(config, run, load(recording)),
        "sample": lambda: Sampler(config, run),
    }
    return makers[role]()


def main() -> int:
    """Serve requests until standard input ends."""
    role, directory, recording = sys.argv[1:4]
    keep_freed_memory()
    configure_torch(1)
    serve_client(make_client(role, Path(directory), Path(recording)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
