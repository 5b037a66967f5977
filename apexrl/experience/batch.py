"""Preallocated batches of windows, and the bounded ring that they go round in."""

from __future__ import annotations

import math
import threading
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from apexrl.types import ColumnSpec, Scope, Signature, SignatureError

CPU = torch.device("cpu")


class WindowBatch(NamedTuple):
    """A batch of B windows on the learner's device. W = context + 1 + T rows; the start row is row ``context``."""

    columns: dict[str, torch.Tensor]
    """Step columns, name -> [B, W, ...]. Rows behind ``context + k`` hold anything."""
    item_columns: dict[str, torch.Tensor]
    """name -> [B, ...]."""
    lengths: torch.Tensor
    """[B] int64 k: the item bootstraps from row ``context + k``."""
    prefixes: torch.Tensor
    """[B] int64."""
    weights: torch.Tensor
    """[B] f32 importance weights w = (N P)^-beta / max w."""

    def to(self, device: torch.device) -> WindowBatch:
        """The batch on ``device``; from pinned memory the copy is asynchronous."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return WindowBatch(
            columns={name: move(tensor) for name, tensor in self.columns.items()},
            item_columns={name: move(tensor) for name, tensor in self.item_columns.items()},
            lengths=move(self.lengths),
            prefixes=move(self.prefixes),
            weights=move(self.weights),
        )

    def rows(self, rows: slice) -> WindowBatch:
        """Some windows of the batch, in the same memory."""
        return WindowBatch(
            columns={name: tensor[rows] for name, tensor in self.columns.items()},
            item_columns={name: tensor[rows] for name, tensor in self.item_columns.items()},
            lengths=self.lengths[rows],
            prefixes=self.prefixes[rows],
            weights=self.weights[rows],
        )


def torch_dtype(column: ColumnSpec) -> torch.dtype:
    """The torch type of a column.

    Raises:
        SignatureError: torch has none.
    """
    try:
        return torch.from_numpy(np.empty(0, dtype=column.dtype)).dtype
    except (TypeError, ValueError) as error:
        raise SignatureError(f"column {column.name!r}: dtype {column.dtype!r} has no torch type") from error


def as_words(tensor: torch.Tensor, column: ColumnSpec) -> torch.Tensor:
    """The memory of a contiguous tensor of ``column``'s values as [values, words], in the widest words that divide one.

    Copying 84x84 frames by 8 bytes is several times as fast as byte by byte, and torch copies few unsigned types.
    """
    word_bytes = math.gcd(column.value_bytes, 8)
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[word_bytes]
    return tensor.view(-1, math.prod(column.shape)).view(words)


class BatchBuffer:
    """Memory of one batch, allocated once.

    Its mirror's ``gather`` (:mod:`apexrl.experience.mirror`, :mod:`apexrl.experience.device_mirror`) writes columns,
    ``lengths`` and ``prefixes``; ``keys``, ``shards`` and ``weights`` are the caller's to set.

    Args:
        signature: of the table.
        batch_size: B.
        device: where the columns lie. Everything else lies on the host and is copied by :meth:`as_window_batch`.
    """

    def __init__(self, signature: Signature, batch_size: int, device: torch.device = CPU) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        self.batch_size = batch_size
        self.device = device
        self.ready: torch.cuda.Event | None = None
        """Set by who fills the columns on a stream of its own: the moment from which they are whole."""
        pin = torch.cuda.is_available()
        window = signature.geometry.window
        self._columns: dict[str, torch.Tensor] = {}
        self._item_columns: dict[str, torch.Tensor] = {}
        #: name -> [values, words] over the memory of the columns, for a gather on their device.
        self.words: dict[str, torch.Tensor] = {}
        #: name -> [B, bytes] likewise, for a gather on the host; {} if the columns lie elsewhere.
        self.raw: dict[str, npt.NDArray[np.uint8]] = {}
        for column in signature.columns:
            step = column.scope is Scope.STEP
            shape = (batch_size, window, *column.shape) if step else (batch_size, *column.shape)
            tensor = torch.zeros(shape, dtype=torch_dtype(column), device=device, pin_memory=pin and device == CPU)
            (self._columns if step else self._item_columns)[column.name] = tensor
            self.words[column.name] = as_words(tensor, column)
            if device == CPU:
                self.raw[column.name] = tensor.numpy().reshape(batch_size, -1).view(np.uint8)
        self._lengths = torch.zeros(batch_size, dtype=torch.int64, pin_memory=pin)
        self._prefixes = torch.zeros(batch_size, dtype=torch.int64, pin_memory=pin)
        self._weights = torch.zeros(batch_size, dtype=torch.float32, pin_memory=pin)
        #: [B], over the memory of the tensors of the same names.
        self.lengths: npt.NDArray[np.int64] = self._lengths.numpy()
        self.prefixes: npt.NDArray[np.int64] = self._prefixes.numpy()
        self.weights: npt.NDArray[np.float32] = self._weights.numpy()
        #: [B] u64; they name the items when their new priorities come back, and stay on the host.
        self.keys = np.zeros(batch_size, dtype=np.uint64)
        #: [B] which shard each key is of.
        self.shards = np.zeros(batch_size, dtype=np.uint16)

    @property
    def num_bytes(self) -> int:
        """Bytes of all columns."""
        return sum(words.nbytes for words in self.words.values())

    def as_window_batch(self) -> WindowBatch:
        """The batch as tensors on ``device``, over this buffer's memory: valid until the buffer is written again.

        On CUDA the current stream waits for :attr:`ready`; the host does not wait.
        """
        if self.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(self.ready)
        return WindowBatch(
            columns=dict(self._columns),
            item_columns=dict(self._item_columns),
            lengths=self._lengths.to(self.device, non_blocking=True),
            prefixes=self._prefixes.to(self.device, non_blocking=True),
            weights=self._weights.to(self.device, non_blocking=True),
        )


class BatchRing:
    """A fixed number of batch buffers between the thread that fills them and the one that trains on them.

    Bounded by construction: who wants a buffer waits until one is released. All methods may be called by any thread.
    """

    def __init__(self, signature: Signature, batch_size: int, num_buffers: int, device: torch.device = CPU) -> None:
        if num_buffers < 1:
            raise ValueError(f"num_buffers is {num_buffers}, must be at least 1")
        self._buffers = [BatchBuffer(signature, batch_size, device) for _ in range(num_buffers)]
        self._free = list(self._buffers)
        self._freed = threading.Condition()
        self._blocked_seconds = 0.0

    @property
    def num_buffers(self) -> int:
        return len(self._buffers)

    @property
    def num_acquired(self) -> int:
        """Buffers in use now."""
        with self._freed:
            return len(self._buffers) - len(self._free)

    @property
    def blocked_seconds(self) -> float:
        """Seconds that calls of :meth:`acquire` have waited, in all."""
        with self._freed:
            return self._blocked_seconds

    def acquire(self, timeout: float | None = None) -> BatchBuffer:
        """Take a free buffer, waiting for one if need be.

        Args:
            timeout: seconds to wait at most; None = as long as it takes.

        Raises:
            TimeoutError: no buffer became free in time.
        """
        with self._freed:
            began = time.monotonic()
            ready = self._freed.wait_for(lambda: bool(self._free), timeout)
            self._blocked_seconds += time.monotonic() - began
            if not ready:
                raise TimeoutError(f"none of {len(self._buffers)} batch buffers became free within {timeout} s")
            return self._free.pop()

    def release(self, buffer: BatchBuffer) -> None:
        """Give a buffer back; nothing may read it any more.

        Raises:
            ValueError: the buffer is not of this ring, or is free already.
        """
        with self._freed:
            if not any(buffer is own for own in self._buffers):
                raise ValueError("the buffer is not one of this ring's")
            if any(buffer is free for free in self._free):
                raise ValueError("the buffer is free already")
            self._free.append(buffer)
            self._freed.notify()
