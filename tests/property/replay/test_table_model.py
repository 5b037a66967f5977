"""A table against a plain model: keys are never used again, and updates of what has left change nothing."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apexrl.replay.table import Table
from apexrl.types import Chunk, ColumnSpec, Geometry, SelectorConfig, Signature, TableConfig

GEOMETRY = Geometry(1, 3, 2)
CONFIG = TableConfig(
    name="replay",
    signature=Signature((ColumnSpec("reward", "float32"),), GEOMETRY),
    selector=SelectorConfig(exponent=0.6, uniform_mixture=0.1),
    capacity_items=9,
    budget_bytes=1 << 20,
)


class TableModel(RuleBasedStateMachine):
    """The model is a list of pages, oldest first; a page is a dict from key to priority."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(CONFIG, boot=2)
        self.pages: list[dict[int, float]] = []
        self.ever: list[int] = []
        self.max_updated = 0.0
        self.stale = 0
        self.request = 0

    def alive(self) -> dict[int, float]:
        return {key: priority for page in self.pages for key, priority in page.items()}

    @rule(
        lengths=st.lists(st.integers(0, 2), min_size=3, max_size=3),
        priorities=st.lists(st.floats(0, 100, width=32), min_size=3, max_size=3),
        times=st.integers(1, 30),
    )
    def insert(self, lengths: list[int], priorities: list[float], times: int) -> None:
        chunk = Chunk(
            rows=GEOMETRY.rows,
            starts=3,
            lengths=np.array(lengths, np.uint16),
            prefixes=np.zeros(3, np.uint16),
            priorities=np.array(priorities, np.float32),
            blocks=(bytes(4 * GEOMETRY.rows),),
        )
        claimed = [p for p, length in zip(priorities, lengths, strict=True) if length]
        if self.max_updated > 0:
            claimed = [min(p, float(np.float32(10 * self.max_updated))) for p in claimed]
        for _ in range(times):
            keys = self.table.insert(chunk).tolist()
            assert not set(keys) & set(self.ever)
            assert len(keys) == len(claimed)
            if keys:
                self.ever += keys
                self.pages.append(dict(zip(keys, claimed, strict=True)))
                del self.pages[: max(0, len(self.pages) - CONFIG.num_pages)]

    @rule(max_pages=st.integers(1, 10))
    def trim(self, max_pages: int) -> None:
        before = len(self.alive())
        for _ in range(max_pages):
            if len(self.alive()) > CONFIG.capacity_items:
                self.pages.pop(0)
        assert self.table.trim(max_pages) == before - len(self.alive())

    @precondition(lambda self: self.ever)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.ever), min_size=1, max_size=20))
        new = data.draw(st.lists(st.floats(0, 50, width=32), min_size=len(chosen), max_size=len(chosen)))
        applied, stale = self.table.update_priorities(np.array(chosen, np.uint64), np.array(new, np.float32))
        alive = self.alive()
        assert applied == sum(key in alive for key in chosen)
        assert applied + stale == len(chosen)
        self.stale += stale
        for key, priority in zip(chosen, new, strict=True):
            if key not in alive:
                continue
            self.max_updated = max(self.max_updated, priority)
            for page in self.pages:
                if key in page:
                    page[key] = priority

    @precondition(lambda self: self.alive())
    @rule()
    def draw(self) -> None:
        self.request += 1
        draw = self.table.draw(np.array([5, 3], np.uint32), np.random.default_rng(self.request).random(8))
        alive = self.alive()
        weights = {key: (priority + 1e-6) ** 0.6 for key, priority in alive.items()}
        total = sum(weights.values())
        for key, probability in zip(draw.keys.tolist(), draw.probabilities.tolist(), strict=True):
            assert probability == pytest.approx(0.9 * weights[key] / total + 0.1 / len(alive), rel=1e-6)
        assert draw.totals.drawn == 8 * self.request

    @invariant()
    def counters_agree(self) -> None:
        alive = self.alive()
        totals = self.table.totals()
        assert totals.num_items == len(alive)
        assert totals.inserted == len(self.ever)
        assert totals.inserted - self.table.evicted == len(alive)
        assert self.table.stale_updates == self.stale
        assert totals.mass == pytest.approx(sum((p + 1e-6) ** 0.6 for p in alive.values()), rel=1e-9)
        keys, priorities = self.table.top(1000)
        assert dict(zip(keys.tolist(), priorities.tolist(), strict=True)) == alive


TestTableModel = TableModel.TestCase
TestTableModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
