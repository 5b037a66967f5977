"""``apex simulate``: a real learner and real shards under the load of synthetic actors, to size a cluster."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from apex_actor.recording import Recording, record_play
from apex_actor.synthetic import FleetTotals, SyntheticFleet, descriptors_needed
from apex_cli.processes import ServiceFailedError
from apex_cli.simulation_report import MEGABYTE, Need, Report, lines
from apex_cli.simulation_services import Services, cluster_services, local_services
from apex_cli.usage import Usage, process_usage, scrape
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ConfigError, ExperimentConfig, load_experiment
from apexrl.envs import env_spec
from apexrl.runtime.atomic_files import replace_file
from apexrl.runtime.lifecycle import Shutdown
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import security
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.info_client import UnreachableError, fetch_info
from apexrl.transport.security import Security

MAX_ACTORS = 4096
#: Under load, services and this process answer late; that must not end the measurement.
ANSWER_SECONDS = 30.0
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SimulateArguments:
    """Load real replay shards and a real learner with synthetic actors, and print what each process needs.

    The services are started on this machine as `apex train` does, in a temporary run, or are those of a cluster
    (--cluster). Synthetic actors play nothing: each sends chunks that were recorded at the start, at a steady rate,
    with a stream, a lease, heartbeats and parameter pulls of its own. Parameters are received and not decoded.

    What bounds their number is the one thread that all their connections share: an insert message, a heartbeat or a
    parameter pull takes it about 0.8 ms of a core (measured with 500 streams on a busy machine), so 1,000 a second are
    much. An actor sends a message when it has waited 0.5 s or holds 256 KiB, a heartbeat every 2 s, and pulls every
    actor.parameter_update_period_frames: two in all per second at the paper's 35 steps/s, so about 500 actors. Each
    takes 0.4 MB and one file descriptor per shard (up to 4) and for the learner. If this process was too slow, the
    report says so. Without --cluster the services share this machine's cores with the actors.

    Every field of the configuration can be set behind these options, e.g. --learner.batch-size 512.
    """

    config: Annotated[Path, tyro.conf.Positional]
    """YAML file of the experiment."""
    actors: int
    """Synthetic actors."""
    steps_per_second: float | None = None
    """Environment steps (= transitions) per second of each actor, all its lanes together. Default: what one actor
    reaches on this machine, measured while recording."""
    seconds: float = 30.0
    """Seconds to measure, after all actors have joined and the learner makes updates."""
    warm_up_seconds: float = 120.0
    """Seconds to wait for that at most; then measuring begins anyhow, if any actor has joined."""
    recorded_steps: int = 4096
    """Environment steps of random play to record and send again and again."""
    cluster: bool = False
    """Use running services at replay.addresses, learner.address and actor.parameter_addresses. Their replay fills with
    random play: not for a run that you want to keep. CPU and memory are shown where replay.metrics_port and
    learner.metrics_port are set and can be reached."""
    json: Path | None = None
    """Also write the report to this file; units are in the names of its fields."""


@dataclass
class Sample:
    """All counters at one moment."""

    moment: float
    inserted: list[int]
    drawn: int
    updates: int
    fleet: FleetTotals
    usage: dict[str, Usage]
    own: Usage
    mirror_bytes: float | None


def simulate(arguments: SimulateArguments, overrides: Sequence[str], shutdown: Shutdown) -> int:
    """Run the command; returns the exit code."""
    _check(arguments)
    config = load_experiment(arguments.config, overrides, algorithm_configs=CONFIGS, prog="apex simulate CONFIG")
    security.use(Security.load(config.security))
    env_spec(config.env)  # says what is missing before anything is started
    _allow_descriptors(descriptors_needed(config, arguments.actors), arguments.actors)
    print(f"recording {arguments.recorded_steps:,} steps of random play of {config.env.id}", flush=True)
    recording = record_play(config, arguments.recorded_steps)
    print(
        f"one actor plays {recording.steps_per_second:,.0f} env steps/s here and sends "
        f"{recording.bytes_per_item:,.0f} bytes per transition",
        flush=True,
    )
    rate = arguments.steps_per_second or recording.steps_per_second
    player = _own_usage().rss_bytes
    try:
        with cluster_services(config) if arguments.cluster else local_services(config) as services:
            report = _run(arguments, services, recording, rate, player, shutdown)
    except (ServiceFailedError, UnreachableError, TimeoutError) as error:
        print(f"apex simulate: {error}")
        return 1
    if report is None:
        print("stopped before anything was measured")
        return 1
    print("\n".join(["", *lines(report)]))
    if arguments.json is not None:
        replace_file(arguments.json, (json.dumps(report.as_json(), indent=2) + "\n").encode())
    return 0


def _check(arguments: SimulateArguments) -> None:
    if not 1 <= arguments.actors <= MAX_ACTORS:
        raise ConfigError(f"--actors is {arguments.actors}, must be in [1, {MAX_ACTORS}]")
    for name, value in (
        ("steps-per-second", arguments.steps_per_second),
        ("seconds", arguments.seconds),
        ("warm-up-seconds", arguments.warm_up_seconds),
        ("recorded-steps", arguments.recorded_steps),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}, must be above 0")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise ConfigError(f"--json is {str(arguments.json)!r}, must be a file in a directory that exists")


def _allow_descriptors(needed: int, actors: int) -> None:
    """Raise this process's soft limit, which its children inherit, to what the connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ConfigError(
                f"--actors is {actors}, which takes {needed} file descriptors, must take at most {hard} (ulimit -Hn)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# --- measuring ---


