"""From keys to leaves and back, for a table's draws and priority updates.

leaf = page * starts + (start row - context). A batch costs one pass with numba and a dozen small array operations
without; both give the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apexrl.replay.keys import PAGE_MASK, START_ROW_BITS, START_ROW_MASK

Keys = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Halves = npt.NDArray[np.uint16]


class Items(NamedTuple):
    """What a draw says of its items [n], as :class:`apexrl.types.Draw`."""

    keys: Keys
    pages: npt.NDArray[np.uint32]
    start_rows: Halves
    prefixes: Halves
    lengths: Halves


def _kernels(required: bool) -> ModuleType | None:
    """The compiled versions; None without numba, unless they are ``required``."""
    try:
        from apexrl.replay import item_kernels
    except ImportError:
        if required:
            raise
        return None
    return item_kernels


class ItemLookup:
    """Views of a table's arrays, whose contents it changes as it likes.

    Args:
        page_keys: [pages] key of start row 0 of each page.
        prefixes: [pages * starts] of the item at each leaf.
        lengths: [pages * starts], 0 = no item there.
        starts: leaves per page.
        context: start row of a page's first leaf.
        use_numba: whether to; None = if it can be imported.
    """

    def __init__(
        self,
        page_keys: Keys,
        prefixes: Halves,
        lengths: Halves,
        starts: int,
        context: int,
        use_numba: bool | None = None,
    ) -> None:
        self._page_keys = page_keys
        self._prefixes = prefixes
        self._lengths = lengths
        self._starts = starts
        self._context = context
        self._kernels = None if use_numba is False else _kernels(required=use_numba is True)

    @property
    def uses_numba(self) -> bool:
        return self._kernels is not None

    def held(self, keys: Keys) -> tuple[Ints, Ints]:
        """Leaves [m] of those of ``keys`` [n] whose items are still held, and their positions [m] in ``keys``."""
        if self._kernels is None:
            return self._held_numpy(keys)
        leaves, positions = np.empty(keys.size, np.int64), np.empty(keys.size, np.int64)
        count = self._kernels.leaves_of_keys(
            np.ascontiguousarray(keys), self._page_keys, self._lengths, self._starts, self._context, leaves, positions
        )
        return leaves[:count], positions[:count]

    def describe(self, leaves: Ints) -> Items:
        """The items at ``leaves`` [n], which hold some."""
        if self._kernels is None:
            return self._describe_numpy(leaves)
        n = leaves.size
        items = Items(
            np.empty(n, np.uint64),
            np.empty(n, np.uint32),
            np.empty(n, np.uint16),
            np.empty(n, np.uint16),
            np.empty(n, np.uint16),
        )
        self._kernels.describe_leaves(
            np.ascontiguousarray(leaves),
            self._page_keys,
            self._prefixes,
            self._lengths,
            self._starts,
            self._context,
            *items,
        )
        return items

    def _held_numpy(self, keys: Keys) -> tuple[Ints, Ints]:
        last_page = np.uint64(self._page_keys.size - 1)
        pages = np.minimum((keys >> np.uint64(START_ROW_BITS)) & PAGE_MASK, last_page).astype(np.int64)
        offsets = (keys & START_ROW_MASK).astype(np.int64) - self._context
        # A negative offset is a huge unsigned one, so one comparison checks both ends.
        known = (self._page_keys[pages] == keys & ~START_ROW_MASK) & (offsets.view(np.uint64) < self._starts)
        leaves = pages * self._starts + offsets
        leaves[~known] = 0
        known &= self._lengths[leaves] > 0
        return leaves[known], np.flatnonzero(known)

    def _describe_numpy(self, leaves: Ints) -> Items:
        pages = leaves // self._starts
        start_rows = leaves - pages * self._starts + self._context
        return Items(
            keys=self._page_keys[pages] | start_rows.astype(np.uint64),
            pages=pages.astype(np.uint32),
            start_rows=start_rows.astype(np.uint16),
            prefixes=self._prefixes[leaves],
            lengths=self._lengths[leaves],
        )
