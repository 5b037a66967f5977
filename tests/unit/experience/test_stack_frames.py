from __future__ import annotations

import numpy as np
import pytest
import torch

from apexrl.ops.frames import stack_frames
from apexrl.types import Padding

FRAMES = torch.arange(1, 13, dtype=torch.uint8).reshape(2, 6, 1, 1, 1)  # row t of window b holds 6 b + t + 1
AGES = torch.from_numpy(np.array([[7, 8, 9, 10, 11, 12], [5, 6, 0, 1, 2, 3]], dtype=np.uint16))


@pytest.mark.parametrize(
    ("index", "zeros", "repeated"),
    [
        (3, [[2, 3, 4], [0, 9, 10]], [[2, 3, 4], [9, 9, 10]]),
        (torch.tensor([5, 2]), [[4, 5, 6], [0, 0, 9]], [[4, 5, 6], [9, 9, 9]]),
        (torch.tensor([2, 5]), [[1, 2, 3], [10, 11, 12]], [[1, 2, 3], [10, 11, 12]]),
    ],
)
def test_planes_do_not_reach_across_a_reset(
    index: int | torch.Tensor, zeros: list[list[int]], repeated: list[list[int]]
) -> None:
    for padding, expected in ((Padding.ZEROS, zeros), (Padding.REPEAT_FIRST, repeated)):
        stacked = stack_frames(FRAMES, AGES, index, 3, padding)
        assert (stacked.shape, stacked.dtype) == ((2, 3, 1, 1), torch.uint8)
        assert stacked[:, :, 0, 0].tolist() == expected


@pytest.mark.parametrize(("shape", "stacked"), [((3,), (6,)), ((4, 5), (2, 4, 5)), ((3, 4, 5), (6, 4, 5))])
def test_shapes(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    frames = torch.randn(2, 4, *shape)
    result = stack_frames(frames, torch.full((2, 4), 9), 2, 2, Padding.ZEROS)
    assert result.shape[1:] == stacked
    torch.testing.assert_close(result.reshape(2, 2, *shape), frames[:, 1:3], rtol=0, atol=0)


def test_the_result_has_memory_of_its_own() -> None:
    frames = FRAMES.clone()
    for stack in (1, 2):
        stacked = stack_frames(frames, AGES, 3, stack, Padding.ZEROS)
        stacked.fill_(99)
    assert torch.equal(frames, FRAMES)


@pytest.mark.parametrize("index", [1, 6, -1, torch.tensor([2, 6]), torch.tensor([1, 3]), torch.tensor([2])])
def test_rows_outside_the_window_are_refused(index: int | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        stack_frames(FRAMES, AGES, index, 3, Padding.ZEROS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("padding", list(Padding))
def test_a_gpu_gives_the_same_stacks(padding: Padding) -> None:
    index = torch.tensor([5, 2])
    expected = stack_frames(FRAMES, AGES, index, 3, padding)
    found = stack_frames(FRAMES.cuda(), AGES.cuda(), index.cuda(), 3, padding)
    assert torch.equal(found.cpu(), expected)
