"""Keys to leaves and back: the compiled version gives what the NumPy version gives."""

from __future__ import annotations

import numpy as np
import pytest

from apexrl.replay.item_lookup import ItemLookup
from apexrl.replay.keys import page_key

PAGES, STARTS, CONTEXT = 5, 4, 3


def _lookups() -> tuple[ItemLookup, ItemLookup]:
    page_keys = np.array([page_key(7, generation, page) for page, generation in enumerate((0, 3, 1, 0, 9))], np.uint64)
    lengths = np.arange(PAGES * STARTS, dtype=np.uint16) % 3
    prefixes = np.arange(PAGES * STARTS, dtype=np.uint16)
    a, b = (ItemLookup(page_keys, prefixes, lengths, STARTS, CONTEXT, use_numba=use) for use in (True, False))
    return a, b


def test_only_keys_of_held_items_have_leaves() -> None:
    keys = np.array(
        [
            page_key(7, 3, 1) | CONTEXT,  # leaf 4
            page_key(7, 2, 1) | CONTEXT,  # an older generation
            page_key(6, 3, 1) | CONTEXT,  # another boot
            page_key(7, 3, 1) | (CONTEXT - 1),  # before the first start row
            page_key(7, 3, 1) | (CONTEXT + STARTS),  # behind the last
            page_key(7, 0, 0) | CONTEXT,  # leaf 0 holds no item
            page_key(7, 9, 4) | (CONTEXT + 3),  # leaf 19
            page_key(7, 9, 400) | CONTEXT,  # no such page
            page_key(7, 3, 1) | CONTEXT,  # leaf 4 again
        ],
        np.uint64,
    )
    keys.flags.writeable = False
    for lookup in _lookups():
        leaves, positions = lookup.held(keys)
        assert leaves.tolist() == [4, 19, 4]
        assert positions.tolist() == [0, 6, 8]


def test_both_versions_agree_on_any_key_and_leaf() -> None:
    compiled, plain = _lookups()
    assert compiled.uses_numba
    assert not plain.uses_numba
    generator = np.random.default_rng(0)
    leaves = generator.integers(0, PAGES * STARTS, 200)
    for a, b in zip(compiled.describe(leaves), plain.describe(leaves), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    keys = np.concatenate((generator.integers(0, 1 << 64, 200, np.uint64), compiled.describe(leaves).keys))
    for left, right in zip(compiled.held(keys), plain.held(keys), strict=True):
        np.testing.assert_array_equal(left, right)
    # A view with steps between is taken too.
    assert compiled.held(keys[::2])[0].tolist() == plain.held(keys[::2])[0].tolist()
    with pytest.raises(IndexError):
        plain.describe(np.array([PAGES * STARTS]))
