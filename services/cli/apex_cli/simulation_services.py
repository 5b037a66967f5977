"""The services that ``apex simulate`` loads: started on this machine, or those of a cluster."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apex_cli.train import LocalRun, free_ports
from apex_cli.usage import Usage, child_processes, process_usage, scrape, scraped_usage
from apexrl.config import ExperimentConfig
from apexrl.runtime.run_directory import RunDirectory

SERVING_CHILD = "learner's serving child"


@dataclass
class Services:
    """What is loaded, and how its processes are looked at."""

    config: ExperimentConfig[Any]
    """With the addresses in use."""
    usage: Callable[[], dict[str, Usage]]
    """Pod -> usage, of those that are known."""
    supervise: Callable[[], None] = lambda: None
    pods: list[str] = field(default_factory=list)
    """Shards in the order of their addresses, then the learner's processes."""
    learner_metrics: str = ""
    """HOST:PORT of the learner's /metrics; "" = not exported."""


@contextlib.contextmanager
def local_services(config: ExperimentConfig[Any]) -> Iterator[Services]:
    """Shards and learner as `apex train` starts them, without actors, in a run that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="apex-simulate-") as directory:
        (port,) = free_ports(1)
        learner = replace(config.learner, max_updates=0, max_frames=0, max_seconds=0.0, metrics_port=port)
        journal = str(Path(directory) / "journal") if config.replay.journal_directory else ""
        config = replace(config, learner=learner, replay=replace(config.replay, journal_directory=journal))
        local = LocalRun(config, RunDirectory.create_or_resume(Path(directory) / "run", config), players=False)
        names = [service.name for service in local.shards]

        def usage() -> dict[str, Usage]:
            pids = {service.name: service.process.pid for service in local.services if service.process is not None}
            if "learner" in pids:
                for child in child_processes(pids["learner"])[:1]:
                    pids[SERVING_CHILD] = child
            found = {name: process_usage(pid) for name, pid in pids.items()}
            return {name: used for name, used in found.items() if used is not None}

        def supervise() -> None:
            for service in local.services:
                service.supervise()

        local.start()
        try:
            yield Services(
                replace(
                    config,
                    replay=replace(config.replay, addresses=local.replay_addresses),
                    learner=replace(config.learner, address=local.learner_address),
                    actor=replace(config.actor, parameter_addresses=()),
                ),
                usage,
                supervise,
                [*names, "learner", SERVING_CHILD],
                f"127.0.0.1:{port}",
            )
        finally:
            local.stop()


@contextlib.contextmanager
def cluster_services(config: ExperimentConfig[Any]) -> Iterator[Services]:
    """Services that run already, at the configuration's addresses."""
    names = [f"replay {address}" for address in config.replay.addresses]
    learner = f"learner {config.learner.address}"
    ports = {name: config.replay.metrics_port for name in names} | {learner: config.learner.metrics_port}
    exporters = {name: f"{name.partition(' ')[2].rpartition(':')[0]}:{port}" for name, port in ports.items() if port}

    def usage() -> dict[str, Usage]:
        found = {name: scraped_usage(scrape(address)) for name, address in exporters.items()}
        return {name: used for name, used in found.items() if used is not None}

    yield Services(config, usage, pods=[*names, learner], learner_metrics=exporters.get(learner, ""))
