"""What a service may know of an algorithm: one protocol and the tensors that cross it.

An algorithm is one file in this package that fills :class:`Algorithm`, and one line in ``REGISTRY``. Services never
look past this protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from apexrl.env_types import EnvSpec
from apexrl.experience.batch import WindowBatch as WindowBatch
from apexrl.experience.windows import WindowRule
from apexrl.types import Array, ItemWindows, TableConfig

#: Recurrent state of all lanes, name -> [L, ...]. The actor zeroes a lane's part where an episode begins. Feed-forward
#: policies have none: {}.
CoreState = dict[str, Array]


class ActorOutput(NamedTuple):
    """One policy evaluation of all lanes; every array has a leading axis [L]."""

    actions: Array
    """[L] int64 for discrete spaces, [L, A] float32 in [-1, 1] for continuous ones."""
    step_columns: dict[str, Array]
    """Columns of the row besides those of the environment (e.g. behaviour logits)."""
    item_columns: dict[str, Array]
    """Columns kept once per item: the value at the row ``start - prefix`` (e.g. a core state)."""
    scratch: dict[str, Array]
    """What initial priorities will need. Stays in the actor."""
    core_state: CoreState


class UpdateOutput(NamedTuple):
    """What an update returns; tensors stay on the device, and the next update may write their memory again."""

    priorities: torch.Tensor
    """[B] f32 new raw priorities."""
    metrics: dict[str, torch.Tensor]
    """Scalars: at least ``loss``, ``grad_norm`` and ``nonfinite`` (1 if the update was skipped)."""
    report: torch.Tensor
    """[B + 1] f32: ``priorities`` and ``nonfinite``, in one piece for the host to read."""

    @classmethod
    def of(cls, priorities: torch.Tensor, metrics: dict[str, torch.Tensor]) -> UpdateOutput:
        """An output whose ``priorities`` and ``nonfinite`` are parts of its report."""
        report = torch.cat([priorities.to(torch.float32), metrics["nonfinite"].to(torch.float32).reshape(1)])
        return cls(report[:-1], metrics | {"nonfinite": report[-1]}, report)


@dataclass
class LearnerState:
    """All that an update reads and changes, and all that a checkpoint holds. ``modules["online"]`` is published."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    """Learner updates done."""
    generators: dict[str, torch.Generator] = field(default_factory=dict)


@dataclass(frozen=True)
class TableSpec:
    """A table an algorithm needs and its share of every batch. Shares of all tables sum to 1."""

    config: TableConfig
    windows: WindowRule
    """Which item, if any, each start row begins."""
    batch_share: float = 1.0


class Algorithm(Protocol):
    """See docs/architecture.md, "Adding an algorithm"."""

    def make_networks(self) -> nn.Module:
        """The module whose parameters are published: what :meth:`act` needs."""
        ...

    def tables(self) -> tuple[TableSpec, ...]: ...

    def initial_core_state(self, num_lanes: int) -> CoreState:
        """Zeros of the right shapes; {} for a feed-forward policy."""
        ...

    def act(
        self,
        networks: nn.Module,
        observations: torch.Tensor,
        core_state: CoreState,
        epsilons: npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> ActorOutput:
        """Choose actions for stacked observations [L, ...].

        ``epsilons`` [L] in [0, 1] is how much each lane explores, by the algorithm's own measure (share of random
        actions, standard deviation of noise); 0 = not at all, as evaluations want.
        """
        ...

    def greedy_policy(self, networks: nn.Module) -> nn.Module:
        """What :meth:`act` does without exploration, as a module: stacked observations [B, ...] -> actions [B, ...].

        It shares its parameters with ``networks``, and is what ``apex export`` writes.
        """
        ...

    def initial_priorities(self, windows: ItemWindows) -> npt.NDArray[np.float32]:
        """Raw priorities [I], finite and >= 0, from what :meth:`act` left in ``scratch``."""
        ...

    def init(self, networks: nn.Module, seed: int) -> LearnerState:
        """A fresh learner state around ``networks``."""
        ...

    def update(self, state: LearnerState, batch: WindowBatch) -> UpdateOutput:
        """One learner step. The only place where ``state`` changes."""
        ...


class AlgorithmFactory(Protocol):
    """A line of the registry: the class of an algorithm's configuration and how to make the algorithm."""

    Config: type[Any]

    def __call__(self, config: Any, spec: EnvSpec) -> Algorithm:
        """``config`` is the whole :class:`~apexrl.config.ExperimentConfig`."""
        ...
