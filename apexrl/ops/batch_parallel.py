"""Gradients of a batch on several CPU threads, each with a part of the batch to itself.

Torch's own threads share every operation, and each operation ends with all of them waiting for the last. Beside other
processes on the same cores the last is often not running at all. Threads that take a part of the batch through the
whole forward and backward pass meet once per update (docs/adr/0005-threads-split-the-batch.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Output = TypeVar("Output")

#: What a convolution leaves behind for the next operation should still be in the core's caches then: a batch of 512
#: Atari stacks in four parts takes a seventh less CPU time than in one.
PART_BYTES = 1 << 24


class BatchParallel(Generic[Output]):
    """Computes gradients of a loss that is a mean over the rows of a batch.

    The parts and the order in which their gradients are added are fixed, so a result depends on the number of threads
    and the size of parts but never on timing. On another device than the CPU the batch stays whole.

    Args:
        num_threads: the caller's and ``num_threads - 1`` of this object's own. Each takes as many parts of a batch.
        row_values: numbers in a row of the loss's input. A part's input takes :data:`PART_BYTES` at most, as float32.
    """

    def __init__(self, num_threads: int, row_values: int) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}, must be at least 1")
        self.num_threads = num_threads
        self._largest_part = max(1, PART_BYTES // (4 * row_values))
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
        on_cpu = parameters[0].device.type == "cpu"
        parts = self._parts(batch_size) if on_cpu else [slice(0, batch_size)]

        def share_of(own: Sequence[slice]) -> tuple[list[Output], list[torch.Tensor]]:
            """Outputs and summed gradients of some parts, one after the other."""
            outputs: list[Output] = []
            total: list[torch.Tensor] = []
            for rows in own:
                value, output = loss(rows)
                share = torch.full_like(value, (rows.stop - rows.start) / batch_size)
                part = list(torch.autograd.grad(value, parameters, share))
                if total:
                    torch._foreach_add_(total, part)
                else:
                    total = part
                outputs.append(output)
            return outputs, total

        first, *others = [parts[own] for own in split_rows(len(parts), self.num_threads)]
        waiting = [self._executor().submit(share_of, own) for own in others]
        results = [share_of(first), *(future.result() for future in waiting)]
        gradients = results[0][1]
        for _, more in results[1:]:
            torch._foreach_add_(gradients, more)
        laid_out = [_as_laid_out(*pair) for pair in zip(gradients, parameters, strict=True)]
        return [output for outputs, _ in results for output in outputs], laid_out

    def _parts(self, batch_size: int) -> list[slice]:
        """As many as there are threads, or that many times more, so that none is too large."""
        rounds = math.ceil(batch_size / (self.num_threads * self._largest_part))
        return split_rows(batch_size, self.num_threads * rounds)

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
