"""Samples per insert: one limiter for all shards, owned by the learner.

A limiter per shard deadlocks: draws follow mass, inserts follow actors, and the two need not agree. So the learner
draws only while

    inserted >= min_items   and   drawn + n <= samples_per_insert * (inserted - min_items) + slack_items

summed over shards, and hands every shard an insert limit that lets the inserts run ahead by as much:

    limit_k = inserted_k + max(0, drawn / samples_per_insert + min_items + slack / samples_per_insert - inserted) / live

samples_per_insert = 0 means no limiter (Horgan et al. 2018); min_items holds all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from apexrl.config import ConfigError
from apexrl.types import TableTotals


@dataclass
class _Shard:
    boot: bytes
    totals: TableTotals
    """The newest report; its counters began anew with the boot."""
    inserted_before: int = 0
    """Items inserted in earlier boots."""
    drawn_before: int = 0
    live: bool = True


class SamplesPerInsertLimiter:
    """Arithmetic of one table over ``num_shards`` shards. ``slack_items`` counts draws.

    Use :meth:`for_run` where batch, prefetch and chunks are known: it refuses a slack that would deadlock.
    """

    def __init__(self, samples_per_insert: float, min_items: int, slack_items: int = 0, num_shards: int = 1) -> None:
        if not 0.0 <= samples_per_insert < math.inf:
            raise ConfigError(f"replay.samples_per_insert is {samples_per_insert}, must be 0 (off) or above")
        if min_items < 1:
            raise ConfigError(f"replay.min_items is {min_items}, must be at least 1")
        if slack_items < 0:
            raise ConfigError(f"replay.slack_items is {slack_items}, must be 0 or above")
        if num_shards < 1:
            raise ConfigError(f"the number of shards is {num_shards}, must be at least 1")
        self.samples_per_insert = samples_per_insert
        self.min_items = min_items
        self.slack_items = slack_items
        self._shards: list[_Shard | None] = [None] * num_shards
        #: Inserts without draws in return: min_items, and what refills a shard that came back empty.
        self._unpaid = min_items
        #: `inserted` at which draws may begin.
        self._gate = min_items
        self._in_flight = 0

    @staticmethod
    def least_slack(
        *, samples_per_insert: float, batch_size: int, prefetch_batches: int, chunk_starts: int, num_shards: int = 1
    ) -> int:
        """Smallest slack that cannot deadlock: twice what either side moves at once.

        The learner requests up to ``prefetch_batches`` + 1 batches before it consumes one; a shard takes a whole chunk
        where there is room for one item.

        How many actors there are, and what their lanes hold, has no part in it: only what is stored counts. Where n
        draws are refused, spi * paid < drawn + n - slack with paid = inserted - unpaid. The inserts that are allowed
        beyond those are (drawn + slack) / spi - paid > (2 slack - n) / spi, and that is above 0 while slack > n / 2.
        """
        chunks = samples_per_insert * chunk_starts * num_shards
        return 2 * math.ceil(max(batch_size * (prefetch_batches + 1), chunks))

    @classmethod
    def for_run(
        cls,
        *,
        samples_per_insert: float,
        min_items: int,
        slack_items: int,
        batch_size: int,
        prefetch_batches: int,
        chunk_starts: int,
        num_shards: int = 1,
    ) -> SamplesPerInsertLimiter:
        """A limiter whose slack is enough; ``slack_items`` 0 takes the least that is.

        Raises ConfigError if ``slack_items`` is too small for the batch, the prefetch depth and the chunks.
        """
        least = cls.least_slack(
            samples_per_insert=samples_per_insert,
            batch_size=batch_size,
            prefetch_batches=prefetch_batches,
            chunk_starts=chunk_starts,
            num_shards=num_shards,
        )
        if samples_per_insert > 0.0 and 0 < slack_items < least:
            raise ConfigError(
                f"replay.slack_items is {slack_items}, must be 0 (automatic) or at least {least} for batches of "
                f"{batch_size}, {prefetch_batches} of them prefetched, and chunks of {chunk_starts} items on "
                f"{num_shards} shards; less could deadlock"
            )
        return cls(samples_per_insert, min_items, slack_items or least, num_shards)

    @property
    def inserted(self) -> int:
        """Items inserted over all shards and boots seen."""
        return sum(shard.inserted_before + shard.totals.inserted for shard in self._known)

    @property
    def drawn(self) -> int:
        """Items drawn, and requested but not yet reported."""
        return sum(shard.drawn_before + shard.totals.drawn for shard in self._known) + self._in_flight

    @property
    def num_items(self) -> int:
        """Items that live shards hold now."""
        return sum(shard.totals.num_items for shard in self._known if shard.live)

    @property
    def achieved_ratio(self) -> float:
        """Draws per insert beyond min_items; 0 before there are any."""
        paid = self.inserted - self._unpaid
        return self.drawn / paid if paid > 0 else 0.0

    def observe(self, totals: TableTotals, boot: bytes, shard: int = 0) -> None:
        """Take a shard's newest report.

        Another ``boot`` than before means that its experience and counters began anew. Counting goes on from where it
        was, and what is missing to min_items must come in again before the next draw; these inserts earn no draws, or
        the learner would tear through a small table to make up for them.
        """
        known = self._shards[shard]
        if known is None:
            self._shards[shard] = _Shard(boot, totals)
        elif known.boot == boot:
            known.totals = totals
            known.live = True
        else:
            lost_inserted = known.inserted_before + known.totals.inserted
            lost_drawn = known.drawn_before + known.totals.drawn
            empty = TableTotals(0.0, 0, 0, 0)
            self._shards[shard] = _Shard(boot, empty, lost_inserted, lost_drawn)
            # What an interrupted refill still owes is part of the new one.
            owed = max(0, self._gate - self.inserted)
            refill = max(0, self.min_items - self.num_items)
            self._unpaid += max(0, refill - owed)
            self._gate = max(self._gate, self.inserted + refill)
            self._shards[shard] = _Shard(boot, totals, lost_inserted, lost_drawn)

    def disconnected(self, shard: int) -> None:
        """Share insert limits out among the other shards until this one reports again."""
        known = self._shards[shard]
        if known is not None:
            known.live = False

    def may_draw(self, n: int) -> bool:
        """Whether ``n`` more items may be requested now."""
        if self.inserted < self._gate:
            return False
        return self.samples_per_insert == 0.0 or self.drawn + n <= self._draws_allowed()

    def request(self, n: int) -> None:
        """Note that a draw of ``n`` items is under way: it counts before the shard has reported it."""
        self._in_flight += n

    def settle(self, n: int) -> None:
        """Note that a draw of ``n`` items was answered (its totals observed) or is lost with its stream."""
        if n > self._in_flight:
            raise ValueError(f"settled {n} items of {self._in_flight} in flight")
        self._in_flight -= n

    def insert_limits(self) -> list[int | None]:
        """For each shard the value of its `inserted` counter below which it takes chunks; None = no limit.

        To be sent at least every 200 ms even while nothing is drawn: a share that a shard without actors leaves
        unused is thereby offered to the others. Rounded up, so that a share below one item still moves.
        """
        if self.samples_per_insert == 0.0:
            return [None] * len(self._shards)
        ahead = (self.drawn + self.slack_items) / self.samples_per_insert + self._unpaid
        room = max(0.0, ahead - self.inserted, float(self._gate - self.inserted))
        live = sum(shard is None or shard.live for shard in self._shards)
        share = math.ceil(room / max(1, live))
        return [(shard.totals.inserted if shard else 0) + share for shard in self._shards]

    def waiting(self, n: int = 1) -> str | None:
        """Why ``n`` items may not be drawn, for people; None if they may."""
        if self.may_draw(n):
            return None
        missing = self._gate - self.inserted
        if missing > 0:
            return f"waiting: {max(0, self.min_items - missing)} of {self.min_items} items"
        return (
            f"waiting for inserts: {self.drawn + n} draws wanted, {math.floor(self._draws_allowed())} allowed at "
            f"{self.samples_per_insert:g} samples per insert after {self.inserted} items"
        )

    @property
    def _known(self) -> list[_Shard]:
        return [shard for shard in self._shards if shard is not None]

    def _draws_allowed(self) -> float:
        return self.samples_per_insert * (self.inserted - self._unpaid) + self.slack_items
