"""Our replay engine under the work of ``benchmarks/priority.py``. Argument: how many items its table holds.

Everything goes through what a shard calls for its learner: an engine's table, keys in, keys and probabilities out,
random numbers by request number. The importance weights, which a learner computes, are made here too, because the
samples of the peers come with theirs. A chunk's only column is a byte per item.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import numpy as np

import apexrl
from apexrl.experience.importance import importance_weights
from apexrl.replay.draws import uniforms
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.sum_tree import SumTree
from apexrl.replay.table import Keys, Table
from apexrl.types import (
    Chunk,
    ColumnSpec,
    Draw,
    Geometry,
    Scope,
    SelectorConfig,
    SelectorKind,
    Signature,
    TableConfig,
)
from benchmarks.peers.priority_work import ALPHA, BATCH_SIZE, BETA, INSERT, SAMPLE_UPDATE, priority_batches, serve_work

NAME = "replay"
INCARNATION = bytes(16)
GEOMETRY = Geometry(context=3, starts=32, tail=3)
"""As Ape-X DQN's: stack 4, n = 3."""
BUDGET_BYTES = 1 << 30
COUNTS = np.array([BATCH_SIZE], np.uint32)


class Program:
    """An engine whose one table is full, and the work on it; every method returns the units it did."""

    def __init__(self, items: int) -> None:
        self.engine = ReplayEngine(boot=1)
        signature = Signature((ColumnSpec("mark", "uint8", scope=Scope.ITEM),), GEOMETRY, stack=4)
        selector = SelectorConfig(SelectorKind.PROPORTIONAL, exponent=ALPHA)
        self.table: Table = self.engine.create_or_match(TableConfig(NAME, signature, selector, items, BUDGET_BYTES))
        self._priorities = priority_batches()
        self._requests = itertools.count()
        self._chunks = itertools.count(1)
        self._lengths = np.full(GEOMETRY.starts, GEOMETRY.tail, np.uint16)
        self._prefixes = np.zeros(GEOMETRY.starts, np.uint16)
        while self.table.inserted < items:
            self.insert()

    def insert(self) -> int:
        """Chunks of 512 items, and the housekeeping that follows so many commands."""
        rows = next(self._priorities).reshape(-1, GEOMETRY.starts)
        for priorities in rows:
            chunk = Chunk(
                GEOMETRY.rows, GEOMETRY.starts, self._lengths, self._prefixes, priorities, (bytes(GEOMETRY.starts),)
            )
            self.engine.insert_once(INCARNATION, next(self._chunks), NAME, chunk)
        self.engine.maintain()
        return BATCH_SIZE

    def sample_update(self) -> int:
        self.update(self.sample().keys)
        return BATCH_SIZE

    def sample(self) -> Draw:
        draw = self.engine.table(NAME).draw(COUNTS, uniforms(0, NAME, next(self._requests), BATCH_SIZE))
        importance_weights(draw.probabilities, draw.totals.num_items, BETA)
        return draw

    def update(self, keys: Keys) -> None:
        self.engine.table(NAME).update_priorities(keys, next(self._priorities))


def parts(program: Program) -> dict[str, Callable[[], int]]:
    """Pieces of the work one by one, for what bounds it. Each call does one batch."""
    generator = np.random.default_rng(1)
    leaves = program.table.num_pages * GEOMETRY.starts
    tree = SumTree(leaves)
    tree.load(generator.random(leaves))
    words = generator.random(leaves)
    draws = itertools.cycle([program.sample() for _ in range(256)])
    strata = np.arange(BATCH_SIZE)
    points = [(strata + generator.random(BATCH_SIZE)) / BATCH_SIZE for _ in range(256)]
    targets = itertools.cycle([share * tree.total for share in points])
    places = itertools.cycle([(share * leaves).astype(np.int64) for share in points])
    weights = generator.random(BATCH_SIZE)
    requests = itertools.count()
    work: dict[str, Callable[[], object]] = {
        "random_numbers": lambda: uniforms(0, NAME, next(requests), BATCH_SIZE),
        "table_draw": lambda: program.table.draw(COUNTS, weights),
        "importance_weights": lambda: importance_weights(
            (draw := next(draws)).probabilities, draw.totals.num_items, BETA
        ),
        "table_update": lambda: program.update(next(draws).keys),
        "powers": lambda: np.power(weights, ALPHA),
        "tree_search": lambda: tree.search(next(targets)),
        "tree_set": lambda: tree.set(next(places), weights),
        "reads_of_words_that_far_apart": lambda: words.take(next(places)),
    }
    return {name: _one(call) for name, call in work.items()}


def _one(call: Callable[[], object]) -> Callable[[], int]:
    def run() -> int:
        call()
        return 1

    return run


def main() -> None:
    program = Program(int(sys.argv[1]))
    pieces = parts(program)
    facts = {"version": apexrl.__version__, "items": program.table.num_items, "parts": list(pieces)}
    serve_work({INSERT: program.insert, SAMPLE_UPDATE: program.sample_update, **pieces}, facts)


if __name__ == "__main__":
    main()
