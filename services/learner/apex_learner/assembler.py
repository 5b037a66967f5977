"""From the draws of several shards to whole batches, exactly as if one table held everything.

Each batch of B items is divided among the shards by a multinomial draw with shares pi_k = mass_k / sum of masses. An
item's probability is pi_k q_i / T_k: the share its shard was given when the batch was divided, times what the shard
reports. That is exact whatever has become stale meanwhile.

Not thread-safe: one thread (the prefetcher), or serial mode, owns an assembler.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from apex_learner.batches import PrefetchDepth
from apex_learner.trainer import UPDATES_IN_FLIGHT
from apexrl.config import ConfigError
from apexrl.experience.batch import CPU, BatchBuffer, BatchRing
from apexrl.experience.device_mirror import CopyStream, DeviceMirror
from apexrl.experience.importance import importance_weights
from apexrl.experience.mirror import HostMirror, Mirror, Place
from apexrl.experience.records import RecordLayout
from apexrl.replay.draws import shares_generator
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.transport.sample_client import OpenedTable
from apexrl.transport.wire import DrawResult
from apexrl.types import SignatureError, TableConfig, TableTotals

#: A part that a shard has not answered for so long is asked of others.
OVERDUE_SECONDS = 2.0
#: Batches that the trainer may hold: one that it learns from, and those whose update is in flight.
MAX_HELD = 1 + UPDATES_IN_FLIGHT

NO_TOTALS = TableTotals(0.0, 0, 0, 0)

Counts = npt.NDArray[np.int64]
Masses = npt.NDArray[np.float64]


class DrawPlan(NamedTuple):
    """A request to one shard: its number, and how many items each of its batches gets from there."""

    shard: int
    request_number: int
    counts: list[int]


@dataclass
class DrawCounts:
    """What has come over the streams, ever. A chunk is a page that the mirror lacked: the mirror's hit rate is
    1 - chunks / items.
    """

    items: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    """Of the encoded blocks."""
    decode_seconds: float = 0.0
    """To decode chunks and copy them to their slots."""
    redraws: int = 0
    """Times that parts were asked of another shard."""


@dataclass
class _Assembly:
    """A batch that is being put together."""

    buffer: BatchBuffer
    missing: int
    """Items that have not come yet."""
    probabilities: npt.NDArray[np.float64]
    """[B] with which each item was drawn."""


class _Piece(NamedTuple):
    """Rows ``offset`` .. ``offset + rows - 1`` of a batch."""

    assembly: _Assembly
    offset: int
    rows: int


@dataclass
class _Part:
    """What one request to one shard was asked for."""

    plan: DrawPlan
    share: float
    """Of the shard, when the batches were divided."""
    pieces: list[_Piece]
    asked_at: float
    void: bool = False
    """Asked of others since: a late answer still fills the mirror, its items are not used."""

    @property
    def num_items(self) -> int:
        return sum(piece.rows for piece in self.pieces)


@dataclass
class _Shard:
    """What the learner knows of a shard."""

    mirror: Mirror | None = None
    totals: TableTotals = NO_TOTALS
    is_open: bool = False
    outstanding: deque[_Part] = field(default_factory=deque)
    """Parts without an answer, in the order in which they were asked for."""

    @property
    def mass(self) -> float:
        """What counts for this shard's share; 0 if nothing can be drawn from it now."""
        return self.totals.mass if self.is_open and self.totals.num_items > 0 else 0.0


