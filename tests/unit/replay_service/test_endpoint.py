"""The shard's endpoint as serial mode uses it: in one thread, message by message."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from apex_replay.endpoint import ReplayEndpoint
from apex_replay.streams import InsertStream, SampleStream, nobody_waits
from apexrl.replay.engine import ReplayEngine
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.sample_events import NO_LIMIT, LearnerIdentity
from apexrl.types import Chunk, ColumnSpec, Geometry, SelectorConfig, Signature, SignatureError, TableConfig

RUN = "ab" * 16
HANDSHAKE = Handshake(RUN, "{}", "serial")
SIGNATURE = Signature((ColumnSpec("mark", "int32"),), Geometry(0, 2, 1))
TABLE = TableConfig("replay", SIGNATURE, SelectorConfig(), capacity_items=40, budget_bytes=1 << 20)
LEARNER = LearnerIdentity(1, bytes(16))


def chunk(mark: int) -> Chunk:
    return Chunk(
        3,
        2,
        np.ones(2, np.uint16),
        np.zeros(2, np.uint16),
        np.ones(2, np.float32),
        (np.full(3, mark, np.int32).tobytes(),),
    )


def sample_open(identity: LearnerIdentity = LEARNER, table: TableConfig = TABLE, slots: int = 0) -> pb.SampleRequest:
    return pb.SampleRequest(
        open=pb.SampleOpen(
            handshake=HANDSHAKE.to_proto(),
            learner=identity.to_proto(),
            tables=[pb.MirroredTable(table=wire.table_config_to_proto(table), mirror_slots=slots)],
            run_seed=1,
        )
    )


def fill(
    endpoint: ReplayEndpoint, session: InsertSession, on_close: Callable[[Refused], None] = nobody_waits
) -> InsertStream:
    """Insert one chunk; the stream that did it."""
    stream, opened = endpoint.open_insert(session.open_request(HANDSHAKE), on_close=on_close)
    session.on_response(opened)
    session.put(chunk(0))
    message = session.next_message(force=True)
    assert message is not None
    stream.handle(message)
    return stream


def limit(stream: SampleStream, inserted: int) -> None:
    limits = pb.InsertLimits(limits=[pb.InsertLimit(table="replay", inserted=inserted)])
    assert stream.handle(pb.SampleRequest(limits=limits)) is None


def make() -> tuple[ReplayEndpoint, InsertSession]:
    return ReplayEndpoint(ReplayEngine(boot=1)), InsertSession(TABLE, 16, incarnation=b"i" * 16)


def test_a_session_and_the_endpoint_move_chunks_without_a_socket() -> None:
    endpoint, session = make()
    stream, opened = endpoint.open_insert(session.open_request(HANDSHAKE))
    session.on_response(opened)
    for mark in range(3):
        session.put(chunk(mark))
    message = session.next_message(force=True)
    assert message is not None
    ack = stream.handle(pb.InsertRequest.FromString(message.SerializeToString()))
    assert ack is not None
    assert session.on_response(ack) == 3
    sampler, response = endpoint.open_sample(sample_open())
    assert response.opened.tables[0].totals.num_items == 6
    request = pb.DrawRequest(table="replay", request_number=5, counts=wire.to_bytes([4], "uint32"))
    reply = sampler.handle(pb.SampleRequest(draw=request))
    assert reply is not None
    result = wire.draw_from_proto(SIGNATURE, TABLE.num_pages, reply.draw)
    update = pb.UpdatePrioritiesRequest(
        learner=LEARNER.to_proto(),
        table="replay",
        keys=wire.to_bytes(result.keys, "uint64"),
        priorities=wire.to_bytes(np.ones(4), "float32"),
    )
    assert endpoint.update_priorities(update).applied == 4
    assert sampler.totals().totals.tables[0].drawn == 4


def test_a_message_stops_at_the_limit_and_goes_on_where_it_stopped() -> None:
    endpoint, session = make()
    roomy: list[bool] = []
    sampler, _ = endpoint.open_sample(sample_open())
    limit(sampler, 3)
    stream, opened = endpoint.open_insert(session.open_request(HANDSHAKE), on_room=lambda: roomy.append(True))
    session.on_response(opened)
    for mark in range(4):
        session.put(chunk(mark))
    message = session.next_message(force=True)
    assert message is not None
    ack = stream.handle(message)
    # Chunks of two items: 0 and 2 are below the limit of 3, 4 is not.
    assert ack is not None
    assert ack.ack.last_seen == 2
    assert stream.has_pending
    assert stream.advance() is None
    assert endpoint.waiting() == [
        "table 'replay': inserts wait for the learner at 3 items (4 in)",
        "1 insert streams hold chunks back",
    ]
    limit(sampler, 5)
    assert roomy == [True]
    ack = stream.advance()
    assert ack is not None
    assert ack.ack.last_seen == 3
    limit(sampler, NO_LIMIT)
    ack = stream.advance()
    assert ack is not None
    assert ack.ack.last_seen == 4
    assert not stream.has_pending


def test_a_superseded_stream_stores_nothing_more() -> None:
    endpoint, session = make()
    closed: list[Refused] = []
    old, opened = endpoint.open_insert(session.open_request(HANDSHAKE), on_close=closed.append)
    session.on_response(opened)
    session.put(chunk(0))
    buffered = session.next_message(force=True)
    assert buffered is not None
    new, _ = endpoint.open_insert(session.open_request(HANDSHAKE))
    assert [refusal.kind for refusal in closed] == [RefusalKind.SUPERSEDED]
    with pytest.raises(Refused):
        old.handle(buffered)
    assert endpoint.engine.table("replay").inserted == 0
    old.close()
    assert endpoint.insert_streams == 1
    new.close()
    assert endpoint.insert_streams == 0


def test_the_former_learners_limit_holds_until_the_new_one_tells_its_own() -> None:
    endpoint, _ = make()
    old, _ = endpoint.open_sample(sample_open())
    limit(old, 4)
    new, _ = endpoint.open_sample(sample_open(LearnerIdentity(2, b"2" * 16)))
    assert endpoint.engine.table("replay").insert_limit == 4
    limit(new, NO_LIMIT)
    assert endpoint.engine.table("replay").insert_limit is None
    with pytest.raises(Refused) as refusal:
        limit(old, 5)
    assert refusal.value.kind is RefusalKind.FENCED


def test_what_a_learner_vouched_for_does_not_change_its_meaning_under_another() -> None:
    endpoint, session = make()
    fill(endpoint, session)
    endpoint.open_sample(sample_open())
    other = dataclasses.replace(TABLE, signature=dataclasses.replace(SIGNATURE, geometry=Geometry(0, 2, 2)))
    with pytest.raises(Refused, match=r"signature\.geometry\.tail is 2, must be 1") as refusal:
        endpoint.open_sample(sample_open(LearnerIdentity(2, b"2" * 16), other))
    assert refusal.value.kind is RefusalKind.TABLE
    # Refused means nothing changed: the former learner is still served.
    assert endpoint.engine.learner_epoch == 1
    assert endpoint.sample_streams == 1


def test_a_tables_options_follow_the_newest_learner_and_actors_go_on() -> None:
    endpoint, session = make()
    closed: list[Refused] = []
    stream = fill(endpoint, session, on_close=closed.append)
    endpoint.open_sample(sample_open())
    assert not closed
    larger = dataclasses.replace(TABLE, capacity_items=80)
    endpoint.open_sample(sample_open(LearnerIdentity(2, b"2" * 16), larger))
    table = endpoint.engine.table("replay")
    assert table.config.capacity_items == 80
    assert table.inserted == table.num_items == 2
    assert [refusal.kind for refusal in closed] == [RefusalKind.SUPERSEDED]
    # The actor's configuration still says 40, which is not its business; it goes on where it was.
    again, opened = endpoint.open_insert(session.open_request(HANDSHAKE))
    assert opened.opened.last_seen == 1
    assert again.table is table
    assert stream is not again


def test_a_draw_that_needs_more_pages_than_the_mirror_has_is_refused() -> None:
    endpoint, session = make()
    inserts, opened = endpoint.open_insert(session.open_request(HANDSHAKE))
    session.on_response(opened)
    for mark in range(4):
        session.put(chunk(mark))
    message = session.next_message(force=True)
    assert message is not None
    inserts.handle(message)
    stream, response = endpoint.open_sample(sample_open(slots=2))
    assert response.opened.tables[0].mirror_slots == 2
    draw = pb.DrawRequest(table="replay", request_number=1, counts=wire.to_bytes([2], "uint32"))
    assert stream.handle(pb.SampleRequest(draw=draw)) is not None
    draw.counts = wire.to_bytes([2, 2, 2, 2], "uint32")
    with pytest.raises(SignatureError, match="4 pages are needed at once, must be at most 2"):
        stream.handle(pb.SampleRequest(draw=draw))


def test_a_stopping_shard_ends_its_streams_and_takes_no_new_ones() -> None:
    endpoint, session = make()
    closed: list[Refused] = []
    endpoint.open_insert(session.open_request(HANDSHAKE), on_close=closed.append)
    endpoint.open_sample(sample_open(), on_close=closed.append)
    endpoint.stop()
    assert [refusal.kind for refusal in closed] == [RefusalKind.STOPPING] * 2
    with pytest.raises(Refused, match="stopping"):
        endpoint.open_insert(session.open_request(HANDSHAKE))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: setattr(m.open, "incarnation", b"short"), "incarnation"),
        (lambda m: m.open.handshake.ClearField("run_id"), "run_id"),
        (lambda m: setattr(m.open.table.signature, "stack", 9), "stack"),
        (lambda m: m.chunks.SetInParent(), "`open`"),
    ],
)
def test_an_open_request_that_cannot_be_is_refused_and_named(change: object, field: str) -> None:
    endpoint, session = make()
    request = session.open_request(HANDSHAKE)
    change(request)  # type: ignore[operator]
    with pytest.raises((Refused, SignatureError)) as error:
        endpoint.open_insert(request)
    assert field in str(error.value)
    assert endpoint.insert_streams == 0
    assert endpoint.engine.tables == {}


class Supplier:
    """An actor that always has a message ready, served as the gRPC side serves it: one message after the other."""

    def __init__(self, endpoint: ReplayEndpoint, number: int, woken: deque[Supplier], chunks_per_message: int) -> None:
        self._session = InsertSession(TABLE, 64, incarnation=number.to_bytes(16, "little"))
        self._chunks = chunks_per_message
        self.stream, opened = endpoint.open_insert(
            self._session.open_request(HANDSHAKE), on_room=lambda: woken.append(self)
        )
        self._session.on_response(opened)
        self.stored = 0

    def send(self) -> None:
        """Hand over messages until one has to wait for room."""
        while not self.stream.has_pending:
            for _ in range(self._chunks):
                self._session.put(chunk(0))
            message = self._session.next_message(force=True)
            assert message is not None
            self._take(self.stream.handle(message))

    def go_on(self) -> None:
        """There may be room: as the servicer does when it is woken."""
        self._take(self.stream.advance())
        self.send()

    def _take(self, ack: pb.InsertResponse | None) -> None:
        self.stored += self._session.on_response(ack) if ack is not None else 0


def test_hundreds_of_actors_at_the_limit_take_turns() -> None:
    endpoint, _ = make()
    sampler, _ = endpoint.open_sample(sample_open())
    limit(sampler, 1)
    woken: deque[Supplier] = deque()
    suppliers = [Supplier(endpoint, number, woken, chunks_per_message=1 + number % 3) for number in range(1, 301)]
    for supplier in suppliers:
        supplier.send()
    # A learner that uses up little at a time: two chunks of two items for each new limit, far less than is offered.
    wakes, inserted = 0, 2
    for _ in range(3000):
        inserted += 4
        limit(sampler, inserted)
        while woken:
            wakes += 1
            woken.popleft().go_on()
    stored = [supplier.stored for supplier in suppliers]
    assert sum(stored) == inserted // 2
    messages = [count / (1 + number % 3) for number, count in enumerate(stored, 1)]
    assert max(messages) - min(messages) <= 1, "nobody has had a second turn before everybody has had the first"
    assert wakes <= 2 * sum(stored), "a new limit wakes those that may go on, not all that wait"


def test_a_stream_that_ends_at_the_limit_leaves_its_turn_to_the_next() -> None:
    endpoint, _ = make()
    sampler, _ = endpoint.open_sample(sample_open())
    limit(sampler, 1)
    woken: deque[Supplier] = deque()
    first, second, third = (Supplier(endpoint, number, woken, 1) for number in (1, 2, 3))
    for supplier in (first, second, third):
        supplier.send()
    assert first.stored == 1
    limit(sampler, 3)
    assert woken.popleft() is first
    first.stream.close()
    assert woken.popleft() is second
    second.go_on()
    assert (second.stored, third.stored) == (1, 0)
    assert not woken
    limit(sampler, NO_LIMIT)
    assert woken.popleft() is third
