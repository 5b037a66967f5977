"""Tables: what goes in comes out, keys, eviction, budget, refusals, snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from apexrl.replay.draws import uniforms
from apexrl.replay.keys import page_key
from apexrl.replay.table import Table
from apexrl.types import Chunk, InitialPriority, SelectorConfig, SelectorKind, SignatureError, TableConfig

MakeChunk = Callable[..., Chunk]
MakeConfig = Callable[..., TableConfig]


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.uint32)


def test_insert_draw_and_page(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(), boot=5)
    chunk = replace(make_chunk((3, 0, 2, 1), (1.0, 0.0, 2.0, 4.0), mark=9), prefixes=np.array([0, 0, 3, 1], np.uint16))
    keys = table.insert(chunk)
    assert keys.tolist() == [page_key(5, 0, 0) | row for row in (3, 5, 6)]
    totals = table.totals()
    assert (totals.num_items, totals.inserted, totals.drawn) == (3, 3, 0)
    assert totals.mass == pytest.approx(sum((p + 1e-6) ** 0.6 for p in (1.0, 2.0, 4.0)), rel=1e-12)

    draw = table.draw(counts(64), uniforms(1, "replay", 0, 64))
    assert set(draw.keys.tolist()) == set(keys.tolist())
    assert draw.totals.drawn == 64
    windows = {3: (0, 3), 5: (3, 2), 6: (1, 1)}
    q = {3: (1 + 1e-6) ** 0.6, 5: (2 + 1e-6) ** 0.6, 6: (4 + 1e-6) ** 0.6}
    for i in range(64):
        row = int(draw.start_rows[i])
        assert (int(draw.prefixes[i]), int(draw.lengths[i])) == windows[row]
        assert draw.pages[i] == 0
        assert int(draw.keys[i]) & 1023 == row
        assert draw.probabilities[i] == np.float32(q[row] / totals.mass)
    for name, dtype in (("keys", "u8"), ("probabilities", "f4"), ("pages", "u4"), ("start_rows", "u2")):
        assert getattr(draw, name).dtype == dtype

    kept = table.page_chunk(0)
    assert (kept.rows, kept.starts, kept.blocks) == (chunk.rows, chunk.starts, chunk.blocks)
    np.testing.assert_array_equal(kept.lengths, chunk.lengths)
    with pytest.raises(KeyError, match="page 1"):
        table.page_chunk(1)


def test_each_batch_of_a_request_is_stratified_on_its_own(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(selector=SelectorConfig(SelectorKind.UNIFORM)))
    for _ in range(4):
        table.insert(make_chunk())
    draw = table.draw(counts(16, 0, 32, 16), uniforms(1, "replay", 3, 64))
    for batch in (draw.keys[:16], draw.keys[48:]):
        assert len(set(batch.tolist())) == 16
    assert all(np.count_nonzero(draw.keys[16:48] == key) == 2 for key in set(draw.keys.tolist()))
    alone = table.draw(counts(16), uniforms(1, "replay", 3, 64)[:16])
    np.testing.assert_array_equal(alone.keys, draw.keys[:16])


def test_drawing_nothing_and_from_nothing(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config())
    with pytest.raises(ValueError, match="is empty"):
        table.draw(counts(1), np.zeros(1))
    assert table.draw(counts(0), np.zeros(0)).keys.size == 0
    table.insert(make_chunk())
    with pytest.raises(ValueError, match=r"must have \(3,\)"):
        table.draw(counts(1, 2), np.zeros(2))


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("chunk.starts is 5", {"starts": 5}),
    ("chunk.starts is 0", {"starts": 0}),
    ("chunk.rows is 6", {"rows": 6}),
    ("chunk.rows is 11", {"rows": 11}),
    ("chunk.lengths is uint16", {"lengths": np.ones(3, np.uint16)}),
    ("chunk.lengths is int64", {"lengths": np.ones(4, np.int64)}),
    (r"chunk.lengths\[1\] is 4, must be at most 3", {"lengths": np.array([3, 4, 3, 3], np.uint16)}),
    (r"chunk.prefixes\[2\] is 4", {"prefixes": np.array([0, 0, 4, 0], np.uint16)}),
    ("chunk.priorities is float64", {"priorities": np.ones(4)}),
    (r"chunk.priorities\[3\] is nan", {"priorities": np.array([1, 1, 1, np.nan], np.float32)}),
    (r"chunk.priorities\[0\] is -1", {"priorities": np.array([-1, 1, 1, 1], np.float32)}),
    (r"chunk.priorities\[0\] is inf", {"priorities": np.array([np.inf, 1, 1, 1], np.float32)}),
    ("chunk.blocks has 2 columns", {"blocks": (bytes(10), bytes(40))}),
    (r"chunk.blocks\['kind'\] has 9 bytes, must have 10", {"blocks": (bytes(9), bytes(40), bytes(5))}),
    (r"chunk.blocks\['observation'\] has 0 bytes", {"blocks": (bytes(10), bytes(40), b"")}),
    (r"chunk.blocks\['observation'\] has 2024 bytes", {"blocks": (bytes(10), bytes(40), bytes(2024))}),
]


@pytest.mark.parametrize(("message", "changes"), MALFORMED, ids=[message for message, _ in MALFORMED])
def test_malformed_chunks_are_refused_and_leave_nothing(
    table_config: MakeConfig, make_chunk: MakeChunk, message: str, changes: dict[str, Any]
) -> None:
    table = Table(table_config())
    with pytest.raises(SignatureError, match=message):
        table.insert(replace(make_chunk(), **changes))
    assert table.totals() == (0.0, 0, 0, 0)
    assert (table.pages_used, table.block_bytes) == (0, 0)


def test_windows_of_short_chunks_end_within_their_rows(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config())
    table.insert(make_chunk((2, 1), rows=6))
    with pytest.raises(SignatureError, match=r"chunk.lengths\[1\] is 2, must be at most 1"):
        table.insert(make_chunk((2, 2), rows=6))
    assert table.num_items == 2


def test_chunks_without_items_take_no_page(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config())
    assert table.insert(make_chunk((0, 0, 0, 0))).size == 0
    assert table.pages_used == 0


def test_capacity_is_soft_and_trimmed_off_the_insert_path(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(capacity_items=40))
    first = table.insert(make_chunk())
    for _ in range(19):
        table.insert(make_chunk())
    assert table.num_items == 80
    assert table.needs_trim
    assert table.trim(max_pages=3) == 12
    assert table.trim() == 28
    assert (table.num_items, table.evicted, table.needs_trim) == (40, 40, False)
    assert table.trim() == 0
    assert table.update_priorities(first, np.ones(4, np.float32)) == (0, 4)


def test_without_a_free_page_the_oldest_goes_at_once(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(capacity_items=40))
    assert table.num_pages == 75
    seen: set[int] = set()
    for i in range(300):
        keys = table.insert(make_chunk(mark=i))
        assert not seen & set(keys.tolist())
        seen |= set(keys.tolist())
    assert table.pages_used == 75
    assert table.num_items == 300
    assert table.evicted == 225 * 4
    assert table.generations(np.array([0, 74], np.uint32)).tolist() == [3, 3]
    assert table.page_chunk(0).blocks[0] == bytes([225]) * 10
    assert table.page_chunk(74).blocks[0] == bytes([299 % 256]) * 10


def test_byte_budget_is_hard(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(capacity_items=4000, budget_bytes=1 << 20))
    for i in range(1500):
        table.insert(make_chunk(mark=i, compressed_bytes=1900))
        assert table.slab_bytes <= 1 << 20
    assert table.evicted > 0
    assert table.block_bytes > (1 << 20) // 2
    for page in np.unique(table.draw(counts(256), uniforms(1, "replay", 1, 256)).pages).tolist():
        chunk = table.page_chunk(page)
        assert len(chunk.blocks[2]) == 1900
        assert chunk.blocks[0][0] == chunk.blocks[2][0]


def test_trimming_keeps_a_slab_ahead_of_inserts(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(capacity_items=4000, budget_bytes=1 << 20))
    for i in range(1500):
        evicted = table.evicted
        table.insert(make_chunk(mark=i, compressed_bytes=1900))
        assert table.evicted == evicted
        table.trim(16)
    assert table.evicted > 0


def test_updates_of_unknown_keys_are_counted_and_bad_priorities_refused(
    table_config: MakeConfig, make_chunk: MakeChunk
) -> None:
    table = Table(table_config(), boot=7)
    keys = table.insert(make_chunk((3, 3, 0, 3)))
    wrong = np.array(
        [
            page_key(8, 0, 0) | 3,  # another boot
            page_key(7, 1, 0) | 3,  # another generation
            page_key(7, 0, 1) | 3,  # a free page
            page_key(7, 0, 4_000_000) | 3,  # no such page
            page_key(7, 0, 0) | 2,  # a context row
            page_key(7, 0, 0) | 5,  # a start row without an item
            page_key(7, 0, 0) | 7,  # a tail row
            2**64 - 1,
        ],
        np.uint64,
    )
    mixed = np.concatenate([wrong, keys[:1]])
    assert table.update_priorities(mixed, np.full(9, 6.0, np.float32)) == (1, 8)
    assert table.stale_updates == 8
    assert table.page_chunk(0).priorities.tolist() == [6.0, 1.0, 1.0, 1.0]
    for bad in (np.nan, np.inf, -0.5):
        with pytest.raises(SignatureError, match=r"priorities\[1\]"):
            table.update_priorities(keys[:2], np.array([9.0, bad], np.float32))
    with pytest.raises(SignatureError, match="one length"):
        table.update_priorities(keys, np.ones(2, np.float32))
    assert table.page_chunk(0).priorities.tolist() == [6.0, 1.0, 1.0, 1.0]
    assert table.update_priorities(keys[[0, 1, 0]], np.array([3, 5, 2], np.float32)) == (3, 0)
    top_keys, top = table.top(2)
    assert top_keys.tolist() == [keys[1], keys[0]]
    assert top.tolist() == [5.0, 2.0]


def test_initial_priorities_are_bounded_by_what_the_learner_saw(
    table_config: MakeConfig, make_chunk: MakeChunk
) -> None:
    table = Table(table_config())
    keys = table.insert(make_chunk(priorities=1000.0))
    assert table.page_chunk(0).priorities.tolist() == [1000.0] * 4
    table.update_priorities(keys, np.full(4, 2.0, np.float32))
    table.insert(make_chunk(priorities=(5.0, 20.0, 21.0, 1e30)))
    assert table.page_chunk(1).priorities.tolist() == [5.0, 20.0, 20.0, 20.0]


def test_initial_priority_max_overrides_the_actors(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(initial_priority=InitialPriority.MAX))
    keys = table.insert(make_chunk(priorities=50.0))
    assert table.page_chunk(0).priorities.tolist() == [1.0] * 4
    table.update_priorities(keys[:2], np.array([0.1, 3.5], np.float32))
    table.update_priorities(keys[:2], np.array([0.1, 0.2], np.float32))
    table.insert(make_chunk(priorities=50.0))
    assert table.page_chunk(1).priorities.tolist() == [3.5] * 4


def test_insert_limit(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config())
    assert table.may_insert()
    table.insert_limit = 6
    table.insert(make_chunk())
    assert table.may_insert()
    table.insert(make_chunk())
    assert not table.may_insert()


def test_configurations_that_cannot_be_held_are_refused(table_config: MakeConfig) -> None:
    with pytest.raises(SignatureError, match="capacity_items 40000000 needs"):
        Table(table_config(capacity_items=40_000_000))
    config = table_config()
    big = replace(config.signature.columns[2], shape=(1 << 17,))
    signature = replace(config.signature, columns=(*config.signature.columns[:2], big))
    with pytest.raises(SignatureError, match="table 'replay': budget_bytes is 1048576"):
        Table(table_config(signature=signature))


@pytest.mark.parametrize("kind", list(SelectorKind))
@pytest.mark.parametrize("mixture", [0.0, 0.3])
def test_a_restored_table_goes_on_bit_for_bit(
    table_config: MakeConfig, make_chunk: MakeChunk, kind: SelectorKind, mixture: float
) -> None:
    config = table_config(selector=SelectorConfig(kind, 0.6, mixture))
    table = Table(config, boot=3)
    rng = np.random.default_rng(1)

    def live(table: Table, steps: range) -> list[Any]:
        trace: list[Any] = []
        for i in steps:
            claimed = tuple(np.random.default_rng(i).random(4).tolist())
            trace.append(table.insert(make_chunk((3, 3, i % 2, 1), claimed, mark=i)).tolist())
            draw = table.draw(counts(8, 8), uniforms(4, "replay", i, 16))
            trace.append([array.tolist() for array in draw[:-1]] + [draw.totals])
            table.update_priorities(draw.keys, np.random.default_rng(-i % 997).random(16).astype(np.float32))
            if i % 5 == 0:
                table.trim()
        return trace

    live(table, range(120))
    state = {name: array.copy() for name, array in table.state().items()}
    restored = Table(config, boot=0)
    restored.insert(make_chunk(priorities=float(rng.random())))
    restored.load_state(state)
    assert restored.totals() == table.totals()
    assert live(restored, range(120, 200)) == live(table, range(120, 200))
    for name, array in table.state().items():
        np.testing.assert_array_equal(restored.state()[name], array)


def test_state_of_another_configuration_is_refused(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config())
    table.insert(make_chunk())
    other = Table(table_config(capacity_items=400))
    with pytest.raises(SignatureError, match="table state 'rows'"):
        other.load_state(table.state())
    state = table.state()
    state["blocks"] = state["blocks"][:-1]
    with pytest.raises(SignatureError, match="block_sizes"):
        Table(table_config()).load_state(state)
    assert other.num_items == 0


def test_large_tables_are_trimmed_by_the_dozen(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(table_config(capacity_items=1024))
    needed = []
    for _ in range(300):
        table.insert(make_chunk())
        needed.append(table.needs_trim)
        if needed[-1]:
            table.trim()
            assert table.num_items == 1024
    # 1024 / 64 = 16 items beyond the capacity are let be.
    assert needed.index(True) == (1024 + 16) // 4
    assert sum(needed) == (300 - 256) // 5
