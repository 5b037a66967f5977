"""Which page a chunk gets, and what leaves a table: the oldest pages, or items drawn by priority.

A remover keeps count of pages and decides; the table takes out of selector and store what a :class:`Removal` names.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apexrl.replay.draws import uniforms
from apexrl.replay.selectors import PRIORITY_EPSILON
from apexrl.replay.sum_tree import SumTree
from apexrl.types import Array, RemoverKind, TableConfig

Ints = npt.NDArray[np.int64]

#: Pages by which the soft capacity is passed before it is trimmed (fewer where that is above 1/64 of the capacity).
TRIM_PERIOD_PAGES = 32
#: The same for items that are drawn one by one: a draw of many costs little more than a draw of one.
TRIM_PERIOD_ITEMS = 512
#: Items that may be drawn and removed in the time that a page takes.
ITEMS_PER_PAGE_OF_WORK = 8
#: Leaves whose weights have changed before the tree is told, by whoever makes the last change (about 0.5 ms).
MAX_CHANGED_LEAVES = 4096
#: Draws of one slice. A few items may outweigh all others, and then most points of a draw hit the same.
MAX_ROUNDS = 8
#: Pages freed at once, under removal by priority, when there is no room.
ROOM_STEP_PAGES = 64


class Removal(NamedTuple):
    """What leaves at once."""

    leaves: Ints
    """Of the items, all of which are held."""
    pages: Ints
    """That hold no item after that."""
    work: int
    """What it costs, in pages removed whole."""


def removal_weights(
    priorities: npt.NDArray[np.float64], exponent: float, epsilon: float = PRIORITY_EPSILON
) -> npt.NDArray[np.float64]:
    """(p + epsilon)^exponent of ``priorities`` [n], finite for a priority of 0 too: 251 at the exponent -0.4."""
    weights: npt.NDArray[np.float64] = np.power(priorities + epsilon, exponent)
    return weights


class Remover(Protocol):
    """See the module. Pages that it has named in a removal are free, and will be used again."""

    trim_period_items: int
    """Items by which the soft capacity is passed before it is trimmed."""
    scatters: bool
    """Whether pages leave in another order than they came."""

    @property
    def used(self) -> int:
        """Pages in use."""
        ...

    @property
    def is_short(self) -> bool:
        """Whether free pages run out although the table is not above its capacity."""
        ...

    def take(self, count: int) -> Ints:
        """Free pages [count], in use from now on. There must be as many."""
        ...

    def inserted(self, pages: Ints, counts: Ints, leaves: Ints) -> None:
        """Items are at ``leaves`` of pages [n] that were taken; each page has ``counts`` [n] of them."""
        ...

    def updated(self, leaves: Ints) -> None:
        """Items at ``leaves``, which may be named twice, have new priorities."""
        ...

    def over_capacity(self, excess: int, max_pages: int) -> Removal:
        """A part of ``excess`` items, that costs no more than ``max_pages``."""
        ...

    def for_room(self, pages: int) -> Removal:
        """At least ``pages``, of which so many are in use."""
        ...

    def in_order(self) -> Ints:
        """Pages in use, the oldest first."""
        ...

    def ring(self) -> tuple[int, int]:
        """Oldest page (0 where pages are in no ring), and pages in use."""
        ...

    def state(self) -> dict[str, Array]:
        """What :meth:`load_state` needs besides the ring and the table's own arrays."""
        ...

    def load_state(self, ring: tuple[int, int], state: dict[str, Array]) -> None:
        """Go on from there; the table's own arrays have been loaded."""
        ...


