"""Compiled kernels of :class:`apexrl.replay.sum_tree.SumTree`; the layout is described there.

They do the same float64 operations in the same order as the NumPy versions, so results are equal bit for bit:
no fastmath, and a node's sum is always ((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7)).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.compiled import compiled, readonly, types

_INT = types.int64
_INTS = types.int64[::1]
_INTS_IN = readonly(types.int64)
_FLOATS = types.float64[::1]
_FLOATS_IN = readonly(types.float64)

#: Searches that descend together, so that their cache misses overlap.
SEARCHES_AT_ONCE = 64
#: Lowest levels, which the nearer caches cannot hold of a large tree (the third has 280 KB at two million leaves).
FAR_LEVELS = 2

_1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(i) for i in range(1, 9))

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@compiled((_FLOATS, _INT))
def _sum_of_children(tree: Floats, first: int) -> float:
    left = (tree[first] + tree[first + 1]) + (tree[first + 2] + tree[first + 3])
    right = (tree[first + 4] + tree[first + 5]) + (tree[first + 6] + tree[first + 7])
    total: float = left + right
    return total


@compiled((_INT, _INTS_IN, _FLOATS_IN))
def find_bad(num_leaves: int, leaves: Ints, weights: Floats) -> int:
    """Position of the first leaf out of range or weight that is negative or not finite; -1 = none."""
    for k in range(leaves.size):
        if leaves[k] < 0 or leaves[k] >= num_leaves or not 0.0 <= weights[k] < np.inf:
            return k
    return -1


@compiled((_FLOATS, _INTS, _INTS, _INTS_IN, _FLOATS_IN))
def set_leaves(tree: Floats, offsets: Ints, widths: Ints, leaves: Ints, weights: Floats) -> None:
    """Write leaves in order (of duplicates the last wins), then recompute every ancestor from its children."""
    nodes = np.empty(leaves.size, np.int64)
    count = 0
    previous = np.int64(-1)
    for k in range(leaves.size):
        tree[leaves[k]] = weights[k]
        parent = leaves[k] >> 3
        if parent != previous:
            nodes[count] = parent
            count += 1
            previous = parent
    for level in range(1, offsets.size):
        below = offsets[level - 1]
        here = offsets[level]
        if widths[level] <= count:
            # More touched paths than nodes: the rest of the way up it is cheaper to recompute whole levels.
            for node in range(widths[level]):
                tree[here + node] = _sum_of_children(tree, below + 8 * node)
            count = widths[level]
            continue
        kept = 0
        previous = np.int64(-1)
        for k in range(count):
            node = nodes[k]
            tree[here + node] = _sum_of_children(tree, below + 8 * node)
            if node >> 3 != previous:
                previous = node >> 3
                nodes[kept] = previous
                kept += 1
        count = kept


@compiled((_FLOATS, _INTS, _FLOATS_IN, _INTS, _FLOATS))
def find_leaves(tree: Floats, offsets: Ints, targets: Floats, leaves: Ints, weights: Floats) -> float:
    """Descend from the root for every target; writes the leaf reached and its weight.

    In the far levels one pass over the searches loads a word of each one's node and does nothing with it but add: such
    loads wait for one another in no way, while a processor that also decides which way to go has room for only few
    searches at a time. Without a return value (meaningless) the compiler would leave the loads out.

    Which way a search goes is random and a branch would be mispredicted half the time, so steps are selected by
    arithmetic; multiplying by 0 or 1 is exact. Indices are unsigned, as numba checks signed ones for wrap-around.
    """
    remaining = np.empty(SEARCHES_AT_ONCE, np.float64)
    nodes = np.empty(SEARCHES_AT_ONCE, np.uint64)
    touched = 0.0
    for begin in range(0, targets.size, SEARCHES_AT_ONCE):
        count = min(SEARCHES_AT_ONCE, targets.size - begin)
        for j in range(count):
            remaining[j] = targets[begin + j]
            nodes[j] = 0
        for level in range(offsets.size - 2, -1, -1):
            below = np.uint64(offsets[level])
            if level < FAR_LEVELS:
                for j in range(count):
                    touched += tree[below + _8 * nodes[j]]
            for j in range(count):
                child = below + _8 * nodes[j]
                x = remaining[j]
                left = (tree[child] + tree[child + _1]) + (tree[child + _2] + tree[child + _3])
                right = (tree[child + _4] + tree[child + _5]) + (tree[child + _6] + tree[child + _7])
                go = (x >= left) & (right > 0.0)
                x -= left * go
                child += _4 * np.uint64(go)
                left = tree[child] + tree[child + _1]
                right = tree[child + _2] + tree[child + _3]
                go = (x >= left) & (right > 0.0)
                x -= left * go
                child += _2 * np.uint64(go)
                left = tree[child]
                go = (x >= left) & (tree[child + _1] > 0.0)
                x -= left * go
                child += np.uint64(go)
                remaining[j] = x
                nodes[j] = child - below
        for j in range(count):
            leaves[begin + j] = nodes[j]
            weights[begin + j] = tree[nodes[j]]
    return touched
