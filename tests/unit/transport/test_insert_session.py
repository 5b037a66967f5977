"""Numbers, window, message closing and resending, without a socket."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.types import Chunk, ColumnSpec, Geometry, SelectorConfig, Signature, TableConfig

TABLE = TableConfig(
    name="replay",
    signature=Signature((ColumnSpec("x", "uint8"),), Geometry(0, 1, 1)),
    selector=SelectorConfig(),
    capacity_items=8,
    budget_bytes=1 << 20,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def chunk(num_bytes: int = 10) -> Chunk:
    return Chunk(2, 1, np.ones(1, np.uint16), np.zeros(1, np.uint16), np.ones(1, np.float32), (bytes(num_bytes),))


def opened(last_seen: int = 0) -> pb.InsertResponse:
    return pb.InsertResponse(opened=pb.InsertOpened(last_seen=last_seen))


def ack(last_seen: int) -> pb.InsertResponse:
    return pb.InsertResponse(ack=pb.InsertAck(last_seen=last_seen))


def numbers(message: pb.InsertRequest | None) -> list[int]:
    assert message is not None
    return [int(n) for n in wire.from_bytes(message.chunks.numbers, "uint64", None, "numbers")]


def make(max_unacked: int = 8, message_bytes: int = 100) -> tuple[InsertSession, Clock]:
    clock = Clock()
    session = InsertSession(TABLE, max_unacked, message_bytes=message_bytes, clock=clock)
    return session, clock


def test_nothing_goes_out_before_the_stream_is_open() -> None:
    session, _ = make()
    session.put(chunk())
    assert session.next_message(force=True) is None
    request = session.open_request(Handshake("", "{}", "me"))
    assert request.open.incarnation == session.incarnation
    assert len(session.incarnation) == 16
    session.on_response(opened())
    assert numbers(session.next_message(force=True)) == [1]


def test_a_message_closes_by_age_of_its_oldest_chunk() -> None:
    session, clock = make()
    session.on_response(opened())
    session.put(chunk())
    clock.now += 0.3
    session.put(chunk())
    assert session.next_message() is None
    assert session.seconds_until_message() == pytest.approx(0.2)
    clock.now += 0.2
    assert numbers(session.next_message()) == [1, 2]
    assert session.seconds_until_message() is None


def test_a_message_closes_by_size_and_does_not_exceed_it() -> None:
    session, _ = make(message_bytes=100)
    session.on_response(opened())
    for size in (30, 30, 30, 30):
        session.put(chunk(size))
    assert numbers(session.next_message()) == [1, 2]
    assert session.next_message() is None
    assert numbers(session.next_message(force=True)) == [3, 4]


def test_a_full_window_closes_the_message_and_takes_no_more() -> None:
    session, _ = make(max_unacked=2)
    session.on_response(opened())
    session.put(chunk())
    session.put(chunk())
    assert session.room == 0
    with pytest.raises(BufferError, match="max_unacked_chunks"):
        session.put(chunk())
    assert numbers(session.next_message()) == [1, 2]
    session.on_response(ack(1))
    assert (session.room, session.unacked) == (1, 1)


def test_what_was_not_acknowledged_goes_out_again_behind_what_was_seen() -> None:
    session, _ = make()
    session.on_response(opened())
    for _ in range(4):
        session.put(chunk())
    session.next_message(force=True)
    session.put(chunk())
    session.on_response(ack(1))
    session.on_disconnected()
    assert session.next_message(force=True) is None
    session.on_response(opened(last_seen=3))
    assert session.unacked == 2
    assert numbers(session.next_message(force=True)) == [4, 5]
    assert session.chunks_resent == 3


def test_a_shard_that_forgot_gets_the_same_numbers_and_not_those_it_acknowledged() -> None:
    session, _ = make()
    session.on_response(opened())
    for _ in range(3):
        session.put(chunk())
    session.next_message(force=True)
    session.on_response(ack(2))
    session.on_disconnected()
    session.on_response(opened(last_seen=0))
    assert numbers(session.next_message(force=True)) == [3]
    assert session.put(chunk()) == 4


def test_a_chunk_larger_than_any_message_is_refused_with_advice() -> None:
    session, _ = make()
    with pytest.raises(ValueError, match=r"chunk_starts"):
        session.put(chunk(5 << 20))
    assert session.unacked == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["put", "send", "deliver", "ack", "break"]), max_size=80))
def test_every_chunk_arrives_once_and_in_order_whatever_breaks(steps: list[str]) -> None:
    """A shard that drops what it has seen, a stream that may lose messages and acknowledgements when it breaks."""
    session, _ = make(max_unacked=5)
    session.on_response(opened())
    stored: list[int] = []
    in_flight: list[list[int]] = []
    seen = 0
    put = 0
    for step in [*steps, "break", "send", "deliver", "ack"]:
        if step == "put" and session.room:
            put = session.put(chunk())
        elif step == "send":
            while (message := session.next_message(force=True)) is not None:
                in_flight.append(numbers(message))
        elif step == "deliver":
            for message_numbers in in_flight:
                for number in message_numbers:
                    if number > seen:
                        stored.append(number)
                        seen = number
            in_flight.clear()
        elif step == "ack":
            session.on_response(ack(seen))
        elif step == "break":
            in_flight.clear()
            session.on_disconnected()
            session.on_response(opened(seen))
    assert stored == list(range(1, put + 1))
    assert session.unacked == 0
