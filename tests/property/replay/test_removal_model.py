"""A table that removes by priority against a plain model: counts, masses, keys, pages, and what a mirror holds."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apexrl.replay.mirror_map import MirrorMap
from apexrl.replay.removers import ITEMS_PER_PAGE_OF_WORK
from apexrl.replay.table import Table
from apexrl.types import Chunk, ColumnSpec, Geometry, RemoverKind, SelectorConfig, Signature, TableConfig

CAPACITY = 12


def page_of(key: int) -> tuple[int, int]:
    """Generation and page of an item."""
    return key >> 32 & 0xFFFFF, key >> 10 & 0x3FFFFF


class RemovalModel(RuleBasedStateMachine):
    """The model is a dict from key to priority. What leaves is the table's to choose; how many is not."""

    starts = 1

    def __init__(self) -> None:
        super().__init__()
        self.geometry = Geometry(1, self.starts, 2)
        signature = Signature((ColumnSpec("mark", "int32"),), self.geometry)
        # The smallest budget holds everything here.
        config = TableConfig(
            "replay", signature, SelectorConfig(), max(CAPACITY, self.starts), 1 << 20, RemoverKind.PRIORITIZED
        )
        self.capacity = config.capacity_items
        self.table = Table(config, boot=2)
        self.alive: dict[int, float] = {}
        self.ever: set[int] = set()
        self.marks: dict[tuple[int, int], int] = {}
        self.map = MirrorMap(self.table.num_pages, 4)
        self.mirror: dict[int, int] = {}
        self.max_updated = 0.0
        self.request = 0

    def observe_removals(self) -> int:
        """Take over what has left; returns how many."""
        keys = set(self.table.top(1 << 20)[0].tolist())
        assert keys <= set(self.alive), "nothing comes back"
        gone = len(self.alive) - len(keys)
        self.alive = {key: priority for key, priority in self.alive.items() if key in keys}
        return gone

    @rule(data=st.data(), times=st.integers(1, 40))
    def insert(self, data: st.DataObject, times: int) -> None:
        lengths = data.draw(st.lists(st.integers(0, 2), min_size=self.starts, max_size=self.starts))
        priorities = data.draw(st.lists(st.floats(0, 100, width=32), min_size=self.starts, max_size=self.starts))
        claimed = [p for p, length in zip(priorities, lengths, strict=True) if length]
        if self.max_updated > 0:
            claimed = [min(p, float(np.float32(10 * self.max_updated))) for p in claimed]
        for _ in range(times):
            mark = len(self.ever)
            chunk = Chunk(
                rows=self.geometry.rows,
                starts=self.starts,
                lengths=np.array(lengths, np.uint16),
                prefixes=np.zeros(self.starts, np.uint16),
                priorities=np.array(priorities, np.float32),
                blocks=(np.full(self.geometry.rows, mark, np.int32).tobytes(),),
            )
            full = self.table.pages_used == self.table.num_pages
            keys = self.table.insert(chunk).tolist()
            assert not set(keys) & self.ever
            assert len(keys) == len(claimed)
            self.ever |= set(keys)
            self.alive |= dict(zip(keys, claimed, strict=True))
            self.marks |= {page_of(key): mark for key in keys}
            assert (self.observe_removals() > 0) == (full and bool(keys))

    @rule(max_pages=st.integers(1, 10))
    def trim(self, max_pages: int) -> None:
        excess = len(self.alive) - self.capacity
        may_leave = ITEMS_PER_PAGE_OF_WORK * min(max_pages, self.table.pages_used)
        short = self.table.pages_used >= self.table.num_pages - 1
        removed = self.table.trim(max_pages)
        assert removed == self.observe_removals()
        if not short:
            assert removed == max(0, min(excess, may_leave))

    @precondition(lambda self: self.ever)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.ever)), min_size=1, max_size=20))
        new = data.draw(st.lists(st.floats(0, 50, width=32), min_size=len(chosen), max_size=len(chosen)))
        applied, stale = self.table.update_priorities(np.array(chosen, np.uint64), np.array(new, np.float32))
        assert applied == sum(key in self.alive for key in chosen)
        assert applied + stale == len(chosen)
        for key, priority in zip(chosen, new, strict=True):
            if key in self.alive:
                self.alive[key] = priority
                self.max_updated = max(self.max_updated, priority)

    @precondition(lambda self: self.alive)
    @rule()
    def draw(self) -> None:
        self.request += 1
        draw = self.table.draw(np.array([3], np.uint32), np.random.default_rng(self.request).random(3))
        total = sum((p + 1e-6) ** 0.6 for p in self.alive.values())
        for key, probability in zip(draw.keys.tolist(), draw.probabilities.tolist(), strict=True):
            assert probability == pytest.approx((self.alive[key] + 1e-6) ** 0.6 / total, rel=1e-6)
        assert (draw.lengths > 0).all()
        # The learner gathers from slots of its mirror: each must hold the chunk that the item is of.
        placement = self.map.place(draw.pages, self.table.generations(draw.pages))
        for page, slot in zip(placement.lacking.tolist(), placement.new_slots.tolist(), strict=True):
            self.mirror[slot] = int(np.frombuffer(self.table.page_chunk(page).blocks[0], np.int32)[0])
        self.map.sent(placement)
        for key, slot in zip(draw.keys.tolist(), placement.slots.tolist(), strict=True):
            assert self.mirror[slot] == self.marks[page_of(key)]

    @invariant()
    def counts_and_masses_agree(self) -> None:
        totals = self.table.totals()
        assert totals.num_items == len(self.alive)
        assert totals.inserted == len(self.ever)
        assert self.table.evicted == len(self.ever) - len(self.alive)
        assert totals.mass == pytest.approx(sum((p + 1e-6) ** 0.6 for p in self.alive.values()), rel=1e-9)
        keys, priorities = self.table.top(1 << 20)
        assert dict(zip(keys.tolist(), priorities.tolist(), strict=True)) == self.alive
        pages = {page_of(key)[1] for key in self.alive}
        assert sorted(self.table.pages_in_order().tolist()) == sorted(pages)
        assert self.table.pages_used == len(pages)


class RemovalModelOfLongChunks(RemovalModel):
    starts = 32


class RemovalModelOfShortChunks(RemovalModel):
    starts = 3


TestItems = RemovalModel.TestCase
TestShortChunks = RemovalModelOfShortChunks.TestCase
TestLongChunks = RemovalModelOfLongChunks.TestCase
for case in (TestItems, TestShortChunks, TestLongChunks):
    case.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
