"""Gradients of a batch on several CPU threads, each with a part of the batch to itself.

Torch's own threads share every operation, and each operation ends with all of them waiting for the last. Beside other
processes on the same cores the last is often not running at all. Threads that take a part of the batch through the
whole forward and backward pass meet once per update (docs/adr/0005-threads-split-the-batch.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Output = TypeVar("Output")


class BatchParallel(Generic[Output]):
    """Computes gradients of a loss that is a mean over the rows of a batch.

    The parts and the order in which their gradients are added are fixed, so a result depends on the number of threads
    but never on their timing. On another device than the CPU the batch stays whole.

    Args:
        num_threads: parts of a batch, and threads: the caller's and ``num_threads - 1`` of this object's own.
    """

    def __init__(self, num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}, must be at least 1")
        self.num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None

    def gradients(
        self,
        loss: Callable[[slice], tuple[torch.Tensor, Output]],
        parameters: Sequence[torch.nn.Parameter],
        batch_size: int,
    ) -> tuple[list[Output], list[torch.Tensor]]:
        """Differentiate the mean loss of ``batch_size`` rows.

        Args:
            loss: rows of the batch -> (mean loss of these rows, whatever else is wanted of them). Called on several
                threads at once.
            parameters: what to differentiate with respect to; all must matter to the loss.
            batch_size: B.

        Returns:
            What ``loss`` gave for each part, in the order of the rows, and the gradient of every parameter, laid out in
            memory as the parameter is. Convolutions leave theirs in another order, and torch's fused optimisers walk
            both as if they were one.
        """

        def part_of(rows: slice) -> tuple[Output, tuple[torch.Tensor, ...]]:
            value, output = loss(rows)
            share = torch.full_like(value, (rows.stop - rows.start) / batch_size)
            return output, torch.autograd.grad(value, parameters, share)

        on_cpu = parameters[0].device.type == "cpu"
        first, *others = split_rows(batch_size, self.num_threads if on_cpu else 1)
        waiting = [self._executor().submit(part_of, rows) for rows in others]
        results = [part_of(first), *(future.result() for future in waiting)]
        gradients = list(results[0][1])
        for _, more in results[1:]:
            torch._foreach_add_(gradients, list(more))
        laid_out = [_as_laid_out(*pair) for pair in zip(gradients, parameters, strict=True)]
        return [output for output, _ in results], laid_out

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_threads - 1, thread_name_prefix="gradient")
        return self._pool


def _as_laid_out(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``gradient`` with the strides of ``parameter``."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def split_rows(batch_size: int, num_parts: int) -> list[slice]:
    """Rows 0 .. ``batch_size`` in at most ``num_parts`` neighbouring parts of almost equal size, none empty."""
    parts = min(num_parts, batch_size)
    bounds = [batch_size * part // parts for part in range(parts + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
