"""Chunks over several shards: spread, kept where they were given, and handed over while a shard is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from replay_scene import STARTS, TABLE, WAIT, handshake, inserted, make_chunk, shard, wait_until

from apexrl.transport.errors import Closed
from apexrl.transport.insert_fleet import MAX_STREAMS, InsertFleet


@contextmanager
def fleet(addresses: Sequence[str], first: int = 0, max_unacked_chunks: int = 16) -> Iterator[InsertFleet]:
    made = InsertFleet(addresses, handshake(), TABLE, max_unacked_chunks, first)
    try:
        yield made
    finally:
        made.close()


def unused_address() -> str:
    with shard() as service:
        return service.address


def chunks(address: str) -> int:
    """Chunks that a shard has ever taken in."""
    return inserted(address) // STARTS


def test_shards_that_keep_up_get_chunks_in_turn() -> None:
    with shard() as a, shard() as b, fleet([a.address, b.address]) as made:
        assert made.put([make_chunk(0), make_chunk(1)], timeout=WAIT) == 2
        assert made.flush(WAIT)
        # From here on each chunk is acknowledged before the next is given.
        for mark in range(2, 20):
            assert made.put([make_chunk(mark)], timeout=WAIT) == 1
            assert made.flush(WAIT)
        counts = [chunks(a.address), chunks(b.address)]
        assert sum(counts) == made.acked == 20
        assert abs(counts[0] - counts[1]) <= 2, f"neither is starved: {counts}"
        assert made.unacked == 0


@pytest.mark.parametrize("first", [0, 1, 2])
def test_an_actor_keeps_few_streams_and_begins_where_its_number_says(first: int) -> None:
    with shard() as a, shard() as b, shard() as c:
        live = [a.address, b.address, c.address]
        addresses = live + [unused_address()] * (MAX_STREAMS - 1)
        with fleet(addresses, first) as made:
            # Round the ring from ``first``: MAX_STREAMS of them, of which 3 - first lead to a live shard.
            expected = [shard >= first for shard in range(3)]

            def each_has_some() -> bool:
                assert made.put([make_chunk(0)], timeout=WAIT) == 1
                return [chunks(address) > 0 for address in live] == expected

            wait_until(each_has_some, "chunks reach the shards that were chosen")
            wait_until(lambda: made.unacked == 0, "all is acknowledged")
        assert [chunks(address) > 0 for address in live] == expected


def test_a_shard_that_is_away_keeps_its_chunks_and_the_other_takes_the_rest() -> None:
    with shard() as a, shard() as b:
        away = b.address
        with fleet([a.address, away]) as made:
            assert made.put([make_chunk(mark) for mark in range(8)], timeout=WAIT) == 8
            assert made.flush(WAIT)
            before = chunks(a.address)
            b.stop(0.1)
            wait_until(lambda: len(made._roomy()) == 1, "the fleet notices")
            assert made.put([make_chunk(mark) for mark in range(8, 20)], timeout=WAIT) == 12
            wait_until(lambda: chunks(a.address) == before + 12, "all of them reach the shard that is left")
            with shard(away):
                wait_until(lambda: len(made._roomy()) == 2, "the shard is back")
                assert made.put([make_chunk(mark) for mark in range(20, 30)], timeout=WAIT) == 10
                assert made.flush(WAIT)
                assert made.acked == 30
                assert chunks(away) >= 5, "the shard that came back empty gets its part"


def test_put_returns_at_its_deadline_while_no_shard_can_be_reached_and_takes_nothing() -> None:
    with fleet([unused_address(), unused_address()]) as made:
        started = time.monotonic()
        assert made.put([make_chunk(0)], timeout=0.2) == 0
        assert 0.2 <= time.monotonic() - started < 5.0
        assert made.unacked == 0
        assert 0.2 <= made.blocked_seconds < 5.0
        assert made.flush(0.0), "nothing was taken"


def test_closing_releases_a_call_that_waits() -> None:
    with fleet([unused_address()]) as made:
        raised: list[BaseException] = []

        def put() -> None:
            try:
                made.put([make_chunk(0)])
            except Closed as error:
                raised.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        wait_until(lambda: made.blocked_seconds > 0, "it waits")
        made.close()
        thread.join(WAIT)
        assert len(raised) == 1
