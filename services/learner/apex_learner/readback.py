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
    """The report of one update on its way to the host; used again and again.

    On CUDA the copy is asked for at once and waited for in :meth:`result`, by when the device works on a later update.

    Args:
        batch_size: B.
        device: of the updates.
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._report = torch.zeros(batch_size + 1, dtype=torch.float32, pin_memory=cuda)
        self._done = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self._batch: BatchBuffer | None = None

    def ask(self, batch: BatchBuffer, output: UpdateOutput) -> None:
        """Begin to read what the update of ``batch`` reports."""
        self._batch = batch
        self._report.copy_(output.report, non_blocking=True)
        if self._done is not None:
            self._done.record()

    def result(self) -> tuple[BatchBuffer, npt.NDArray[np.float32], bool]:
        """The batch, priorities [B] and whether the update was skipped. Nothing on the device reads the batch then."""
        assert self._batch is not None
        batch, self._batch = self._batch, None
        if self._done is not None:
            self._done.synchronize()
        report = self._report.numpy().copy()
        return batch, report[:-1], bool(report[-1] != 0.0)
