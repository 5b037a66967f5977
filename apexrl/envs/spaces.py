"""From gymnasium's spaces to what actors know: one array per observation, and actions in [-1, 1]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple

from apexrl.config import ConfigError
from apexrl.env_types import ContinuousActions
from apexrl.types import Array

#: The last axis of an image space holds its channels; a longer one is no channel axis.
MAX_CHANNELS = 16


class ObservationLayout:
    """How observations of a space become one array per lane.

    * A one-dimensional Box becomes a float32 vector.
    * A uint8 Box [H, W] stays, a uint8 Box [H, W, C] becomes [C, H, W].
    * A Dict or Tuple of Boxes, nested or not, becomes one float32 vector in the order of
      ``gymnasium.spaces.flatten``: parts in the order of the space (which sorts the keys of a plain dictionary), each
      row by row. Numbers are not scaled.

    Raises:
        ConfigError: Another space.
    """

    def __init__(self, space: Space[Any], env_id: str) -> None:
        self._leaves: list[tuple[tuple[Any, ...], int]] = []
        self._channels_last = False
        if isinstance(space, Dict | Tuple):
            self._leaves = [(path, int(np.prod(leaf.shape))) for path, leaf in _leaves(space, space, env_id)]
            self.shape: tuple[int, ...] = (sum(size for _, size in self._leaves),)
            self.dtype = "float32"
        elif isinstance(space, Box) and len(space.shape) == 1:
            self.shape, self.dtype = (int(space.shape[0]),), "float32"
        elif isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 2:
            self.shape, self.dtype = tuple(int(size) for size in space.shape), "uint8"
        elif isinstance(space, Box) and space.dtype == np.uint8 and _is_image(space):
            height, width, channels = (int(size) for size in space.shape)
            self.shape, self.dtype = (channels, height, width), "uint8"
            self._channels_last = True
        else:
            raise _refused(space, env_id)
        if min(self.shape) < 1:
            raise ConfigError(f"env.id is {env_id!r}: its observation space is {space}, which holds no numbers")

    def convert(self, observations: Any) -> Array:
        """[L, *shape] of a batch of observations as gymnasium's vector environments return it."""
        if not self._leaves:
            array: Array = np.asarray(observations)
            if self._channels_last:
                array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
            return array.astype(self.dtype, copy=False)
        parts = []
        for path, size in self._leaves:
            part = observations
            for key in path:
                part = part[key]
            parts.append(np.asarray(part, np.float32).reshape(-1, size))
        return np.concatenate(parts, axis=1)


class BoundedActions:
    """The affine map from [-1, 1] to the bounds of a Box of actions, element by element.

    Raises:
        ConfigError: The Box holds integers, is empty, or has a bound that is not finite.
    """

    def __init__(self, space: Box, env_id: str) -> None:
        described = f"env.id is {env_id!r}: its action space is {space}"
        if not np.issubdtype(space.dtype, np.floating) or int(np.prod(space.shape)) < 1:
            raise ConfigError(f"{described}, must be a Box of at least one floating-point number")
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"{described}, whose bounds must all be finite: actions in [-1, 1] are mapped to them (wrap the "
                "environment to give it bounds)"
            )
        self.spec = ContinuousActions(int(np.prod(space.shape)))
        self._low, self._high = space.low, space.high
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._centre, self._half_width = (low + high) / 2, high / 2 - low / 2

    def to_bounds(self, actions: Array, num_lanes: int) -> Array:
        """Actions [L, A] in [-1, 1] as the space wants them, [L, *space.shape] between its bounds.

        -1 is the lower bound, 0 the middle, 1 the upper bound; what lies beyond is clipped.

        Raises:
            ValueError: Another shape, no floating-point numbers, or a number that is not finite.
        """
        if actions.shape != (num_lanes, self.spec.size) or actions.dtype.kind != "f":
            raise ValueError(
                f"actions have shape {actions.shape} and dtype {actions.dtype}, must be "
                f"({num_lanes}, {self.spec.size}) of floating-point numbers"
            )
        if not np.isfinite(actions).all():
            raise ValueError(f"actions are {actions.tolist()}, must be finite")
        clipped = np.clip(actions.astype(np.float64), -1.0, 1.0).reshape(-1, *self._centre.shape)
        mapped = self._centre + self._half_width * clipped
        # Rounding may leave the bounds by a last digit, which some environments refuse.
        return np.clip(mapped.astype(self._low.dtype), self._low, self._high)


def _leaves(space: Space[Any], whole: Space[Any], env_id: str) -> Iterator[tuple[tuple[Any, ...], Box]]:
    """(path, Box) of every part, in the order in which they are concatenated."""
    if isinstance(space, Box):
        yield (), space
        return
    if not isinstance(space, Dict | Tuple):
        raise _refused(whole, env_id)
    parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
    for key, part in parts:
        for path, leaf in _leaves(part, whole, env_id):
            yield (key, *path), leaf


def _is_image(space: Box) -> bool:
    return len(space.shape) == 3 and space.shape[2] <= MAX_CHANNELS


def _refused(space: Space[Any], env_id: str) -> ConfigError:
    return ConfigError(
        f"env.id is {env_id!r}: its observation space is {space}, must be a one-dimensional Box, a uint8 Box [H, W] "
        f"or [H, W, C] with C <= {MAX_CHANNELS}, or a Dict or Tuple of Boxes"
    )
