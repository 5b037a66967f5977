"""Between :mod:`apexrl.types` and the messages of ``protos/apex/v1/replay.proto``.

Everything that arrives is checked here before anything is allocated from it: every ``bytes`` field has the size that
its neighbours and the table's signature demand. Errors are :class:`~apexrl.types.SignatureError` and name the field.
What chunks *mean* (lengths within the window, finite priorities) is the table's business.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from apexrl.chunk_batch import ChunkBatch
from apexrl.chunk_checks import ChunkChecker
from apexrl.transport import replay_pb2 as pb
from apexrl.types import (
    Chunk,
    Codec,
    ColumnSpec,
    Draw,
    Geometry,
    InitialPriority,
    Padding,
    RemoverKind,
    Scope,
    SelectorConfig,
    SelectorKind,
    Signature,
    SignatureError,
    TableConfig,
    TableTotals,
)

ValueT = TypeVar("ValueT")

MAX_COLUMNS = 256
MAX_DIMENSIONS = 8
#: Uncompressed bytes of a full chunk. More than this is a mistake (or an attack), not experience.
MAX_PAGE_BYTES = 256 << 20
MAX_CHUNKS_PER_MESSAGE = 1 << 16
MAX_ITEMS_PER_DRAW = 1 << 18

_SCOPES = {Scope.STEP: pb.Column.SCOPE_STEP, Scope.ITEM: pb.Column.SCOPE_ITEM}
_CODECS = {Codec.RAW: pb.Column.CODEC_RAW, Codec.LZ4: pb.Column.CODEC_LZ4}
_PADDINGS = {
    Padding.ZEROS: pb.Signature.PADDING_ZEROS,
    Padding.REPEAT_FIRST: pb.Signature.PADDING_REPEAT_FIRST,
}
_SELECTORS = {
    SelectorKind.PROPORTIONAL: pb.TableConfig.SELECTOR_PROPORTIONAL,
    SelectorKind.RANK_BASED: pb.TableConfig.SELECTOR_RANK_BASED,
    SelectorKind.UNIFORM: pb.TableConfig.SELECTOR_UNIFORM,
}
_REMOVERS = {
    RemoverKind.FIFO: pb.TableConfig.REMOVER_FIFO,
    RemoverKind.PRIORITIZED: pb.TableConfig.REMOVER_PRIORITIZED,
}
_INITIAL_PRIORITIES = {
    InitialPriority.ACTOR: pb.TableConfig.INITIAL_PRIORITY_ACTOR,
    InitialPriority.MAX: pb.TableConfig.INITIAL_PRIORITY_MAX,
}
_SCOPES_BACK = {number: scope for scope, number in _SCOPES.items()}
_CODECS_BACK = {number: codec for codec, number in _CODECS.items()}
_PADDINGS_BACK = {number: padding for padding, number in _PADDINGS.items()}
_SELECTORS_BACK = {number: selector for selector, number in _SELECTORS.items()}
_REMOVERS_BACK = {number: remover for remover, number in _REMOVERS.items()}
_INITIAL_PRIORITIES_BACK = {number: initial for initial, number in _INITIAL_PRIORITIES.items()}


class DrawResult(NamedTuple):
    """A shard's answer to one draw request. Item arrays have length n = sum(counts)."""

    table: str
    request_number: int
    counts: npt.NDArray[np.uint32]
    """[m] items of each batch, as requested."""
    keys: npt.NDArray[np.uint64]
    probabilities: npt.NDArray[np.float32]
    """q_i / T on the shard at the moment of the draw."""
    slots: npt.NDArray[np.uint32]
    """Mirror slot of each item's chunk."""
    start_rows: npt.NDArray[np.uint16]
    prefixes: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.uint16]
    new_slots: npt.NDArray[np.uint32]
    """Slot of each of ``new_chunks``; they come before any item is gathered."""
    new_chunks: ChunkBatch
    """Chunks that the mirror lacks; their lengths, prefixes and priorities are zeros."""
    totals: TableTotals


