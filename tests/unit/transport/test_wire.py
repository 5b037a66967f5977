"""Messages give back what went in, and refuse whatever has the wrong size."""

from __future__ import annotations

import dataclasses
import tracemalloc

import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
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

SIGNATURE = Signature(
    columns=(
        ColumnSpec("kind", "uint8"),
        ColumnSpec("reward", "float32"),
        ColumnSpec("observation", "uint8", (3, 5), codec=Codec.LZ4),
        ColumnSpec("core", "float32", (2,), scope=Scope.ITEM),
    ),
    geometry=Geometry(context=1, starts=4, tail=2),
    stack=2,
    padding=Padding.REPEAT_FIRST,
)
TABLE = TableConfig(
    name="replay",
    signature=SIGNATURE,
    selector=SelectorConfig(SelectorKind.RANK_BASED, 0.7, 0.25),
    capacity_items=64,
    budget_bytes=1 << 20,
    initial_priority=InitialPriority.MAX,
)


def make_chunk(seed: int, rows: int = 7, starts: int = 4) -> Chunk:
    rng = np.random.default_rng(seed)
    blocks = []
    for column in SIGNATURE.columns:
        data = rng.integers(0, 256, SIGNATURE.block_bytes(column, rows, starts), np.uint8).tobytes()
        blocks.append(lz4.block.compress(data, store_size=False) if column.codec is Codec.LZ4 else data)
    return Chunk(
        rows,
        starts,
        lengths=rng.integers(0, 3, starts).astype(np.uint16),
        prefixes=rng.integers(0, 2, starts).astype(np.uint16),
        priorities=rng.random(starts, dtype=np.float32),
        blocks=tuple(blocks),
    )


def assert_chunks_equal(a: Chunk, b: Chunk) -> None:
    assert (a.rows, a.starts, a.blocks) == (b.rows, b.starts, b.blocks)
    for name in ("lengths", "prefixes", "priorities"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(b, name).dtype == getattr(a, name).dtype


def parsed(message: pb.Chunks) -> pb.Chunks:
    return pb.Chunks.FromString(message.SerializeToString())


def test_table_config_survives_the_wire() -> None:
    message = pb.TableConfig.FromString(wire.table_config_to_proto(TABLE).SerializeToString())
    assert wire.table_config_from_proto(message) == TABLE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 4), st.integers(0, 2)), max_size=5))
def test_chunks_survive_the_wire(shapes: list[tuple[int, int, int]]) -> None:
    chunks = [make_chunk(seed, 1 + starts + tail, starts) for seed, starts, tail in shapes]
    back = wire.chunks_from_proto(SIGNATURE, parsed(wire.chunks_to_proto(chunks))).chunks()
    assert len(back) == len(chunks)
    for a, b in zip(chunks, back, strict=True):
        assert_chunks_equal(a, b)


