"""What a table knows of each page: the blocks, rows and start rows of its chunk, its generation and its key."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.replay.keys import GENERATION_MASK, PAGE_BITS, START_ROW_BITS, page_key
from apexrl.types import Array

Ints = npt.NDArray[np.int64]


class PageBook:
    """All pages of a table, free ones included. Contents may be read; they change by the methods alone.

    Args:
        num_pages: of the table.
        boot: part of every key, see :mod:`apexrl.replay.keys`.
    """

    def __init__(self, num_pages: int, boot: int) -> None:
        self.boot = boot
        #: [pages] of the chunk's blocks in the block store; -1 = the page is free.
        self.handles = np.full(num_pages, -1, np.int64)
        #: [pages] rows of the chunk.
        self.rows = np.zeros(num_pages, np.uint16)
        #: [pages] start rows of the chunk.
        self.starts = np.zeros(num_pages, np.uint16)
        #: [pages] how often the page has been freed: with the page it names one chunk.
        self.generations = np.zeros(num_pages, np.uint32)
        #: [pages] key of start row 0.
        self.keys = np.empty(num_pages, np.uint64)
        self._renew_keys(np.arange(num_pages))

    def file(self, pages: Ints, handles: Ints, rows: Array, starts: Array) -> None:
        """Note the chunks [n] that free ``pages`` [n] hold from now on."""
        self.handles[pages] = handles
        self.rows[pages] = rows
        self.starts[pages] = starts

    def refile(self, page: int, handle: int) -> None:
        """The blocks of a page's chunk lie at ``handle`` from now on."""
        self.handles[page] = handle

    def free(self, pages: Ints) -> list[int]:
        """Free ``pages`` [n], whose keys then name nothing any more; returns the handles of their blocks."""
        handles: list[int] = self.handles[pages].tolist()
        self.handles[pages] = -1
        self.generations[pages] = (self.generations[pages] + np.uint32(1)) & np.uint32(GENERATION_MASK)
        self._renew_keys(pages)
        return handles

    def state(self) -> dict[str, Array]:
        """What :meth:`load_state` takes: the book's own arrays, without :attr:`handles`."""
        return {"rows": self.rows, "starts": self.starts, "generations": self.generations}

    def load_state(self, boot: int, state: dict[str, Array]) -> None:
        """Become the book that ``state`` was taken from, but for the blocks: :meth:`refile` each page in use."""
        self.boot = boot
        for name, array in self.state().items():
            array[:] = state[name]
        self.handles[:] = -1
        self._renew_keys(np.arange(self.keys.size))

    def _renew_keys(self, pages: Ints) -> None:
        base, shift = np.uint64(page_key(self.boot, 0, 0)), np.uint64(PAGE_BITS)
        generations = self.generations[pages].astype(np.uint64)
        self.keys[pages] = base | ((generations << shift | pages.astype(np.uint64)) << np.uint64(START_ROW_BITS))