class FifoRemover:
    """First in, first out: pages form a ring, are filled in order and freed in the same order.

    Args:
        lengths: [pages * starts] of the item at each leaf, 0 = none; a view of the table's array.
        starts: leaves per page.
        trim_period_items: see :class:`Remover`.
    """

    scatters = False
    is_short = False

    def __init__(self, lengths: npt.NDArray[np.uint16], starts: int, trim_period_items: int) -> None:
        self.trim_period_items = trim_period_items
        self._lengths = lengths
        self._starts = starts
        self._offsets = np.arange(starts)
        self._num_pages = lengths.size // starts
        self._oldest = 0
        self._used = 0

    @property
    def used(self) -> int:
        return self._used

    def take(self, count: int) -> Ints:
        pages = (self._oldest + self._used + np.arange(count)) % self._num_pages
        self._used += count
        return pages

    def inserted(self, pages: Ints, counts: Ints, leaves: Ints) -> None:
        """Priorities play no part here."""

    def updated(self, leaves: Ints) -> None:
        """Nor do they here."""

    def over_capacity(self, excess: int, max_pages: int) -> Removal:
        return self.for_room(min(max(1, excess // self._starts), max_pages))

    def for_room(self, pages: int) -> Removal:
        freed = (self._oldest + np.arange(pages)) % self._num_pages
        leaves = (freed[:, None] * self._starts + self._offsets).reshape(-1)
        self._oldest = (self._oldest + pages) % self._num_pages
        self._used -= pages
        return Removal(leaves[self._lengths[leaves] > 0], freed, pages)

    def in_order(self) -> Ints:
        return (self._oldest + np.arange(self._used)) % self._num_pages

    def ring(self) -> tuple[int, int]:
        return self._oldest, self._used

    def state(self) -> dict[str, Array]:
        return {}

    def load_state(self, ring: tuple[int, int], state: dict[str, Array]) -> None:
        self._oldest, self._used = ring


class PrioritizedRemover:
    """Items drawn without replacement, P(i) ~ (p_i + epsilon)^exponent (Horgan et al. 2018, appendix D: -0.4).

    A page is free when its last item has left. With one start row per chunk, items and pages are the same, and removal
    is as above also where pages or bytes run short. With more, those leave whose pages hold the fewest items.

    Weights lie in a second sum tree. Nothing reads it between two trims, so it is brought up to date then, from
    priorities as they are by then, and by whoever makes the 4096th change in between; no update and no insert pays
    for a pass of its own. Measured at 10^6 items, docs/adr/0010.

    Args:
        lengths: [pages * starts] of the item at each leaf, 0 = none; a view of the table's array.
        priorities: [pages * starts]; likewise.
        starts: leaves per page.
        exponent: in [-4, 0].
        trim_period_items: see :class:`Remover`.
        seed, name: of the random numbers.
    """

    scatters = True

    def __init__(
        self,
        lengths: npt.NDArray[np.uint16],
        priorities: npt.NDArray[np.float32],
        starts: int,
        exponent: float,
        trim_period_items: int,
        seed: int,
        name: str,
    ) -> None:
        self.trim_period_items = trim_period_items
        self._lengths = lengths
        self._priorities = priorities
        self._starts = starts
        self._exponent = exponent
        self._seed = seed
        self._name = name
        self._offsets = np.arange(starts)
        self._num_pages = lengths.size // starts
        self._room_step = min(ROOM_STEP_PAGES, max(1, self._num_pages // 64))
        self._tree = SumTree(lengths.size)
        self._changed: list[Ints] = []
        self._num_changed = 0
        #: Removed so far; numbers the draws of random numbers.
        self._removed = 0
        self._items = np.zeros(self._num_pages, np.uint16)
        self._num_items = 0
        # Free pages are a queue, used again in the order they were freed, so that generations wrap late.
        self._free = np.arange(self._num_pages)
        self._first_free = 0
        self._used = 0
        #: When each page was taken, counted from 1; 0 = free.
        self._births = np.zeros(self._num_pages, np.int64)
        self._taken = 0

    @property
    def used(self) -> int:
        return self._used

    @property
    def is_short(self) -> bool:
        return self._num_pages - self._used < self._room_step

    def take(self, count: int) -> Ints:
        pages = self._free[(self._first_free + np.arange(count)) % self._num_pages]
        self._first_free = (self._first_free + count) % self._num_pages
        self._used += count
        self._births[pages] = self._taken + 1 + np.arange(count)
        self._taken += count
        return pages

    def inserted(self, pages: Ints, counts: Ints, leaves: Ints) -> None:
        self._items[pages] = counts
        self._num_items += leaves.size
        self.updated(leaves)

    def updated(self, leaves: Ints) -> None:
        self._changed.append(leaves)
        self._num_changed += leaves.size
        if self._num_changed >= MAX_CHANGED_LEAVES:
            self._weigh()

    def over_capacity(self, excess: int, max_pages: int) -> Removal:
        return self._remove_drawn(min(excess, ITEMS_PER_PAGE_OF_WORK * max_pages))

    def for_room(self, pages: int) -> Removal:
        pages = min(max(pages, self._room_step), self._used)
        if self._starts == 1:
            return self._remove_drawn(pages)
        used = np.flatnonzero(self._births)
        # Fewest items first, the oldest among equals.
        order = self._items[used].astype(np.int64) << 48 | self._births[used]
        freed = used[np.argpartition(order, pages - 1)[:pages]] if pages < used.size else used
        leaves = (freed[:, None] * self._starts + self._offsets).reshape(-1)
        leaves = leaves[self._lengths[leaves] > 0]
        self._tree.set(leaves, np.zeros(leaves.size))
        self._removed += leaves.size
        self._num_items -= leaves.size
        self._items[freed] = 0
        self._release(freed)
        return Removal(leaves, freed, pages)

    def in_order(self) -> Ints:
        used = np.flatnonzero(self._births)
        return used[np.argsort(self._births[used])]

    def ring(self) -> tuple[int, int]:
        return 0, self._used

    def state(self) -> dict[str, Array]:
        return {
            "births": self._births.copy(),
            "free": np.roll(self._free, -self._first_free),
            "draws": np.array([self._seed, self._removed, self._taken], np.int64),
        }

    def load_state(self, ring: tuple[int, int], state: dict[str, Array]) -> None:
        self._used = ring[1]
        self._births[:] = state["births"]
        self._free[:] = state["free"]
        self._first_free = 0
        self._seed, self._removed, self._taken = state["draws"].astype(np.int64).tolist()
        held = self._lengths > 0
        self._items[:] = held.reshape(-1, self._starts).sum(axis=1)
        self._num_items = int(np.count_nonzero(held))
        self._changed, self._num_changed = [], 0
        self._tree.load(self._weights(np.arange(self._lengths.size)))

    def _weights(self, leaves: Ints) -> npt.NDArray[np.float64]:
        weights = removal_weights(self._priorities[leaves].astype(np.float64), self._exponent)
        return np.where(self._lengths[leaves] > 0, weights, 0.0)

    def _weigh(self) -> None:
        """Bring the tree up to date. A leaf whose item has left in the meantime weighs nothing."""
        if self._changed:
            leaves = np.concatenate(self._changed)
            self._changed, self._num_changed = [], 0
            self._tree.set(leaves, self._weights(leaves))

    def _remove_drawn(self, n: int) -> Removal:
        leaves = self._draw(n)
        pages = leaves // self._starts
        if self._starts > 1:
            np.subtract.at(self._items, pages, np.uint16(1))
            pages = np.unique(pages)
            pages = pages[self._items[pages] == 0]
        else:
            self._items[pages] = 0
        self._num_items -= leaves.size
        self._release(pages)
        return Removal(leaves, pages, -(-n // ITEMS_PER_PAGE_OF_WORK))

    def _draw(self, n: int) -> Ints:
        """Take ``n`` leaves out of the tree, fewer if that needs too many rounds, but at least one.

        Independent draws of which repeats are skipped are draws without replacement, so each round takes what is
        distinct among as many points as items are still wanted.
        """
        self._weigh()
        drawn: list[Ints] = []
        for _ in range(MAX_ROUNDS):
            points = uniforms(self._seed, f"{self._name}/removal", self._removed, n)
            leaves = np.unique(self._tree.find(points * self._tree.total))
            self._tree.set(leaves, np.zeros(leaves.size))
            drawn.append(leaves)
            self._removed += leaves.size
            n -= leaves.size
            if n == 0:
                break
        return np.concatenate(drawn)

    def _release(self, pages: Ints) -> None:
        end = self._first_free + self._num_pages - self._used
        self._free[(end + np.arange(pages.size)) % self._num_pages] = pages
        self._used -= pages.size
        self._births[pages] = 0


def make_remover(
    config: TableConfig, lengths: npt.NDArray[np.uint16], priorities: npt.NDArray[np.float32], seed: int
) -> Remover:
    """The remover that a table's configuration names, on views of the table's arrays."""
    starts = config.signature.geometry.starts
    period = TRIM_PERIOD_PAGES * starts
    at_most = config.capacity_items // 64
    if config.remover is RemoverKind.FIFO:
        return FifoRemover(lengths, starts, min(period, at_most))
    period = min(max(period, TRIM_PERIOD_ITEMS), at_most)
    return PrioritizedRemover(lengths, priorities, starts, config.remover_exponent, period, seed, config.name)