def _run(
    arguments: SimulateArguments,
    services: Services,
    recording: Recording,
    rate: float,
    player_rss: int,
    shutdown: Shutdown,
) -> Report | None:
    """Let the actors join, measure, and say what was seen; None if a stop was requested before."""
    config = services.config
    coordinator = CoordinatorClient(config.learner.address)
    rss_before = _own_usage().rss_bytes
    (table,) = make_algorithm(config, env_spec(config.env)).tables()
    fleet = SyntheticFleet(
        config, table.config, recording, actors=arguments.actors, items_per_second=rate, stop=shutdown
    )
    try:
        _warm_up(arguments, services, fleet, coordinator, shutdown)
        if shutdown.requested:
            return None
        first = _sample(services, fleet, coordinator)
        peaks = dict(first.usage)
        waits: list[float] = []
        deadline = first.moment + arguments.seconds
        while (left := deadline - time.monotonic()) > 0 and not shutdown.wait(min(left, POLL_SECONDS)):
            services.supervise()
            status = _status(coordinator)
            waits += [status.batch_wait_ratio] if status is not None else []
            for name, used in services.usage().items():
                peaks[name] = max(used, peaks.get(name, used), key=lambda usage: usage.rss_bytes)
        last = _sample(services, fleet, coordinator)
        report = _report(arguments, config, recording, rate, first, last)
        report.batch_wait_ratio = sum(waits) / max(1, len(waits))
        report.pods = _pods(services, report, first, last, peaks)
        report.pods += _actors(report, recording, first, last, rss_before, player_rss)
        report.waiting = _waiting(services, coordinator)
        return report
    finally:
        fleet.stop()
        coordinator.close()


def _warm_up(
    arguments: SimulateArguments,
    services: Services,
    fleet: SyntheticFleet,
    coordinator: CoordinatorClient,
    shutdown: Shutdown,
) -> None:
    """Wait until all actors have joined and the learner makes updates, or for as long as was asked.

    Raises:
        TimeoutError: not one actor has joined.
    """
    deadline = time.monotonic() + arguments.warm_up_seconds
    said = float("-inf")
    while not shutdown.requested:
        services.supervise()
        joined, status = fleet.totals().joined, _status(coordinator)
        updates = 0 if status is None else status.learner_updates
        if joined == arguments.actors and updates:
            return
        if time.monotonic() > deadline:
            if not joined:
                raise TimeoutError(f"no actor could join within {arguments.warm_up_seconds:g} s: {fleet.waiting()}")
            return
        if time.monotonic() - said > 10.0:
            said = time.monotonic()
            items = 0 if status is None else status.replay_items
            print(
                f"warming up: {joined} of {arguments.actors} actors have joined, replay holds {items:,} of "
                f"{services.config.replay.min_items:,} items to start",
                flush=True,
            )
        shutdown.wait(0.2)


def _status(coordinator: CoordinatorClient) -> pb.GetStatusResponse | None:
    try:
        return coordinator.get_status(POLL_SECONDS)
    except TimeoutError:
        return None


def _sample(services: Services, fleet: SyntheticFleet, coordinator: CoordinatorClient) -> Sample:
    infos = [fetch_info(address, timeout_seconds=ANSWER_SECONDS) for address in services.config.replay.addresses]
    metrics = scrape(services.learner_metrics) if services.learner_metrics else {}
    return Sample(
        inserted=[sum(table.totals.inserted for table in info.tables) for info in infos],
        drawn=sum(table.totals.drawn for info in infos for table in info.tables),
        updates=coordinator.get_status(ANSWER_SECONDS).learner_updates,
        usage=services.usage(),
        mirror_bytes=metrics.get("apex_learner_mirror_bytes_total"),
        own=_own_usage(),
        fleet=fleet.totals(),
        moment=time.monotonic(),
    )


