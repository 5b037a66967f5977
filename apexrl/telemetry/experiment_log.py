"""The record of one run: ``metrics.csv``, TensorBoard event files, and the learning curve drawn from the former.

The CSV has one line per report and fixed columns; what a report does not say is left empty. Resuming appends. The log
is never a reason to stop training: when it cannot be written (disk full), it says so once and goes on when it can.
"""

from __future__ import annotations

import csv
import io
import math
import numbers
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apexrl.telemetry.logging import get_logger
from apexrl.types import ParameterVersion

CSV_NAME = "metrics.csv"
TENSORBOARD_NAME = "tensorboard"

PROGRESS_COLUMNS = ("wall_seconds", "global_frames", "learner_updates", "epoch")
VALUE_COLUMNS = (
    "updates_per_second",
    "frames_per_second",
    "samples_per_insert",
    "replay_items",
    "actors",
    "lanes",
    "parameter_lag_updates",
    "batch_wait_ratio",
    "loss",
    "td_error_abs_mean",
    "q_mean",
    "q_max",
    "grad_norm",
    "nonfinite_updates",
    "episodes",
    "greedy_return",
    "exploring_return",
    "evaluator_return",
    "evaluator_return_std",
    "evaluator_return_min",
    "evaluator_return_max",
    "evaluator_episodes",
    "evaluator_epsilon",
    "evaluator_updates",
)
COLUMNS = (*PROGRESS_COLUMNS, *VALUE_COLUMNS)


class Progress(NamedTuple):
    """Where a run stands, all over the whole run with its resumes but for ``epoch``."""

    wall_seconds: float
    """Learning wall-clock."""
    global_frames: int
    """Environment frames of all actors."""
    learner_updates: int
    epoch: int
    """Start number of the learner."""


class ExperimentLog:
    """Appends to ``metrics.csv`` and to ``tensorboard/`` in a run's directory. One writer per run; not thread-safe."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log = get_logger(__name__)
        self._failing = False
        self.path = self._directory / CSV_NAME
        self._prepare_csv()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._size = os.fstat(self._fd).st_size
        self._events = _EventWriter(self._directory / TENSORBOARD_NAME)

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Record values by name. Names that are no column of the CSV go to TensorBoard only."""
        row = {**progress._asdict(), **{k: v for k, v in values.items() if k in VALUE_COLUMNS}}
        try:
            self._append(_csv_line([_format(row.get(column)) for column in COLUMNS]))
            self._events.add(values, step=progress.global_frames)
        except OSError as error:
            if not self._failing:
                self._log.error("experiment log cannot be written, training goes on", error=str(error))
            self._failing = True
        else:
            if self._failing:
                self._log.info("experiment log is written again")
            self._failing = False

    def evaluation(
        self, progress: Progress, returns: Sequence[float], version: ParameterVersion, epsilon: float
    ) -> None:
        """Record the returns of the episodes that an evaluator played on one version of the parameters."""
        values = np.asarray(returns, dtype=np.float64)
        self.scalars(
            progress,
            {
                "evaluator_return": float(values.mean()),
                "evaluator_return_std": float(values.std()),
                "evaluator_return_min": float(values.min()),
                "evaluator_return_max": float(values.max()),
                "evaluator_episodes": len(values),
                "evaluator_epsilon": epsilon,
                "evaluator_updates": version.step,
            },
        )

    def close(self) -> None:
        """Close the files. Nothing is buffered."""
        os.close(self._fd)
        self._events.close()

    def __enter__(self) -> ExperimentLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        """One line in one write; what an earlier, failed write left of a line is cut off first."""
        if os.fstat(self._fd).st_size != self._size:
            os.ftruncate(self._fd, self._size)
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a line could be written")
        self._size += written

    def _prepare_csv(self) -> None:
        """A file with the current header whose last line is complete; older columns are moved under theirs."""
        header = _csv_line(list(COLUMNS))
        data = self.path.read_bytes() if self.path.exists() else b""
        complete = data[: data.rfind(b"\n") + 1]
        if complete == data and data.startswith(header):
            return
        if complete.startswith(header):
            content = complete
        else:
            rows = csv.DictReader(io.StringIO(complete.decode("utf-8", errors="replace")))
            content = header + b"".join(_csv_line([row.get(column) or "" for column in COLUMNS]) for row in rows)
        temporary = self.path.with_name(f".{self.path.name}.new")
        temporary.write_bytes(content)
        os.replace(temporary, self.path)


def read_metrics(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The columns of a ``metrics.csv`` as float64 arrays; empty cells are NaN.

    Lines that a resumed learner made obsolete (it went back to an older checkpoint) are left out: of an epoch only
    updates up to the first of a later epoch count.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = {c: np.array([_parse(row.get(c)) for row in rows], dtype=np.float64) for c in COLUMNS}
    keep = np.ones(len(rows), dtype=bool)
    limit = math.inf
    for i in range(len(rows) - 1, -1, -1):
        if i + 1 < len(rows) and table["epoch"][i] != table["epoch"][i + 1]:
            limit = min(limit, table["learner_updates"][i + 1])
        keep[i] = not table["learner_updates"][i] > limit
    return {name: column[keep] for name, column in table.items()}


class _EventWriter:
    """TensorBoard event files: one per start, and a new one after a failed write (readers stop at a torn record)."""

    def __init__(self, directory: Path) -> None:
        # Imported here: it takes half a second, and only the learner keeps an experiment log.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._record_writer = event_pb2.Event, summary_pb2.Summary, RecordWriter
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file: io.FileIO | None = None
        self._files_opened = 0

    def add(self, values: Mapping[str, float], step: int) -> None:
        summary = self._summary(
            value=[self._summary.Value(tag=_tag(name), simple_value=float(v)) for name, v in values.items()]
        )
        try:
            if self._file is None:
                self._file = self._open()
                self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
            self._write(self._event(step=step, wall_time=time.time(), summary=summary))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.FileIO:
        self._files_opened += 1
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{self._files_opened}"
        return io.FileIO(self._directory / f"events.out.tfevents.{stamp}", "wb")

    def _write(self, event: Any) -> None:
        record = io.BytesIO()
        self._record_writer(record).write(event.SerializeToString())
        assert self._file is not None
        if self._file.write(record.getbuffer()) != record.tell():
            raise OSError("only a part of an event could be written")


def _tag(name: str) -> str:
    for group in ("evaluator", "replay"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    if name in ("greedy_return", "exploring_return", "episodes", "actors", "lanes", "frames_per_second"):
        return f"actors/{name}"
    return f"learner/{name}"


def _csv_line(cells: list[str]) -> bytes:
    return (",".join(cells) + "\n").encode()


def _format(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, numbers.Integral) else format(float(value), ".8g")


def _parse(cell: str | None) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan
