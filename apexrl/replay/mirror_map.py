"""What a learner's mirror holds of one table, as the shard knows it from what it has sent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.uint32]


class MirrorMap:
    """Per sample stream and table: which generation of a page lies in its slot of the mirror.

    Entries change only in :meth:`sent`, to be called when the reply that carries the bytes is handed to the stream: an
    entry set earlier would survive a reply that never left, and the learner would gather from a slot it never filled.
    A new stream starts with a new map.

    ``mirror_slots`` must be as many as the table has pages (0 = that many); page p lies in slot p.
    """

    def __init__(self, num_pages: int, mirror_slots: int = 0) -> None:
        if mirror_slots not in (0, num_pages):
            raise ValueError(
                f"mirror_slots is {mirror_slots}, must be 0 or the number of the table's pages, {num_pages}: "
                "this version keeps no smaller mirrors"
            )
        self.mirror_slots = num_pages
        self._generations = np.full(num_pages, -1, np.int64)

    def lacking(self, pages: Pages, generations: npt.NDArray[np.uint32]) -> Pages:
        """Those of ``pages`` [n] that the mirror lacks in the given ``generations`` [n]; each once, ascending."""
        return np.unique(pages[self._generations[pages] != generations])

    def sent(self, pages: Pages, generations: npt.NDArray[np.uint32]) -> None:
        """Note that ``pages`` [n] of ``generations`` [n] have gone to the learner."""
        self._generations[pages] = generations
