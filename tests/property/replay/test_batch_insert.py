"""Chunks filed a message at a time leave a table as chunks filed one by one would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.chunk_batch import ChunkBatch
from apexrl.replay.engine import ReplayEngine
from apexrl.types import (
    Chunk,
    Codec,
    ColumnSpec,
    Geometry,
    RemoverKind,
    Scope,
    SelectorConfig,
    SelectorKind,
    Signature,
    SignatureError,
    TableConfig,
)

GEOMETRY = Geometry(context=2, starts=4, tail=2)
SIGNATURE = Signature(
    (
        ColumnSpec("mark", "int32"),
        ColumnSpec("picture", "uint8", (4000,), codec=Codec.LZ4),
        ColumnSpec("core", "float32", (2,), scope=Scope.ITEM),
    ),
    GEOMETRY,
)
ACTOR = b"a" * 16


def make_chunk(mark: int, starts: int, tail: int, lengths: list[int], priority: float, num_bytes: int) -> Chunk:
    rows = GEOMETRY.context + starts + tail
    # As far as the chunk's rows go.
    most = np.minimum(rows - 1 - GEOMETRY.context - np.arange(starts), GEOMETRY.tail)
    return Chunk(
        rows=rows,
        starts=starts,
        lengths=np.minimum(lengths[:starts], most).astype(np.uint16),
        prefixes=np.full(starts, mark % 3, np.uint16),
        priorities=np.full(starts, priority, np.float32),
        blocks=(np.full(rows, mark, np.int32).tobytes(), bytes([mark % 256]) * num_bytes, bytes(8 * starts)),
    )


CHUNKS = st.builds(
    make_chunk,
    mark=st.integers(0, 1000),
    starts=st.integers(1, 4),
    tail=st.integers(0, 2),
    lengths=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    priority=st.floats(0, 100, width=32),
    num_bytes=st.sampled_from([1, 900, 12_000]),
)


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(st.lists(CHUNKS, min_size=1, max_size=40), min_size=1, max_size=8),
    remover=st.sampled_from(list(RemoverKind)),
    selector=st.sampled_from(list(SelectorKind)),
    resend=st.integers(0, 3),
    updated=st.booleans(),
)
def test_a_batch_is_its_chunks_one_by_one(
    messages: list[list[Chunk]], remover: RemoverKind, selector: SelectorKind, resend: int, updated: bool
) -> None:
    # A budget and a number of pages that overflow: what leaves, and when, must agree as well.
    config = TableConfig("replay", SIGNATURE, SelectorConfig(selector), 40, 1 << 20, remover)
    engines = [ReplayEngine(boot=1, clock=lambda: 0.0) for _ in range(2)]
    one_by_one, at_once = (engine.create_or_match(config) for engine in engines)
    first = 1
    for number, chunks in enumerate(messages):
        numbers = np.arange(first, first + len(chunks), dtype=np.uint64)
        singly = [engines[0].insert_once(ACTOR, int(n), "replay", c) for n, c in zip(numbers, chunks, strict=True)]
        batch = ChunkBatch.of(chunks)
        at_once.checker.check_batch(batch)
        assert engines[1].insert_batch(ACTOR, numbers, "replay", batch) == sum(singly)
        # Numbers that come again are duplicates.
        first += max(1, len(chunks) - resend)
        if updated and number == 0 and at_once.num_items:
            keys, _ = at_once.top(3)
            for table in (one_by_one, at_once):
                table.update_priorities(keys, np.full(keys.size, 0.5, np.float32))
        for engine in engines:
            engine.maintain()
    states = [table.state() for table in (one_by_one, at_once)]
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)
    assert one_by_one.totals() == at_once.totals()
    assert one_by_one.slab_bytes == at_once.slab_bytes
    assert one_by_one.duplicates == at_once.duplicates


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(CHUNKS, min_size=1, max_size=6), data=st.data())
def test_a_batch_is_refused_for_any_chunk_that_would_be(chunks: list[Chunk], data: st.DataObject) -> None:
    checker = ReplayEngine().create_or_match(TableConfig("replay", SIGNATURE, SelectorConfig(), 40, 1 << 20)).checker
    checker.check_batch(ChunkBatch.of(chunks))
    victim = chunks[data.draw(st.integers(0, len(chunks) - 1))]
    field = data.draw(st.sampled_from(["lengths", "prefixes", "priorities"]))
    worse = {"lengths": 3, "prefixes": 3, "priorities": data.draw(st.sampled_from([-1.0, np.nan, np.inf]))}
    getattr(victim, field)[data.draw(st.integers(0, victim.starts - 1))] = worse[field]
    with pytest.raises(SignatureError, match=f"chunk.{field}"):
        checker.check_batch(ChunkBatch.of(chunks))


@pytest.mark.parametrize(
    ("rows", "starts", "sizes", "field"),
    [
        (9, 4, (36, 5, 32), "chunk.rows"),
        (5, 4, (20, 5, 32), "chunk.rows"),
        (9, 5, (36, 5, 40), "chunk.starts"),
        (8, 4, (31, 5, 32), "mark"),
        (8, 4, (32, 0, 32), "picture"),
        (8, 4, (32, 32_142, 32), "picture"),
    ],
)
def test_a_batch_is_refused_for_its_sizes(rows: int, starts: int, sizes: tuple[int, ...], field: str) -> None:
    checker = ReplayEngine().create_or_match(TableConfig("replay", SIGNATURE, SelectorConfig(), 40, 1 << 20)).checker
    bad = Chunk(
        rows,
        starts,
        np.zeros(starts, np.uint16),
        np.zeros(starts, np.uint16),
        np.ones(starts, np.float32),
        tuple(map(bytes, sizes)),
    )
    good = make_chunk(1, 4, 2, [2, 2, 1, 0], 1.0, 5)
    with pytest.raises(SignatureError, match=field):
        checker.check_batch(ChunkBatch.of([good, bad, good]))


def test_a_part_has_the_chunks_of_the_whole() -> None:
    chunks = [make_chunk(i, 1 + i % 4, i % 3, [1, 0, 1, 1], float(i), 1 + i) for i in range(9)]
    batch = ChunkBatch.of(chunks)
    for begin, end in ((0, 9), (2, 5), (8, 9), (4, 4)):
        part = batch.part(begin, end)
        assert len(part) == end - begin
        for mine, whole in zip(part.chunks(), chunks[begin:end], strict=True):
            assert mine.blocks == whole.blocks
            assert (mine.rows, mine.starts) == (whole.rows, whole.starts)
            for name in ("lengths", "prefixes", "priorities"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(whole, name))
        assert np.diff(part.items_before).tolist() == [chunk.num_items for chunk in chunks[begin:end]]
