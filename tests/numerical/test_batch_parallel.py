"""Gradients on several threads are those of the whole batch."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apexrl.ops.batch_parallel import PART_BYTES, BatchParallel, split_rows


def model() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Conv2d(2, 4, 3)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 1)).double()


def images(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(size, 2, 8, 8, generator=generator, dtype=torch.float64)
    return plain.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("largest_part", "least_parts"), [(7, 1), (2, 4), (1, 7)])
def test_gradients_of_parts_are_those_of_the_whole(num_threads: int, largest_part: int, least_parts: int) -> None:
    network, batch = model(), images(7)
    parameters = list(network.parameters())
    expected = torch.autograd.grad(network(batch).square().mean(), parameters)

    def loss(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        values = network(batch[rows])
        return values.square().mean(), values.detach()

    parallel = BatchParallel[torch.Tensor](num_threads, row_values=PART_BYTES // 4 // largest_part)
    outputs, gradients = parallel.gradients(loss, parameters, len(batch))
    assert min(7, num_threads) <= len(outputs)
    assert least_parts <= len(outputs)
    assert all(len(output) <= largest_part for output in outputs)
    torch.testing.assert_close(torch.cat(outputs), network(batch).detach())
    for gradient, whole, parameter in zip(gradients, expected, parameters, strict=True):
        torch.testing.assert_close(gradient, whole, rtol=1e-12, atol=1e-12)
        assert gradient.stride() == parameter.stride()


def test_parts_run_at_the_same_time_on_threads_of_their_own() -> None:
    parameter = nn.Parameter(torch.ones(()))
    together = threading.Barrier(3, timeout=10.0)

    def loss(rows: slice) -> tuple[torch.Tensor, int]:
        together.wait()
        return parameter * 2.0, threading.get_ident()

    outputs, (gradient,) = BatchParallel[int](3, row_values=1).gradients(loss, [parameter], 3)
    assert outputs[0] == threading.get_ident()
    assert len(set(outputs)) == 3
    assert gradient.item() == pytest.approx(2.0)


def test_an_error_in_a_part_reaches_the_caller() -> None:
    parameter = nn.Parameter(torch.ones(()))

    def loss(rows: slice) -> tuple[torch.Tensor, None]:
        if rows.start > 0:
            raise ValueError("the second part is broken")
        return parameter * 1.0, None

    with pytest.raises(ValueError, match="the second part is broken"):
        BatchParallel[None](2, row_values=1).gradients(loss, [parameter], 4)


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_threads is 0"):
        BatchParallel[None](0, row_values=1)


@given(st.integers(1, 300), st.integers(1, 40))
def test_parts_cover_all_rows_once(batch_size: int, num_parts: int) -> None:
    parts = split_rows(batch_size, num_parts)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(batch_size))
    sizes = {part.stop - part.start for part in parts}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == min(num_parts, batch_size)
