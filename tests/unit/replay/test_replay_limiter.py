"""Samples per insert: the arithmetic, liveness under mismatched shares, restarts of shards, refused slack."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest

from apexrl.config import ConfigError
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.types import TableTotals


def totals(inserted: int, drawn: int, num_items: int | None = None) -> TableTotals:
    return TableTotals(1.0, inserted if num_items is None else num_items, inserted, drawn)


def test_draws_wait_for_min_items_and_then_follow_the_inserts() -> None:
    limiter = SamplesPerInsertLimiter(8.0, min_items=1000, slack_items=500)
    assert not limiter.may_draw(1)
    limiter.observe(totals(812, 0), b"a")
    assert limiter.waiting(64) == "waiting: 812 of 1000 items"
    limiter.observe(totals(1000, 0), b"a")
    assert limiter.may_draw(500)
    assert not limiter.may_draw(501)
    limiter.observe(totals(1100, 400), b"a")
    assert limiter.may_draw(900)
    assert not limiter.may_draw(901)
    assert limiter.waiting(900) is None
    waiting = limiter.waiting(901)
    assert waiting is not None
    assert "1301 draws wanted, 1300 allowed at 8 samples per insert after 1100 items" in waiting
    assert limiter.achieved_ratio == 4.0


def test_requests_count_before_they_are_answered() -> None:
    limiter = SamplesPerInsertLimiter(1.0, min_items=10, slack_items=100)
    limiter.observe(totals(10, 0), b"a")
    limiter.request(60)
    assert limiter.may_draw(40)
    assert not limiter.may_draw(41)
    limiter.observe(totals(10, 60), b"a")
    limiter.settle(60)
    assert limiter.drawn == 60
    assert limiter.may_draw(40)
    with pytest.raises(ValueError, match="settled 1 items of 0"):
        limiter.settle(1)


def test_insert_limits_are_shared_among_live_shards() -> None:
    limiter = SamplesPerInsertLimiter(2.0, min_items=100, slack_items=40, num_shards=2)
    assert limiter.insert_limits() == [60, 60]
    limiter.observe(totals(50, 0), b"a", shard=0)
    limiter.observe(totals(20, 10), b"b", shard=1)
    # 10/2 + 100 + 40/2 - 70 = 55 more, 28 for each when rounded up.
    assert limiter.insert_limits() == [78, 48]
    limiter.disconnected(0)
    assert limiter.insert_limits()[1] == 75
    limiter.observe(totals(50, 0), b"a", shard=0)
    assert limiter.insert_limits() == [78, 48]


def test_without_samples_per_insert_only_min_items_holds() -> None:
    limiter = SamplesPerInsertLimiter(0.0, min_items=10)
    limiter.observe(totals(9, 0), b"a")
    assert not limiter.may_draw(1)
    limiter.observe(totals(10, 0), b"a")
    assert limiter.may_draw(10**9)
    assert limiter.insert_limits() == [None]


def test_a_shard_that_comes_back_empty_is_refilled_before_the_next_draw() -> None:
    limiter = SamplesPerInsertLimiter(4.0, min_items=1000, slack_items=200)
    limiter.observe(totals(5000, 16_100), b"first", shard=0)
    assert limiter.may_draw(100)
    limiter.observe(totals(0, 0), b"second", shard=0)
    assert not limiter.may_draw(1)
    assert limiter.waiting() == "waiting: 0 of 1000 items"
    assert (limiter.inserted, limiter.drawn) == (5000, 16_100)
    (limit,) = limiter.insert_limits()
    assert limit is not None
    assert limit >= 1000
    limiter.observe(totals(999, 0), b"second", shard=0)
    assert not limiter.may_draw(1)
    limiter.observe(totals(1000, 0), b"second", shard=0)
    # No burst: the refill has earned no draws.
    assert limiter.may_draw(100)
    assert not limiter.may_draw(101)


def test_a_second_restart_during_the_refill_owes_only_what_is_missing() -> None:
    limiter = SamplesPerInsertLimiter(4.0, min_items=1000, slack_items=200)
    limiter.observe(totals(5000, 16_000), b"1")
    limiter.observe(totals(400, 0), b"2")
    limiter.observe(totals(0, 0), b"3")
    limiter.observe(totals(999, 0), b"3")
    assert not limiter.may_draw(1)
    limiter.observe(totals(1000, 0), b"3")
    assert limiter.may_draw(200)
    assert not limiter.may_draw(201)


def simulate(seed: int, fed: list[int], restarts: bool, ticks: int = 30_000) -> tuple[int, float]:
    """Two shards whose draw shares (.6/.4) and insert shares disagree; returns updates and the ratio achieved.

    Raises AssertionError at 2,000 ticks without progress.
    """
    rng = random.Random(seed)
    batch, depth, chunk, spi, min_items = 64, 4, 32, 8.0, 1000
    limiter = SamplesPerInsertLimiter.for_run(
        samples_per_insert=spi,
        min_items=min_items,
        slack_items=0,
        batch_size=batch,
        prefetch_batches=depth,
        chunk_starts=chunk,
        num_shards=2,
    )
    inserted, drawn, boots = [0, 0], [0, 0], [b"0", b"1"]
    limits = limiter.insert_limits()
    updates, last = 0, 0
    for tick in range(ticks):
        if restarts and tick % 9973 == 5000:
            shard = rng.randrange(2)
            inserted[shard] = drawn[shard] = 0
            boots[shard] = b"boot %d" % tick
            limits[shard] = 0
        if tick % 7 == 0:
            for shard in range(2):
                limiter.observe(totals(inserted[shard], drawn[shard]), boots[shard], shard)
            limits = limiter.insert_limits()
        shard = rng.choice(fed)
        limit = limits[shard]
        assert limit is not None
        if inserted[shard] < limit:
            inserted[shard] += chunk
            last = tick
        n = batch * rng.randint(1, depth)
        if limiter.may_draw(n):
            limiter.request(n)
            first = sum(rng.random() < 0.6 for _ in range(n))
            for shard, part in enumerate((first, n - first)):
                drawn[shard] += part
                limiter.observe(totals(inserted[shard], drawn[shard]), boots[shard], shard)
            limiter.settle(n)
            updates += n // batch
            last = tick
        assert tick - last < 2000, "deadlock"
    return updates, limiter.achieved_ratio


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("fed", [[0, 1], [0], [1]])
def test_limiter_stays_live_where_limiters_per_shard_deadlock(fed: list[int], restarts: bool) -> None:
    for seed in range(2):
        updates, ratio = simulate(seed, fed, restarts, ticks=12_000)
        assert updates > 1000
        assert ratio == pytest.approx(8.0, abs=0.2)


def test_slack_that_would_deadlock_is_refused() -> None:
    run = {"batch_size": 64, "prefetch_batches": 4, "chunk_starts": 32, "num_shards": 2}
    assert SamplesPerInsertLimiter.least_slack(samples_per_insert=16.0, **run) == 2048
    assert SamplesPerInsertLimiter.least_slack(samples_per_insert=1.0, **run) == 640
    for slack, taken in ((0, 2048), (2048, 2048), (5000, 5000)):
        limiter = SamplesPerInsertLimiter.for_run(samples_per_insert=16.0, min_items=10, slack_items=slack, **run)
        assert limiter.slack_items == taken
    with pytest.raises(ConfigError, match=r"replay.slack_items is 2047, must be 0 \(automatic\) or at least 2048"):
        SamplesPerInsertLimiter.for_run(samples_per_insert=16.0, min_items=10, slack_items=2047, **run)
    with pytest.raises(ConfigError, match=r"replay.samples_per_insert is -1"):
        SamplesPerInsertLimiter(-1.0, 10)
    with pytest.raises(ConfigError, match=r"replay.min_items is 0"):
        SamplesPerInsertLimiter(1.0, 0)


class Fleet:
    """Hundreds of actors, shards and a learner in steps of 10 ms. Only counts move; reports and limits come late.

    A lane completes a chunk every ``steps_per_chunk`` while its actor runs; an actor whose window of unacknowledged
    chunks is full stands still, all its lanes holding what they have.
    """

    batch, depth, chunk, window = 32, 16, 32, 4

    def __init__(self, *, shards: int, spi: float, steps_per_chunk: int, batches_per_step: float) -> None:
        self.rng = np.random.default_rng(1)
        self.limiter = SamplesPerInsertLimiter.for_run(
            samples_per_insert=spi,
            min_items=1000,
            slack_items=0,
            batch_size=self.batch,
            prefetch_batches=self.depth,
            chunk_starts=self.chunk,
            num_shards=shards,
        )
        self.limits = self.limiter.insert_limits()
        self.queues: list[deque[int]] = [deque() for _ in range(shards)]
        self.inserted, self.drawn = np.zeros(shards, int), np.zeros(shards, int)
        self.steps_per_chunk, self.batches_per_step = steps_per_chunk, batches_per_step
        self.phases = self.rng.integers(0, steps_per_chunk, (300, 16))
        self.held, self.unacked, self.stored = (np.zeros(300, int) for _ in range(3))
        self.ready = 0.0
        self.idle = 0
        """Steps in which the learner had no batch."""
        self.blocked = 0
        """Steps of actors that stood still."""
        self.step = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            self._act()
            self._store()
            if self.step % 15 == 0:
                self._report()
            asked = self._draw()
            if asked or self.step % 20 == 0:
                self.limits = self.limiter.insert_limits()
            if self.ready >= self.batches_per_step:
                self.ready -= self.batches_per_step
            else:
                self.idle += 1

    def _act(self) -> None:
        while (roomy := np.flatnonzero((self.held > 0) & (self.unacked < self.window))).size:
            for actor, shard in zip(roomy, self.rng.integers(0, len(self.queues), roomy.size), strict=True):
                self.queues[shard].append(int(actor))
            self.held[roomy] -= 1
            self.unacked[roomy] += 1
        self.blocked += int((self.held > 0).sum())
        self.phases[self.held == 0] -= 1
        done = self.phases < 0
        self.phases[done] = self.steps_per_chunk - 1
        self.held += done.sum(axis=1)

    def _store(self) -> None:
        for shard, waiting in enumerate(self.queues):
            limit = self.limits[shard]
            assert limit is not None
            while waiting and self.inserted[shard] < limit:
                actor = waiting.popleft()
                self.inserted[shard] += self.chunk
                self.unacked[actor] -= 1
                self.stored[actor] += 1

    def _report(self) -> None:
        for shard in range(len(self.queues)):
            self.limiter.observe(totals(int(self.inserted[shard]), int(self.drawn[shard])), b"boot", shard)

    def _draw(self) -> bool:
        asked = False
        while self.ready < self.depth and self.limiter.may_draw(self.batch):
            self.limiter.request(self.batch)
            self.drawn += self.rng.multinomial(self.batch, [1 / len(self.drawn)] * len(self.drawn))
            self._report()
            self.limiter.settle(self.batch)
            self.ready += 1
            asked = True
        return asked


@pytest.mark.parametrize(("shards", "spi"), [(1, 1.0), (4, 1.0), (16, 8.0)])
def test_a_fleet_that_offers_more_than_is_wanted_never_keeps_the_learner_waiting(shards: int, spi: float) -> None:
    # 16 draws are wanted in a step; 300 actors with 16 lanes offer 480 items.
    fleet = Fleet(shards=shards, spi=spi, steps_per_chunk=320, batches_per_step=0.5)
    fleet.run(1000)
    fleet.idle, before, drawn = 0, fleet.stored.copy(), fleet.drawn.sum()
    fleet.run(2000)
    assert fleet.idle == 0
    assert fleet.drawn.sum() - drawn == pytest.approx(2000 * 16, abs=fleet.depth * fleet.batch)
    assert fleet.blocked > 0
    most = (fleet.limiter.drawn + fleet.limiter.slack_items) / spi + 1000 + shards * fleet.chunk
    assert fleet.limiter.inserted <= most
    came = fleet.stored - before
    assert came.sum() * fleet.chunk == pytest.approx(2000 * 16 / spi, rel=0.1)
    assert came.max() <= came.mean() + 6, "nobody is preferred"


def test_a_fleet_that_offers_less_than_is_wanted_is_never_held_back() -> None:
    # 7.7 items in a step, for a learner that would draw 16.
    fleet = Fleet(shards=4, spi=1.0, steps_per_chunk=20_000, batches_per_step=0.5)
    fleet.run(1000)
    drawn, inserted = fleet.drawn.sum(), fleet.inserted.sum()
    fleet.run(2000)
    assert fleet.blocked == 0
    offered = fleet.inserted.sum() - inserted
    assert offered == pytest.approx(2000 * 7.68, rel=0.1)
    assert fleet.drawn.sum() - drawn == pytest.approx(offered, abs=fleet.limiter.slack_items)
