"""The ``apex`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tyro

from apexrl import __version__
from apexrl.runtime.lifecycle import Shutdown, run_service
from apexrl.telemetry.logging import configure_logging

USAGE = f"""apex {__version__}: distributed prioritized experience replay

usage: apex COMMAND [arguments]

  train CONFIG            train on this machine; the same command resumes
  evaluate RUN            play greedy episodes from a checkpoint, print the return and its spread
  record RUN              write a video of an episode
  export RUN              write the greedy policy as a file that torch alone can run
  status [ADDRESS...]     how a run stands, as its learner and shards say: learner, replay, fleet, what is waited for
  simulate CONFIG         load learner and shards with synthetic actors, print what each process needs
  bench                   measure this machine with the project's benchmarks
  inspect config CONFIG   the resolved configuration, every field with its value
  inspect memory CONFIG   the memory that replay, mirror and batches will need
  inspect replay ADDRESS  the state of a live shard
  envs check ENV          check your own environment against what actors rely on

Arguments of a command: apex COMMAND --help. Every field of a configuration can be set on the command line, e.g.
  apex train configs/pong_small.yaml --learner.batch-size 128 --seed 2
"""

Command = Callable[[Sequence[str], Shutdown], int]


def _train(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.train import TrainArguments, train

    options, overrides = _parse(TrainArguments, arguments, "apex train")
    return train(options, overrides, shutdown)


def _evaluate(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.play import EvaluateArguments, evaluate_run

    return evaluate_run(_parse(EvaluateArguments, arguments, "apex evaluate", closed=True)[0], shutdown)


def _record(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.play import RecordArguments, record_run

    return record_run(_parse(RecordArguments, arguments, "apex record", closed=True)[0], shutdown)


def _export(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.export import ExportArguments, export_run

    return export_run(_parse(ExportArguments, arguments, "apex export", closed=True)[0])


def _status(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.status import parse_arguments, status

    return status(parse_arguments(arguments), shutdown)


def _simulate(arguments: Sequence[str], shutdown: Shutdown) -> int:
    # One line of grpc's own per connection that ends would bury the report. It reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from apex_cli.simulate import SimulateArguments, simulate

    options, overrides = _parse(SimulateArguments, arguments, "apex simulate")
    return simulate(options, overrides, shutdown)


def _bench(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.bench import BenchArguments, bench

    return bench(_parse(BenchArguments, arguments, "apex bench", closed=True)[0], shutdown)


def _inspect_config(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.inspect import ConfigArguments, inspect_config

    options, overrides = _parse(ConfigArguments, arguments, "apex inspect config")
    return inspect_config(options, overrides)


def _inspect_memory(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.inspect import MemoryArguments, inspect_memory

    options, overrides = _parse(MemoryArguments, arguments, "apex inspect memory")
    return inspect_memory(options, overrides)


def _inspect_replay(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.inspect import ReplayArguments, inspect_replay

    return inspect_replay(_parse(ReplayArguments, arguments, "apex inspect replay", closed=True)[0])


def _envs_check(arguments: Sequence[str], shutdown: Shutdown) -> int:
    from apex_cli.environments import CheckArguments, check

    return check(_parse(CheckArguments, arguments, "apex envs check", closed=True)[0])


COMMANDS: dict[tuple[str, ...], Command] = {
    ("train",): _train,
    ("evaluate",): _evaluate,
    ("record",): _record,
    ("export",): _export,
    ("status",): _status,
    ("simulate",): _simulate,
    ("bench",): _bench,
    ("inspect", "config"): _inspect_config,
    ("inspect", "memory"): _inspect_memory,
    ("inspect", "replay"): _inspect_replay,
    ("envs", "check"): _envs_check,
}


def _parse(kind: type[Any], arguments: Sequence[str], prog: str, *, closed: bool = False) -> tuple[Any, list[str]]:
    """The command's own arguments, and the rest: overrides of the configuration. ``closed``: there is no rest."""
    if closed:
        return tyro.cli(kind, args=list(arguments), prog=prog), []
    options, rest = tyro.cli(kind, args=list(arguments), prog=prog, return_unknown_args=True)
    return options, list(rest)


def main() -> int:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    for name, command in COMMANDS.items():
        if tuple(arguments[: len(name)]) == name:
            configure_logging("apex", log_format="console", level="ERROR")
            return run_service(f"apex {' '.join(name)}", partial(command, arguments[len(name) :]))
    known = ", ".join(" ".join(name) for name in COMMANDS)
    print(f"apex: {' '.join(arguments[:2])!r} is not a command; the commands are: {known}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