def _report(
    arguments: SimulateArguments,
    config: ExperimentConfig[Any],
    recording: Recording,
    rate: float,
    first: Sample,
    last: Sample,
) -> Report:
    seconds = last.moment - first.moment
    actor_seconds = seconds * max(1, last.fleet.joined)
    blocked = last.fleet.blocked_seconds - first.fleet.blocked_seconds
    inserted = (sum(last.inserted) - sum(first.inserted)) / seconds
    return Report(
        config=str(arguments.config),
        actors=arguments.actors,
        actors_joined=last.fleet.joined,
        lanes_per_actor=config.actor.lanes,
        env_steps_per_second_per_actor=rate,
        seconds=seconds,
        learning=last.updates > first.updates,
        offered_per_second=rate * last.fleet.joined,
        inserted_per_second=inserted,
        sampled_per_second=(last.drawn - first.drawn) / seconds,
        updates_per_second=(last.updates - first.updates) / seconds,
        parameter_mb_per_second=(last.fleet.parameter_bytes - first.fleet.parameter_bytes) / seconds / MEGABYTE,
        insert_mb_per_second=inserted * recording.bytes_per_item / MEGABYTE,
        insert_windows_full_ratio=last.fleet.windows_full_ratio,
        insert_blocked_seconds=blocked,
        insert_blocked_ratio=blocked / actor_seconds,
        batch_wait_ratio=0.0,
        simulator_late_ratio=(last.fleet.late_seconds - first.fleet.late_seconds) / actor_seconds,
    )


def _pods(services: Services, report: Report, first: Sample, last: Sample, peaks: dict[str, Usage]) -> list[Need]:
    """What each service needed. A chunk comes in once and goes to the learner once: bytes follow insert counts."""
    seconds = last.moment - first.moment
    inserted = [after - before for before, after in zip(first.inserted, last.inserted, strict=True)]
    known = first.mirror_bytes is not None and last.mirror_bytes is not None
    mirror_mb = ((last.mirror_bytes or 0.0) - (first.mirror_bytes or 0.0)) / seconds / MEGABYTE if known else None
    needs = []
    for number, name in enumerate(services.pods):
        before, after, peak = first.usage.get(name), last.usage.get(name), peaks.get(name)
        need = Need(name)
        if before is not None and after is not None:
            need.cpu_cores = (after.cpu_seconds - before.cpu_seconds) / seconds
        need.rss_mb = None if peak is None else peak.rss_bytes / MEGABYTE
        if number < len(inserted):
            share = inserted[number] / max(1, sum(inserted))
            need.in_mb_per_second = report.insert_mb_per_second * share
            need.out_mb_per_second = None if mirror_mb is None else mirror_mb * share
        elif number == len(inserted):
            need.in_mb_per_second = mirror_mb
        if number == len(services.pods) - 1 and not services.config.actor.parameter_addresses:
            need.out_mb_per_second = report.parameter_mb_per_second
        needs.append(need)
    return needs


def _actors(
    report: Report, recording: Recording, first: Sample, last: Sample, rss_before: int, player_rss: int
) -> list[Need]:
    """One actor: as it was simulated, and as a real one would be, which also plays."""
    actors = report.actors
    sending = (last.own.cpu_seconds - first.own.cpu_seconds) / report.seconds / actors
    playing = report.env_steps_per_second_per_actor * recording.cpu_seconds_per_step
    received, sent = report.parameter_mb_per_second / actors, report.insert_mb_per_second / actors
    simulated_mb = max(0, last.own.rss_bytes - rss_before) / actors / MEGABYTE
    return [
        Need("actor, simulated, each", sending, simulated_mb, received, sent),
        Need("actor, real, each (est.)", sending + playing, player_rss / MEGABYTE + simulated_mb, received, sent),
    ]


def _waiting(services: Services, coordinator: CoordinatorClient) -> list[str]:
    """What learner and shards say that they wait for."""
    said = [f"learner: {line}" for line in coordinator.get_status(ANSWER_SECONDS).waiting]
    for name, address in zip(services.pods, services.config.replay.addresses, strict=False):
        said += [f"{name}: {line}" for line in fetch_info(address, timeout_seconds=ANSWER_SECONDS).waiting]
    return said


def _own_usage() -> Usage:
    used = process_usage(os.getpid())
    assert used is not None, "this process runs"
    return used
