"""Synthetic actors: to the other services they are actors, but they play nothing and send what was recorded.

Hundreds of them fit into one process. Each has a TCP connection per service, an insert fleet and incarnations of its
own, a lease with heartbeats, and parameter pulls at an actor's jittered period. All share the process's one io thread
and one thread that paces them; only heartbeats, which wait for their answers, have a thread each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from apex_actor.membership import HEARTBEAT_SECONDS, HeartbeatThread, Membership
from apex_actor.pacing import PacedStream, Pacer
from apex_actor.process import PERIOD_JITTER, parameter_addresses
from apex_actor.recording import Recording, from_burst
from apexrl.config import ExperimentConfig, shared_json
from apexrl.runtime.lifecycle import Deadline, Shutdown
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_fleet import MAX_STREAMS, InsertFleet
from apexrl.transport.parameter_client import ParameterClient
from apexrl.types import TableConfig

#: How often an actor that waits for lease and parameters is looked at.
JOIN_POLL_SECONDS = 0.1
#: An actor whose run is over is looked at this often.
FINISHED_POLL_SECONDS = 0.5
#: Time for all leases to be given back at the end.
GOODBYE_SECONDS = 5.0


def descriptors_needed(config: ExperimentConfig[Any], actors: int) -> int:
    """File descriptors of so many synthetic actors: one per connection, and some for the process itself."""
    streams = min(len(config.replay.addresses), MAX_STREAMS)
    learners = 1 + (1 if config.actor.parameter_addresses else 0)
    return 256 + actors * (streams + learners)


class SyntheticActor:
    """One of them. Turns come from a :class:`~apex_actor.pacing.Pacer`.

    Args:
        config: of the experiment; says where the services are.
        table: where chunks go.
        recording: what is sent.
        number: unique in this process.
        items_per_second: transitions per second of all lanes together.
    """

    def __init__(
        self,
        config: ExperimentConfig[Any],
        table: TableConfig,
        recording: Recording,
        number: int,
        items_per_second: float,
    ) -> None:
        self._config = config
        self._table = table
        self._recording = recording
        self._items_per_second = items_per_second
        self._shared_json = shared_json(config)
        self._connection = f"actor-{number}"
        self._generator = np.random.default_rng([config.seed, number])
        self.membership = Membership(pb.ROLE_ACTOR, config.actor.lanes)
        self._coordinator = CoordinatorClient(config.learner.address, self.handshake, connection=self._connection)
        self._heart = HeartbeatThread(self.membership, self._coordinator)
        self._heart.start()
        first, *others = parameter_addresses(config, pb.ROLE_ACTOR, self.membership.incarnation)
        self.parameters = ParameterClient(
            first, self.handshake, fallbacks=others, keep_payload=False, connection=self._connection
        )
        self._fleet: InsertFleet | None = None
        self.stream: PacedStream | None = None
        """None until lease and first parameters have come."""
        self._pull_due = 0.0

    def handshake(self) -> Handshake:
        """This actor's, with the run that the coordinator named last."""
        return Handshake(self.membership.run_id, self._shared_json)

    def turn(self, now: float) -> float:
        """See :class:`~apex_actor.pacing.Paced`."""
        if self.stream is None and not self._join(now):
            return now + JOIN_POLL_SECONDS
        if self.membership.finished:
            return now + FINISHED_POLL_SECONDS
        assert self.stream is not None
        if now >= self._pull_due:
            self._pull(now)
        return min(self.stream.turn(now), self._pull_due)

    @property
    def window_full_ratio(self) -> float:
        """Chunks that wait for an acknowledgement, of those that may."""
        if self._fleet is None:
            return 0.0
        windows = min(len(self._config.replay.addresses), MAX_STREAMS) * self._config.actor.max_unacked_chunks
        return self._fleet.unacked / windows

    def waiting(self) -> str | None:
        """What keeps it from joining, in words."""
        if self.stream is not None:
            return None
        return self.parameters.waiting() or self._coordinator.waiting() or "lease and first parameters have not come"

    def leave(self, seconds: float) -> None:
        """Give back the lease. May be called again, to wait longer."""
        self._heart.stop(seconds)

    def close(self) -> None:
        """End all connections."""
        if self._fleet is not None:
            self._fleet.close()
        self.parameters.close()
        self._coordinator.close()

    def _join(self, now: float) -> bool:
        """As an actor: begin with the first parameters, once the coordinator has answered."""
        if self.parameters.newest is None or not self.membership.indices:
            return False
        self._fleet = InsertFleet(
            self._config.replay.addresses,
            self.handshake,
            self._table,
            self._config.actor.max_unacked_chunks,
            first=self.membership.indices[0] // self._config.actor.lanes,
            connection=self._connection,
        )
        first = int(self._generator.integers(len(self._recording.bursts)))
        # Actors are not in step: the first burst comes anywhere within the time that one takes.
        phase = self._generator.random() * self._recording.bursts[first].items / self._items_per_second
        self.stream = PacedStream(
            self._fleet.put, from_burst(self._recording, first), self._items_per_second, now + phase
        )
        return True

    def _pull(self, now: float) -> None:
        """Look for newer parameters; the next look is a period away, jittered, as in an actor."""
        newest = self.parameters.newest
        if newest is not None:
            self.membership.version = newest.version
        self.parameters.request()
        turns = self._config.actor.parameter_update_period_frames / self._config.env.action_repeat
        jitter = 1.0 + PERIOD_JITTER * (2.0 * self._generator.random() - 1.0)
        self._pull_due = now + turns * jitter * self._config.actor.lanes / self._items_per_second


