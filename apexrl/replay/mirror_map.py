"""What a learner's mirror holds of one table, as the shard knows it from what it has sent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.uint32]
Slots = npt.NDArray[np.int64]


class Placement(NamedTuple):
    """Where the pages of one reply will lie in the mirror."""

    slots: Slots
    """[n] of the pages that were asked for, in their order."""
    lacking: Pages
    """[k] pages whose bytes must be sent, each once, ascending."""
    new_slots: Slots
    """[k] slots of these."""
    generations: npt.NDArray[np.uint32]
    """[k] generations of these."""
    hand: int
    """Slot from which the next search for room starts."""


class MirrorMap:
    """Per sample stream and table: which generation of which page lies in which slot of the mirror.

    A mirror may have fewer slots than the table has pages. What it lacks then takes the slots of others in turn (a
    clock that skips what the same reply needs); its order does not matter much, as draws hardly repeat.

    Entries change only in :meth:`sent`, to be called when the reply that carries the bytes is handed to the stream: an
    entry set earlier would survive a reply that never left, and the learner would gather from a slot it never filled.
    A new stream starts with a new map.

    Args:
        num_pages: of the table.
        mirror_slots: that the learner offers; 0, or more than there are pages = one for every page.
    """

    def __init__(self, num_pages: int, mirror_slots: int = 0) -> None:
        self.mirror_slots = min(mirror_slots or num_pages, num_pages)
        self._slot_of = np.full(num_pages, -1, np.int64)
        self._generation_of = np.full(num_pages, -1, np.int64)
        self._page_in = np.full(self.mirror_slots, -1, np.int64)
        self._hand = 0

    def place(self, pages: Pages, generations: npt.NDArray[np.uint32]) -> Placement:
        """Find slots for ``pages`` [n] in the given ``generations`` [n]; nothing changes yet.

        Raises:
            ValueError: there are more different pages than slots.
        """
        needed, first = np.unique(pages, return_index=True)
        if needed.size > self.mirror_slots:
            raise ValueError(f"{needed.size} pages are needed at once, must be at most {self.mirror_slots}, the mirror")
        wanted = generations[first]
        slots = self._slot_of[needed]
        lacking = self._generation_of[needed] != wanted
        homeless = slots < 0
        hand = self._hand
        if homeless.any():
            slots[homeless] = taken = self._free_slots(slots[~homeless], int(np.count_nonzero(homeless)))
            hand = int(taken[-1] + 1) % self.mirror_slots
        return Placement(
            slots=slots[np.searchsorted(needed, pages)],
            lacking=needed[lacking],
            new_slots=slots[lacking],
            generations=wanted[lacking],
            hand=hand,
        )

    def sent(self, placement: Placement) -> None:
        """Note that the bytes which ``placement`` lacks have gone to the learner. No other was made since it was."""
        former = self._page_in[placement.new_slots]
        former = former[former >= 0]
        self._slot_of[former] = -1
        self._generation_of[former] = -1
        self._page_in[placement.new_slots] = placement.lacking
        self._slot_of[placement.lacking] = placement.new_slots
        self._generation_of[placement.lacking] = placement.generations
        self._hand = placement.hand

    def _free_slots(self, kept: Slots, count: int) -> Slots:
        """The next ``count`` slots from the hand on that are not among ``kept``."""
        # Of so many neighbours at most all of `kept` are taken.
        following = (self._hand + np.arange(min(self.mirror_slots, count + kept.size))) % self.mirror_slots
        return following[~np.isin(following, kept)][:count]
