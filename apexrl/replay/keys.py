"""Keys of items: 64 bits that are never used again.

boot 12 bits | generation 20 | page 22 | start row 10. ``boot`` differs between starts of a shard, so that after a
restart an update by an old key cannot hit a new item. A page's generation grows each time the page is freed; it wraps
after 2^20 uses of one page, far longer than any update is under way.
"""

from __future__ import annotations

import numpy as np

START_ROW_BITS = 10
PAGE_BITS = 22
GENERATION_BITS = 20
BOOT_BITS = 12

START_ROW_MASK = np.uint64((1 << START_ROW_BITS) - 1)
PAGE_MASK = np.uint64((1 << PAGE_BITS) - 1)
GENERATION_MASK = (1 << GENERATION_BITS) - 1


def page_key(boot: int, generation: int, page: int) -> int:
    """The key of start row 0 of a page; or-ing a start row gives an item's key."""
    return (((boot << GENERATION_BITS) | generation) << PAGE_BITS | page) << START_ROW_BITS
