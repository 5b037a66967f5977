"""Frame stacks on the actor's side: what the policy sees.

The learner rebuilds the same arrays from rows (:func:`apexrl.ops.frames.stack_frames`), bit for bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apexrl.env_types import EnvSpec
from apexrl.types import Array, Padding


class FrameStacker:
    """Keeps the last ``stack`` frames of every lane.

    Plane order is oldest first, newest last; rows before an episode's first show the padding of the environment.
    """

    def __init__(self, num_lanes: int, spec: EnvSpec, stack: int) -> None:
        """Lanes begin blank; the first push must mark all of them as ``first``."""
        if num_lanes < 1:
            raise ValueError(f"num_lanes is {num_lanes}, must be at least 1")
        if stack < 1:
            raise ValueError(f"stack is {stack}, must be at least 1")
        if not spec.observation_shape:
            raise ValueError("observation_shape is (), must have at least one axis")
        self._padding = spec.padding
        self._frame_shape = (num_lanes, *spec.observation_shape)
        self._output_shape = (num_lanes, *spec.network_input_shape(stack))
        self._frames = np.zeros((num_lanes, stack, *spec.observation_shape), dtype=spec.observation_dtype)

    def push(self, observations: Array, first: npt.NDArray[np.bool_]) -> Array:
        """Add one frame per lane and return the stacks.

        Args:
            observations: [L, *observation_shape], one unstacked frame per lane.
            first: [L], lanes whose frame is the first of an episode; what came before is forgotten.

        Returns:
            [L, *spec.network_input_shape(stack)]. Later pushes read it but never write to it: callers may keep it and
            must not change it.
        """
        if observations.shape != self._frame_shape or observations.dtype != self._frames.dtype:
            raise ValueError(
                f"observations are {observations.dtype}{observations.shape}, "
                f"must be {self._frames.dtype}{self._frame_shape}"
            )
        if first.shape != self._frame_shape[:1]:
            raise ValueError(f"first has shape {first.shape}, must be {self._frame_shape[:1]}")
        frames = np.empty_like(self._frames)
        frames[:, :-1] = self._frames[:, 1:]
        frames[:, -1] = observations
        lanes = np.flatnonzero(first)
        if lanes.size:
            frames[lanes, :-1] = 0 if self._padding is Padding.ZEROS else frames[lanes, -1:]
        self._frames = frames
        return frames.reshape(self._output_shape)
