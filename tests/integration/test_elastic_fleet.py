"""A fleet that grows from one actor to 300 and shrinks to 20: no lane that stays changes how it explores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from parameter_scene import server
from replay_scene import RUN, WAIT, handshake

from apex_actor.exploring import lane_epsilons
from apex_actor.membership import Membership
from apex_learner.coordinator import LEASE_TTL_SECONDS, Coordinator
from apex_learner.serving import CoordinatorServicer
from apexrl.config import ExplorationConfig
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport._generated.apex.v1 import coordinator_pb2_grpc
from apexrl.transport.coordinator_client import CoordinatorClient

LANES = 2
#: Heartbeats under way at a time.
AT_ONCE = 16
EXPLORATION = ExplorationConfig(mode="ladder")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class WatchedCoordinator(Coordinator):
    """Notes after every heartbeat who holds what, and any index that two live holders have."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(RUN, 1, resumed=False, on_evaluation=lambda evaluation: None, clock=clock)
        self._now = clock
        self._held: dict[bytes, tuple[float, list[int]]] = {}
        self.conflicts: list[str] = []

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        response = super().heartbeat(request)
        self._held.pop(request.incarnation, None)
        held = {
            key: (renewed, indices)
            for key, (renewed, indices) in self._held.items()
            if renewed >= self._now() - LEASE_TTL_SECONDS
        }
        taken = {index for _, indices in held.values() for index in indices}
        if len(set(response.indices)) != len(response.indices) or taken & set(response.indices):
            self.conflicts.append(f"{list(response.indices)} while {sorted(taken)} are held")
        if not request.release:
            held[request.incarnation] = (self._now(), list(response.indices))
        self._held = held
        return response


class Actor:
    """A lease over a connection of its own, renewed when told."""

    def __init__(self, address: str, number: int) -> None:
        self.membership = Membership(pb.ROLE_ACTOR, LANES)
        self._client = CoordinatorClient(address, handshake(""), connection=f"actor-{number}")

    @property
    def indices(self) -> list[int]:
        return list(self.membership.indices)

    @property
    def epsilons(self) -> list[float]:
        return list(lane_epsilons(EXPLORATION, self.indices, self.membership.global_frames))

    def beat(self, release: bool = False) -> None:
        def send(request: pb.HeartbeatRequest, timeout: float | None = None) -> pb.HeartbeatResponse:
            return self._client.heartbeat(request, timeout=WAIT)

        self.membership.beat(send, release=release)

    def close(self) -> None:
        self._client.close()


class Fleet:
    """Actors of one coordinator."""

    def __init__(self, address: str, pool: ThreadPoolExecutor) -> None:
        self._address = address
        self._pool = pool
        self._made: list[Actor] = []

    def join(self, count: int) -> list[Actor]:
        """New actors, which get their leases at once."""
        new = [Actor(self._address, len(self._made) + i) for i in range(count)]
        self._made += new
        self.beat(new)
        return new

    def beat(self, actors: Sequence[Actor], release: bool = False) -> None:
        for done in [self._pool.submit(actor.beat, release) for actor in actors]:
            done.result()

    def close(self) -> None:
        for actor in self._made:
            actor.close()


@contextmanager
def elastic(coordinator: Coordinator) -> Iterator[Fleet]:
    servicer = CoordinatorServicer(handshake(), coordinator)
    with (
        server(lambda to: coordinator_pb2_grpc.add_CoordinatorServicer_to_server(servicer, to)) as running,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        fleet = Fleet(running.address, pool)
        try:
            yield fleet
        finally:
            fleet.close()


def indices_of(actors: Sequence[Actor]) -> list[int]:
    """Of all lanes, in order."""
    return sorted(index for actor in actors for index in actor.indices)


def test_from_1_to_300_to_20_actors_no_lane_that_stays_changes_its_epsilon() -> None:
    clock = Clock()
    coordinator = WatchedCoordinator(clock)
    with elastic(coordinator) as fleet:
        (first,) = fleet.join(1)
        assert first.indices == [0, 1]
        known = {first: (first.indices, first.epsilons)}

        others = fleet.join(299)
        everyone = [first, *others]
        assert indices_of(everyone) == list(range(300 * LANES)), "the lowest, without gaps, each once"
        assert coordinator.fleet()["actors"] == 300
        known |= {actor: (actor.indices, actor.epsilons) for actor in others}

        stay = everyone[::15]
        leave = [actor for actor in everyone if actor not in stay]
        released, silent = leave[::2], leave[1::2]
        fleet.beat(released, release=True)
        clock.now += LEASE_TTL_SECONDS - 5
        fleet.beat(stay)

        # What was given back is free at once; what silent actors hold is not before its time.
        free = indices_of(released)
        early = fleet.join(10)
        assert indices_of(early) == free[: 10 * LANES]
        assert coordinator.num_leases == (len(stay) + len(silent) + len(early)) * LANES

        clock.now += 10
        fleet.beat(stay)
        assert coordinator.num_leases == (len(stay) + len(early)) * LANES, "silent for more than a TTL"
        assert coordinator.fleet()["actors"] == len(stay) + len(early)
        fleet.beat(early, release=True)
        assert coordinator.fleet()["actors"] == len(stay) == 20

        late = fleet.join(100)
        kept = set(indices_of(stay))
        expected = [index for index in range(300 * LANES) if index not in kept][: 100 * LANES]
        assert indices_of(late) == expected, "freed ones are used again, the lowest first"

        # Somebody who was silent for longer than a TTL comes back: it may not take what others have by now.
        back = silent[0]
        fleet.beat([back])
        assert not set(back.indices) & (kept | set(expected))

        fleet.beat(stay)
        for actor in stay:
            assert (actor.indices, actor.epsilons) == known[actor]
        assert len(np.unique([epsilon for actor in [*stay, *late] for epsilon in actor.epsilons])) == 120 * LANES
    assert coordinator.conflicts == []