def test_chunks_without_items_have_zeros() -> None:
    chunk = make_chunk(1)
    message = wire.chunks_to_proto([chunk], items=False)
    assert not message.lengths
    (back,) = wire.chunks_from_proto(SIGNATURE, message, items=False).chunks()
    assert back.blocks == chunk.blocks
    assert back.num_items == 0
    assert back.priorities.shape == (4,)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: setattr(m, "rows", m.rows[:-1]), "chunks.rows"),
        (lambda m: setattr(m, "rows", wire.to_bytes([7, 8], "uint16")), "chunk.rows is 8"),
        (lambda m: setattr(m, "rows", wire.to_bytes([7, 4], "uint16")), "chunk.rows is 4"),
        (lambda m: setattr(m, "starts", wire.to_bytes([4, 5], "uint16")), "chunk.starts is 5"),
        (lambda m: setattr(m, "starts", wire.to_bytes([4, 0], "uint16")), "chunk.starts is 0"),
        (lambda m: setattr(m, "starts", wire.to_bytes([8, 0], "uint16")), "chunk.starts is 8"),
        (lambda m: setattr(m, "starts", b""), "chunks.starts"),
        (lambda m: setattr(m, "lengths", m.lengths + b"\0\0"), "chunks.lengths"),
        (lambda m: setattr(m, "prefixes", b""), "chunks.prefixes"),
        (lambda m: setattr(m, "priorities", m.priorities[:-4]), "chunks.priorities"),
        (lambda m: m.columns.pop(), "chunks.columns has 3"),
        (lambda m: m.columns.add(), "chunks.columns has 5"),
        (
            lambda m: setattr(m.columns[0], "data", m.columns[0].data[:-1]),
            "column 'kind' has 13 bytes of data, must have 14",
        ),
        (
            lambda m: setattr(m.columns[1], "sizes", wire.to_bytes([27, 29], "uint32")),
            "chunk.blocks['reward'] has 27 bytes, must have 28",
        ),
        (lambda m: setattr(m.columns[2], "sizes", m.columns[2].sizes[:-4]), "chunks.columns['observation'].sizes"),
    ],
)
def test_a_wrong_size_is_refused_and_named(change: object, field: str) -> None:
    message = wire.chunks_to_proto([make_chunk(1), make_chunk(2)])
    change(message)  # type: ignore[operator]
    with pytest.raises(SignatureError) as error:
        wire.chunks_from_proto(SIGNATURE, parsed(message))
    assert field in str(error.value)


def test_nothing_is_allocated_from_start_rows_that_no_chunk_has() -> None:
    message = wire.chunks_to_proto([make_chunk(1)] * 1000, items=False)
    message.starts = wire.to_bytes([0xFFFF] * 1000, "uint16")
    tracemalloc.start()
    try:
        with pytest.raises(SignatureError, match=r"chunk\.starts is 65535"):
            wire.chunks_from_proto(SIGNATURE, message, items=False)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_an_empty_lz4_block_and_one_above_the_bound_are_refused() -> None:
    chunk = make_chunk(1)
    for block in (b"", bytes(7 * 15 + 17)):
        message = wire.chunks_to_proto([chunk])
        message.columns[2].data = block
        message.columns[2].sizes = wire.to_bytes([len(block)], "uint32")
        with pytest.raises(
            SignatureError, match=r"chunk.blocks\['observation'\] has (0|122) bytes, must have between 1 and 121"
        ):
            wire.chunks_from_proto(SIGNATURE, message)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: setattr(m.signature.columns[0], "dtype", "object"), "dtype"),
        (lambda m: setattr(m.signature.columns[0], "dtype", "nonsense"), "dtype"),
        (lambda m: setattr(m.signature.columns[0], "dtype", "U8"), "dtype"),
        (lambda m: m.signature.columns[2].shape.extend([1 << 20, 1 << 20]), "full chunk"),
        (lambda m: m.signature.columns[2].shape.extend([1] * 8), "dimensions"),
        (lambda m: setattr(m.signature.columns[0], "codec", 0), "codec"),
        (lambda m: setattr(m.signature, "padding", 9), "signature.padding"),
        (lambda m: setattr(m.signature, "tail_rows", 1 << 20), "geometry.tail"),
        (lambda m: setattr(m, "selector", 0), "table.selector"),
        (lambda m: setattr(m, "remover", 7), "table.remover"),
        (lambda m: setattr(m, "remover", 0), "table.remover"),
        (lambda m: (setattr(m, "remover", 2), setattr(m, "remover_exponent", 0.5)), "remover_exponent is 0.5"),
        (lambda m: (setattr(m, "remover", 2), setattr(m, "remover_exponent", float("nan"))), "remover_exponent is nan"),
        (lambda m: setattr(m, "priority_exponent", -1.0), "selector.exponent"),
        (lambda m: setattr(m, "name", ""), "table.name"),
    ],
)
def test_a_table_that_cannot_be_is_refused_and_named(change: object, field: str) -> None:
    message = wire.table_config_to_proto(TABLE)
    change(message)  # type: ignore[operator]
    with pytest.raises(SignatureError) as error:
        wire.table_config_from_proto(message)
    assert field in str(error.value)


