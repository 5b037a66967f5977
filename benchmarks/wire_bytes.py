"""How many bytes an inserted and a sampled transition take on the wire: every message is made, and its size added up.

The messages are those of the services, exchanged with a shard's endpoint in this process: no socket, so gRPC's framing
(5 bytes a message, 9 for each 16 KiB of it) is not counted, and nothing depends on timing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import lz4.block  # type: ignore[import-untyped]
import numpy as np

from apex_replay.endpoint import ReplayEndpoint
from apexrl.algorithms.base import TableSpec
from apexrl.config import ExperimentConfig, shared_json
from apexrl.replay.engine import ReplayEngine
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.sample_client import LearnerIdentity
from apexrl.types import Chunk
from benchmarks.recordings import Recording

RUN_ID = "0" * 32


class WireBytes(NamedTuple):
    """Bytes per transition, both directions together."""

    insert: float
    """Chunks and acknowledgements, per inserted transition."""
    sample: float
    """Requests and replies with the chunks that the mirror lacks, per sampled transition."""
    priority: float
    """New priorities and answers, per sampled transition."""


class Exchange:
    """An actor, a learner and a shard that pass messages and count them. Opening a stream is not counted."""

    def __init__(self, config: ExperimentConfig[Any], table: TableSpec) -> None:
        self._table = table.config
        self._endpoint = ReplayEndpoint(ReplayEngine(boot=0))
        handshake = Handshake(RUN_ID, shared_json(config), "wire-bytes")
        self._identity = LearnerIdentity(1, bytes(16))
        self._session = InsertSession(table.config, config.actor.max_unacked_chunks)
        self._insert, opened = self._endpoint.open_insert(self._session.open_request(handshake))
        self._session.on_response(opened)
        opening = pb.SampleOpen(
            handshake=handshake.to_proto(),
            learner=self._identity.to_proto(),
            tables=[pb.MirroredTable(table=wire.table_config_to_proto(table.config))],
            run_seed=config.seed,
        )
        self._sample, _ = self._endpoint.open_sample(pb.SampleRequest(open=opening))
        self._requests = 0

    def insert(self, chunk: Chunk) -> int:
        """Put a chunk; bytes of the messages that went, if one closed."""
        if self._session.room < 1:
            raise BufferError("the session's window is full although every message is answered at once")
        self._session.put(chunk)
        # By size alone: by age a message would close early on a slow machine.
        full = self._session.seconds_until_message() == 0.0
        message = self._session.next_message() if full else None
        if message is None:
            return 0
        response = self._insert.handle(message)
        if response is None:
            raise RuntimeError("there is no insert limit, and yet the shard stored nothing")
        self._session.on_response(response)
        return message.ByteSize() + response.ByteSize()

    @property
    def inserted(self) -> int:
        """Transitions that the table has been given."""
        return self._endpoint.engine.table(self._table.name).inserted

    def draw(self, batch_size: int) -> tuple[int, int]:
        """Draw a batch and send priorities back; bytes of the draw's and of the priorities' messages."""
        self._requests += 1
        request = pb.SampleRequest(
            draw=pb.DrawRequest(
                table=self._table.name, request_number=self._requests, counts=wire.to_bytes([batch_size], "uint32")
            )
        )
        reply = self._sample.handle(request)
        if reply is None:
            raise RuntimeError("a draw was not answered")
        keys = np.frombuffer(reply.draw.keys, "<u8")
        # Other priorities than before would change what is drawn, not how long the messages are.
        update = pb.UpdatePrioritiesRequest(
            learner=self._identity.to_proto(),
            table=self._table.name,
            keys=reply.draw.keys,
            priorities=wire.to_bytes(np.ones(len(keys)), "float32"),
        )
        return request.ByteSize() + reply.ByteSize(), update.ByteSize() + pb.UpdatePrioritiesResponse(
            applied=len(keys)
        ).ByteSize()


def wire_bytes(
    config: ExperimentConfig[Any],
    table: TableSpec,
    chunks: Sequence[Chunk],
    *,
    samples_per_insert: float,
    items: int,
) -> WireBytes:
    """Insert ``items`` transitions, drawing ``samples_per_insert`` for each from the first on.

    The learner's mirror holds the whole table, as by default, so that each chunk comes to it at most once.
    """
    exchange = Exchange(config, table)
    batch_size = config.learner.batch_size
    insert = sample = priority = drawn = 0
    endless = itertools.cycle(chunks)
    while exchange.inserted < items:
        insert += exchange.insert(next(endless))
        while drawn + batch_size <= exchange.inserted * samples_per_insert:
            of_draw, of_priorities = exchange.draw(batch_size)
            sample += of_draw
            priority += of_priorities
            drawn += batch_size
    return WireBytes(insert / exchange.inserted, sample / drawn, priority / drawn)


def naive_bytes(recording: Recording, stack: int, n_steps: int, *, items: int) -> float:
    """Mean bytes of a transition that carries both its stacked observations, each as an lz4 block of its own.

    Stacks are taken at evenly spaced rows, whatever episode they lie in.
    """
    frames = recording.rows["observation"]
    first, last = stack - 1, recording.num_steps - n_steps - 1
    steps = np.linspace(first, last, max(1, items // recording.num_lanes)).astype(int)
    sizes = [
        sum(
            len(lz4.block.compress(np.ascontiguousarray(frames[t - stack + 1 : t + 1, lane]).data, store_size=False))
            for t in (step, step + n_steps)
        )
        for step in steps
        for lane in range(recording.num_lanes)
    ]
    return float(np.mean(sizes))
