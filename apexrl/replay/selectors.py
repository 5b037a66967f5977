"""How items are drawn: proportional to priority, by rank of priority, or uniformly.

All selectors draw at *points*: numbers in [0, 1) that a table has already stratified. Where a point falls depends on
the items only, not on the order in which they came, so a restored table draws the same.
Priorities are raw |TD errors|; they are finite and >= 0, the table sees to that.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from apexrl.replay.sum_tree import SumTree
from apexrl.types import Array, SelectorConfig, SelectorKind

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: epsilon of q = (p + epsilon)^alpha: added before the power, so that items of priority 0 stay drawable.
PRIORITY_EPSILON = 1e-6


class Selector(Protocol):
    """Which leaves hold items, and with which probability each is drawn."""

    @property
    def num_items(self) -> int: ...

    @property
    def mass(self) -> float:
        """Sum of the weights q_i of all items."""
        ...

    def insert(self, leaves: Ints, priorities: Floats) -> None:
        """Add items at distinct leaves [n] that hold none."""
        ...

    def update(self, leaves: Ints, priorities: Floats) -> None:
        """Give items at ``leaves`` [n] new priorities; of a leaf that comes twice the last wins."""
        ...

    def remove(self, leaves: Ints) -> None:
        """Take away the items at distinct ``leaves`` [n]."""
        ...

    def draw(self, points: Floats) -> tuple[Ints, Floats]:
        """Leaves [n] and probabilities [n] of one item per point [n] in [0, 1). ValueError if there is no item."""
        ...

    def probabilities(self, leaves: Ints) -> Floats:
        """Probability with which a draw now returns each of the items at ``leaves`` [n]."""
        ...

    def state(self) -> dict[str, Array]:
        """What :meth:`load_state` needs to draw the same."""
        ...

    def load_state(self, state: dict[str, Array]) -> None: ...


class ProportionalSelector:
    """P(i) = q_i / sum q with q = (p + epsilon)^exponent (Schaul et al. 2016, eq. 1)."""

    def __init__(self, num_leaves: int, exponent: float, epsilon: float = PRIORITY_EPSILON) -> None:
        self._tree = SumTree(num_leaves)
        self._exponent = exponent
        self._epsilon = epsilon
        self._num_items = 0

    @property
    def num_items(self) -> int:
        return self._num_items

    @property
    def mass(self) -> float:
        return self._tree.total

    def insert(self, leaves: Ints, priorities: Floats) -> None:
        self.update(leaves, priorities)
        self._num_items += leaves.size

    def update(self, leaves: Ints, priorities: Floats) -> None:
        # The power is NumPy's with either backend of the tree: two libraries' powers may differ in the last bit.
        self._tree.set(leaves, np.power(priorities + self._epsilon, self._exponent))

    def remove(self, leaves: Ints) -> None:
        self._tree.set(leaves, np.zeros(leaves.size))
        self._num_items -= leaves.size

    def draw(self, points: Floats) -> tuple[Ints, Floats]:
        total = self._tree.total
        leaves, weights = self._tree.search(points * total)
        weights /= total
        return leaves, weights

    def probabilities(self, leaves: Ints) -> Floats:
        return self._tree.get(leaves) / self._tree.total

    def state(self) -> dict[str, Array]:
        return {"weights": self._tree.weights()}

    def load_state(self, state: dict[str, Array]) -> None:
        weights = state["weights"].astype(np.float64, copy=False)
        self._tree.load(weights)
        self._num_items = int(np.count_nonzero(weights))


class UniformSelector:
    """P(i) = 1 / N: a tree of ones, whose sums are exact."""

    def __init__(self, num_leaves: int) -> None:
        self._tree = SumTree(num_leaves)

    @property
    def num_items(self) -> int:
        return int(self._tree.total)

    @property
    def mass(self) -> float:
        return self._tree.total

    def insert(self, leaves: Ints, priorities: Floats) -> None:
        self._tree.set(leaves, np.ones(leaves.size))

    def update(self, leaves: Ints, priorities: Floats) -> None:
        """Priorities play no part here."""

    def remove(self, leaves: Ints) -> None:
        self._tree.set(leaves, np.zeros(leaves.size))

    def draw(self, points: Floats) -> tuple[Ints, Floats]:
        leaves = self._tree.find(points * self._tree.total)
        return leaves, self.probabilities(leaves)

    def probabilities(self, leaves: Ints) -> Floats:
        return np.full(leaves.size, 1.0 / self._tree.total)

    def state(self) -> dict[str, Array]:
        return {"weights": self._tree.weights()}

    def load_state(self, state: dict[str, Array]) -> None:
        self._tree.load(state["weights"].astype(np.float64, copy=False))


class RankBasedSelector:
    """P(i) ~ (1 / rank(i))^exponent, rank 1 = highest priority; equal priorities rank by leaf (ibid., section 3.3).

    Ranks are exact: changes are merged into the sorted order before the next draw, which costs time in proportion to
    the number of items (milliseconds per million), once per draw request however many batches it holds.
    """

    def __init__(self, num_leaves: int, exponent: float) -> None:
        # One sortable number per item: the complement of the float32's bits (which order like the numbers, as none
        # is negative), then the leaf. 0 = no item; no finite priority gives it.
        self._wanted = np.zeros(num_leaves, np.uint64)
        self._ranked = np.zeros(num_leaves, np.uint64)
        self._order = np.empty(0, np.uint64)
        self._changed: list[Ints] = []
        self._num_items = 0
        self._weights = np.arange(1, num_leaves + 1, dtype=np.float64) ** -exponent
        self._cumulative = np.cumsum(self._weights)

    @property
    def num_items(self) -> int:
        return self._num_items

    @property
    def mass(self) -> float:
        return float(self._cumulative[self._num_items - 1]) if self._num_items else 0.0

    def insert(self, leaves: Ints, priorities: Floats) -> None:
        self.update(leaves, priorities)
        self._num_items += leaves.size

    def update(self, leaves: Ints, priorities: Floats) -> None:
        bits = priorities.astype(np.float32).view(np.uint32)
        self._wanted[leaves] = ((~bits).astype(np.uint64) << np.uint64(32)) | leaves.astype(np.uint64)
        self._changed.append(leaves.copy())

    def remove(self, leaves: Ints) -> None:
        self._wanted[leaves] = 0
        self._changed.append(leaves.copy())
        self._num_items -= leaves.size

    def draw(self, points: Floats) -> tuple[Ints, Floats]:
        if not self._num_items:
            raise ValueError("there is no item: nothing can be drawn")
        self._merge()
        total = self.mass
        positions = np.searchsorted(self._cumulative[: self._num_items], points * total, side="right")
        positions = np.minimum(positions, self._num_items - 1)
        leaves = (self._order[positions] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return leaves, self._weights[positions] / total

    def probabilities(self, leaves: Ints) -> Floats:
        self._merge()
        return self._weights[np.searchsorted(self._order, self._ranked[leaves])] / self.mass

    def _merge(self) -> None:
        """Bring the order up to date."""
        if not self._changed:
            return
        changed = np.unique(np.concatenate(self._changed))
        self._changed = []
        if changed.size > self._order.size // 8:
            self._order = np.sort(self._wanted[self._wanted != 0])
        else:
            old = self._ranked[changed]
            kept = np.delete(self._order, np.searchsorted(self._order, old[old != 0]))
            new = np.sort(self._wanted[changed])
            new = new[np.searchsorted(new, 1) :]
            self._order = np.insert(kept, np.searchsorted(kept, new), new)
        self._ranked[changed] = self._wanted[changed]

    def state(self) -> dict[str, Array]:
        return {"ranked": self._wanted.copy()}

    def load_state(self, state: dict[str, Array]) -> None:
        self._wanted[:] = state["ranked"]
        self._ranked[:] = self._wanted
        self._order = np.sort(self._wanted[self._wanted != 0])
        self._changed = []
        self._num_items = self._order.size


class MixtureSelector:
    """P'(i) = (1 - u) P(i) + u / N: another selector with a share u of uniform draws.

    Points below 1 - u go to the other selector, the rest are uniform, so that a batch is stratified over both.
    """

    def __init__(self, base: Selector, num_leaves: int, uniform_mixture: float) -> None:
        self._base = base
        self._uniform = UniformSelector(num_leaves)
        self._mixture = uniform_mixture

    @property
    def num_items(self) -> int:
        return self._base.num_items

    @property
    def mass(self) -> float:
        return self._base.mass

    def insert(self, leaves: Ints, priorities: Floats) -> None:
        self._base.insert(leaves, priorities)
        self._uniform.insert(leaves, priorities)

    def update(self, leaves: Ints, priorities: Floats) -> None:
        self._base.update(leaves, priorities)

    def remove(self, leaves: Ints) -> None:
        self._base.remove(leaves)
        self._uniform.remove(leaves)

    def draw(self, points: Floats) -> tuple[Ints, Floats]:
        share = 1.0 - self._mixture
        uniform = points >= share
        leaves = np.empty(points.size, np.int64)
        if not uniform.all():
            leaves[~uniform] = self._base.draw(points[~uniform] / share)[0]
        leaves[uniform] = self._uniform.draw((points[uniform] - share) / self._mixture)[0]
        return leaves, self.probabilities(leaves)

    def probabilities(self, leaves: Ints) -> Floats:
        return (1.0 - self._mixture) * self._base.probabilities(leaves) + self._mixture / self.num_items

    def state(self) -> dict[str, Array]:
        base = {f"base/{name}": value for name, value in self._base.state().items()}
        return base | {f"uniform/{name}": value for name, value in self._uniform.state().items()}

    def load_state(self, state: dict[str, Array]) -> None:
        for part, selector in (("base/", self._base), ("uniform/", self._uniform)):
            selector.load_state({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})


def make_selector(config: SelectorConfig, num_leaves: int) -> Selector:
    """The selector that a table's configuration names."""
    if config.kind is SelectorKind.UNIFORM:
        return UniformSelector(num_leaves)
    base: Selector
    if config.kind is SelectorKind.RANK_BASED:
        base = RankBasedSelector(num_leaves, config.exponent)
    else:
        base = ProportionalSelector(num_leaves, config.exponent)
    if config.uniform_mixture == 0.0:
        return base
    return MixtureSelector(base, num_leaves, config.uniform_mixture)
