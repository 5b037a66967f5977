"""What an environment is to actors, algorithms and networks: its spec, its steps, and how it is driven.

Nothing in this module imports torch or an environment. See :mod:`apexrl.types` for *lane* and *row*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apexrl.types import Array, Padding


@dataclass(frozen=True)
class DiscreteActions:
    """One of ``count`` actions, numbered from 0."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"actions.count is {self.count}, must be at least 1")

    @property
    def dtype(self) -> str:
        """Element type of an action in a row."""
        return "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an action in a row."""
        return ()


@dataclass(frozen=True)
class ContinuousActions:
    """Vectors of ``size`` numbers in [-1, 1]; the environment maps them to its own bounds."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"actions.size is {self.size}, must be at least 1")

    @property
    def dtype(self) -> str:
        """Element type of an action in a row."""
        return "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an action in a row."""
        return (self.size,)


ActionSpec = DiscreteActions | ContinuousActions


@dataclass(frozen=True)
class EnvSpec:
    """What networks and tables must know of an environment.

    ``observation_shape`` is that of one unstacked frame; images are channels first. ``action_repeat`` is the number
    of frames one step takes (4 on Atari).
    """

    observation_shape: tuple[int, ...]
    observation_dtype: str
    actions: ActionSpec
    action_repeat: int = 1
    padding: Padding = Padding.ZEROS

    @property
    def num_actions(self) -> int:
        """Number of discrete actions; ValueError for a continuous space."""
        if not isinstance(self.actions, DiscreteActions):
            raise ValueError(f"the environment has {self.actions}, which cannot be counted; DiscreteActions are needed")
        return self.actions.count

    def network_input_shape(self, stack: int) -> tuple[int, ...]:
        """Shape of the stacked observation: frames join the channel axis, vectors are concatenated."""
        if len(self.observation_shape) == 1:
            return (stack * self.observation_shape[0],)
        if len(self.observation_shape) == 2:
            return (stack, *self.observation_shape)
        channels, *rest = self.observation_shape
        return (stack * channels, *rest)


class EnvStep(NamedTuple):
    """One step of a vector environment; every array has a leading axis of lanes [L].

    ``observation`` is the observation after the step, one frame, also the true final one of an episode that ended.
    Autoreset is NEXT_STEP: the step after an end ignores its action and returns the first observation of the next
    episode with reward 0. ``life_lost`` marks a lost life in a game that goes on.
    """

    observation: Array
    reward: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    life_lost: npt.NDArray[np.bool_]


class VectorEnv(Protocol):
    """A batch of environments in lockstep, with NEXT_STEP autoreset (see :class:`EnvStep`)."""

    @property
    def spec(self) -> EnvSpec: ...

    @property
    def num_lanes(self) -> int: ...

    def reset(self, seed: int) -> Array:
        """Start all lanes; returns the first observations [L, *observation_shape]."""
        ...

    def step(self, actions: Array) -> EnvStep:
        """Step all lanes by ``actions``: [L] int64 for discrete spaces, [L, A] float32 for continuous ones."""
        ...

    def render(self) -> Array:
        """An RGB picture [H, W, 3] uint8 of lane 0."""
        ...

    def close(self) -> None: ...
