"""A learner that takes turns with a plain loop over its own update: one side of ``learner_loop.py``.

    python -m benchmarks.paired_learner --config C --run-dir D --results R --warm-updates 300 --windows 9 --seconds 4

Both run in one process, on the same parameters and in the same memory, because two processes that do the very same
updates differ by up to a tenth (1.09 and 1.05, mean and median of 14 pairs of windows). It is the learner that
``python -m apex_learner`` starts; only, after each window the main thread leaves the queue of batches alone for as
long, and calls ``Algorithm.update`` on one batch that it keeps. Draws stop meanwhile, as everything is prefetched.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from apex_learner.process import LearnerProcess
from apexrl.algorithms import CONFIGS
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.experience.batch import WindowBatch
from apexrl.runtime.lifecycle import Shutdown, run_service
from apexrl.runtime.malloc import keep_freed_memory
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.logging import configure_logging
from apexrl.telemetry.metrics import LearnerMetrics
from benchmarks.windows import repeat

#: The learner works for so long before a window of it counts: what the plain loop has left undone is done by then.
SETTLE_SECONDS = 1.5
#: For so long nothing happens before a window of the plain loop: what is being prefetched comes in.
QUIET_SECONDS = 0.5
BATCH_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Schedule:
    """Which windows to run."""

    warm_updates: int
    """Updates before the first window."""
    windows: int
    """Pairs of windows."""
    seconds: float
    """Length of each."""

    def __post_init__(self) -> None:
        if self.windows < 1 or self.seconds <= 0:
            raise ValueError(f"windows is {self.windows} and seconds is {self.seconds}, must be at least 1 and above 0")


@dataclass(frozen=True)
class Pair:
    """One window of each: updates per second, and the share of its time that the learner waited for batches."""

    learner: float
    plain: float
    batch_wait_ratio: float


class PairedLearner(LearnerProcess):
    """See the module. Each pair is a line of JSON in ``results``, as soon as it is done."""

    def __init__(
        self,
        config: ExperimentConfig[Any],
        run: RunDirectory,
        metrics: LearnerMetrics,
        *,
        schedule: Schedule,
        results: Path,
    ) -> None:
        super().__init__(config, run, metrics, discard_other_run=False)
        self._schedule = schedule
        self._results = results
        self._pairs_left = schedule.windows
        self._resident: WindowBatch | None = None
        self._settled_at = 0.0
        self._window: tuple[float, int] | None = None
        """Moment and step at which the learner's window began."""

    def _turn(self) -> None:
        super()._turn()
        now, step = time.perf_counter(), self._trainer.state.step
        if self._pairs_left == 0 or step < self._schedule.warm_updates:
            return
        if self._resident is None:
            self._keep_a_batch()
        elif self._window is None:
            if now >= self._settled_at:
                self._window = now, step
        elif now - self._window[0] >= self._schedule.seconds:
            learner = (step - self._window[1]) / (now - self._window[0])
            waited = self._rates.wait_ratio
            self._note(Pair(learner, self._plain(), waited))

    def _keep_a_batch(self) -> None:
        batch = self._sampling.next(BATCH_TIMEOUT_SECONDS)
        if batch is None:
            raise TimeoutError("no batch came that the plain loop could keep")
        self._resident = batch.as_window_batch().to(self._trainer.device)
        self._settled_at = time.perf_counter() + SETTLE_SECONDS

    def _plain(self) -> float:
        """Updates per second of nothing but updates, of which the learner's counts do not know."""
        self._settle()
        time.sleep(QUIET_SECONDS)
        state, batch = self._trainer.state, self._resident
        assert batch is not None
        step = state.step

        def update() -> int:
            self._algorithm.update(state, batch)
            return 1

        cuda = self._trainer.device.type == "cuda"
        rate = repeat(update, finish=torch.cuda.synchronize if cuda else lambda: None)(self._schedule.seconds)
        state.step = step
        return rate

    def _note(self, pair: Pair) -> None:
        with self._results.open("a") as file:
            file.write(json.dumps(asdict(pair)) + "\n")
        self._pairs_left -= 1
        self._window = None
        self._settled_at = time.perf_counter() + SETTLE_SECONDS


def read_pairs(results: Path) -> list[Pair]:
    """What has been measured so far."""
    if not results.exists():
        return []
    return [Pair(**json.loads(line)) for line in results.read_text().splitlines() if line.endswith("}")]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument("--run-dir", type=Path, required=True, help="directory of the run")
    parser.add_argument("--warm-updates", type=int, required=True, help="updates before the first window")
    parser.add_argument("--windows", type=int, required=True, help="pairs of windows")
    parser.add_argument("--seconds", type=float, required=True, help="length of a window")
    parser.add_argument("--results", type=Path, required=True, help="file to which a line of JSON is added per pair")
    options = parser.parse_args()

    def body(shutdown: Shutdown) -> int:
        configure_logging("learner")
        keep_freed_memory()
        config = load_experiment(options.config, [], algorithm_configs=CONFIGS, prog="paired_learner")
        schedule = Schedule(options.warm_updates, options.windows, options.seconds)
        run = RunDirectory.create_or_resume(options.run_dir, config)
        PairedLearner(config, run, LearnerMetrics(), schedule=schedule, results=options.results).run(shutdown)
        return 0

    return run_service("learner", body)


if __name__ == "__main__":
    sys.exit(main())
