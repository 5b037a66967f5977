"""A small table, chunks for it, and real shards on free ports, for the tests beside this file."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from apex_replay.service import ReplayService
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.channel import MIB, MessageLimits, open_channel
from apexrl.transport.handshake import Handshake
from apexrl.transport.info_client import fetch_info
from apexrl.transport.insert_client import InsertClient
from apexrl.transport.io_thread import io_thread
from apexrl.transport.sample_client import LearnerIdentity, SampleClient, StreamOpened, StreamReply
from apexrl.types import Chunk, ColumnSpec, Geometry, Scope, SelectorConfig, Signature, TableConfig

RUN = "0123456789abcdef" * 2
OTHER_RUN = "fedcba9876543210" * 2
STARTS = 4
SIGNATURE = Signature(
    columns=(
        ColumnSpec("kind", "uint8"),
        ColumnSpec("mark", "int32"),
        ColumnSpec("version", "uint64", scope=Scope.ITEM),
    ),
    geometry=Geometry(context=1, starts=STARTS, tail=2),
    stack=2,
)
TABLE = TableConfig("replay", SIGNATURE, SelectorConfig(), capacity_items=400, budget_bytes=4 << 20)
WAIT = 10.0


def make_chunk(mark: int, priority: float = 1.0) -> Chunk:
    """A full chunk of four items whose rows carry ``mark``."""
    rows = SIGNATURE.geometry.rows
    return Chunk(
        rows,
        STARTS,
        lengths=np.full(STARTS, 2, np.uint16),
        prefixes=np.zeros(STARTS, np.uint16),
        priorities=np.full(STARTS, priority, np.float32),
        blocks=(bytes(rows), np.full(rows, mark, np.int32).tobytes(), bytes(8 * STARTS)),
    )


def mark_of(chunk: Chunk) -> int:
    return int(np.frombuffer(chunk.blocks[1], np.int32)[0])


def handshake(run_id: str = RUN, peer: str = "actor-7", **shared: object) -> Handshake:
    fields = {"env.id": "atari/pong", "env.stack": 4, **shared}
    return Handshake(run_id, json.dumps(fields, sort_keys=True, separators=(",", ":")), peer)


@contextmanager
def shard(listen: str = "127.0.0.1:0") -> Iterator[ReplayService]:
    service = ReplayService(listen)
    try:
        yield service
    finally:
        service.stop(0.2)


@contextmanager
def inserter(address: str, **options: Any) -> Iterator[InsertClient]:
    options = {"handshake": handshake(), "table": TABLE, "max_unacked_chunks": 16, **options}
    client = InsertClient(address, **options)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def learner(address: str, epoch: int = 1, run_id: str = RUN, **options: Any) -> Iterator[SampleClient]:
    options = {"handshake": handshake(run_id, f"learner-{epoch}"), "tables": [TABLE], "run_seed": 3, **options}
    options.setdefault("identity", LearnerIdentity(epoch, os.urandom(16)))
    client = SampleClient(address, **options)
    try:
        yield client
    finally:
        client.close()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT) -> None:
    """Wait for ``condition``; fails the test, saying ``what``, if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.005)


def table_info(address: str) -> pb.TableInfo:
    info = fetch_info(address, timeout_seconds=5.0)
    return info.tables[0] if info.tables else pb.TableInfo()


def inserted(address: str) -> int:
    """Items that the shard has ever taken in."""
    return int(table_info(address).totals.inserted)


def fill(address: str, num_chunks: int, first_mark: int = 0, **options: Any) -> None:
    """Put chunks with marks first_mark, first_mark + 1, ... into the shard."""
    with inserter(address, **options) as client:
        assert client.put([make_chunk(first_mark + i) for i in range(num_chunks)], timeout=WAIT) == num_chunks
        assert client.flush(WAIT)


def opened(client: SampleClient) -> StreamOpened:
    event = client.next_event(WAIT)
    assert isinstance(event, StreamOpened)
    return event


def reply(client: SampleClient) -> StreamReply:
    event = client.next_event(WAIT)
    assert isinstance(event, StreamReply)
    return event


class RawStream:
    """A stream by hand, for messages that no client would send. ``method`` is Insert or Sample."""

    def __init__(self, address: str, method: str) -> None:
        self._io = io_thread()
        self._channel, self.call = self._io.run(self._open(address, method))

    async def _open(self, address: str, method: str) -> tuple[grpc.aio.Channel, Any]:
        # Large limits on this side: it is the shard's limits that are under test.
        channel = open_channel(address, MessageLimits(64 * MIB, 64 * MIB))
        return channel, getattr(ReplayStub(channel), method)()

    def send(self, message: Any) -> None:
        self._io.run(self.call.write(message), WAIT)

    def receive(self) -> Any:
        return self._io.run(self.call.read(), WAIT)

    def failure(self) -> grpc.aio.AioRpcError:
        """The error that the stream ends with."""
        try:
            while self.receive() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error
        except asyncio.InvalidStateError:
            pass
        raise AssertionError("the stream ended without an error")

    def close(self) -> None:
        self.call.cancel()
        self._io.run(self._channel.close(None))


def open_insert(incarnation: bytes, table: TableConfig = TABLE, hands: Handshake | None = None) -> pb.InsertRequest:
    message = pb.InsertOpen(
        handshake=(hands or handshake()).to_proto(), incarnation=incarnation, table=wire.table_config_to_proto(table)
    )
    return pb.InsertRequest(open=message)


def insert_chunks(numbers: list[int], chunks: list[Chunk]) -> pb.InsertRequest:
    message = pb.InsertChunks(numbers=wire.to_bytes(numbers, "uint64"), chunks=wire.chunks_to_proto(chunks))
    return pb.InsertRequest(chunks=message)
