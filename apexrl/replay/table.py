"""A table: pages of encoded experience, the items in them, and their priorities.

A page holds one chunk, whose start rows are the page's leaves: leaf = page * starts + (start row - context). Which page
a chunk gets and what leaves is the remover's to say (:mod:`apexrl.replay.removers`).

A table has one owner, the engine thread; nothing here is locked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apexrl.chunk_batch import ChunkBatch
from apexrl.chunk_checks import ChunkChecker, check_priorities
from apexrl.replay.block_store import BlockStore
from apexrl.replay.draws import stratify
from apexrl.replay.item_lookup import ItemLookup
from apexrl.replay.keys import BOOT_BITS, PAGE_BITS
from apexrl.replay.page_book import PageBook
from apexrl.replay.removers import Removal, make_remover
from apexrl.replay.selectors import make_selector
from apexrl.types import Array, Chunk, Draw, InitialPriority, RemoverKind, SignatureError, TableConfig, TableTotals

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

#: New items may not claim more than this times the highest priority that the learner has set. Actors with broken
#: networks would otherwise fill every batch.
INITIAL_PRIORITY_LIMIT = 10.0
#: Pages evicted at a time when an insert finds no room for its blocks.
EVICTION_STEP_PAGES = 8
#: What it costs to compact a slab, in pages removed whole.
COMPACTION_WORK = 16
#: What a table keeps of each leaf besides its weight.
ITEM_DTYPE = np.dtype([("priority", np.float32), ("length", np.uint16), ("prefix", np.uint16)])


class TableCounters(NamedTuple):
    """What a table has counted since it was first made."""

    inserted: int
    drawn: int
    stale_updates: int
    duplicates: int
    max_priority: float


class Table:
    """See the module. ``boot`` [0, 4095] is the part of keys that differs between starts of a shard.

    Raises SignatureError if the configuration cannot be held: too many pages for a key, or a budget below two slabs.
    """

    def __init__(self, config: TableConfig, boot: int = 0) -> None:
        if not 0 <= boot < 1 << BOOT_BITS:
            raise ValueError(f"boot is {boot}, must be in [0, {(1 << BOOT_BITS) - 1}]")
        if config.num_pages > 1 << PAGE_BITS:
            raise SignatureError(
                f"table {config.name!r}: capacity_items {config.capacity_items} needs {config.num_pages} pages, must "
                f"be at most {1 << PAGE_BITS} (raise the start rows per chunk)"
            )
        self.config = config
        self.num_pages = config.num_pages
        #: Inserts are welcome while ``inserted`` is below this; None = no limit.
        self.insert_limit: int | None = None
        self.inserted = 0
        self.drawn = 0
        self.evicted = 0
        self.stale_updates = 0
        self.duplicates = 0
        #: Highest priority that the learner has set; 0 = none so far.
        self.max_priority = 0.0
        self._context = config.signature.geometry.context
        self._starts = config.signature.geometry.starts
        #: Of chunks before :meth:`insert_batch`.
        self.checker = ChunkChecker(config.signature)
        self._num_columns = len(config.signature.columns)
        largest = BlockStore.record_bytes(self._num_columns, self.checker.largest_payload_bytes)
        try:
            self._store = BlockStore(config.budget_bytes, largest, scattered=config.remover is not RemoverKind.FIFO)
        except ValueError as error:
            raise SignatureError(f"table {config.name!r}: {error}") from error
        num_leaves = self.num_pages * self._starts
        self._selector = make_selector(config.selector, num_leaves)
        self._pages = PageBook(self.num_pages, boot)
        # Side by side: a draw and the update that follows miss the cache once per item, not three times.
        items = np.zeros(num_leaves, ITEM_DTYPE)
        self._lengths = items["length"]
        self._prefixes = items["prefix"]
        self._priorities = items["priority"]
        self._offsets = np.arange(self._starts)
        self._start_rows = (self._offsets + self._context).astype(np.uint64)
        self._lookup = ItemLookup(self._pages.keys, self._prefixes, self._lengths, self._starts, self._context)
        self._remover = make_remover(config, self._lengths, self._priorities, boot)

    @property
    def boot(self) -> int:
        """The part of keys that differs between starts of a shard."""
        return self._pages.boot

    @property
    def num_items(self) -> int:
        return self._selector.num_items

    @property
    def pages_used(self) -> int:
        return self._remover.used

    @property
    def block_bytes(self) -> int:
        """Bytes of encoded chunks held."""
        return self._store.live_bytes

    @property
    def slab_bytes(self) -> int:
        """Bytes of memory that hold them; never above the budget."""
        return self._store.slab_bytes

    @property
    def needs_trim(self) -> bool:
        """Whether :meth:`trim` has enough to do to be worth a call: pages go cheaper by the dozen."""
        over = self.num_items > self.config.capacity_items + self._remover.trim_period_items
        return over or self._store.is_tight or self._remover.is_short

    def totals(self) -> TableTotals:
        return TableTotals(self._selector.mass, self.num_items, self.inserted, self.drawn)

    def may_insert(self, ahead: int = 0) -> bool:
        """Whether the insert limit leaves room for a chunk, after ``ahead`` other items.

        The caller holds inserts back; :meth:`insert` does not.
        """
        return self.insert_limit is None or self.inserted + ahead < self.insert_limit

    def insert(self, chunk: Chunk) -> Keys:
        """Store a chunk; returns the keys of its items, in the order of its start rows.

        Raises SignatureError, naming the field, for anything malformed; nothing is stored then. Inserts do not wait
        for eviction: only without a free page or room in the budget is some evicted at once. A chunk
        without items is accepted and not stored, as nothing could ever be drawn from it.
        """
        self.checker.check(chunk)
        leaves = self.insert_batch(ChunkBatch.of([chunk]))
        pages = leaves // self._starts
        keys: Keys = self._pages.keys[pages] | self._start_rows[leaves - pages * self._starts]
        return keys

    def insert_batch(self, batch: ChunkBatch) -> Ints:
        """As :meth:`insert` of each chunk in turn; returns the leaves of their items.

        A :class:`ChunkChecker` of this table's signature must have accepted them.
        """
        counts = np.diff(batch.items_before)
        chosen = np.flatnonzero(counts)
        filed = [np.empty(0, np.int64)]
        while chosen.size:
            fitting = chosen[: self.num_pages - self.pages_used]
            handles = self._store.put_many(batch.sizes[:, fitting], batch.blocks(fitting))
            if handles.size:
                filed.append(self._file(batch, chosen[: handles.size], counts, handles))
                chosen = chosen[handles.size :]
            else:
                payload_bytes = int(batch.sizes[:, chosen[0]].sum())
                self._make_room(BlockStore.record_bytes(self._num_columns, payload_bytes))
        return np.concatenate(filed)

    def _file(self, batch: ChunkBatch, chosen: Ints, counts: Ints, handles: Ints) -> Ints:
        """Give chunks whose blocks are stored their pages; returns the leaves of their items."""
        pages = self._remover.take(chosen.size)
        starts = batch.starts[chosen]
        self._pages.file(pages, handles, batch.rows[chosen], starts)
        # Position in the batch, and leaf, of every start row.
        offsets = np.arange(int(starts.sum())) - np.repeat(np.cumsum(starts) - starts, starts)
        at = np.repeat(batch.first_starts[chosen], starts) + offsets
        leaves = np.repeat(pages * self._starts, starts) + offsets
        lengths = batch.lengths[at]
        priorities = self._initial_priorities(batch.priorities[at])
        self._lengths[leaves] = lengths
        self._prefixes[leaves] = batch.prefixes[at]
        self._priorities[leaves] = priorities
        has_item = lengths > 0
        leaves = np.compress(has_item, leaves)
        self._selector.insert(leaves, priorities[has_item].astype(np.float64))
        self._remover.inserted(pages, counts[chosen], leaves)
        self.inserted += leaves.size
        return leaves

    def draw(self, counts: npt.NDArray[np.uint32], uniforms: npt.NDArray[np.float64]) -> Draw:
        """Draw ``counts`` [m] items for m batches, each stratified on its own, with ``uniforms`` [sum(counts)].

        Raises ValueError if there is nothing to draw from.
        """
        total = int(counts.sum())
        if uniforms.shape != (total,):
            raise ValueError(f"uniforms has shape {uniforms.shape}, must have ({total},), the sum of counts")
        if total and not self.num_items:
            raise ValueError(f"table {self.config.name!r} is empty: nothing can be drawn")
        if total:
            leaves, probabilities = self._selector.draw(stratify(counts, uniforms))
        else:
            leaves, probabilities = np.empty(0, np.int64), np.empty(0)
        self.drawn += total
        items = self._lookup.describe(leaves)
        return Draw(
            keys=items.keys,
            probabilities=probabilities.astype(np.float32),
            pages=items.pages,
            start_rows=items.start_rows,
            prefixes=items.prefixes,
            lengths=items.lengths,
            totals=self.totals(),
        )

    def update_priorities(self, keys: Keys, priorities: npt.NDArray[np.float32]) -> tuple[int, int]:
        """Set priorities [n] of the items with ``keys`` [n]; of a key that comes twice the later wins.

        Returns (applied, stale): items that have left are counted and ignored. Raises SignatureError, with nothing
        applied, if a priority is negative or not finite.
        """
        if keys.dtype != np.uint64 or keys.ndim != 1 or priorities.shape != keys.shape:
            raise SignatureError(
                f"keys {keys.dtype} {keys.shape} and priorities {priorities.shape} must be vectors of one length, keys "
                "uint64"
            )
        priorities = priorities.astype(np.float32, copy=False)
        check_priorities("priorities", priorities)
        leaves, positions = self._lookup.held(keys)
        applied = leaves.size
        stale = keys.size - applied
        if stale:
            self.stale_updates += stale
            priorities = priorities[positions]
        if applied:
            self._priorities[leaves] = priorities
            self._selector.update(leaves, priorities.astype(np.float64))
            self._remover.updated(leaves)
            self.max_priority = max(self.max_priority, float(priorities.max()))
        return applied, stale

    def trim(self, max_pages: int = 64) -> int:
        """Evict while over the soft capacity or short of slabs or pages; returns the items evicted.

        At most ``max_pages`` at a time, or 8 drawn items for each, so that the owner stays responsive (RemoveToFit of
        Horgan et al. 2018, algorithm 2, off the insert path).
        """
        before = self.evicted
        if self._store.compact() and self._remover.scatters:
            self._store.compact()
        left = min(max_pages, self.pages_used)
        while left > 0 and (excess := self.num_items - self.config.capacity_items) > 0:
            left -= self._remove(self._remover.over_capacity(excess, left))
        while left > 0 and self.num_items and (self._store.is_tight or self._remover.is_short):
            # Under first-in-first-out removal there is nothing to compact.
            if self._remover.scatters and self._store.compact():
                left -= COMPACTION_WORK
            else:
                left -= self._remove(self._remover.for_room(min(EVICTION_STEP_PAGES, left)))
        return self.evicted - before

    def pages_in_order(self) -> npt.NDArray[np.int64]:
        """Pages in use, the oldest first."""
        return self._remover.in_order()

    def generations(self, pages: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Generation of each of ``pages`` [n]: with the page it names one chunk."""
        return self._pages.generations[pages]

    def page_chunk(self, page: int) -> Chunk:
        """The chunk in a page, with the current priorities. Raises KeyError if the page is free."""
        handle = int(self._pages.handles[page])
        if handle < 0:
            raise KeyError(f"page {page} of table {self.config.name!r} holds no chunk")
        starts = int(self._pages.starts[page])
        leaves = slice(page * self._starts, page * self._starts + starts)
        return Chunk(
            rows=int(self._pages.rows[page]),
            starts=starts,
            lengths=self._lengths[leaves].copy(),
            prefixes=self._prefixes[leaves].copy(),
            priorities=self._priorities[leaves].copy(),
            blocks=self._store.get(handle),
        )

    def rebuilt(self, config: TableConfig, boot: int) -> Table:
        """The table under other options, with as much of its newest experience as it may hold.

        Keys are new: ``boot`` must differ. Raises SignatureError if a table cannot have these options.
        """
        other = Table(config, boot)
        keys, priorities = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
        for page in self.pages_in_order().tolist():
            chunk = self.page_chunk(page)
            keys.append(other.insert(chunk))
            priorities.append(chunk.priorities[chunk.lengths > 0])
        # Not what an insert makes of them; those that found no room are stale by now.
        other.update_priorities(np.concatenate(keys), np.concatenate(priorities))
        other.insert_limit = self.insert_limit
        other.restore_counters(self.counters())
        return other

    def priorities(self) -> npt.NDArray[np.float32]:
        """[pages_used, starts] of every chunk, oldest first; 0 where a start row begins no item."""
        leaves = self.pages_in_order()[:, None] * self._starts + self._offsets
        priorities: npt.NDArray[np.float32] = np.where(self._lengths[leaves] > 0, self._priorities[leaves], 0)
        return priorities

    def counters(self) -> TableCounters:
        """What :meth:`restore_counters` needs to go on."""
        return TableCounters(self.inserted, self.drawn, self.stale_updates, self.duplicates, self.max_priority)

    def restore_counters(self, counters: TableCounters) -> None:
        """Go on counting from ``counters``; what was inserted and is not here any more counts as evicted."""
        self.inserted = max(int(counters.inserted), self.num_items)
        self.drawn = int(counters.drawn)
        self.stale_updates = int(counters.stale_updates)
        self.duplicates = int(counters.duplicates)
        self.max_priority = max(self.max_priority, float(counters.max_priority))
        self.evicted = self.inserted - self.num_items

    def top(self, k: int) -> tuple[Keys, npt.NDArray[np.float32]]:
        """Keys and priorities of the ``k`` items of highest priority, highest first. Looks at every item."""
        leaves = np.flatnonzero(self._lengths)
        order = np.argsort(-self._priorities[leaves], kind="stable")[: max(k, 0)]
        leaves = leaves[order]
        pages = leaves // self._starts
        keys = self._pages.keys[pages] | self._start_rows[leaves - pages * self._starts]
        return keys, self._priorities[leaves]

    def state(self) -> dict[str, Array]:
        """Everything but the insert limit, as arrays: after :meth:`load_state` a table draws the same keys."""
        blocks = [self._store.get(int(handle)) for handle in self._pages.handles[self.pages_in_order()]]
        sizes = np.array([[len(block) for block in record] for record in blocks], np.uint32)
        return {
            "counters": np.array(self._counters(), np.int64),
            "max_priority": np.array([self.max_priority]),
            **{name: array.copy() for name, array in (self._pages.state() | self._items()).items()},
            "block_sizes": sizes.reshape(self.pages_used, self._num_columns),
            "blocks": np.frombuffer(b"".join(block for record in blocks for block in record), np.uint8),
            **self._parts(),
        }

    def load_state(self, state: dict[str, Array]) -> None:
        """Become the table that :meth:`state` was taken from, keys included.

        Raises SignatureError, naming the array, if the state is of a table of another configuration.
        """
        expected: dict[str, Array] = self._pages.state() | self._items() | self._parts()
        expected["counters"] = np.array(self._counters(), np.int64)
        expected["max_priority"] = np.zeros(1)
        for name, array in expected.items():
            if name not in state or state[name].shape != array.shape or state[name].dtype != array.dtype:
                found = f"{state[name].dtype} {state[name].shape}" if name in state else "missing"
                raise SignatureError(f"table state {name!r} is {found}, must be {array.dtype} {array.shape}")
        counters = [int(value) for value in state["counters"].astype(np.int64)]
        sizes = state["block_sizes"]
        if sizes.shape != (counters[2], self._num_columns) or int(sizes.sum()) != state["blocks"].size:
            raise SignatureError(
                f"table state 'block_sizes' is {sizes.shape} for {state['blocks'].size} bytes, must be "
                f"{(counters[2], self._num_columns)} and sum to that"
            )
        boot, oldest, used, self.inserted, self.drawn = counters[:5]
        self.evicted, self.stale_updates, self.duplicates = counters[5:]
        self.max_priority = float(state["max_priority"].astype(np.float64)[0])
        self._pages.load_state(boot, state)
        for name, array in self._items().items():
            array[:] = state[name]
        self._selector.load_state(_part("selector/", state))
        self._remover.load_state((oldest, used), _part("remover/", state))
        self._store.clear()
        data = state["blocks"].tobytes()
        begin = 0
        for page, record in zip(self.pages_in_order().tolist(), sizes.tolist(), strict=True):
            ends = np.cumsum([begin, *record]).tolist()
            blocks = tuple(data[a:b] for a, b in pairwise(ends))
            self._pages.refile(page, self._store.put(blocks))
            begin = ends[-1]

    def _counters(self) -> list[int]:
        return [
            self.boot,
            *self._remover.ring(),
            self.inserted,
            self.drawn,
            self.evicted,
            self.stale_updates,
            self.duplicates,
        ]

    def _items(self) -> dict[str, Array]:
        return {"lengths": self._lengths, "prefixes": self._prefixes, "priorities": self._priorities}

    def _parts(self) -> dict[str, Array]:
        """State of selector and remover."""
        selector = {f"selector/{name}": value for name, value in self._selector.state().items()}
        return selector | {f"remover/{name}": value for name, value in self._remover.state().items()}

    def _initial_priorities(self, claimed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Priorities of new items: the actor's, bounded, or the highest so far (1 at first)."""
        if self.config.initial_priority is InitialPriority.MAX:
            return np.full_like(claimed, max(1.0, self.max_priority))
        if self.max_priority > 0.0:
            limit = min(INITIAL_PRIORITY_LIMIT * self.max_priority, float(np.finfo(np.float32).max))
            return np.minimum(claimed, np.float32(limit))
        return claimed

    def _make_room(self, record_bytes: int) -> None:
        """Evict now if there is no free page, or no room within the budget."""
        if self.pages_used == self.num_pages:
            self._remove(self._remover.for_room(1))
        while not self._store.fits(record_bytes):
            if not self._store.compact():
                self._remove(self._remover.for_room(min(EVICTION_STEP_PAGES, self.pages_used)))

    def _remove(self, removal: Removal) -> int:
        """Take items out and free pages; returns what it cost, in pages."""
        leaves, pages, work = removal
        self._selector.remove(leaves)
        self._lengths[leaves] = 0
        for handle in self._pages.free(pages):
            self._store.free(handle)
        self.evicted += leaves.size
        return work


def _part(prefix: str, state: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
