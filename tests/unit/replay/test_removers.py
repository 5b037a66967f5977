"""Removers: the golden distribution of what leaves, its edges, and what becomes of pages."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from apexrl.replay.draws import uniforms
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.removers import ITEMS_PER_PAGE_OF_WORK, PrioritizedRemover, removal_weights
from apexrl.replay.table import Table
from apexrl.types import Chunk, Geometry, RemoverKind, SelectorConfig, SelectorKind, TableConfig

MakeChunk = Callable[..., Chunk]
MakeConfig = Callable[..., TableConfig]

GOLDEN_PRIORITIES = np.array([4.0, 1.0, 0.25, 2.0], np.float32)
GOLDEN_WEIGHTS = np.array([0.574349177499, 1.0, 1.741101126592, 0.757858283255])
GOLDEN_PROBABILITIES = np.array([0.141003109679, 0.245500673115, 0.427441498540, 0.186054718665])
#: Quantiles 0.999 of chi-square with 3 and 5 degrees of freedom.
CHI_SQUARE_3, CHI_SQUARE_5 = 16.27, 20.52


def remover_of(priorities: np.ndarray, exponent: float = -0.4, seed: int = 0) -> PrioritizedRemover:
    """One item per page, all held."""
    n = priorities.size
    remover = PrioritizedRemover(np.ones(n, np.uint16), priorities, 1, exponent, 0, seed, "replay")
    pages = remover.take(n)
    remover.inserted(pages, np.ones(n, np.int64), pages)
    return remover


def prioritized(table_config: MakeConfig, starts: int, **changes: Any) -> TableConfig:
    signature = table_config().signature
    signature = replace(signature, geometry=Geometry(3, starts, 3))
    return table_config(**({"signature": signature, "remover": RemoverKind.PRIORITIZED} | changes))


def chunk_of(make_chunk: MakeChunk, starts: int, **fields: Any) -> Chunk:
    return make_chunk(lengths=(3,) * starts, **fields)


def items_per_page(table: Table) -> dict[int, int]:
    pages = table.pages_in_order().tolist()
    return {page: table.page_chunk(page).num_items for page in pages}


def chi_square(counts: list[int], probabilities: np.ndarray) -> float:
    expected = probabilities * sum(counts)
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


def test_golden_removal_weights() -> None:
    weights = removal_weights(GOLDEN_PRIORITIES.astype(np.float64), -0.4, epsilon=0.0)
    np.testing.assert_allclose(weights, GOLDEN_WEIGHTS, rtol=0, atol=1e-11)
    np.testing.assert_allclose(weights / weights.sum(), GOLDEN_PROBABILITIES, rtol=0, atol=1e-11)
    # A priority of 0 leaves first, but its weight is finite.
    assert removal_weights(np.zeros(1), -0.4)[0] == pytest.approx(10**2.4, rel=1e-12)


def test_golden_distribution_of_the_first_to_leave() -> None:
    first: Counter[int] = Counter()
    for seed in range(4000):
        removal = remover_of(GOLDEN_PRIORITIES, seed=seed).over_capacity(1, 1)
        first[int(removal.leaves[0])] += 1
        assert removal.pages.tolist() == removal.leaves.tolist()
    assert chi_square([first[i] for i in range(4)], GOLDEN_PROBABILITIES) < CHI_SQUARE_3
    # The test has power: it tells -0.4 from a uniform choice.
    assert chi_square([first[i] for i in range(4)], np.full(4, 0.25)) > 10 * CHI_SQUARE_3


def test_two_that_leave_together_are_drawn_without_replacement() -> None:
    pairs: Counter[tuple[int, ...]] = Counter()
    for seed in range(4000):
        leaves = remover_of(GOLDEN_PRIORITIES, seed=seed).over_capacity(2, 4).leaves.tolist()
        pairs[tuple(sorted(leaves))] += 1
    kinds = list(combinations(range(4), 2))
    assert set(pairs) == set(kinds)
    p = GOLDEN_PROBABILITIES
    expected = np.array([p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in kinds])
    assert chi_square([pairs[kind] for kind in kinds], expected) < CHI_SQUARE_5


def test_the_newest_priorities_count() -> None:
    priorities = GOLDEN_PRIORITIES.copy()
    first: Counter[int] = Counter()
    for seed in range(4000):
        priorities[:] = GOLDEN_PRIORITIES[::-1]
        remover = remover_of(priorities, seed=seed)
        # Named twice, as a learner may: the array says what holds in the end.
        remover.updated(np.array([0, 1, 0]))
        priorities[:] = GOLDEN_PRIORITIES
        remover.updated(np.array([3, 2]))
        first[int(remover.over_capacity(1, 1).leaves[0])] += 1
    assert chi_square([first[i] for i in range(4)], GOLDEN_PROBABILITIES) < CHI_SQUARE_3


@pytest.mark.parametrize("exponent", [-0.4, -4.0, 0.0])
def test_extreme_priorities_all_leave_and_each_once(exponent: float) -> None:
    priorities = np.array([0.0, 0.0, 1e-30, 1.0, 1e6, float(np.finfo(np.float32).max)] * 50, np.float32)
    remover = remover_of(priorities, exponent)
    left: list[int] = []
    while remover.used:
        leaves = remover.over_capacity(remover.used, 3).leaves.tolist()
        assert 1 <= len(leaves) <= 3 * ITEMS_PER_PAGE_OF_WORK
        left += leaves
    assert sorted(left) == list(range(300))
    # With -4 whoever has no priority to speak of (indices 0, 1, 2 of each six) outweighs all others together.
    if exponent == -4.0:
        assert all(leaf % 6 < 3 for leaf in left[:150])


def test_pages_are_used_again_in_the_order_they_were_freed() -> None:
    remover = remover_of(np.ones(64, np.float32))
    freed = [page for _ in range(3) for page in remover.over_capacity(5, 1).pages.tolist()]
    assert len(set(freed)) == 15
    assert [*remover.take(1).tolist(), *remover.take(14).tolist()] == freed
    assert remover.used == 64
    # The oldest first; those taken last come last.
    assert remover.in_order().tolist()[-15:] == freed


def test_the_worse_leave_and_the_table_keeps_to_its_capacity(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(prioritized(table_config, 1, capacity_items=2000), boot=4)
    rng = np.random.default_rng(0)
    seen: dict[int, float] = {}
    for i in range(6000):
        priority = float(rng.choice([0.01, 1.0]))
        (key,) = table.insert(chunk_of(make_chunk, 1, priorities=priority, mark=i)).tolist()
        assert key not in seen
        seen[key] = priority
        before = table.num_items
        while table.needs_trim:
            table.trim(max_pages=2)
            assert before - table.num_items <= 2 * ITEMS_PER_PAGE_OF_WORK
            before = table.num_items
        assert table.num_items <= 2000 + 2000 // 64
    assert table.inserted == 6000
    assert table.evicted == 6000 - table.num_items
    assert table.pages_used == table.num_items
    keys, priorities = table.top(6000)
    held = Counter(seen[key] for key in keys.tolist())
    # A weight of 6.31 to 1: at the end of a long run the share of the worse is 1 / (1 + 6.31) = 0.137.
    assert 0.08 * table.num_items < held[0.01] < 0.25 * table.num_items
    assert priorities.min() == np.float32(0.01)

    gone = np.array([key for key in seen if key not in set(keys.tolist())], np.uint64)
    assert table.update_priorities(gone, np.ones(gone.size, np.float32)) == (0, gone.size)
    assert table.stale_updates == gone.size


@pytest.mark.parametrize("starts", [1, 4, 32])
def test_pages_stay_until_their_last_item_has_left(
    table_config: MakeConfig, make_chunk: MakeChunk, starts: int
) -> None:
    capacity = 16 * starts
    table = Table(prioritized(table_config, starts, capacity_items=capacity), boot=4)
    alive: dict[int, int] = {}
    for i in range(40):
        for key in table.insert(chunk_of(make_chunk, starts, priorities=1.0 + i % 3, mark=i)).tolist():
            alive[key] = i
    while table.num_items > capacity:
        assert table.trim(max_pages=1) == min(ITEMS_PER_PAGE_OF_WORK, len(alive) - capacity)
        keys = set(table.top(10_000)[0].tolist())
        assert keys < set(alive)
        alive = {key: mark for key, mark in alive.items() if key in keys}
        pages = {key >> 10 & 0x3FFFFF: mark for key, mark in alive.items()}
        assert table.pages_used == len(pages)
        for page, mark in pages.items():
            chunk = table.page_chunk(page)
            assert chunk.blocks[0][0] == mark
            assert chunk.num_items == sum(1 for key in alive if key >> 10 & 0x3FFFFF == page)
    draw = table.draw(np.array([512], np.uint32), uniforms(1, "replay", 0, 512))
    assert set(draw.keys.tolist()) <= set(alive)
    if starts == 32:
        # 1280 items in 40 pages; of those removed one by one hardly a page is rid.
        assert table.pages_used > 16


@pytest.mark.parametrize("starts", [1, 32])
@pytest.mark.parametrize("trims", [True, False])
def test_byte_budget_is_hard(table_config: MakeConfig, make_chunk: MakeChunk, starts: int, trims: bool) -> None:
    table = Table(prioritized(table_config, starts, capacity_items=40_000, budget_bytes=1 << 20))
    rng = np.random.default_rng(3)
    most = 210 if starts == 1 else 7000
    for i in range(12_000 if starts == 1 else 800):
        block_bytes = int(rng.integers(1, most))
        table.insert(chunk_of(make_chunk, starts, mark=i, compressed_bytes=block_bytes, priorities=rng.random()))
        assert table.slab_bytes <= 1 << 20
        if trims and i % 8 == 0:
            table.trim(8)
    assert table.evicted > 0
    assert table.num_items == table.inserted - table.evicted
    # What is dead costs a part of the budget, but not most of it.
    assert table.block_bytes > 0.45 * (1 << 20)
    for page in table.pages_in_order().tolist():
        chunk = table.page_chunk(page)
        assert chunk.num_items > 0
        assert set(chunk.blocks[2]) == {chunk.blocks[0][0]}


def test_trims_keep_room_ahead_of_inserts(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    table = Table(prioritized(table_config, 1, capacity_items=40_000, budget_bytes=1 << 20))
    for i in range(12_000):
        evicted = table.evicted
        table.insert(chunk_of(make_chunk, 1, mark=i, compressed_bytes=200))
        assert table.evicted == evicted
        if table.needs_trim:
            table.trim()
    assert table.evicted > 0


def test_where_pages_run_short_the_poorest_leave_whole(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    config = prioritized(table_config, 4, capacity_items=4000)
    table = Table(config)
    # Pages for twice the items: 1 + 1/2 + 1/3 + 1/4 = 2.08.
    assert config.num_pages == pytest.approx(1000 * 25 / 12 * 1.1 + 64, abs=1)
    for i in range(config.num_pages):
        table.insert(make_chunk((3, 0, 0, 0) if i % 3 else (3, 0, 0, 3), mark=i))
    assert table.num_items < 4000
    assert table.needs_trim, "pages run short before items do"

    before = items_per_page(table)
    keys = table.insert(make_chunk((3, 3, 3, 3)))
    after = items_per_page(table)
    assert np.isin(keys, table.top(10_000)[0]).all()
    # The new chunk has the page that was freed first.
    left = [page for page in before if after.get(page) != before[page]]
    assert left == [page for page in before if before[page] == 1][: config.num_pages // 64]
    while table.trim():
        pass
    assert not table.needs_trim
    assert min(items_per_page(table).values()) == 1


@pytest.mark.parametrize("starts", [1, 4])
@pytest.mark.parametrize("kind", list(SelectorKind))
def test_a_restored_table_goes_on_bit_for_bit(
    table_config: MakeConfig, make_chunk: MakeChunk, starts: int, kind: SelectorKind
) -> None:
    config = prioritized(table_config, starts, capacity_items=40, selector=SelectorConfig(kind, 0.6, 0.1))

    def live(table: Table, steps: range) -> list[Any]:
        trace: list[Any] = []
        for i in steps:
            claimed = tuple(np.random.default_rng(i).random(starts).tolist())
            trace.append(table.insert(chunk_of(make_chunk, starts, priorities=claimed, mark=i)).tolist())
            draw = table.draw(np.array([8], np.uint32), uniforms(4, "replay", i, 8))
            trace.append([array.tolist() for array in draw[:-1]] + [draw.totals])
            table.update_priorities(draw.keys, np.random.default_rng(-i % 997).random(8).astype(np.float32))
            if i % 5 == 0:
                trace.append(table.trim(3))
        return trace

    table = Table(config, boot=3)
    live(table, range(120))
    state = {name: array.copy() for name, array in table.state().items()}
    restored = Table(config, boot=0)
    restored.insert(chunk_of(make_chunk, starts))
    restored.load_state(state)
    assert restored.totals() == table.totals()
    assert live(restored, range(120, 240)) == live(table, range(120, 240))
    for name, array in table.state().items():
        np.testing.assert_array_equal(restored.state()[name], array)


def test_a_learner_may_choose_another_remover(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine(boot=7)
    fifo = prioritized(table_config, 4, capacity_items=400, remover=RemoverKind.FIFO)
    table = engine.create_or_match(fifo)
    old = np.concatenate([table.insert(make_chunk(priorities=1.0 + i, mark=i)) for i in range(20)])
    table.trim()
    for config in (replace(fifo, remover=RemoverKind.PRIORITIZED), fifo):
        assert engine.configure(config)
        assert not engine.configure(config)
        table = engine.table("replay")
        assert (table.config, table.num_items, table.inserted, table.evicted) == (config, 80, 80, 0)
        assert table.update_priorities(old, np.ones(80, np.float32)) == (0, 80)
        assert [table.page_chunk(page).blocks[0][0] for page in table.pages_in_order().tolist()] == list(range(20))


def test_inserts_and_limits_do_not_see_removal(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine(boot=7)
    table = engine.create_or_match(prioritized(table_config, 4, capacity_items=40))
    table.insert_limit = 160
    for i in range(40):
        assert table.may_insert()
        table.insert(make_chunk(mark=i))
    assert not table.may_insert()
    while engine.maintain():
        pass
    totals = table.totals()
    assert (totals.num_items, totals.inserted) == (40, 160)
    assert not table.may_insert()


def test_first_in_first_out_is_what_it_always_was(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    """Keys, evictions and slabs of a long random use, recorded before there was another remover."""
    trace = hashlib.sha256()
    for starts, capacity, budget_bytes, largest in [(1, 500, 1 << 20, 200), (4, 4000, 1 << 20, 2000)]:
        geometry = Geometry(3, starts, 3)
        config = table_config(
            signature=replace(table_config().signature, geometry=geometry),
            capacity_items=capacity,
            budget_bytes=budget_bytes,
        )
        table = Table(config, boot=3)
        rng = np.random.default_rng(starts)
        keys: list[int] = []
        for i in range(2500):
            lengths = tuple(rng.integers(0, 4, starts).tolist())
            chunk = chunk_of(make_chunk, starts, mark=i, compressed_bytes=int(rng.integers(1, largest)))
            keys += table.insert(replace(chunk, lengths=np.array(lengths, np.uint16))).tolist()
            chosen = rng.choice(np.array(keys[-3000:] or [0], np.uint64), 10)
            applied = table.update_priorities(chosen, np.ones(10, np.float32))
            trimmed = table.trim(int(rng.integers(1, 70))) if i % 7 == 0 else 0
            seen = (keys[-4:], applied, trimmed, table.needs_trim, table.slab_bytes, table.block_bytes, table.evicted)
            trace.update(repr(seen).encode())
    assert trace.hexdigest() == "6a36dcb2c372685dd23d431fe9f7d2e6ae8eda2cb323a415bf6ff4599be002a8"