@dataclass(frozen=True)
class FleetTotals:
    """Sums over all synthetic actors since their start."""

    joined: int
    """Actors that have lease and parameters."""
    sent_items: int
    sent_bytes: int
    parameter_bytes: int
    parameter_fetches: int
    blocked_seconds: float
    """In which an actor's insert waited."""
    windows_full_ratio: float
    """Chunks that wait for an acknowledgement, of those that may."""
    late_seconds: float
    """Play that this process skipped because it was too slow."""


class SyntheticFleet:
    """``actors`` synthetic actors in this process, with ``items_per_second`` transitions per second each."""

    def __init__(
        self,
        config: ExperimentConfig[Any],
        table: TableConfig,
        recording: Recording,
        *,
        actors: int,
        items_per_second: float,
        stop: Shutdown,
    ) -> None:
        self.actors: list[SyntheticActor] = []
        for number in range(actors):
            self.actors.append(SyntheticActor(config, table, recording, number, items_per_second))
            # Spread the heartbeats, which come at a fixed period from here on.
            if stop.wait(HEARTBEAT_SECONDS / actors):
                break
        self._pacer = Pacer(self.actors)
        self._pacer.resume()

    def totals(self) -> FleetTotals:
        """How it stands."""
        now = self._pacer.now
        streams = [actor.stream for actor in self.actors if actor.stream is not None]
        return FleetTotals(
            joined=len(streams),
            sent_items=sum(stream.sent_items for stream in streams),
            sent_bytes=sum(stream.sent_bytes for stream in streams),
            parameter_bytes=sum(actor.parameters.fetched_bytes for actor in self.actors),
            parameter_fetches=sum(actor.parameters.fetches for actor in self.actors),
            blocked_seconds=sum(stream.blocked_seconds(now) for stream in streams),
            windows_full_ratio=sum(actor.window_full_ratio for actor in self.actors) / max(1, len(streams)),
            late_seconds=sum(stream.late_seconds for stream in streams),
        )

    def waiting(self) -> str | None:
        """What the first actor that has not joined waits for."""
        return next((reason for actor in self.actors if (reason := actor.waiting())), None)

    def stop(self) -> None:
        """Give back all leases and end all connections."""
        self._pacer.stop()
        deadline = Deadline(GOODBYE_SECONDS)
        for actor in self.actors:
            actor.leave(0.0)
        for actor in self.actors:
            actor.leave(deadline.left_seconds())
        for actor in self.actors:
            actor.close()
