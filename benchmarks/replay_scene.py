"""A served replay and its clients, ours and dm-reverb's, each client and each server a process of its own.

The four benchmarks of the replay's data path share this: who runs, and what a window of it costs.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apex_cli.processes import Service, stop_in_order
from apex_cli.train import free_ports
from apex_cli.usage import process_usage
from apexrl.config import ExperimentConfig
from apexrl.runtime.run_directory import RunDirectory
from apexrl.types import TableConfig
from benchmarks.machine import ROOT
from benchmarks.peers.environment import peer_python
from benchmarks.peers.worker import PeerProcess

OURS = "apex"
LAYOUTS = ("naive", "frames4", "frames16")
SHARD_MODULE = "apex_replay"
#: At the start of a window everything runs for this long uncounted: queues that filled meanwhile empty themselves.
SETTLE_SECONDS = 0.5
#: Whoever keeps new steps coming while another is measured is asked this often.
FEED_SECONDS = 0.25
FILL_SECONDS = 300.0


class Measured(NamedTuple):
    """One window of one system. CPU-seconds are user and system time of whole processes."""

    rates: dict[str, float]
    """Role -> transitions per second."""
    client_cpu: dict[str, float]
    """Role -> CPU-seconds of that client per million transitions of its."""
    server_cpu: float
    """CPU-seconds of the server per million transitions of all measured roles together."""

    @property
    def cpu(self) -> float:
        """CPU-seconds per million transitions, clients and server, where one role was measured."""
        return sum(self.client_cpu.values()) + self.server_cpu


@dataclass
class System:
    """A server, its clients by role, and the windows that were measured."""

    name: str
    server_pid: int
    clients: Mapping[str, PeerProcess]
    measured: list[Measured] = field(default_factory=list)
    sampled: int = 0
    """Transitions sampled in all windows in which new steps kept coming, uncounted parts included."""
    fed: int = 0
    """Transitions inserted meanwhile."""

    def fill(self, items: int) -> None:
        """Insert that many items."""
        self.clients["insert"].ask({"seconds": FILL_SECONDS, "units": items})

    def window(self, seconds: float, roles: Sequence[str], feeding: bool) -> float:
        """Measure a window of ``roles`` at once; ``feeding`` keeps new steps coming beside them.

        Returns the first role's transitions per second, as :mod:`benchmarks.windows` wants them.
        """
        with ThreadPoolExecutor(len(roles) + 1) as pool, self._fed(pool, feeding):
            self._run(pool, roles, SETTLE_SECONDS)
            pids = {role: pid_of(self.clients[role]) for role in roles}
            before = {pid: cpu_seconds(pid) for pid in (self.server_pid, *pids.values())}
            done = self._run(pool, roles, seconds)
            spent = {pid: cpu_seconds(pid) - past for pid, past in before.items()}
        units = {role: done[role]["units"] for role in roles}
        one = Measured(
            {role: units[role] / done[role]["seconds"] for role in roles},
            {role: per_million(spent[pids[role]], units[role]) for role in roles},
            per_million(spent[self.server_pid], sum(units.values())),
        )
        self.measured.append(one)
        return one.rates[roles[0]]

    def _run(self, pool: ThreadPoolExecutor, roles: Sequence[str], seconds: float) -> dict[str, dict[str, Any]]:
        asked = {role: pool.submit(self.clients[role].ask, {"seconds": seconds}) for role in roles}
        done = {role: answer.result() for role, answer in asked.items()}
        self.sampled += done["sample"]["units"] if "sample" in done else 0
        return done

    @contextlib.contextmanager
    def _fed(self, pool: ThreadPoolExecutor, feeding: bool) -> Iterator[None]:
        """Keep the inserter inserting, within the limiter, as long as this lasts."""
        wanted = feeding

        def feed() -> None:
            while wanted:
                self.fed += self.clients["insert"].ask({"seconds": FEED_SECONDS})["units"]

        fed = pool.submit(feed)
        try:
            yield
        finally:
            wanted = False
            fed.result()


def pid_of(process: PeerProcess) -> int:
    """Its number; waits until it is ready."""
    return int(process.ask({})["pid"])


def cpu_seconds(pid: int) -> float:
    """CPU-seconds of a process so far; none of those here has children.

    Raises:
        ProcessLookupError: it has ended.
    """
    usage = process_usage(pid)
    if usage is None:
        raise ProcessLookupError(f"process {pid} of a measured system has ended")
    return usage.cpu_seconds


def per_million(seconds: float, units: float) -> float:
    """Seconds per million units; not a number where nothing was done would hide a failure, so that raises.

    Raises:
        RuntimeError: there were no units.
    """
    if units <= 0:
        raise RuntimeError("a window passed without a single transition; make it longer, or see the services' logs")
    return 1e6 * seconds / units


def median(measured: Sequence[Measured]) -> Measured:
    """The median of each figure."""
    return Measured(
        {role: float(np.median([one.rates[role] for one in measured])) for role in measured[0].rates},
        {role: float(np.median([one.client_cpu[role] for one in measured])) for role in measured[0].client_cpu},
        float(np.median([one.server_cpu for one in measured])),
    )


@contextlib.contextmanager
def ours(
    config: ExperimentConfig[Any], directory: Path, recording: Path, *, roles: Sequence[str], items: int
) -> Iterator[System]:
    """A shard process with the clients of ``roles`` on loopback; ``items`` items are in before a learner asks."""
    run = RunDirectory.create_or_resume(directory, config)
    shard = Service("replay", SHARD_MODULE, ["--config", str(run.config_yaml)], run.logs / "replay.log")
    shard.start()
    assert shard.process is not None
    script = ROOT / "benchmarks" / "replay_worker.py"
    with contextlib.ExitStack() as stack:
        stack.callback(stop_in_order, [([shard], 5.0)])
        clients: dict[str, PeerProcess] = {}
        system = System(OURS, shard.process.pid, clients)
        for role in roles:
            clients[role] = PeerProcess(sys.executable, script, role, str(run.path), str(recording))
            stack.callback(clients[role].close)
            if role == "insert" and items:
                system.fill(items)
        yield system


def reverb_form(table: TableConfig) -> str:
    """What the peer must know of a table's rows, as its worker's ``Form`` in JSON."""
    signature = table.signature
    frame, action = signature.column("observation"), signature.column("action")
    return json.dumps(
        {
            "stack": signature.stack,
            "n_steps": signature.geometry.tail,
            "frame": list(frame.shape),
            "frame_dtype": frame.dtype,
            "action": list(action.shape),
            "action_dtype": action.dtype,
        }
    )


@contextlib.contextmanager
def reverb(
    layout: str,
    table: TableConfig,
    recording: Path,
    *,
    roles: Sequence[str],
    items: int,
    samples_per_insert: float,
    batch_size: int,
) -> Iterator[System]:
    """dm-reverb in one of its layouts, with a table of the same capacity, limiter and content."""
    form = reverb_form(table)
    (port,) = free_ports(1)
    python, script = peer_python("reverb"), ROOT / "benchmarks" / "peers" / "reverb_worker.py"
    with contextlib.ExitStack() as stack:

        def start(role: str, *arguments: str) -> PeerProcess:
            process = PeerProcess(python, script, role, layout, str(port), *arguments)
            stack.callback(process.close)
            return process

        server = start("server", str(table.capacity_items), str(max(1, items)), str(samples_per_insert), form)
        clients: dict[str, PeerProcess] = {}
        system = System(f"reverb_{layout}", pid_of(server), clients)
        for role in roles:
            clients[role] = start(role, *([str(recording), form] if role == "insert" else [str(batch_size)]))
            if role == "insert" and items:
                system.fill(items)
        yield system
