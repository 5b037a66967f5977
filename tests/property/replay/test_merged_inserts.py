"""Messages that are stored together give every stream the answer, and leave the table, that each alone would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_replay.endpoint import ReplayEndpoint
from apex_replay.merging import handle_all
from apex_replay.streams import InsertStream
from apexrl.replay.engine import ReplayEngine
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.handshake import Handshake
from apexrl.types import Chunk, ColumnSpec, Geometry, SelectorConfig, Signature, SignatureError, TableConfig

GEOMETRY = Geometry(1, 3, 1)
SIGNATURE = Signature((ColumnSpec("mark", "int32"), ColumnSpec("age", "uint16")), GEOMETRY)
TABLE = TableConfig("replay", SIGNATURE, SelectorConfig(), capacity_items=30, budget_bytes=1 << 20)
HANDSHAKE = Handshake("ab" * 16, "{}", "test")
STREAMS = 4


class Recorder:
    """What an observer is told."""

    def __init__(self) -> None:
        self.told: list[tuple[bytes, int, int, bytes]] = []

    def stored(self, incarnation: bytes, number: int, table: str, chunk: Chunk, inserted: int) -> None:
        self.told.append((incarnation, number, inserted, chunk.blocks[0]))

    def cleared(self) -> None:
        raise AssertionError("nothing is cleared here")


class Shard:
    def __init__(self) -> None:
        self.endpoint = ReplayEndpoint(ReplayEngine(boot=1, clock=lambda: 0.0), clock=lambda: 0.0)
        self.recorder = Recorder()
        self.endpoint.engine.observer = self.recorder
        opens = [
            pb.InsertOpen(
                handshake=HANDSHAKE.to_proto(), incarnation=bytes([i]) * 16, table=wire.table_config_to_proto(TABLE)
            )
            for i in range(STREAMS)
        ]
        self.streams: list[InsertStream] = [
            self.endpoint.open_insert(pb.InsertRequest(open=message))[0] for message in opens
        ]
        self.table = self.endpoint.engine.table("replay")

    def described(self, answers: list[pb.InsertResponse | Exception | None]) -> list[str]:
        return [repr(answer) for answer in answers]


def make_chunk(mark: int, starts: int, has_items: bool) -> Chunk:
    rows = 1 + starts + 1
    return Chunk(
        rows,
        starts,
        np.full(starts, has_items, np.uint16),
        np.zeros(starts, np.uint16),
        np.full(starts, mark % 5, np.float32),
        (np.full(rows, mark, np.int32).tobytes(), bytes(2 * rows)),
    )


def tampered(message: pb.InsertChunks, how: str) -> None:
    """Make a message that must be refused, or one that holds nothing new."""
    chunks = message.chunks
    match how:
        case "priority":
            chunks.priorities = wire.to_bytes(np.full(len(chunks.priorities) // 4, -1.0), "float32")
        case "longer":
            chunks.lengths += b"\1\0"
        case "shorter":
            chunks.lengths = chunks.lengths[:-2]
        case "more data":
            chunks.columns[0].data += bytes(4)
        case "less data":
            chunks.columns[0].data = chunks.columns[0].data[:-4]
        case "more starts":
            chunks.starts += b"\1\0"
        case "fewer starts":
            chunks.starts = chunks.starts[:-2]
        case "seen":
            message.numbers = wire.to_bytes(np.arange(1, len(message.numbers) // 8 + 1), "uint64")
        case "numbers":
            message.numbers = wire.to_bytes(np.zeros(len(message.numbers) // 8), "uint64")
        case "empty":
            message.Clear()


HOWS = ["seen", "empty", "numbers", "priority", "longer", "shorter", "more data", "less data"]
HOWS += ["more starts", "fewer starts"]
#: Of one stream: chunks (start rows, with items), and what is done to the message.
MESSAGES = st.tuples(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=3),
    st.one_of(*[st.just("well")] * 6, st.sampled_from(HOWS)),
)
ROUNDS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, STREAMS - 1), MESSAGES, min_size=1),
        st.one_of(st.none(), st.integers(0, 12)),
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=80, deadline=None)
@given(rounds=ROUNDS)
def test_together_as_alone(rounds: list[tuple[dict[int, tuple[list[tuple[int, bool]], str]], int | None]]) -> None:
    together, alone = Shard(), Shard()
    numbers = [0] * STREAMS
    mark = 0
    for messages, room in rounds:
        for shard in (together, alone):
            shard.table.insert_limit = None if room is None else shard.table.inserted + room
        requests: dict[int, pb.InsertRequest] = {}
        for i, (shapes, how) in messages.items():
            if alone.streams[i].has_pending:
                continue
            chunks = [make_chunk(mark + k, starts, has_items) for k, (starts, has_items) in enumerate(shapes)]
            mark += len(chunks)
            own = np.arange(numbers[i] + 1, numbers[i] + len(chunks) + 1)
            numbers[i] += len(chunks)
            message = pb.InsertChunks(numbers=wire.to_bytes(own, "uint64"), chunks=wire.chunks_to_proto(chunks))
            tampered(message, how)
            requests[i] = pb.InsertRequest(chunks=message)
        answers = handle_all(together.endpoint.engine, [(together.streams[i], r) for i, r in requests.items()])
        each = [handle_all(alone.endpoint.engine, [(alone.streams[i], r)])[0] for i, r in requests.items()]
        assert together.described(answers) == alone.described(each)
        for i in range(STREAMS):
            assert together.streams[i].has_pending == alone.streams[i].has_pending
            if alone.streams[i].has_pending:
                assert repr(together.streams[i].advance()) == repr(alone.streams[i].advance())
        for shard in (together, alone):
            shard.endpoint.engine.maintain()
    assert together.recorder.told == alone.recorder.told
    for name, array in alone.table.state().items():
        np.testing.assert_array_equal(array, together.table.state()[name], err_msg=name)


def test_messages_without_fault_are_stored_as_one() -> None:
    shard = Shard()
    calls: list[int] = []
    insert_batch = shard.table.insert_batch
    shard.table.insert_batch = lambda batch: calls.append(len(batch)) or insert_batch(batch)  # type: ignore[method-assign]
    requests = [
        pb.InsertRequest(
            chunks=pb.InsertChunks(
                numbers=wire.to_bytes([1, 2], "uint64"),
                chunks=wire.chunks_to_proto([make_chunk(2 * i, 3, True), make_chunk(2 * i + 1, 2, True)]),
            )
        )
        for i in range(STREAMS)
    ]
    answers = handle_all(shard.endpoint.engine, list(zip(shard.streams, requests, strict=True)))
    assert [answer.ack.last_seen for answer in answers if isinstance(answer, pb.InsertResponse)] == [2] * STREAMS
    assert calls == [2 * STREAMS]
    assert shard.table.inserted == 5 * STREAMS


@pytest.mark.parametrize(
    ("more", "less"), [("longer", "shorter"), ("more data", "less data"), ("more starts", "fewer starts")]
)
def test_two_faults_that_make_up_for_each_other_are_both_refused(more: str, less: str) -> None:
    shard = Shard()
    requests = []
    for i, how in enumerate(("well", more, less)):
        message = pb.InsertChunks(
            numbers=wire.to_bytes([1], "uint64"), chunks=wire.chunks_to_proto([make_chunk(i, 2, True)])
        )
        tampered(message, how)
        requests.append(pb.InsertRequest(chunks=message))
    answers = handle_all(shard.endpoint.engine, list(zip(shard.streams, requests, strict=False)))
    assert [type(answer) for answer in answers] == [pb.InsertResponse, SignatureError, SignatureError]
    assert shard.table.inserted == 2
