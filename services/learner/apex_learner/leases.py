"""Exploration indices on loan: one per lane, lowest free first, renewed by heartbeats.

An index decides a lane's epsilon (``apexrl.ops.exploration``). A duplicate index costs diversity, not correctness, so
leases live in memory: after a restart of the learner their holders present them again.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class _Holder:
    indices: list[int] = field(default_factory=list)
    renewed: float = 0.0


class LeaseTable:
    """Which incarnation holds which indices.

    Args:
        ttl_seconds: an index that was not renewed for this long is free again.
        confirm_only: for the first TTL only confirm indices that actors say they hold, so that after a resume nobody
            takes an index before its holder's heartbeat. Not for a fresh start: nobody holds anything.
        clock: monotonic seconds.
    """

    def __init__(
        self, ttl_seconds: float, *, confirm_only: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ttl_seconds = ttl_seconds
        self._clock = clock
        self._grants_from = clock() + (ttl_seconds if confirm_only else 0.0)
        self._holders: dict[bytes, _Holder] = {}
        self._owner: dict[int, bytes] = {}
        self._freed: list[int] = []
        self._next_index = 0

    def renew(self, incarnation: bytes, num_lanes: int, held: list[int]) -> list[int]:
        """Indices of all lanes of ``incarnation``, or [] while only held ones are confirmed.

        ``held`` are the indices it used so far. Those that nobody else holds stay; conflicts and missing ones get the
        lowest free index.
        """
        self._expire()
        holder = self._holders.setdefault(incarnation, _Holder())
        holder.renewed = self._clock()
        for index in held[:num_lanes]:
            if index not in self._owner:
                self._take(index, incarnation, holder)
        for index in holder.indices[num_lanes:]:
            self._free(index)
        del holder.indices[num_lanes:]
        if self._clock() >= self._grants_from:
            while len(holder.indices) < num_lanes:
                self._take(self._lowest_free(), incarnation, holder)
        return list(holder.indices) if len(holder.indices) == num_lanes else []

    def release(self, incarnation: bytes) -> None:
        holder = self._holders.pop(incarnation, None)
        for index in holder.indices if holder else ():
            self._free(index)

    @property
    def num_holders(self) -> int:
        self._expire()
        return len(self._holders)

    @property
    def num_indices(self) -> int:
        self._expire()
        return len(self._owner)

    def _take(self, index: int, incarnation: bytes, holder: _Holder) -> None:
        self._owner[index] = incarnation
        holder.indices.append(index)

    def _free(self, index: int) -> None:
        del self._owner[index]
        heapq.heappush(self._freed, index)

    def _lowest_free(self) -> int:
        while self._freed:
            index = heapq.heappop(self._freed)
            if index not in self._owner:
                return index
        while self._next_index in self._owner:
            self._next_index += 1
        return self._next_index

    def _expire(self) -> None:
        deadline = self._clock() - self.ttl_seconds
        for incarnation in [key for key, holder in self._holders.items() if holder.renewed < deadline]:
            self.release(incarnation)
