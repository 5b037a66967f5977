"""Whether any service grows: half an hour of a whole run, the memory that each process holds over time.

    python benchmarks/soak.py configs/pong_small.yaml --write

Starts what ``apex train`` starts (replay with its journal, learner with its serving child, actors, evaluator) with a
table so small that it has turned over long before the measured part, which is what follows the first ``--settle``
share of the time. A straight line is fitted to the resident memory of each process without the pages of files: those
the kernel takes and gives as the machine has room, ten megabytes at a time. Other work on the machine does no harm.
Unknown arguments are overrides of the configuration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apex_cli.processes import Service
from apex_cli.simulation_services import SERVING_CHILD
from apex_cli.train import LocalRun
from apex_cli.usage import child_processes
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.logging import configure_logging
from apexrl.transport.coordinator_client import CoordinatorClient
from benchmarks.options import add_write, conclude, load, run

OWN_OVERRIDES = (
    *("--learner.max-seconds", "0", "--learner.max-frames", "0", "--learner.max-updates", "0"),
    # So small that all of it has been replaced many times.
    *("--replay.capacity-items", "20000", "--replay.min-items", "4000", "--replay.budget-bytes", str(64 << 20)),
    *("--evaluator.period-seconds", "60"),
)
#: 30 minutes at this slope are less than what an allocator's noise amounts to on a process of a gigabyte.
SLOPE_AT_MOST = 0.2
SAMPLE_SECONDS = 5.0
#: A line is fitted to medians of so many seconds: what is used for a moment, as at a checkpoint, is not growth.
BIN_SECONDS = 60.0
MEGABYTE = 1e6

Samples = list[tuple[float, float]]
"""(seconds, MB held)."""


def watch(local: LocalRun, seconds: float) -> dict[str, Samples]:
    """Samples of every process by name.

    Raises:
        RuntimeError: a service was started anew: its memory would begin anew as well.
    """
    started = time.monotonic()
    samples: dict[str, Samples] = {}
    while (now := time.monotonic() - started) < seconds:
        for service in local.services:
            service.supervise()
            if service.restarts:
                raise RuntimeError(f"{service.name} ended and was started anew:\n{service.log_tail()}")
        for name, pid in process_ids(local.services).items():
            held = held_bytes(pid)
            if held is not None:
                samples.setdefault(name, []).append((now, held / MEGABYTE))
        time.sleep(SAMPLE_SECONDS)
    return samples


def held_bytes(pid: int) -> int | None:
    """Resident memory of a process that is no page of a file; None if there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    # A mapping that belongs to no file counts as shared memory, if it was asked for as shared.
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(kilobytes) << 10 if kilobytes else None


def process_ids(services: Sequence[Service]) -> dict[str, int]:
    """Of all services, and of the learner's child."""
    pids = {service.name: service.process.pid for service in services if service.process is not None}
    for child in child_processes(pids["learner"])[:1]:
        pids[SERVING_CHILD] = child
    return pids


def medians(samples: Samples) -> npt.NDArray[np.float64]:
    """[N, 2] minutes and MB held of each full bin of ``BIN_SECONDS``."""
    values = np.array(samples)
    bins = (values[:, 0] // BIN_SECONDS).astype(int)
    rows = [(number * BIN_SECONDS / 60.0, np.median(values[bins == number, 1])) for number in np.unique(bins)]
    return np.array(rows)


def slope(samples: Samples) -> float:
    """MB per minute of the straight line through the bins' medians (least squares)."""
    minutes, megabytes = medians(samples).T
    return float(np.polyfit(minutes, megabytes, 1)[0])


def summary(samples: Mapping[str, Samples], settle_seconds: float) -> dict[str, dict[str, Any]]:
    """Per process: slope and memory of the part behind ``settle_seconds``."""
    made = {}
    for name, all_of_it in samples.items():
        late = [one for one in all_of_it if one[0] >= settle_seconds]
        megabytes = [one[1] for one in late]
        made[name] = {
            "slope_mb_per_minute": round(slope(late), 4),
            "first_mb": round(float(np.median(megabytes[:12])), 1),
            "last_mb": round(float(np.median(megabytes[-12:])), 1),
            "max_mb": round(max(megabytes), 1),
            "mb_by_minute": [round(float(one), 1) for one in medians(all_of_it)[:, 1]],
        }
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("config", type=Path, help="YAML file of the experiment")
    made.add_argument("--seconds", type=float, default=1800.0, help="length of the run (%(default)s)")
    made.add_argument("--settle", type=float, default=1 / 3, help="share of the time before the fit (0.33)")
    add_write(made)
    options, overrides = made.parse_known_args(arguments)
    if (1.0 - options.settle) * options.seconds < 3 * BIN_SECONDS:
        made.error(f"--seconds is {options.seconds}: what is left behind --settle must be at least {3 * BIN_SECONDS} s")
    configure_logging("benchmark", log_format="console", level="ERROR")
    with tempfile.TemporaryDirectory(prefix="apex-soak-") as directory:
        journal = ["--replay.journal-directory", str(Path(directory) / "journal")]
        config = load(options.config, overrides, [*OWN_OVERRIDES, *journal])
        local = LocalRun(config, RunDirectory.create_or_resume(Path(directory) / "run", config))
        local.start()
        try:
            samples = watch(local, options.seconds)
            client = CoordinatorClient(local.learner_address)
            status = client.get_status(timeout=10.0)
            client.close()
        finally:
            local.stop()
    processes = summary(samples, options.settle * options.seconds)
    metrics = {
        "largest_slope_mb_per_minute": max(one["slope_mb_per_minute"] for one in processes.values()),
        "processes": processes,
        "learner_updates": status.learner_updates,
        "env_frames": status.global_frames,
        "seconds": options.seconds,
        "settled_after_seconds": round(options.settle * options.seconds, 1),
    }
    return conclude(
        "soak",
        metrics=metrics,
        goals={"largest_slope_mb_per_minute": {"at_most": SLOPE_AT_MOST}},
        seeds=[config.seed],
        notes=(
            "slope_mb_per_minute = least-squares line through the medians of each minute of a process's resident "
            "memory without pages of files, the first third of the time left out. The table holds 20,000 items and is "
            "durable (journal); checkpoints, evaluations and parameter pulls go on throughout."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
