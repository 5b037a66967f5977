"""What an update gives back, and when."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex_learner.readback import Readback
from apexrl.algorithms.base import UpdateOutput
from apexrl.experience.batch import BatchBuffer
from tests.unit.experience.test_mirror import SIGNATURE


def _output(device: str, nonfinite: float) -> UpdateOutput:
    priorities = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64, device=device)
    return UpdateOutput(priorities, {"nonfinite": torch.tensor(nonfinite, device=device)})


@pytest.mark.parametrize("nonfinite", [0.0, 1.0])
def test_priorities_come_as_float32_with_the_flag(nonfinite: float) -> None:
    batch = BatchBuffer(SIGNATURE, 3)
    readback = Readback(batch, _output("cpu", nonfinite))
    priorities, skipped = readback.result()
    assert readback.batch is batch
    assert priorities.dtype == np.float32
    np.testing.assert_array_equal(priorities, np.array([0.5, 2.0, 0.0], np.float32))
    assert skipped == bool(nonfinite)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("nonfinite", [0.0, 1.0])
def test_gpu_results_are_asked_for_without_a_sync(nonfinite: float) -> None:
    output = _output("cuda", nonfinite)
    torch.cuda.set_sync_debug_mode("error")
    try:
        readback = Readback(BatchBuffer(SIGNATURE, 3, torch.device("cuda")), output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    priorities, skipped = readback.result()
    np.testing.assert_array_equal(priorities, np.array([0.5, 2.0, 0.0], np.float32))
    assert skipped == bool(nonfinite)
