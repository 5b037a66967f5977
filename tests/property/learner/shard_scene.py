"""Shards and a learner's assembler in one thread, without sockets, for the tests beside this file.

Every row carries the number of its chunk and its own number, so a row from a slot that was overwritten shows.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from apex_learner.assembler import BatchAssembler, DrawPlan
from apex_learner.batches import PrefetchDepth
from apex_replay.endpoint import ReplayEndpoint
from apex_replay.streams import SampleStream
from apexrl.experience.batch import BatchBuffer
from apexrl.replay.draws import shard_seed
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.limiter import SamplesPerInsertLimiter
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.sample_client import OpenedTable
from apexrl.transport.sample_events import LearnerIdentity
from apexrl.types import Chunk, ColumnSpec, Geometry, Scope, SelectorConfig, Signature, TableConfig

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
SEED = 7
BETA = 0.4


def make_chunk(mark: int, priorities: list[float]) -> Chunk:
    """A whole chunk of four items; ``mark`` in every row."""
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


class Contents:
    """A copy of what a batch held."""

    def __init__(self, batch: BatchBuffer) -> None:
        windows = batch.as_window_batch()
        self.keys = batch.keys.copy()
        self.shards = batch.shards.copy()
        self.mark = windows.columns["mark"].numpy().copy()
        self.row = windows.columns["row"].numpy().copy()
        self.version = windows.item_columns["version"].numpy().copy()
        self.lengths = batch.lengths.copy()
        self.weights = batch.weights.copy()

    def assert_whole(self) -> None:
        """Every window is of one chunk, in order."""
        assert (self.mark == self.mark[:, :1]).all()
        assert (np.diff(self.row[..., 0].astype(int), axis=1) == 1).all()

    def assert_equal(self, other: Contents) -> None:
        for name, values in vars(self).items():
            np.testing.assert_array_equal(values, getattr(other, name), err_msg=name)


class Shard:
    """A replay shard with one actor's stream."""

    def __init__(self, config: TableConfig, boot: int) -> None:
        self.endpoint = ReplayEndpoint(ReplayEngine(boot=boot))
        self.session = InsertSession(config, 1 << 16, incarnation=bytes(16))
        self.inserts, opened = self.endpoint.open_insert(self.session.open_request(HANDSHAKE))
        self.session.on_response(opened)
        self.stream: SampleStream | None = None
        self.mirror_slots = 0
        self.boot = b""
        self.replies: deque[pb.DrawReply] = deque()

    @property
    def table(self) -> Any:
        return self.endpoint.engine.table("replay")


class System:
    """Shards and a learner; replies may be applied long after they were made."""

    def __init__(
        self, *, shards: int = 1, slots: int = 0, batch_size: int = 3, depth: int = 4, table: TableConfig = TABLE
    ) -> None:
        self.now = 0.0
        self.config = table
        self.slots = slots
        self.shards = [Shard(table, boot=1 + k) for k in range(shards)]
        self.limiter = SamplesPerInsertLimiter(0.0, 1, num_shards=shards)
        self.assembler = BatchAssembler(
            table,
            num_shards=shards,
            batch_size=batch_size,
            depth=PrefetchDepth(fixed=depth),
            limiter=self.limiter,
            importance_sampling_exponent=lambda: BETA,
            run_seed=SEED,
            clock=lambda: self.now,
        )
        self.received = 0
        for k in range(shards):
            self.open(k)

    def open(self, k: int = 0) -> None:
        """A stream anew, as after a lost connection; what was on its way is lost."""
        shard = self.shards[k]
        shard.replies.clear()
        shard.stream, response = shard.endpoint.open_sample(
            pb.SampleRequest(
                open=pb.SampleOpen(
                    handshake=HANDSHAKE.to_proto(),
                    learner=LearnerIdentity(1, bytes(16)).to_proto(),
                    tables=[pb.MirroredTable(table=wire.table_config_to_proto(self.config), mirror_slots=self.slots)],
                    run_seed=shard_seed(SEED, k),
                )
            )
        )
        (table,) = response.opened.tables
        shard.mirror_slots, shard.boot = table.mirror_slots, response.opened.boot
        totals = wire.totals_from_proto(table.totals)
        self.assembler.open(k, OpenedTable(table.num_pages, table.mirror_slots, totals), shard.boot)

    def lose(self, k: int) -> None:
        """The stream to a shard breaks."""
        self.shards[k].replies.clear()
        self.assembler.lost(k)

    def insert(self, chunk: Chunk, k: int = 0) -> None:
        shard = self.shards[k]
        shard.session.put(chunk)
        message = shard.session.next_message(force=True)
        assert message is not None
        ack = shard.inserts.handle(message)
        assert ack is not None
        shard.session.on_response(ack)
        shard.endpoint.engine.maintain()

    def observe(self) -> None:
        """All shards that are open report."""
        for k, shard in enumerate(self.shards):
            if self.assembler._shards[k].is_open:
                self.assembler.observe(k, shard.table.totals(), shard.boot)

    def request(self) -> list[DrawPlan]:
        """Plan, and have the shards make their replies."""
        self.observe()
        plans = self.assembler.plan(ready=0)
        for plan in plans:
            shard = self.shards[plan.shard]
            assert shard.stream is not None
            counts = wire.to_bytes(plan.counts, "uint32")
            draw = pb.DrawRequest(table="replay", request_number=plan.request_number, counts=counts)
            response = shard.stream.handle(pb.SampleRequest(draw=draw))
            assert response is not None
            shard.replies.append(response.draw)
        return plans

    def receive(self, k: int = 0) -> list[Contents]:
        """Apply a shard's oldest reply; the batches that it completes."""
        shard = self.shards[k]
        drawn = wire.draw_from_proto(SIGNATURE, shard.mirror_slots, shard.replies.popleft())
        self.received += len(drawn.new_chunks)
        contents = []
        for batch in self.assembler.apply(k, drawn, shard.boot):
            contents.append(Contents(batch))
            self.assembler.ring.release(batch)
        return contents

    def receive_all(self) -> list[Contents]:
        """Apply everything that is on its way."""
        return [
            one for k, shard in enumerate(self.shards) for _ in range(len(shard.replies)) for one in self.receive(k)
        ]