# --- tables as data ---


def signature_to_proto(signature: Signature) -> pb.Signature:
    """The signature as a message."""
    columns = [
        pb.Column(
            name=column.name,
            dtype=np.dtype(column.dtype).name,
            shape=column.shape,
            scope=_SCOPES[column.scope],
            codec=_CODECS[column.codec],
        )
        for column in signature.columns
    ]
    g = signature.geometry
    return pb.Signature(
        columns=columns,
        context_rows=g.context,
        start_rows=g.starts,
        tail_rows=g.tail,
        stack=signature.stack,
        padding=_PADDINGS[signature.padding],
    )


def signature_from_proto(message: pb.Signature) -> Signature:
    """The signature of a message; refuses unknown types and pages that could not be meant."""
    if not 0 < len(message.columns) <= MAX_COLUMNS:
        raise SignatureError(f"signature.columns has {len(message.columns)} entries, must be in [1, {MAX_COLUMNS}]")
    columns = tuple(_column_from_proto(column) for column in message.columns)
    geometry = Geometry(message.context_rows, message.start_rows, message.tail_rows)
    padding = _known(_PADDINGS_BACK, message.padding, "signature.padding")
    signature = Signature(columns, geometry, stack=message.stack, padding=padding)
    if signature.page_bytes > MAX_PAGE_BYTES:
        raise SignatureError(
            f"signature: a full chunk has {signature.page_bytes} bytes, must be at most {MAX_PAGE_BYTES}"
        )
    return signature


def _column_from_proto(message: pb.Column) -> ColumnSpec:
    name = f"signature.columns[{message.name!r}]"
    if not message.name:
        raise SignatureError("signature.columns has an entry without a name")
    if len(message.shape) > MAX_DIMENSIONS:
        raise SignatureError(f"{name}.shape has {len(message.shape)} dimensions, must be at most {MAX_DIMENSIONS}")
    try:
        dtype = np.dtype(message.dtype)
    except TypeError:
        raise SignatureError(f"{name}.dtype is {message.dtype!r}, must be a NumPy name such as uint8") from None
    if dtype.name != message.dtype or dtype.kind not in "biuf":
        raise SignatureError(f"{name}.dtype is {message.dtype!r}, must be a bool, integer or float NumPy name")
    scope = _known(_SCOPES_BACK, message.scope, f"{name}.scope")
    codec = _known(_CODECS_BACK, message.codec, f"{name}.codec")
    return ColumnSpec(message.name, message.dtype, tuple(message.shape), scope, codec)


def table_config_to_proto(config: TableConfig) -> pb.TableConfig:
    """The table's configuration as a message."""
    message = pb.TableConfig(
        name=config.name,
        signature=signature_to_proto(config.signature),
        selector=_SELECTORS[config.selector.kind],
        priority_exponent=config.selector.exponent,
        uniform_mixture=config.selector.uniform_mixture,
        remover=_REMOVERS[config.remover],
        initial_priority=_INITIAL_PRIORITIES[config.initial_priority],
        capacity_items=config.capacity_items,
        budget_bytes=config.budget_bytes,
    )
    if config.remover is RemoverKind.PRIORITIZED:
        message.remover_exponent = config.remover_exponent
    return message


def table_config_from_proto(message: pb.TableConfig) -> TableConfig:
    """The table's configuration of a message."""
    selector = SelectorConfig(
        kind=_known(_SELECTORS_BACK, message.selector, "table.selector"),
        exponent=message.priority_exponent,
        uniform_mixture=message.uniform_mixture,
    )
    config = TableConfig(
        name=message.name,
        signature=signature_from_proto(message.signature),
        selector=selector,
        capacity_items=message.capacity_items,
        budget_bytes=message.budget_bytes,
        remover=_known(_REMOVERS_BACK, message.remover, "table.remover"),
        initial_priority=_known(_INITIAL_PRIORITIES_BACK, message.initial_priority, "table.initial_priority"),
    )
    if config.remover is RemoverKind.PRIORITIZED:
        config = dataclasses.replace(config, remover_exponent=message.remover_exponent)
    return config


