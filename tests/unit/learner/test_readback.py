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
    return UpdateOutput.of(priorities, {"loss": torch.tensor(1.0), "nonfinite": torch.tensor(nonfinite, device=device)})


def test_an_output_is_one_piece() -> None:
    output = _output("cpu", 1.0)
    assert output.report.tolist() == [0.5, 2.0, 0.0, 1.0]
    assert output.priorities.tolist() == [0.5, 2.0, 0.0]
    assert {name: float(value) for name, value in output.metrics.items()} == {"loss": 1.0, "nonfinite": 1.0}


@pytest.mark.parametrize("nonfinite", [0.0, 1.0])
def test_priorities_come_as_float32_with_the_flag(nonfinite: float) -> None:
    batch = BatchBuffer(SIGNATURE, 3)
    readback = Readback(3, torch.device("cpu"))
    readback.ask(batch, _output("cpu", nonfinite))
    asked, priorities, skipped = readback.result()
    assert asked is batch
    assert priorities.dtype == np.float32
    np.testing.assert_array_equal(priorities, np.array([0.5, 2.0, 0.0], np.float32))
    assert skipped == bool(nonfinite)


def test_results_outlast_the_next_use() -> None:
    batch, readback = BatchBuffer(SIGNATURE, 3), Readback(3, torch.device("cpu"))
    readback.ask(batch, _output("cpu", 0.0))
    _, first, _ = readback.result()
    other = torch.ones(3)
    readback.ask(batch, UpdateOutput.of(other, {"nonfinite": torch.tensor(0.0)}))
    readback.result()
    assert first.tolist() == [0.5, 2.0, 0.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("nonfinite", [0.0, 1.0])
def test_gpu_results_are_asked_for_without_a_sync(nonfinite: float) -> None:
    output = _output("cuda", nonfinite)
    batch = BatchBuffer(SIGNATURE, 3, torch.device("cuda"))
    readback = Readback(3, torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        readback.ask(batch, output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    _, priorities, skipped = readback.result()
    np.testing.assert_array_equal(priorities, np.array([0.5, 2.0, 0.0], np.float32))
    assert skipped == bool(nonfinite)
