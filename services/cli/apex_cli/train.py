"""``apex train``: all services on this machine, a live view, and a run directory that can be resumed."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from apex_cli.processes import Service, ServiceFailedError, stop_in_order
from apex_cli.view import View, make_view
from apexrl.algorithms import CONFIGS
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.envs import env_spec
from apexrl.runtime.lifecycle import Shutdown
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.learning_curve import draw_learning_curve
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import security
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.security import Security

POLL_SECONDS = 0.5
CURVE_SECONDS = 120.0
#: Seconds for actors (they hand over what they hold) and the learner (it saves), then for the shard: ten in all.
STOP_SECONDS = (7.5, 2.0)
EVALUATION_GRACE_SECONDS = 120.0


@dataclass(frozen=True)
class TrainArguments:
    """Train on this machine until the run ends or Ctrl-C; the same command resumes.

    Every field of the configuration can be set behind these options, e.g. --learner.batch-size 32. `apex inspect
    config FILE` prints them all with their values.
    """

    config: Annotated[Path, tyro.conf.Positional]
    """YAML file of the experiment, e.g. configs/pong_small.yaml."""
    run_dir: Path | None = None
    """Directory of the run; runs/NAME of the experiment by default. An existing run there is resumed."""
    fresh: bool = False
    """Begin a new run; what the directory holds of an earlier one is moved aside."""
    serial: bool = False
    """Everything in one process and one thread, reproducible bit by bit. For tests and debugging; slow."""


def train(arguments: TrainArguments, overrides: Sequence[str], shutdown: Shutdown) -> int:
    """Run the command; returns the exit code."""
    config = load_experiment(arguments.config, overrides, algorithm_configs=CONFIGS, prog="apex train CONFIG")
    env_spec(config.env)  # says what is missing before anything is written
    directory = arguments.run_dir or Path("runs") / config.name
    run = RunDirectory.create_or_resume(directory, config, fresh=arguments.fresh)
    if arguments.serial:
        from apex_cli.serial import run_serial

        return run_serial(config, run, shutdown)
    security.use(Security.load(config.security))
    print(f"run {run.path} ({'resumed' if run.resumed else 'new'}), configuration {arguments.config}", flush=True)
    local = LocalRun(config, run)
    with make_view(config.name) as view:
        try:
            local.start()
            finished = local.watch(view, shutdown)
        except ServiceFailedError as error:
            local.stop()
            print(f"apex train: {error}")
            return 1
        view.show(local.last_status, "saving and stopping")
        killed = local.stop()
    local.draw_curve()
    _print_end(local, run, finished, killed)
    return 1 if killed else 0


def _print_end(local: LocalRun, run: RunDirectory, finished: bool, killed: list[str]) -> None:
    status = local.last_status
    if killed:
        print(f"did not stop in time and was killed: {', '.join(killed)}")
    if status is not None and status.HasField("evaluator_return"):
        print(f"last evaluation: return {status.evaluator_return:.1f} after {status.global_frames:,} frames")
    print(f"the run is over: {run.path}" if finished else f"stopped; the same command resumes {run.path}")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class LocalRun:
    """The services of one run as child processes on loopback.

    Args:
        config: of the run; ports are chosen here.
        run: where logs and results go.
        players: also start actors and evaluators.
    """

    def __init__(self, config: ExperimentConfig[Any], run: RunDirectory, *, players: bool = True) -> None:
        self._config = config
        self._run = run
        shards = len(config.replay.addresses)
        *replay, learner = (f"127.0.0.1:{port}" for port in free_ports(shards + 1))
        self.replay_addresses = tuple(replay)
        self.learner_address = learner
        common = ["--config", str(run.config_yaml)]
        addresses = ["--replay.addresses", *replay, "--learner.address", learner]
        if config.actor.parameter_addresses:
            addresses.append("--actor.parameter-addresses")  # none: one machine needs no relays and none is started

        def service(name: str, module: str, *arguments: str) -> Service:
            return Service(name, module, [*common, *arguments], run.logs / f"{name}.log")

        names = ["replay"] if shards == 1 else [f"replay-{i}" for i in range(shards)]
        journal = config.replay.journal_directory
        self.shards = [
            service(
                name,
                "apex_replay",
                *("--replay.listen", address),
                *(("--replay.journal-directory", str(Path(journal) / name)) if journal else ()),
            )
            for name, address in zip(names, replay, strict=True)
        ]
        self.learner = service(
            "learner", "apex_learner", "--run-dir", str(run.path), *addresses, "--learner.listen", learner
        )
        self.actors = [
            service(f"actor-{i}", "apex_actor", *addresses) for i in range(config.local.actors if players else 0)
        ]
        self.evaluators = [
            service(f"evaluator-{i}", "apex_actor", "--role", "evaluator", *addresses)
            for i in range(config.local.evaluators if players else 0)
        ]
        self._client = CoordinatorClient(learner)
        self.last_status: pb.GetStatusResponse | None = None
        self._drawn = time.monotonic()

    @property
    def services(self) -> list[Service]:
        return [*self.shards, self.learner, *self.actors, *self.evaluators]

    def start(self) -> None:
        """Start all services; the order does not matter."""
        for service in self.services:
            service.start()

    def watch(self, view: View, shutdown: Shutdown) -> bool:
        """Show how the run stands until it ends (True) or a stop is requested (False).

        Raises:
            ServiceFailedError: a service cannot be kept alive.
        """
        while not shutdown.requested:
            for service in self.services:
                service.supervise()
            try:
                self.last_status = self._client.get_status(timeout=POLL_SECONDS)
            except TimeoutError:
                view.show(self.last_status, "the learner does not answer; see its log" if self.last_status else "")
            else:
                view.show(self.last_status)
                if self.last_status.finished:
                    self._await_last_evaluation(view, shutdown)
                    return True
            if time.monotonic() - self._drawn > CURVE_SECONDS:
                self.draw_curve()
            shutdown.wait(POLL_SECONDS)
        return False

    def draw_curve(self) -> None:
        """Bring the learning curve's picture up to date."""
        self._drawn = time.monotonic()
        if self._run.metrics_csv.exists():
            draw_learning_curve(self._run.metrics_csv, self._run.learning_curve_png, self._config.name)

    def stop(self) -> list[str]:
        """Stop everything within ten seconds, the learner saving; returns who had to be killed."""
        self._client.close()
        first, last = STOP_SECONDS
        return stop_in_order([([*self.actors, *self.evaluators, self.learner], first), (self.shards, last)])

    def _await_last_evaluation(self, view: View, shutdown: Shutdown) -> None:
        """Give the evaluator time for the final parameters, so that a finished run ends with their return."""
        if not self.evaluators:
            return
        deadline = time.monotonic() + EVALUATION_GRACE_SECONDS
        while time.monotonic() < deadline and not shutdown.requested:
            try:
                self.last_status = self._client.get_status(timeout=POLL_SECONDS)
            except TimeoutError:
                return
            if self.last_status.evaluated_version == self.last_status.version:
                return
            view.show(self.last_status, "the run is over; evaluating the final parameters")
            shutdown.wait(POLL_SECONDS)