def _known(table: dict[Any, ValueT], number: int, name: str) -> ValueT:
    if number not in table:
        raise SignatureError(f"{name} is {number}, must be one of {sorted(str(v) for v in table.values())}")
    return table[number]


# --- arrays ---


def to_bytes(values: npt.ArrayLike, dtype: str) -> bytes:
    """Little-endian bytes of an array."""
    return np.asarray(values, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()


def from_bytes(data: bytes, dtype: str, count: int | None, name: str) -> npt.NDArray[Any]:
    """A read-only array [count] over ``data``; ``count`` None takes whatever is there, in whole numbers."""
    little = np.dtype(dtype).newbyteorder("<")
    if count is None and len(data) % little.itemsize:
        raise SignatureError(f"{name} has {len(data)} bytes, must be a multiple of {little.itemsize}")
    if count is not None and len(data) != count * little.itemsize:
        raise SignatureError(
            f"{name} has {len(data)} bytes, must have {count * little.itemsize} ({count} numbers of {dtype})"
        )
    return np.frombuffer(data, dtype=little)


# --- chunks ---


def chunks_to_proto(chunks: Sequence[Chunk], *, items: bool = True) -> pb.Chunks:
    """Chunks, column by column. Without ``items`` lengths, prefixes and priorities are left out."""
    message = pb.Chunks(
        rows=to_bytes([chunk.rows for chunk in chunks], "uint16"),
        starts=to_bytes([chunk.starts for chunk in chunks], "uint16"),
    )
    if items and chunks:
        message.lengths = to_bytes(np.concatenate([chunk.lengths for chunk in chunks]), "uint16")
        message.prefixes = to_bytes(np.concatenate([chunk.prefixes for chunk in chunks]), "uint16")
        message.priorities = to_bytes(np.concatenate([chunk.priorities for chunk in chunks]), "float32")
    for blocks in zip(*(chunk.blocks for chunk in chunks), strict=True):
        message.columns.add(data=b"".join(blocks), sizes=to_bytes([len(block) for block in blocks], "uint32"))
    return message


def chunks_from_proto(signature: Signature, message: pb.Chunks, *, items: bool = True) -> ChunkBatch:
    """The chunks of a message, every size checked against the signature. See :func:`chunks_to_proto`.

    Without ``items`` lengths, prefixes and priorities are zeros.
    """
    rows = from_bytes(message.rows, "uint16", None, "chunks.rows").astype(np.int64)
    n = len(rows)
    if n > MAX_CHUNKS_PER_MESSAGE:
        raise SignatureError(f"chunks.rows has {n} entries, must have at most {MAX_CHUNKS_PER_MESSAGE}")
    starts = from_bytes(message.starts, "uint16", n, "chunks.starts").astype(np.int64)
    checker = _checker(signature)
    checker.check_rows(rows, starts)
    count = int(starts.sum())
    given = count if items else 0
    lengths = from_bytes(message.lengths, "uint16", given, "chunks.lengths")
    prefixes = from_bytes(message.prefixes, "uint16", given, "chunks.prefixes")
    priorities = from_bytes(message.priorities, "float32", given, "chunks.priorities")
    if not items:
        lengths = prefixes = np.zeros(count, np.uint16)
        priorities = np.zeros(count, np.float32)
    columns = signature.columns if n else ()
    if len(message.columns) != len(columns):
        raise SignatureError(f"chunks.columns has {len(message.columns)} entries, must have {len(columns)}")
    data = tuple(column.data for column in message.columns)
    sizes = np.empty((len(columns), n), np.int64)
    for i, (column, its) in enumerate(zip(columns, message.columns, strict=True)):
        sizes[i] = from_bytes(its.sizes, "uint32", n, f"chunks.columns[{column.name!r}].sizes")
    batch = ChunkBatch(rows, starts, lengths, prefixes, priorities, data, sizes)
    checker.check_blocks(batch)
    return batch


_checker = functools.lru_cache(maxsize=8)(ChunkChecker)


# --- draws ---


def totals_to_proto(table: str, totals: TableTotals) -> pb.TableTotals:
    """A table's totals as a message."""
    return pb.TableTotals(
        table=table,
        mass=totals.mass,
        num_items=totals.num_items,
        inserted=totals.inserted,
        drawn=totals.drawn,
    )


def totals_from_proto(message: pb.TableTotals) -> TableTotals:
    """The totals of a message."""
    return TableTotals(message.mass, message.num_items, message.inserted, message.drawn)


def counts_from_bytes(data: bytes) -> npt.NDArray[np.uint32]:
    """The counts [m] of a draw request, bounded before anything is allocated for them."""
    counts = from_bytes(data, "uint32", None, "draw.counts")
    total = int(counts.sum(dtype=np.uint64)) if len(counts) else 0
    if not 0 < total <= MAX_ITEMS_PER_DRAW:
        raise SignatureError(f"draw.counts sums to {total} items, must be in [1, {MAX_ITEMS_PER_DRAW}]")
    return counts


def draw_to_proto(
    request: pb.DrawRequest,
    draw: Draw,
    slots: npt.NDArray[np.integer],
    new_slots: npt.NDArray[np.integer],
    new_chunks: Sequence[Chunk],
) -> pb.DrawReply:
    """The reply to ``request``: where in the mirror the items lie, and the chunks that it lacks."""
    return pb.DrawReply(
        table=request.table,
        request_number=request.request_number,
        counts=request.counts,
        keys=to_bytes(draw.keys, "uint64"),
        probabilities=to_bytes(draw.probabilities, "float32"),
        slots=to_bytes(slots, "uint32"),
        start_rows=to_bytes(draw.start_rows, "uint16"),
        prefixes=to_bytes(draw.prefixes, "uint16"),
        lengths=to_bytes(draw.lengths, "uint16"),
        new_slots=to_bytes(new_slots, "uint32"),
        new_chunks=chunks_to_proto(new_chunks, items=False),
        totals=totals_to_proto(request.table, draw.totals),
    )


def draw_from_proto(signature: Signature, num_slots: int, message: pb.DrawReply) -> DrawResult:
    """The result of a reply, for a mirror of ``num_slots`` slots."""
    counts = counts_from_bytes(message.counts)
    n = int(counts.sum())
    slots = from_bytes(message.slots, "uint32", n, "draw.slots")
    chunks = chunks_from_proto(signature, message.new_chunks, items=False)
    new_slots = from_bytes(message.new_slots, "uint32", len(chunks), "draw.new_slots")
    start_rows = from_bytes(message.start_rows, "uint16", n, "draw.start_rows")
    prefixes = from_bytes(message.prefixes, "uint16", n, "draw.prefixes")
    lengths = from_bytes(message.lengths, "uint16", n, "draw.lengths")
    g = signature.geometry
    for name, values, low, high in (
        ("slots", slots, 0, num_slots - 1),
        ("new_slots", new_slots, 0, num_slots - 1),
        ("start_rows", start_rows, g.context, g.context + g.starts - 1),
        ("prefixes", prefixes, 0, g.context),
        ("lengths", lengths, 1, g.tail),
    ):
        if len(values) and not low <= int(values.min()) <= int(values.max()) <= high:
            raise SignatureError(f"draw.{name} spans [{values.min()}, {values.max()}], must be in [{low}, {high}]")
    return DrawResult(
        table=message.table,
        request_number=message.request_number,
        counts=counts,
        keys=from_bytes(message.keys, "uint64", n, "draw.keys"),
        probabilities=from_bytes(message.probabilities, "float32", n, "draw.probabilities"),
        slots=slots,
        start_rows=start_rows,
        prefixes=prefixes,
        lengths=lengths,
        new_slots=new_slots,
        new_chunks=chunks,
        totals=totals_from_proto(message.totals),
    )
