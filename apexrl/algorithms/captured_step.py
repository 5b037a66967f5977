"""Updates as CUDA graphs: the device is told once what an update is, and from then on only to do it again.

An update of a small network is some hundred short kernels. Launched one by one they keep the host busy for longer than
the device computes; a graph of them is a single launch.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from apexrl.algorithms.base import LearnerState, UpdateOutput, WindowBatch

#: Updates that run as usual before one is captured: libraries choose their kernels and optimisers make their state
#: then, neither of which may happen inside a graph.
WARM_UP_UPDATES = 3

#: (state, batch, *further inputs) -> output
Step = Callable[..., UpdateOutput]


@dataclass
class _Capture:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    parts: list[object]
    """Of the learner state: its modules, and what its optimisers keep."""
    tensors: list[torch.Tensor]
    """All that they hold."""
    addresses: list[int]
    """Of the tensors when the graph was captured."""
    inputs: list[torch.Tensor]
    output: UpdateOutput

    def is_good_for(self, state: LearnerState, inputs: list[torch.Tensor]) -> bool:
        """Whether everything lies where it did. Parameters may be moved, but not become others of their module."""
        return (
            all(mine is other for mine, other in zip(self.parts, _parts(state), strict=True))
            and [tensor.data_ptr() for tensor in self.tensors] == self.addresses
            and all(mine.shape == other.shape for mine, other in zip(self.inputs, inputs, strict=True))
        )


class CapturedStep:
    """The part of an update that is one fixed sequence of device operations, as a graph where there is CUDA.

    The step must not decide anything on the host, and batches must keep their shapes. What it returns lies in memory
    that the next call writes again; on other devices, and with ``enabled`` False, it is called as it is.

    Args:
        step: (state, batch, further input tensors) -> output.
        enabled: False: never capture.
    """

    def __init__(self, step: Step, *, enabled: bool) -> None:
        self._step = step
        self._enabled = enabled
        self._warm = 0
        self._capture: _Capture | None = None

    def __call__(self, state: LearnerState, batch: WindowBatch, *more: torch.Tensor) -> UpdateOutput:
        if not self._enabled or batch.weights.device.type != "cuda":
            return self._step(state, batch, *more)
        inputs = [*batch.tensors(), *more]
        capture = self._capture
        if capture is None or not capture.is_good_for(state, inputs):
            if capture is not None:  # another state or another kind of batch: begin anew
                self._capture, self._warm = None, 0
            if self._warm < WARM_UP_UPDATES:
                self._warm += 1
                return self._step(state, batch, *more)
            capture = self._capture = self._captured(state, batch, more)
        torch._foreach_copy_(capture.inputs, inputs, non_blocking=True)
        capture.graph.replay()
        return capture.output

    def _captured(self, state: LearnerState, batch: WindowBatch, more: tuple[torch.Tensor, ...]) -> _Capture:
        """A graph of the step; nothing is computed yet."""
        own, own_more = batch.cloned(), [tensor.clone() for tensor in more]
        graph = torch.cuda.CUDAGraph()
        # Other threads copy and gather meanwhile, on streams of their own: only this thread's calls are watched.
        with (
            _no_collection(),
            _capturable(state.optimizers.values()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            output = self._step(state, own, *own_more)
        tensors = _tensors(state)
        addresses = [tensor.data_ptr() for tensor in tensors]
        return _Capture(graph, _parts(state), tensors, addresses, [*own.tensors(), *own_more], output)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector away: a former graph that it frees now would end the capture of this one."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _capturable(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Tell torch's optimisers that their step may be captured. Not for longer: the setting would go into checkpoints,
    and on a CPU it is refused.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value


def _parts(state: LearnerState) -> list[object]:
    return [*state.modules.values(), *(optimizer.state for optimizer in state.optimizers.values())]


def _tensors(state: LearnerState) -> list[torch.Tensor]:
    """Everything that a step changes: a graph is good for the places of these alone."""
    parameters = [p for module in state.modules.values() for p in module.parameters()]
    moments = [
        value
        for optimizer in state.optimizers.values()
        for own in optimizer.state.values()
        for value in own.values()
        if isinstance(value, torch.Tensor)
    ]
    return [*parameters, *moments]
