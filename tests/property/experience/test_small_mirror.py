"""Batches do not depend on the size of the mirror: two learners at equal shards, one mirror whole, one very small.

Every row carries the number of its chunk and its own number, so a row from a slot that was overwritten shows.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_learner.batches import DrawPipeline, DrawPlan, PrefetchDepth, mirror_slots
from apex_replay.endpoint import ReplayEndpoint
from apex_replay.streams import SampleStream
from apexrl.config import ConfigError
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.sample_client import OpenedTable
from apexrl.transport.sample_events import LearnerIdentity
from apexrl.types import Chunk, ColumnSpec, Geometry, Scope, SelectorConfig, Signature, TableConfig

BATCH = 3
GEOMETRY = Geometry(context=2, starts=4, tail=2)
SIGNATURE = Signature(
    (
        ColumnSpec("mark", "int32"),
        ColumnSpec("row", "uint8", (3,)),
        ColumnSpec("version", "uint64", scope=Scope.ITEM),
    ),
    GEOMETRY,
    stack=3,
)
TABLE = TableConfig("replay", SIGNATURE, SelectorConfig(), capacity_items=24, budget_bytes=1 << 20)
HANDSHAKE = Handshake("ab" * 16, "{}", "test")
DEPTH = 4


def make_chunk(mark: int, priorities: list[float]) -> Chunk:
    rows, starts = GEOMETRY.rows, GEOMETRY.starts
    return Chunk(
        rows=rows,
        starts=starts,
        lengths=np.full(starts, 2, np.uint16),
        prefixes=np.zeros(starts, np.uint16),
        priorities=np.array(priorities, np.float32),
        blocks=(
            np.full(rows, mark, np.int32).tobytes(),
            np.repeat(np.arange(rows, dtype=np.uint8), 3).tobytes(),
            np.arange(starts, dtype=np.uint64).tobytes(),
        ),
    )


class System:
    """A shard and a learner's pipeline without sockets; replies may be applied long after they were made."""

    def __init__(self, slots: int) -> None:
        self.endpoint = ReplayEndpoint(ReplayEngine(boot=1))
        self.session = InsertSession(TABLE, 64, incarnation=b"i" * 16)
        self.inserts, opened = self.endpoint.open_insert(self.session.open_request(HANDSHAKE))
        self.session.on_response(opened)
        self.pipeline = DrawPipeline(
            TABLE,
            batch_size=BATCH,
            depth=PrefetchDepth(fixed=DEPTH),
            limiter=SamplesPerInsertLimiter(0.0, 1),
            importance_sampling_exponent=lambda: 0.4,
        )
        self.slots = slots
        self.replies: deque[pb.DrawReply] = deque()
        self.received = 0
        self.stream = self.open()

    def open(self) -> SampleStream:
        """A stream anew, as after a lost connection; what was on its way is lost."""
        self.replies.clear()
        stream, response = self.endpoint.open_sample(
            pb.SampleRequest(
                open=pb.SampleOpen(
                    handshake=HANDSHAKE.to_proto(),
                    learner=LearnerIdentity(1, bytes(16)).to_proto(),
                    tables=[pb.MirroredTable(table=wire.table_config_to_proto(TABLE), mirror_slots=self.slots)],
                    run_seed=7,
                )
            )
        )
        (table,) = response.opened.tables
        self.mirror_slots = table.mirror_slots
        totals = wire.totals_from_proto(table.totals)
        self.pipeline.open(OpenedTable(table.num_pages, table.mirror_slots, totals), response.opened.boot)
        self.boot = response.opened.boot
        return stream

    def insert(self, chunk: Chunk) -> None:
        self.session.put(chunk)
        message = self.session.next_message(force=True)
        assert message is not None
        ack = self.inserts.handle(message)
        assert ack is not None
        self.session.on_response(ack)
        self.endpoint.engine.maintain()

    def request(self) -> DrawPlan | None:
        self.pipeline.observe(self.endpoint.engine.table("replay").totals(), self.boot)
        plan = self.pipeline.plan(ready=0)
        if plan is not None:
            counts = wire.to_bytes(plan.counts, "uint32")
            draw = pb.DrawRequest(table="replay", request_number=plan.request_number, counts=counts)
            response = self.stream.handle(pb.SampleRequest(draw=draw))
            assert response is not None
            self.replies.append(response.draw)
        return plan

    def receive(self) -> list[tuple[np.ndarray, ...]]:
        """Apply the oldest reply; the contents of its batches."""
        drawn = wire.draw_from_proto(SIGNATURE, self.mirror_slots, self.replies.popleft())
        self.received += len(drawn.new_chunks)
        contents = []
        for batch in self.pipeline.apply(drawn, self.boot):
            columns = batch.as_window_batch()
            tensors = (*columns.columns.values(), *columns.item_columns.values(), columns.lengths, columns.weights)
            contents.append((batch.keys.copy(), *(tensor.numpy().copy() for tensor in tensors)))
            self.pipeline.ring.release(batch)
        return contents


def assert_equal(ours: list[tuple[np.ndarray, ...]], theirs: list[tuple[np.ndarray, ...]]) -> None:
    for first, second in zip(ours, theirs, strict=True):
        for mine, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(mine, other)
        mark, row = first[1], first[2]
        assert (mark == mark[:, :1]).all()
        assert (np.diff(row[..., 0].astype(int), axis=1) == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_batches_are_those_of_a_whole_mirror_to_the_bit(data: st.DataObject) -> None:
    whole, small = System(0), System(data.draw(st.integers(BATCH, 6), label="slots"))
    marks = 0
    for step in data.draw(st.lists(st.sampled_from("iiirrraaax"), min_size=5, max_size=60), label="steps"):
        if step == "i":
            marks += 1
            priorities = data.draw(
                st.lists(st.floats(0.125, 9.0, width=32), min_size=4, max_size=4), label="priorities"
            )
            for system in (whole, small):
                system.insert(make_chunk(marks, priorities))
        elif step == "r":
            assert (whole.request() is None) == (small.request() is None)
        elif step == "a" and whole.replies:
            assert_equal(whole.receive(), small.receive())
        elif step == "x":
            for system in (whole, small):
                system.stream = system.open()
    assert small.received >= whole.received


def test_a_whole_mirror_takes_every_chunk_once_and_a_small_one_again() -> None:
    whole, small = System(0), System(BATCH)
    for mark in range(6):
        whole.insert(make_chunk(mark, [1.0] * 4))
        small.insert(make_chunk(mark, [1.0] * 4))
    for _ in range(200):
        whole.request()
        small.request()
        assert_equal(whole.receive(), small.receive())
    assert whole.received == 6
    assert small.received > 200
    assert small.pipeline.chunks_received == small.received


def test_a_mirror_must_hold_a_batch() -> None:
    page = SIGNATURE.page_bytes
    assert mirror_slots(TABLE, BATCH, 0) == 0
    assert mirror_slots(TABLE, BATCH, BATCH * page) == BATCH
    assert mirror_slots(TABLE, BATCH, 1 << 30) == 0
    with pytest.raises(ConfigError, match=rf"learner\.mirror_bytes is 10, must be 0 .* at least {BATCH * page}"):
        mirror_slots(TABLE, BATCH, 10)
