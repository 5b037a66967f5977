"""Samples per insert: the arithmetic, liveness under mismatched shares, restarts of shards, refused slack."""

from __future__ import annotations

import random

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
    batch, depth, chunk, lanes, spi, min_items = 64, 4, 32, 2, 8.0, 1000
    limiter = SamplesPerInsertLimiter.for_run(
        samples_per_insert=spi,
        min_items=min_items,
        slack_items=0,
        batch_size=batch,
        prefetch_batches=depth,
        chunk_starts=chunk,
        num_lanes=lanes,
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
    run = {"batch_size": 64, "prefetch_batches": 4, "chunk_starts": 32, "num_lanes": 2}
    assert SamplesPerInsertLimiter.least_slack(samples_per_insert=8.0, **run) == 1024
    assert SamplesPerInsertLimiter.least_slack(samples_per_insert=1.0, **run) == 640
    for slack, taken in ((0, 1024), (1024, 1024), (5000, 5000)):
        limiter = SamplesPerInsertLimiter.for_run(samples_per_insert=8.0, min_items=10, slack_items=slack, **run)
        assert limiter.slack_items == taken
    with pytest.raises(ConfigError, match=r"replay.slack_items is 1023, must be 0 \(automatic\) or at least 1024"):
        SamplesPerInsertLimiter.for_run(samples_per_insert=8.0, min_items=10, slack_items=1023, **run)
    with pytest.raises(ConfigError, match=r"replay.samples_per_insert is -1"):
        SamplesPerInsertLimiter(-1.0, 10)
    with pytest.raises(ConfigError, match=r"replay.min_items is 0"):
        SamplesPerInsertLimiter(1.0, 0)
