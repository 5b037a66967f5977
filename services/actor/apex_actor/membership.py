"""An actor's standing with the coordinator: its leases, what it reports, and what it is told."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import parameters_pb2
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.errors import Closed
from apexrl.types import EpisodeReport, ParameterVersion

#: Seconds between two heartbeats, if a third of the lease is not less.
HEARTBEAT_SECONDS = 2.0
#: A heartbeat that is not answered within this time is sent again.
ANSWER_SECONDS = 2.0
#: Finished episodes kept for the next heartbeat; the oldest go first.
MAX_PENDING_EPISODES = 10_000


class Send(Protocol):
    """Carries a heartbeat: the gRPC client's method, or serial mode's coordinator itself."""

    def __call__(self, request: pb.HeartbeatRequest, timeout: float | None = None) -> pb.HeartbeatResponse: ...


class Membership:
    """Builds heartbeats and keeps what their answers say.

    All methods may be called from any thread. Until the first answer ``indices`` is empty and the actor explores by
    hash; a lease that cannot be renewed is kept.
    """

    def __init__(self, role: pb.Role.ValueType, num_lanes: int, incarnation: bytes | None = None) -> None:
        self.incarnation = incarnation or os.urandom(16)
        self._role = role
        self._num_lanes = num_lanes
        self._lock = threading.Lock()
        self._episodes: deque[EpisodeReport] = deque(maxlen=MAX_PENDING_EPISODES)
        self._unanswered: pb.HeartbeatRequest | None = None
        self._report_number = 0
        self.version = ParameterVersion(0, 0)
        self.indices: list[int] = []
        self.global_frames = 0
        self.finished = False
        self.run_id = ""
        self.ttl_seconds = 3 * HEARTBEAT_SECONDS

    def report(self, episodes: Iterable[EpisodeReport]) -> None:
        """Add finished episodes to the next heartbeat."""
        with self._lock:
            self._episodes.extend(episodes)

    def beat(self, send: Send, *, release: bool = False) -> None:
        """Send one heartbeat and take in the answer. One that failed before is sent again first, under its number."""
        if self._unanswered is not None:
            self._exchange(send, self._unanswered)
        self._exchange(send, self._next_request(release))

    def _next_request(self, release: bool) -> pb.HeartbeatRequest:
        with self._lock:
            episodes = list(self._episodes)
            self._episodes.clear()
            self._report_number += 1
            return pb.HeartbeatRequest(
                role=self._role,
                incarnation=self.incarnation,
                lanes=self._num_lanes,
                held_indices=self.indices,
                report_number=self._report_number,
                episodes=[
                    pb.Episode(
                        episode_return=episode.episode_return,
                        length_steps=episode.length_steps,
                        epsilon=episode.epsilon,
                        version=parameters_pb2.ParameterVersion(epoch=episode.version.epoch, step=episode.version.step),
                    )
                    for episode in episodes
                ],
                version=parameters_pb2.ParameterVersion(epoch=self.version.epoch, step=self.version.step),
                release=release,
            )

    def _exchange(self, send: Send, request: pb.HeartbeatRequest) -> None:
        self._unanswered = request
        response = send(request, timeout=ANSWER_SECONDS)
        self._unanswered = None
        self.run_id = response.run_id
        if response.indices:
            self.indices = list(response.indices)
        self.global_frames = response.global_frames
        self.finished = response.finished
        self.ttl_seconds = response.ttl_seconds


class HeartbeatThread:
    """Beats in the background until stopped; ``stop`` releases the leases if the coordinator can be reached."""

    def __init__(self, membership: Membership, coordinator: CoordinatorClient) -> None:
        self._membership = membership
        self._coordinator = coordinator
        self._stop = threading.Event()
        self.answered = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Say goodbye, if that works within ``timeout_seconds``."""
        self._stop.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                # The client repeats by itself; the timeout only lets this thread see a stop.
                self._membership.beat(self._coordinator.heartbeat)
                self.answered.set()
            except TimeoutError:
                pass
            except Closed:
                return
            self._stop.wait(min(HEARTBEAT_SECONDS, self._membership.ttl_seconds / 3))
        with contextlib.suppress(TimeoutError, Closed):
            self._membership.beat(self._coordinator.heartbeat, release=True)