class BatchAssembler:
    """Plans draw requests within the limiter, applies replies, and completes batches.

    A shard's replies must be applied in the order of its requests: that copies new chunks to their slots of the shard's
    mirror and gathers the reply's windows at once. A gather at the time of use would read slots that a later reply has
    overwritten.

    Args:
        table: that every shard holds a part of.
        num_shards: K.
        batch_size: B.
        depth: how many batches to keep ready.
        limiter: of K shards.
        importance_sampling_exponent: gives beta.
        run_seed: of the division among shards.
        requests_made: by the run so far.
        device: where mirrors and batches lie.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        table: TableConfig,
        *,
        num_shards: int,
        batch_size: int,
        depth: PrefetchDepth,
        limiter: SamplesPerInsertLimiter,
        importance_sampling_exponent: Callable[[], float],
        run_seed: int,
        requests_made: int = 0,
        device: torch.device = CPU,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._batch_size = batch_size
        self._depth = depth
        self._limiter = limiter
        self._exponent = importance_sampling_exponent
        self._run_seed = run_seed
        self._clock = clock
        self._shards = [_Shard() for _ in range(num_shards)]
        self._request_number = requests_made
        self._batches_in_flight = 0
        self._orphans: list[_Piece] = []
        self._stream = None if device == CPU else CopyStream(device)
        self.ring = BatchRing(table.signature, batch_size, depth.largest + MAX_HELD, device)
        self.counts = DrawCounts()

    # --- state ---

    @property
    def requests_made(self) -> int:
        """Number of the newest request. It seeds the draws, so a resumed learner goes on counting."""
        return self._request_number

    @property
    def batches_per_request(self) -> int:
        """As many as one request asks for at present, if there is room for them."""
        return self._depth.batches_per_request

    @property
    def batches_in_flight(self) -> int:
        """Batches asked for and not complete yet."""
        return self._batches_in_flight

    @property
    def num_items(self) -> int:
        """Items of all shards that are open."""
        return sum(shard.totals.num_items for shard in self._shards if shard.is_open)

    @property
    def masses(self) -> list[float]:
        """[K] what each shard's share is in proportion to."""
        return [shard.mass for shard in self._shards]

    def open(self, shard: int, opened: OpenedTable, boot: bytes) -> None:
        """A stream begins: its mirror is empty on both sides, and what was asked on a former one is asked again."""
        self.lost(shard)
        own = self._shards[shard]
        if own.mirror is None or own.mirror.num_slots != opened.mirror_slots:
            own.mirror = self._make_mirror(opened.mirror_slots)
        own.is_open = True
        self.observe(shard, opened.totals, boot)

    def _make_mirror(self, num_slots: int) -> Mirror:
        if self._stream is None:
            return HostMirror(self._table.signature, num_slots)
        try:
            return DeviceMirror(self._table.signature, num_slots, self._stream)
        except torch.OutOfMemoryError as error:
            needed = num_slots * RecordLayout(self._table.signature).page_bytes
            raise ConfigError(
                f"learner.mirror_bytes: a mirror of {needed} bytes does not fit into the memory of "
                f"{self._stream.device}; set it lower, or learner.mirror_device to 'cpu'"
            ) from error

    def lost(self, shard: int) -> None:
        """A stream has ended: its unanswered parts will be asked for again, and it gets no more."""
        own = self._shards[shard]
        own.is_open = False
        self._limiter.disconnected(shard)
        while own.outstanding:
            part = own.outstanding.popleft()
            self._limiter.settle(part.num_items)
            if not part.void:
                self._orphans += part.pieces

    def observe(self, shard: int, totals: TableTotals, boot: bytes) -> None:
        """Take in a shard's report."""
        self._shards[shard].totals = totals
        self._limiter.observe(totals, boot, shard)

    # --- requests ---

    def plan(self, ready: int) -> list[DrawPlan]:
        """The next requests, to be sent in their order: what must be asked again, then new batches.

        Empty if not a request's worth of batches is missing, the limiter allows none, or no shard holds anything.
        ``ready`` batches wait for the learner.
        """
        masses = self.masses
        if sum(masses) <= 0.0:
            return []
        self._void_overdue(masses)
        if self._orphans:
            self.counts.redraws += 1
            return self._ask(self._some_orphans(), np.array(masses))
        batches = min(self._depth.batches_per_request, self._batches_that_fit())
        if self._depth.batches - ready - self._batches_in_flight < batches:
            return []  # a request for fewer would cost as much
        while batches > 0 and not self._limiter.may_draw(batches * self._batch_size):
            batches -= 1
        if batches <= 0:
            return []
        self._batches_in_flight += batches
        return self._ask([_Piece(self._new_assembly(), 0, self._batch_size) for _ in range(batches)], np.array(masses))

    def withdraw(self, plan: DrawPlan) -> None:
        """The newest plan of its shard could not be sent; it will be asked for again."""
        own = self._shards[plan.shard]
        if own.outstanding and own.outstanding[-1].plan is plan:
            part = own.outstanding.pop()
            self._limiter.settle(part.num_items)
            self._orphans += part.pieces

    def _batches_that_fit(self) -> int:
        """So few per request that the smallest mirror holds all their pages."""
        slots = min(shard.mirror.num_slots for shard in self._shards if shard.mirror is not None)
        return max(1, slots // self._batch_size)

    def _some_orphans(self) -> list[_Piece]:
        """As many of them as one request asks for, taken off the list."""
        room = min(self._depth.batches_per_request, self._batches_that_fit()) * self._batch_size
        taken = 0
        while taken < len(self._orphans) and room >= self._orphans[taken].rows:
            room -= self._orphans[taken].rows
            taken += 1
        pieces, self._orphans = self._orphans[:taken], self._orphans[taken:]
        return pieces

    def _new_assembly(self) -> _Assembly:
        return _Assembly(self.ring.acquire(), self._batch_size, np.zeros(self._batch_size))

    def _void_overdue(self, masses: Sequence[float]) -> None:
        """Give up on parts that other shards could answer sooner."""
        if np.count_nonzero(masses) < 2:
            return
        limit = self._clock() - OVERDUE_SECONDS
        for shard in self._shards:
            for part in shard.outstanding:
                if part.asked_at <= limit and not part.void:
                    part.void = True
                    self._orphans += part.pieces

    def _ask(self, pieces: Sequence[_Piece], masses: Masses) -> list[DrawPlan]:
        """Divide every piece among the shards; one request for each shard that gets any."""
        shares = self._shares(masses)
        counts = self._divided([piece.rows for piece in pieces], shares)
        before = np.cumsum(counts, axis=1) - counts
        plans = []
        for k in np.flatnonzero(counts.sum(axis=0)).tolist():
            self._request_number += 1
            own = [
                _Piece(piece.assembly, piece.offset + int(before[i, k]), int(counts[i, k]))
                for i, piece in enumerate(pieces)
                if counts[i, k]
            ]
            plan = DrawPlan(k, self._request_number, [piece.rows for piece in own])
            self._shards[k].outstanding.append(_Part(plan, float(shares[k]), own, self._clock()))
            self._limiter.request(sum(plan.counts))
            plans.append(plan)
        return plans

    def _divided(self, rows: list[int], shares: Masses) -> Counts:
        """[pieces, K] how many of the rows of each piece every shard gives."""
        if shares.size == 1:  # nothing to draw
            return np.array(rows, dtype=np.int64)[:, None]
        generator = shares_generator(self._run_seed, self._table.name, self._request_number + 1)
        counts: Counts = generator.multinomial(rows, shares)
        return counts

    def _shares(self, masses: Masses) -> Masses:
        """[K] pi. A shard that lets parts become overdue gets none while others have something."""
        limit = self._clock() - OVERDUE_SECONDS
        slow = np.array([bool(s.outstanding) and s.outstanding[0].asked_at <= limit for s in self._shards])
        usable = np.where(slow, 0.0, masses)
        if usable.sum() <= 0.0:
            usable = masses
        shares: Masses = usable / usable.sum()
        return shares

    # --- replies ---

    def apply(self, shard: int, drawn: DrawResult, boot: bytes) -> list[BatchBuffer]:
        """Mirror a reply's chunks and gather its windows; returns the batches that are complete now.

        Hand them back to ``ring`` after use.

        Raises:
            SignatureError: the reply answers nothing, or a chunk does not decode. The stream must be closed, because
                the mirror no longer holds what the shard believes.
        """
        own = self._shards[shard]
        if own.mirror is None or not own.outstanding:
            raise SignatureError(f"draw reply {drawn.request_number}: nothing was asked for on this stream")
        part = own.outstanding[0]
        if drawn.request_number != part.plan.request_number or drawn.counts.tolist() != part.plan.counts:
            raise SignatureError(
                f"draw.request_number is {drawn.request_number} with counts {drawn.counts.tolist()}, must be "
                f"{part.plan.request_number} with {part.plan.counts}"
            )
        self._mirror(own.mirror, drawn)
        own.outstanding.popleft()
        self.observe(shard, drawn.totals, boot)
        self._limiter.settle(part.num_items)
        return [] if part.void else self._fill(shard, part, drawn)

    def _mirror(self, mirror: Mirror, drawn: DrawResult) -> None:
        """Take in a reply's chunks."""
        started = time.perf_counter()
        if len(drawn.new_chunks):
            mirror.put(drawn.new_slots, drawn.new_chunks)
        counts = self.counts
        counts.decode_seconds += time.perf_counter() - started
        counts.items += len(drawn.keys)
        counts.chunks += len(drawn.new_chunks)
        counts.chunk_bytes += int(drawn.new_chunks.sizes.sum())

    def _fill(self, shard: int, part: _Part, drawn: DrawResult) -> list[BatchBuffer]:
        """Put a reply's items where they belong."""
        mirror = self._shards[shard].mirror
        assert mirror is not None
        places = [Place(piece.assembly.buffer, piece.offset, piece.rows) for piece in part.pieces]
        mirror.gather(drawn.slots, drawn.start_rows, drawn.lengths, drawn.prefixes, places)
        probabilities = part.share * drawn.probabilities.astype(np.float64)
        complete: list[_Assembly] = []
        begin = 0
        for assembly, offset, count in part.pieces:
            items, rows = slice(begin, begin + count), slice(offset, offset + count)
            buffer = assembly.buffer
            buffer.keys[rows] = drawn.keys[items]
            buffer.shards[rows] = shard
            assembly.probabilities[rows] = probabilities[items]
            assembly.missing -= count
            begin += count
            if assembly.missing == 0:
                complete.append(assembly)
        return self._finished(complete) if complete else []

    def _finished(self, complete: Sequence[_Assembly]) -> list[BatchBuffer]:
        """Weigh the items of batches that are complete now, and have the device told."""
        buffers = [assembly.buffer for assembly in complete]
        probabilities = np.stack([assembly.probabilities for assembly in complete])
        weights = importance_weights(probabilities, max(1, self.num_items), self._exponent())
        for buffer, own in zip(buffers, weights, strict=True):
            buffer.weights[:] = own
        if self._stream is not None:
            with self._stream.use():
                for buffer in buffers:
                    buffer.upload()
            whole = self._stream.mark()
            for buffer in buffers:
                buffer.ready = whole
        self._batches_in_flight -= len(buffers)
        return buffers
