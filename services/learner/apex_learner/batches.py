"""How many batches are kept ready, and how much memory the mirrors of the shards may take."""

from __future__ import annotations

import math

from apexrl.config import ConfigError
from apexrl.experience.records import RecordLayout
from apexrl.types import TableConfig

#: Seconds of updates that batches are kept ready for.
PREFETCH_SECONDS = 0.25
MIN_DEPTH, MAX_DEPTH = 2, 64
#: A draw request asks for as many batches as the learner uses up in this time: every message takes the interpreter from
#: the update for a moment.
REQUEST_SECONDS = 0.1
#: A reply may carry a chunk for each of its items.
MAX_BATCHES_PER_REQUEST = 16


class PrefetchDepth:
    """How many batches to keep ready: about a quarter of a second of updates, or a fixed number."""

    def __init__(self, fixed: int) -> None:
        self._fixed = fixed
        self._update_seconds = 0.1
        self.batches = self.batches_per_request = 1
        self._choose()

    def observe(self, update_seconds: float) -> None:
        """Take in the duration of one update."""
        self._update_seconds += 0.1 * (update_seconds - self._update_seconds)
        self._choose()

    @property
    def largest(self) -> int:
        """The most batches that will ever be kept."""
        return max(MIN_DEPTH, self._fixed) if self._fixed else MAX_DEPTH

    def _choose(self) -> None:
        seconds = max(self._update_seconds, 1e-6)
        self.batches = self.largest if self._fixed else _within(MIN_DEPTH, PREFETCH_SECONDS / seconds, MAX_DEPTH)
        most = min(self.batches // 2, MAX_BATCHES_PER_REQUEST)
        self.batches_per_request = _within(1, REQUEST_SECONDS / seconds, most)


def _within(low: int, value: float, high: int) -> int:
    return max(low, min(math.ceil(value), high))


def mirror_slots(table: TableConfig, num_shards: int, batch_size: int, mirror_bytes: int) -> int:
    """Pages of each shard that fit in mirrors of ``mirror_bytes`` together; 0 = all of them.

    Raises:
        ConfigError: not even those of one batch do.
    """
    page_bytes, pages = RecordLayout(table.signature).page_bytes, table.num_pages
    if mirror_bytes == 0 or mirror_bytes >= num_shards * pages * page_bytes:
        return 0
    least = num_shards * min(batch_size, pages) * page_bytes
    if mirror_bytes < least:
        raise ConfigError(
            f"learner.mirror_bytes is {mirror_bytes}, must be 0 (the whole replay) or at least {least}: a batch of "
            f"{batch_size} items may lie in as many chunks of {page_bytes} bytes, on each of {num_shards} shards"
        )
    return mirror_bytes // (num_shards * page_bytes)
