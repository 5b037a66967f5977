"""What comes back from an update to the host, without the host waiting for the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from apexrl.algorithms.base import UpdateOutput
from apexrl.experience.batch import BatchBuffer


class Learned(NamedTuple):
    """A batch that is done with: its memory may be written again."""

    batch: BatchBuffer
    priorities: npt.NDArray[np.float32] | None
    """[B] new raw priorities of its items; None if the update was skipped."""


class Readback:
    """Priorities and the ``nonfinite`` flag of one update on their way to the host.

    On CUDA the copy is asked for at once and waited for in :meth:`result`, by when the device works on the next update.
    """

    def __init__(self, batch: BatchBuffer, output: UpdateOutput) -> None:
        self.batch = batch
        priorities = output.priorities
        self._done: torch.cuda.Event | None = None
        if priorities.device.type == "cpu":
            self._priorities = priorities.to(torch.float32)
            self._nonfinite = output.metrics["nonfinite"]
            return
        values = torch.cat([priorities.to(torch.float32), output.metrics["nonfinite"].to(torch.float32).reshape(1)])
        host = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(values, non_blocking=True)
        self._done = torch.cuda.current_stream(values.device).record_event()
        self._priorities, self._nonfinite = host[:-1], host[-1]

    def result(self) -> tuple[npt.NDArray[np.float32], bool]:
        """Priorities [B], and whether the update was skipped. Afterwards nothing on the device reads the batch."""
        if self._done is not None:
            self._done.synchronize()
        return self._priorities.numpy(), float(self._nonfinite) != 0.0
