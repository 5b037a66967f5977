"""Sum tree: weights at the leaves, drawn in proportion (Schaul et al. 2016, appendix B.2.1).

The tree is binary, and every parent is recomputed as left + right, never by adding differences, so that partial sums
do not drift. Only every third level is kept: a kept node has eight children, which fill one cache line, and its sum
is ((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7)), the very number that the binary tree would hold. A search at two
million leaves thus touches 8 cache lines instead of 21.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Backend = Literal["auto", "numba", "numpy"]

_CHILDREN = np.arange(8)


def _numba_is_available() -> bool:
    try:
        import apexrl.replay.sum_tree_kernels  # noqa: F401
    except ImportError:
        return False
    return True


class SumTree:
    """Float64 weights of ``num_leaves`` leaves, all 0 at first.

    ``backend`` numba compiles the two hot operations and releases the GIL in them; numpy gives the same bits more
    slowly; auto takes numba if it can be imported.
    """

    def __init__(self, num_leaves: int, backend: Backend = "auto") -> None:
        if num_leaves < 1:
            raise ValueError(f"num_leaves is {num_leaves}, must be at least 1")
        if backend not in ("auto", "numba", "numpy"):
            raise ValueError(f"backend is {backend!r}, must be 'auto', 'numba' or 'numpy'")
        self.num_leaves = num_leaves
        self.uses_numba = backend == "numba" or (backend == "auto" and _numba_is_available())
        widths = [num_leaves]
        while len(widths) == 1 or widths[-1] > 1:
            widths.append(-(-widths[-1] // 8))
        # Each level is padded with zeros to whole nodes of eight, so any number of leaves works.
        padded = [-(-width // 8) * 8 for width in widths]
        self._widths = np.array(widths, np.int64)
        self._offsets = np.concatenate(([0], np.cumsum(padded)[:-1])).astype(np.int64)
        self._root = int(self._offsets[-1])
        # A node's children share a cache line only if the array begins at one.
        raw = np.zeros(sum(padded) + 8, np.float64)
        shift = (-raw.ctypes.data % 64) // 8
        self._tree: Floats = raw[shift : shift + sum(padded)]

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._tree[self._root])

    def get(self, leaves: Ints) -> Floats:
        """Weights of ``leaves`` [n]."""
        self._require_in_range(leaves)
        return self._tree[leaves]

    def weights(self) -> Floats:
        """A copy of all weights [num_leaves]."""
        return self._tree[: self.num_leaves].copy()

    def set(self, leaves: Ints, weights: Floats) -> None:
        """Set weights [n] of leaves [n]; of a leaf that comes twice the last weight wins.

        Raises IndexError for a leaf out of range and ValueError for a weight that is negative or not finite; nothing
        is changed then.
        """
        leaves = np.ascontiguousarray(leaves, np.int64)
        weights = np.ascontiguousarray(weights, np.float64)
        if leaves.shape != weights.shape or leaves.ndim != 1:
            raise ValueError(f"leaves {leaves.shape} and weights {weights.shape} must be vectors of one length")
        if leaves.size == 0:
            return
        if self.uses_numba:
            from apexrl.replay import sum_tree_kernels

            if sum_tree_kernels.find_bad(self.num_leaves, leaves, weights) >= 0:
                self._require_valid(leaves, weights)
            sum_tree_kernels.set_leaves(self._tree, self._offsets, self._widths, leaves, weights)
            return
        self._require_valid(leaves, weights)
        self._tree[leaves] = weights
        nodes = np.unique(leaves >> 3)
        for level in range(1, self._offsets.size):
            self._tree[self._offsets[level] + nodes] = self._sums(level, nodes)
            nodes = np.unique(nodes >> 3)

    def load(self, weights: Floats) -> None:
        """Replace all weights [num_leaves] and rebuild the sums."""
        if weights.shape != (self.num_leaves,):
            raise ValueError(f"weights have shape {weights.shape}, must have ({self.num_leaves},)")
        self._require_valid(np.arange(self.num_leaves), weights)
        self._tree[: self.num_leaves] = weights
        for level in range(1, self._offsets.size):
            nodes = np.arange(self._widths[level])
            self._tree[self._offsets[level] + nodes] = self._sums(level, nodes)

    def find(self, targets: Floats) -> Ints:
        """Leaves at which the running sum of weights first exceeds ``targets`` [n] in [0, total].

        A target at or, by rounding, beyond the total finds the last leaf above 0. A leaf of weight 0 is never found.
        """
        return self.search(targets)[0]

    def search(self, targets: Floats) -> tuple[Ints, Floats]:
        """As :meth:`find`, with the weights of the leaves found. Raises ValueError if all weights are 0."""
        if not self.total > 0.0:
            raise ValueError("the tree has no weight above 0: nothing can be drawn")
        targets = np.ascontiguousarray(targets, np.float64)
        if self.uses_numba:
            from apexrl.replay import sum_tree_kernels

            leaves = np.empty(targets.size, np.int64)
            weights = np.empty(targets.size, np.float64)
            sum_tree_kernels.find_leaves(self._tree, self._offsets, targets, leaves, weights)
            return leaves, weights
        return self._search_numpy(targets)

    def sample(self, uniforms: Floats) -> tuple[Ints, Floats]:
        """Draw leaves in proportion to their weights, one per stratum: target k is (k + u_k) / n of the total.

        ``uniforms`` [n] are in [0, 1). Returns leaves [n] and their weights [n].
        """
        points = (np.arange(uniforms.size) + uniforms) / uniforms.size
        return self.search(points * self.total)

    def check_valid(self) -> None:
        """Raise ValueError unless every parent is exactly the sum of its children and padding is 0."""
        for level in range(self._offsets.size):
            begin, width = int(self._offsets[level]), int(self._widths[level])
            if np.any(self._tree[begin + width : begin + -(-width // 8) * 8] != 0.0):
                raise ValueError(f"level {level} has a weight in its padding")
            if level and np.any(self._tree[begin : begin + width] != self._sums(level, np.arange(width))):
                raise ValueError(f"level {level} has a node that is not the sum of its children")
        leaves = self._tree[: self.num_leaves]
        if not np.all((leaves >= 0.0) & np.isfinite(leaves)):
            raise ValueError("a leaf is negative or not finite")

    def _sums(self, level: int, nodes: Ints) -> Floats:
        """Sums of the children of ``nodes`` of a level, in the one order that all code here keeps to."""
        children = self._tree[self._offsets[level - 1] + 8 * nodes[:, None] + _CHILDREN]
        pairs = children[:, 0::2] + children[:, 1::2]
        fours = pairs[:, 0::2] + pairs[:, 1::2]
        sums: Floats = fours[:, 0] + fours[:, 1]
        return sums

    def _search_numpy(self, targets: Floats) -> tuple[Ints, Floats]:
        x = targets.copy()
        nodes = np.zeros(targets.size, np.int64)
        rows = np.arange(targets.size)
        for level in range(self._offsets.size - 2, -1, -1):
            children = self._tree[self._offsets[level] + 8 * nodes[:, None] + _CHILDREN]
            pairs = children[:, 0::2] + children[:, 1::2]
            fours = pairs[:, 0::2] + pairs[:, 1::2]
            node = np.zeros(targets.size, np.int64)
            for sums in (fours, pairs, children):
                left, right = sums[rows, 2 * node], sums[rows, 2 * node + 1]
                go = (x >= left) & (right > 0.0)
                x -= np.where(go, left, 0.0)
                node = 2 * node + go
            nodes = 8 * nodes + node
        return nodes, self._tree[nodes]

    def _require_in_range(self, leaves: Ints) -> None:
        if leaves.size and not (int(leaves.min()) >= 0 and int(leaves.max()) < self.num_leaves):
            raise IndexError(f"a leaf is out of range: must be in [0, {self.num_leaves})")

    def _require_valid(self, leaves: Ints, weights: Floats) -> None:
        self._require_in_range(leaves)
        if np.count_nonzero((weights >= 0.0) & (weights < np.inf)) != weights.size:
            raise ValueError("a weight is negative or not finite")
