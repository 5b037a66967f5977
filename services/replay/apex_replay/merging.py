"""Insert messages of many streams stored as one: what each would do by itself, for the cost of one.

A message of one chunk costs a shard as much as one of twenty: array operations on little data. Messages of equal tables
are the same columns, so those that came together are joined and filed once, unless one of them needs a closer look:
then each is handled alone, and only the one at fault is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apex_replay.streams import InsertStream
from apexrl.chunk_batch import ChunkBatch
from apexrl.replay.engine import ReplayEngine
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.types import Signature, SignatureError

Ints = npt.NDArray[np.int64]
Pair = tuple[InsertStream, pb.InsertRequest]


class _Merged(NamedTuple):
    batch: ChunkBatch
    numbers: npt.NDArray[np.uint64]
    """[n] of all messages' chunks."""
    ends: Ints
    """[m] where each message's chunks end."""


def handle_all(engine: ReplayEngine, pairs: Sequence[Pair]) -> list[pb.InsertResponse | Exception | None]:
    """What :meth:`InsertStream.handle` of each stream and its message returns or raises, in turn."""
    answers = _handle_merged(engine, pairs) if len(pairs) > 1 else None
    if answers is not None:
        return [*answers]
    alone: list[pb.InsertResponse | Exception | None] = []
    for stream, request in pairs:
        try:
            alone.append(stream.handle(request))
        except Exception as error:
            alone.append(error)
    return alone


def _handle_merged(engine: ReplayEngine, pairs: Sequence[Pair]) -> list[pb.InsertResponse] | None:
    """The acknowledgements; None, with nothing stored, unless all of it is well, new, and admitted at once."""
    streams = [stream for stream, _ in pairs]
    table = streams[0].table
    if len(set(map(id, streams))) < len(streams):
        return None
    if not all(stream.table is table and stream.is_idle for stream in streams):
        return None
    if any(request.WhichOneof("request") != "chunks" for _, request in pairs):
        return None
    try:
        merged = _merge(table.config.signature, [request.chunks for _, request in pairs])
        if merged is None:
            return None
        table.checker.check_items(merged.batch)  # the wire has checked the shapes
    except SignatureError:
        return None
    begins = np.append(0, merged.ends[:-1])
    name = table.config.name
    seen = [engine.last_seen(stream.incarnation, name) for stream in streams]
    if (merged.numbers[begins] <= np.array(seen, np.uint64)).any():
        return None
    if not table.may_insert(int(merged.batch.items_before[-2])):
        return None
    senders = [stream.incarnation for stream in streams]
    engine.insert_merged(senders, merged.ends, merged.numbers, name, merged.batch)
    return [
        pb.InsertResponse(ack=pb.InsertAck(last_seen=number)) for number in merged.numbers[merged.ends - 1].tolist()
    ]


def _merge(signature: Signature, messages: Sequence[pb.InsertChunks]) -> _Merged | None:
    """All messages as one; None if one is empty or its parts do not fit together, whatever those of others are.

    Raises:
        SignatureError: likewise.
    """
    chunks = [message.chunks for message in messages]
    columns = [list(one.columns) for one in chunks]
    if any(len(own) != len(signature.columns) for own in columns):
        return None
    sizes = [b"".join([own[i].sizes for own in columns]) for i in range(len(signature.columns))]
    joined = pb.Chunks(
        rows=b"".join([one.rows for one in chunks]),
        starts=b"".join([one.starts for one in chunks]),
        lengths=b"".join([one.lengths for one in chunks]),
        prefixes=b"".join([one.prefixes for one in chunks]),
        priorities=b"".join([one.priorities for one in chunks]),
        columns=[
            pb.ColumnBlocks(data=b"".join([own[i].data for own in columns]), sizes=sizes[i])
            for i in range(len(signature.columns))
        ],
    )
    batch = wire.chunks_from_proto(signature, joined)
    numbers = wire.from_bytes(b"".join([message.numbers for message in messages]), "uint64", len(batch), "numbers")
    # The sums agree; each message's own must do so as well.
    counts = np.array([len(one.rows) for one in chunks]) // 2
    if (counts < 1).any():
        return None
    ends = np.cumsum(counts)
    begins = ends - counts
    starts = np.add.reduceat(batch.starts, begins)
    columns_bytes = np.add.reduceat(batch.sizes, begins, axis=1)
    agree = (
        all(len(one.rows) == len(one.starts) == 2 * n for one, n in zip(chunks, counts.tolist(), strict=True))
        and all(len(message.numbers) == 8 * n for message, n in zip(messages, counts.tolist(), strict=True))
        and all(
            len(one.lengths) == len(one.prefixes) == 2 * s and len(one.priorities) == 4 * s
            for one, s in zip(chunks, starts.tolist(), strict=True)
        )
        and all(len(c.sizes) == 4 * n for own, n in zip(columns, counts.tolist(), strict=True) for c in own)
        and columns_bytes.T.tolist() == [[len(c.data) for c in own] for own in columns]
    )
    grow = np.append(numbers[1:] > numbers[:-1], True)
    grow[ends - 1] = True
    if not agree or not grow.all() or (numbers[begins] < 1).any():
        return None
    return _Merged(batch, numbers, ends)
