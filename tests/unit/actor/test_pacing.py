"""Recorded chunks at a steady rate, and what happens while nobody takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from apex_actor.pacing import LONGEST_LAG_SECONDS, RETRY_SECONDS, PacedStream, Pacer
from apex_actor.recording import Burst
from apexrl.transport.errors import Closed
from apexrl.types import Chunk

ITEMS = 4


def chunk() -> Chunk:
    """Of four items and 40 bytes."""
    return Chunk(
        rows=7,
        starts=ITEMS,
        lengths=np.full(ITEMS, 2, np.uint16),
        prefixes=np.zeros(ITEMS, np.uint16),
        priorities=np.ones(ITEMS, np.float32),
        blocks=(bytes(8),),
    )


def bursts(chunks: int = 2) -> Iterator[Burst]:
    return itertools.repeat(Burst(tuple(chunk() for _ in range(chunks)), chunks * ITEMS))


class Sink:
    """Takes as many chunks as there is room for."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.taken = 0

    def put(self, chunks: Sequence[Chunk], timeout: float | None = None) -> int:
        assert timeout == 0.0, "the pacing thread may not wait"
        count = min(self.room, len(chunks))
        self.room -= count
        self.taken += count
        return count


def test_bursts_come_at_the_rate_of_their_transitions() -> None:
    sink = Sink()
    stream = PacedStream(sink.put, bursts(), items_per_second=16.0, start=3.0)
    assert stream.turn(2.0) == 3.0, "not yet"
    assert sink.taken == 0
    assert [stream.turn(3.0), stream.turn(3.5), stream.turn(4.1)] == [3.5, 4.0, 4.5], "late by 0.1 s, and caught up"
    assert (stream.sent_items, stream.sent_bytes) == (24, 240)
    assert stream.late_seconds == stream.blocked_seconds(4.1) == 0.0


def test_while_there_is_no_room_time_passes_that_is_not_made_up_for() -> None:
    sink = Sink(room=1)
    stream = PacedStream(sink.put, bursts(), items_per_second=16.0, start=0.0)
    assert stream.turn(0.0) == pytest.approx(RETRY_SECONDS)
    assert sink.taken == 1
    stream.turn(2.0)
    assert stream.blocked_seconds(2.5) == 2.5, "the current wait counts"
    sink.room = 100
    assert stream.turn(5.0) == 5.5
    assert sink.taken == 2, "the rest of the burst, nothing else"
    assert stream.blocked_seconds(9.0) == 5.0
    assert stream.late_seconds == 0.0


def test_a_pacer_that_comes_too_late_skips_play_and_says_so() -> None:
    stream = PacedStream(Sink().put, bursts(), items_per_second=16.0, start=0.0)
    late = LONGEST_LAG_SECONDS + 9.0
    assert stream.turn(late) == late + 0.5
    assert stream.late_seconds == late


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_pacers_time_stands_still_in_a_pause() -> None:
    clock = Clock()
    pacer = Pacer([], clock)
    assert pacer.now == 0.0
    clock.now += 7.0
    assert pacer.now == 0.0, "paused at first"
    pacer.resume()
    clock.now += 2.0
    assert pacer.now == 2.0
    pacer.pause()
    clock.now += 100.0
    assert pacer.now == 2.0
    pacer.resume()
    clock.now += 1.0
    assert pacer.now == 3.0
    pacer.stop()


def test_who_is_closed_gets_no_more_turns() -> None:
    turns: list[str] = []

    class Ends:
        def turn(self, now: float) -> float:
            turns.append("ends")
            raise Closed("closed")

    class Goes:
        def turn(self, now: float) -> float:
            turns.append("goes")
            if turns.count("goes") == 3:
                raise Closed("closed")
            return now

    pacer = Pacer([Ends(), Goes()])
    pacer.resume()
    # The thread ends by itself when nobody is left.
    pacer._thread.join(10.0)
    assert turns.count("ends") == 1
    assert turns.count("goes") == 3
