"""Compiled kernels of :mod:`apexrl.replay.item_lookup`; they give the very arrays that its NumPy versions give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.compiled import compiled, readonly, types
from apexrl.replay.keys import PAGE_MASK, START_ROW_BITS, START_ROW_MASK

_INT = types.int64
_INTS_OUT = types.int64[::1]
_INTS_IN = readonly(types.int64)
_KEYS_OUT = types.uint64[::1]
_KEYS_IN = readonly(types.uint64)
_WORDS_OUT = types.uint32[::1]
_HALVES_OUT = types.uint16[::1]
#: A column of records.
_HALVES_IN = types.uint16[:]

_START_ROW_BITS = np.uint64(START_ROW_BITS)
_PAGE_KEY_MASK = ~START_ROW_MASK


@compiled((_KEYS_IN, _KEYS_IN, _HALVES_IN, _INT, _INT, _INTS_OUT, _INTS_OUT))
def leaves_of_keys(
    keys: npt.NDArray[np.uint64],
    page_keys: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint16],
    starts: int,
    context: int,
    leaves: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> int:
    """Write the leaves of the keys whose items are held, and where in ``keys`` they stand; returns how many."""
    num_pages = np.uint64(page_keys.size)
    width = np.uint64(starts)
    first = np.uint64(context)
    count = 0
    for k in range(keys.size):
        key = keys[k]
        page = (key >> _START_ROW_BITS) & PAGE_MASK
        # A start row below the context wraps around to a huge offset, so one comparison checks both ends.
        offset = (key & START_ROW_MASK) - first
        if page < num_pages and offset < width and page_keys[page] == key & _PAGE_KEY_MASK:
            leaf = page * width + offset
            if lengths[leaf] > 0:
                leaves[count] = leaf
                positions[count] = k
                count += 1
    return count


@compiled(
    (
        _INTS_IN,
        _KEYS_IN,
        _HALVES_IN,
        _HALVES_IN,
        _INT,
        _INT,
        _KEYS_OUT,
        _WORDS_OUT,
        _HALVES_OUT,
        _HALVES_OUT,
        _HALVES_OUT,
    )
)
def describe_leaves(
    leaves: npt.NDArray[np.int64],
    page_keys: npt.NDArray[np.uint64],
    all_prefixes: npt.NDArray[np.uint16],
    all_lengths: npt.NDArray[np.uint16],
    starts: int,
    context: int,
    keys: npt.NDArray[np.uint64],
    pages: npt.NDArray[np.uint32],
    start_rows: npt.NDArray[np.uint16],
    prefixes: npt.NDArray[np.uint16],
    lengths: npt.NDArray[np.uint16],
) -> None:
    """Write what a draw says of each leaf."""
    width = np.uint64(starts)
    first = np.uint64(context)
    for k in range(leaves.size):
        leaf = np.uint64(leaves[k])
        page = leaf // width
        start_row = leaf - page * width + first
        keys[k] = page_keys[page] | start_row
        pages[k] = page
        start_rows[k] = start_row
        prefixes[k] = all_prefixes[leaf]
        lengths[k] = all_lengths[leaf]
