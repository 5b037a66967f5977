"""The learner's side of the replay: streams to all shards, batches from them, priorities back to them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from apex_learner.assembler import BatchAssembler, DrawCounts
from apex_learner.batches import PrefetchDepth, mirror_slots
from apex_learner.prefetch import Prefetcher
from apexrl.algorithms.base import TableSpec
from apexrl.config import ExperimentConfig
from apexrl.experience.batch import BatchBuffer
from apexrl.replay.draws import shard_seed
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.transport.handshake import Handshake
from apexrl.transport.sample_client import LearnerIdentity, SampleClient
from apexrl.types import TableTotals


def make_limiter(config: ExperimentConfig[Any], table: TableSpec, depth: PrefetchDepth) -> SamplesPerInsertLimiter:
    """The limiter that holds the run's samples per insert."""
    replay = config.replay
    return SamplesPerInsertLimiter.for_run(
        samples_per_insert=replay.samples_per_insert,
        min_items=replay.min_items,
        slack_items=replay.slack_items,
        batch_size=config.learner.batch_size,
        prefetch_batches=depth.largest,
        chunk_starts=table.config.signature.geometry.starts,
        num_shards=len(replay.addresses),
    )


class Sampling:
    """Batches of one table, drawn from all shards in the background. Methods are the trainer thread's.

    Args:
        config: the experiment.
        table: to draw from.
        handshake: of this learner.
        identity: of this learner.
        discard_other_run: tell shards to drop another run's experience.
        importance_sampling_exponent: gives beta; called on the prefetcher's thread, as the two callbacks are.
        requests_made: draw requests of the run so far.
        device: where mirrors and batches lie.
        on_totals: called with a shard, its report and its boot.
        on_latency: called with a shard and the seconds from a request to its reply.

    Raises:
        ConfigError: the mirror or the slack is too small.
    """

    def __init__(
        self,
        config: ExperimentConfig[Any],
        table: TableSpec,
        handshake: Handshake,
        identity: LearnerIdentity,
        *,
        discard_other_run: bool,
        importance_sampling_exponent: Callable[[], float],
        requests_made: int,
        device: torch.device,
        on_totals: Callable[[int, TableTotals, bytes], None],
        on_latency: Callable[[int, float], None],
    ) -> None:
        self._table = table.config.name
        self._reads_priorities = table.config.reads_priorities
        addresses, learner = config.replay.addresses, config.learner
        slots = mirror_slots(table.config, len(addresses), learner.batch_size, learner.mirror_bytes)
        self.depth = PrefetchDepth(learner.prefetch_batches)
        self._limiter = make_limiter(config, table, self.depth)
        self._assembler = BatchAssembler(
            table.config,
            num_shards=len(addresses),
            batch_size=learner.batch_size,
            depth=self.depth,
            limiter=self._limiter,
            importance_sampling_exponent=importance_sampling_exponent,
            run_seed=config.seed,
            requests_made=requests_made,
            device=device,
        )
        something_came = threading.Event()
        self._clients = [
            SampleClient(
                address,
                handshake,
                identity,
                [table.config],
                shard_seed(config.seed, shard),
                mirror_slots=slots,
                discard_other_run=discard_other_run,
                on_totals=lambda boot, totals: something_came.set(),
            )
            for shard, address in enumerate(addresses)
        ]
        self._prefetcher = Prefetcher(
            self._clients, self._table, self._assembler, self._limiter, something_came, on_totals, on_latency
        )

    @property
    def num_ready(self) -> int:
        """Batches that wait for the trainer."""
        return self._prefetcher.num_ready

    @property
    def num_items(self) -> int:
        """Items of all shards that can be reached."""
        return self._assembler.num_items

    @property
    def num_shards_live(self) -> int:
        """Shards with an open stream."""
        return sum(client.info is not None for client in self._clients)

    @property
    def samples_per_insert(self) -> float:
        """Achieved so far."""
        return self._limiter.achieved_ratio

    @property
    def counts(self) -> DrawCounts:
        """What has come over the streams."""
        return self._assembler.counts

    @property
    def requests_made(self) -> int:
        """Draw requests of the run so far; a resumed learner goes on counting."""
        return self._assembler.requests_made

    def next(self, timeout_seconds: float) -> BatchBuffer | None:
        """The next batch, or None after ``timeout_seconds``; hand it back with :meth:`learned`.

        Raises:
            Fenced: a learner of a higher epoch has taken over.
        """
        return self._prefetcher.next(timeout_seconds)

    def learned(self, batch: BatchBuffer, priorities: npt.NDArray[np.float32] | None) -> None:
        """Give a batch's memory back and send its items' new priorities [B], if any, to their shards.

        Where no shard reads priorities none are sent: messages beside the update slow it down.
        """
        self._prefetcher.learned(batch, priorities if self._reads_priorities else None)

    def waiting(self) -> str | None:
        """What the learner waits for, in words; None if for nothing."""
        return self._prefetcher.waiting()

    def close(self) -> None:
        """End streams and threads."""
        for client in self._clients:
            client.close()
        self._prefetcher.stop()
