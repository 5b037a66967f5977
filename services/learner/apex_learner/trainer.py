"""The trainer: one update per batch, the schedules that depend on frames, and what must survive a restart.

It knows no sockets and no threads. The learner process and serial mode drive it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from apex_learner.readback import Learned, Readback
from apexrl.algorithms.base import Algorithm, LearnerState, UpdateOutput
from apexrl.config import ExperimentConfig
from apexrl.experience.batch import BatchBuffer
from apexrl.runtime.parameter_payload import pack_parameters
from apexrl.telemetry.logging import get_logger
from apexrl.types import ParameterVersion

log = get_logger(__name__)

#: After this many skipped updates in a row the parameters are taken to be broken.
MAX_NONFINITE_UPDATES = 10

#: Updates that a device other than the CPU may have before it, so that it does not wait where the host is held up.
UPDATES_IN_FLIGHT = 4


class NonfiniteLossError(RuntimeError):
    """Loss or gradient was not finite ten times in a row. Nothing may be saved or published."""


@dataclass
class Counters:
    """Totals of the whole run; part of every checkpoint.

    Each shard counts its inserts since its own start (``boot``). Frames of starts that ended are kept in
    ``frames_before``, so neither a new shard nor a new learner breaks the count.
    """

    action_repeat: int
    frames_before: int = 0
    shard_boots: list[str] = field(default_factory=list)
    """[K] in hex; "" = not seen yet."""
    shard_inserted: list[int] = field(default_factory=list)
    """[K]"""
    seconds: float = 0.0
    """Wall-clock of learning, in all starts together."""
    draw_requests: int = 0
    nonfinite_updates: int = 0

    @property
    def global_frames(self) -> int:
        """Environment frames of all actors."""
        return self.frames_before + sum(self.shard_inserted) * self.action_repeat

    def observe_inserted(self, inserted: int, boot: bytes, shard: int = 0) -> None:
        """Take in the insert counter of a shard that started as ``boot``."""
        missing = shard + 1 - len(self.shard_boots)
        self.shard_boots += [""] * missing
        self.shard_inserted += [0] * missing
        if boot.hex() != self.shard_boots[shard]:
            self.frames_before += self.shard_inserted[shard] * self.action_repeat
            self.shard_boots[shard] = boot.hex()
        self.shard_inserted[shard] = inserted

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Trainer:
    """Updates the learner state, and knows what to publish, report and save."""

    def __init__(
        self,
        *,
        config: ExperimentConfig[Any],
        algorithm: Algorithm,
        state: LearnerState,
        device: torch.device,
        epoch: int,
        counters: Counters,
    ) -> None:
        self._config = config
        self._algorithm = algorithm
        self.state = state
        self.device = device
        self.epoch = epoch
        self.counters = counters
        self.last_output: UpdateOutput | None = None
        self._asked: deque[Readback] = deque()
        self._idle: list[Readback] = []
        self._nonfinite_in_a_row = 0
        self._kept: set[str] = set()
        self._started = time.monotonic()
        self._seconds_before = counters.seconds

    @property
    def version(self) -> ParameterVersion:
        return ParameterVersion(self.epoch, self.state.step)

    def update(self, batch: BatchBuffer) -> list[Learned]:
        """One update; returns the batches that are done with, and their new priorities.

        On a CPU that is this batch. On another device the host does not wait for the update: it is the one
        :data:`UPDATES_IN_FLIGHT` before, and :meth:`settle` gives the last ones.

        Raises:
            NonfiniteLossError: the tenth skipped update in a row.
        """
        windows = batch.as_window_batch()
        if batch.device != self.device:
            windows = windows.to(self.device)
        output = self._algorithm.update(self.state, windows)
        self.last_output = output
        readback = self._idle.pop() if self._idle else Readback(batch.batch_size, self.device)
        readback.ask(batch, output)
        self._asked.append(readback)
        late = 0 if self.device.type == "cpu" else UPDATES_IN_FLIGHT
        return [self._take_back() for _ in range(len(self._asked) - late)]

    def settle(self) -> list[Learned]:
        """Wait for all updates; returns what :meth:`update` has not."""
        return [self._take_back() for _ in range(len(self._asked))]

    def _take_back(self) -> Learned:
        readback = self._asked.popleft()
        batch, priorities, nonfinite = readback.result()
        self._idle.append(readback)
        self._watch_nonfinite(nonfinite)
        return Learned(batch, priorities if self.trustworthy else None)

    def _watch_nonfinite(self, nonfinite: bool) -> None:
        if not nonfinite:
            self._nonfinite_in_a_row = 0
            return
        self._nonfinite_in_a_row += 1
        self.counters.nonfinite_updates += 1
        if self._nonfinite_in_a_row >= MAX_NONFINITE_UPDATES:
            raise NonfiniteLossError(
                f"loss or gradient was not finite in {MAX_NONFINITE_UPDATES} updates in a row, the last at step "
                f"{self.state.step}"
            )

    @property
    def trustworthy(self) -> bool:
        """False while the newest update was skipped: then nothing is published or saved."""
        return self._nonfinite_in_a_row == 0

    def importance_sampling_exponent(self) -> float:
        """Beta at the run's present frame."""
        replay = self._config.replay
        frames = replay.importance_sampling_anneal_frames
        share = min(1.0, self.counters.global_frames / frames) if frames else 0.0
        first, final = replay.importance_sampling_exponent, replay.importance_sampling_exponent_final
        return first + (final - first) * share

    def published_module(self) -> nn.Module:
        return self.state.modules["online"]

    def parameters_payload(self) -> bytes:
        """The published parameters as safetensors bytes, in ``learner.publish_dtype``."""
        payload, kept = pack_parameters(self.published_module().state_dict(), self._config.learner.publish_dtype)
        for name in sorted(set(kept) - self._kept):
            log.warning("tensor has values beyond 65504 and is published as it is, not as float16", tensor=name)
        self._kept = set(kept)
        return payload

    def advance_clock(self) -> None:
        """Bring ``counters.seconds`` up to now."""
        self.counters.seconds = self._seconds_before + time.monotonic() - self._started

    def finished(self) -> bool:
        """Whether the run has reached one of its ends."""
        learner = self._config.learner
        self.advance_clock()
        return (
            (learner.max_updates > 0 and self.state.step >= learner.max_updates)
            or (learner.max_frames > 0 and self.counters.global_frames >= learner.max_frames)
            or (learner.max_seconds > 0 and self.counters.seconds >= learner.max_seconds)
        )

    def seconds_left(self, updates_per_second: float, frames_per_second: float) -> float | None:
        """Until the nearest end of the run, at the present speed; None while no end is set or the speed unknown."""
        learner = self._config.learner
        ends = []
        if learner.max_updates and updates_per_second > 0:
            ends.append((learner.max_updates - self.state.step) / updates_per_second)
        if learner.max_frames and frames_per_second > 0:
            ends.append((learner.max_frames - self.counters.global_frames) / frames_per_second)
        if learner.max_seconds:
            ends.append(learner.max_seconds - self.counters.seconds)
        return max(0.0, min(ends)) if ends else None
