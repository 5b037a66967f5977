"""``apex bench``: the project's benchmarks on the user's own machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import apexrl
from apexrl.config import ConfigError
from apexrl.runtime.lifecycle import Shutdown

#: The source tree, if this is one: benchmarks are not part of the installed package.
ROOT = Path(apexrl.__file__).resolve().parents[1]
#: How soon a stop is noticed.
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Benchmark:
    """One of the suite."""

    script: str
    what: str
    minutes: int
    """On two cores; the first run also installs the peers, if there are any."""
    config: bool = True
    """Whether it measures a configuration of the user's choice."""
    peer: str = ""


SUITE: dict[str, Benchmark] = {
    "actor": Benchmark("actor_loop.py", "an actor's steps/s on one core, against environment and network alone", 2),
    "inference": Benchmark(
        "inference.py", "an actor's network by other means than torch in float32", 6, peer="onnxruntime"
    ),
    "update": Benchmark("learner_update.py", "updates/s of the algorithm alone", 1),
    "learner": Benchmark("learner_loop.py", "updates/s of a learner fed by a real shard, against the update alone", 3),
    "priority": Benchmark("priority.py", "drawing and updating 512 of 2M items", 3, False, "cpprb and TorchRL"),
    "insert": Benchmark("insert.py", "CPU time of an inserted transition", 3, peer="dm-reverb"),
    "sample": Benchmark("sample.py", "CPU time of a sampled transition", 4, peer="dm-reverb"),
    "concurrent": Benchmark("insert_and_sample.py", "inserting and sampling at once", 4, peer="dm-reverb"),
    "memory": Benchmark("memory.py", "memory and bytes on the wire per transition", 3, peer="dm-reverb"),
    "streams": Benchmark("streams.py", "500 actors' streams on one shard against one stream", 11),
}


@dataclass(frozen=True)
class BenchArguments:
    """Run benchmarks on this machine, print a table and write a JSON file per subject.

    Keep the machine quiet meanwhile. Where a benchmark compares with another package, that is installed into an
    environment of its own under .venv-peers. Benchmarks are part of the source tree, not of the installed package.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which to run; see --list. All by default."""
    config: Path = Path("configs/pong_small.yaml")
    """YAML file of the experiment that is measured."""
    output: Path = Path("bench_results")
    """Directory for the results."""
    list: bool = False
    """Only say what there is, and how many minutes each takes on two cores."""


def bench(arguments: BenchArguments, shutdown: Shutdown) -> int:
    """``apex bench``; the exit code is 1 if a benchmark failed or missed a goal of its own."""
    if arguments.list:
        for name, one in SUITE.items():
            beside = f", beside {one.peer}" if one.peer else ""
            print(f"{name:<12}{one.minutes:>3} min  {one.what}{beside}")
        return 0
    unknown = [name for name in arguments.names if name not in SUITE]
    if unknown:
        raise ConfigError(f"apex bench: {unknown[0]!r} is not a benchmark; there are {', '.join(SUITE)}")
    if not (ROOT / "benchmarks" / "options.py").exists():
        raise ConfigError("apex bench needs the source tree: clone the repository and run it there")
    if not arguments.config.is_file():
        raise ConfigError(f"--config is {arguments.config}, must be the YAML file of an experiment")
    output, config = arguments.output.resolve(), arguments.config.resolve()
    worst = 0
    for name in arguments.names or SUITE:
        if shutdown.requested:
            return 1
        one = SUITE[name]
        print(f"== {name}: {one.what} (about {one.minutes} min)", flush=True)
        worst = max(worst, _run(one, config, output, shutdown))
    subprocess.run(
        [sys.executable, "tools/readme_tables.py", "--print", str(output)], cwd=ROOT, env=_env(), check=False
    )
    print(f"results are in {output}")
    return worst


def _run(one: Benchmark, config: Path, output: Path, shutdown: Shutdown) -> int:
    """Run a benchmark; 1 if it failed, missed a goal, or was ended because a stop was asked for."""
    chosen = [str(config)] if one.config else []
    command = [sys.executable, str(ROOT / "benchmarks" / one.script), *chosen, "--write", str(output)]
    with subprocess.Popen(command, cwd=ROOT, env=_env(), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if shutdown.wait(POLL_SECONDS):
                process.send_signal(signal.SIGINT)  # unwinds, so that it ends the processes that it has started
                process.wait()
    return 0 if process.returncode == 0 else 1


def _env() -> dict[str, str]:
    """This process's, in which the source tree's own packages can be imported."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