@pytest.mark.parametrize("exponent", [-0.4, -4.0, 0.0])
def test_the_remover_travels_both_ways(exponent: float) -> None:
    config = dataclasses.replace(TABLE, remover=RemoverKind.PRIORITIZED, remover_exponent=exponent)
    message = pb.TableConfig.FromString(wire.table_config_to_proto(config).SerializeToString())
    assert message.remover == pb.TableConfig.REMOVER_PRIORITIZED
    assert wire.table_config_from_proto(message) == config


def test_first_in_first_out_is_said_as_it_was_before_there_were_other_removers() -> None:
    message = wire.table_config_to_proto(dataclasses.replace(TABLE, remover_exponent=-2.0))
    fields = [field.name for field, _ in message.ListFields()]
    assert "remover" in fields
    assert "remover_exponent" not in fields
    # An exponent without effect makes no other table: a shard would rebuild it.
    assert wire.table_config_from_proto(message) == TABLE


def make_reply() -> pb.DrawReply:
    n = 3
    draw = Draw(
        keys=np.array([1, 1 << 63, 3], np.uint64),
        probabilities=np.array([0.25, 0.5, 0.25], np.float32),
        pages=np.array([0, 9, 9], np.uint32),
        start_rows=np.array([1, 4, 2], np.uint16),
        prefixes=np.array([0, 1, 0], np.uint16),
        lengths=np.array([1, 2, 2], np.uint16),
        totals=TableTotals(2.5, 40, 50, n),
    )
    request = pb.DrawRequest(table="replay", request_number=17, counts=wire.to_bytes([1, 2], "uint32"))
    return wire.draw_to_proto(request, draw, draw.pages, np.array([9], np.uint32), [make_chunk(5)])


def test_a_draw_survives_the_wire() -> None:
    result = wire.draw_from_proto(SIGNATURE, 10, pb.DrawReply.FromString(make_reply().SerializeToString()))
    assert (result.table, result.request_number) == ("replay", 17)
    assert result.keys.tolist() == [1, 1 << 63, 3]
    assert result.slots.tolist() == [0, 9, 9]
    assert result.start_rows.tolist() == [1, 4, 2]
    assert result.counts.tolist() == [1, 2]
    assert result.totals == TableTotals(2.5, 40, 50, 3)
    assert result.new_slots.tolist() == [9]
    assert result.new_chunks.chunk(0).blocks == make_chunk(5).blocks


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: setattr(m, "keys", m.keys[:-8]), "draw.keys"),
        (lambda m: setattr(m, "counts", b""), "draw.counts"),
        (lambda m: setattr(m, "counts", wire.to_bytes([0xFFFFFFFF] * 2, "uint32")), "draw.counts"),
        (lambda m: setattr(m, "slots", wire.to_bytes([0, 9, 10], "uint32")), "draw.slots"),
        (lambda m: setattr(m, "start_rows", wire.to_bytes([0, 1, 2], "uint16")), "draw.start_rows"),
        (lambda m: setattr(m, "start_rows", wire.to_bytes([5, 1, 2], "uint16")), "draw.start_rows"),
        (lambda m: setattr(m, "lengths", wire.to_bytes([1, 3, 1], "uint16")), "draw.lengths"),
        (lambda m: setattr(m, "prefixes", wire.to_bytes([1, 2, 1], "uint16")), "draw.prefixes"),
        (lambda m: setattr(m, "new_slots", b""), "draw.new_slots"),
        (lambda m: setattr(m, "new_slots", wire.to_bytes([10], "uint32")), "draw.new_slots"),
    ],
)
def test_a_reply_that_would_reach_beyond_the_mirror_is_refused(change: object, field: str) -> None:
    message = make_reply()
    change(message)  # type: ignore[operator]
    with pytest.raises(SignatureError) as error:
        wire.draw_from_proto(SIGNATURE, 10, message)
    assert field in str(error.value)
