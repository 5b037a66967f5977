"""The coordinator's state: leases, the fleet, returns of finished episodes, and the trainer's progress.

It knows no sockets: the serving process feeds it messages, serial mode calls it directly.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from apex_learner.leases import LeaseTable
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import parameters_pb2
from apexrl.types import ParameterVersion

LEASE_TTL_SECONDS = 30.0
#: Lanes with an epsilon below this count as greedy in reports.
GREEDY_EPSILON = 0.01
RECENT_EPISODES = 100
#: Older than any version of a learner, whose epochs begin at 1.
NOTHING_PUBLISHED = ParameterVersion(0, 0)


@dataclass
class Progress:
    """What the trainer last said of itself."""

    version: ParameterVersion = NOTHING_PUBLISHED
    wall_seconds: float = 0.0
    learner_updates: int = 0
    global_frames: int = 0
    updates_per_second: float = 0.0
    frames_per_second: float = 0.0
    samples_per_insert: float = 0.0
    replay_items: int = 0
    min_replay_items: int = 0
    loss: float = 0.0
    batch_wait_ratio: float = 0.0
    seconds_left: float | None = None
    finished: bool = False
    waiting: list[str] = field(default_factory=list)


class Evaluation(NamedTuple):
    """One evaluated version: returns of its episodes, played with ``epsilon``."""

    version: ParameterVersion
    returns: tuple[float, ...]
    epsilon: float

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))


@dataclass
class _Member:
    role: int
    lanes: int
    report_number: int = 0
    last_seen: float = 0.0
    lag_updates: int | None = None
    """Learner updates between its parameters and the newest, as of its last heartbeat; None = of another epoch."""


class Coordinator:
    """Answers heartbeats and status requests.

    Args:
        run_id: the learner's run.
        epoch: of the learner; part of every answer.
        resumed: whether holders of leases may still be out there.
        on_evaluation: called with every finished evaluation.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run_id: str,
        epoch: int,
        *,
        resumed: bool,
        on_evaluation: Callable[[Evaluation], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_id = run_id
        self._epoch = epoch
        self._clock = clock
        self._on_evaluation = on_evaluation
        self._leases = LeaseTable(LEASE_TTL_SECONDS, confirm_only=resumed, clock=clock)
        self._members: dict[bytes, _Member] = {}
        self._greedy: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._exploring: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._evaluation: Evaluation | None = None
        self._episodes = 0
        self.progress = Progress()

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatResponse:
        """Renew or release what the sender holds and take in its reports, each once."""
        member = self._members.setdefault(request.incarnation, _Member(request.role, request.lanes))
        member.last_seen = self._clock()
        newest = self.progress.version
        same_epoch = request.version.epoch == newest.epoch
        member.lag_updates = max(0, newest.step - request.version.step) if same_epoch else None
        if request.report_number > member.report_number:
            member.report_number = request.report_number
            self._take_episodes(request)
        indices: list[int] = []
        if request.release:
            self._leases.release(request.incarnation)
            del self._members[request.incarnation]
        elif request.role == pb.ROLE_ACTOR:
            indices = self._leases.renew(request.incarnation, request.lanes, list(request.held_indices))
        return pb.HeartbeatResponse(
            run_id=self._run_id,
            epoch=self._epoch,
            indices=indices,
            ttl_seconds=LEASE_TTL_SECONDS,
            global_frames=self.progress.global_frames,
            finished=self.progress.finished,
        )

    def status(self) -> pb.GetStatusResponse:
        """How the run stands."""
        progress = self.progress
        fleet = self.fleet()
        response = pb.GetStatusResponse(
            run_id=self._run_id,
            epoch=self._epoch,
            version=parameters_pb2.ParameterVersion(epoch=progress.version.epoch, step=progress.version.step),
            learner_updates=progress.learner_updates,
            global_frames=progress.global_frames,
            updates_per_second=progress.updates_per_second,
            frames_per_second=progress.frames_per_second,
            samples_per_insert=progress.samples_per_insert,
            replay_items=progress.replay_items,
            min_replay_items=progress.min_replay_items,
            actors=int(fleet["actors"]),
            lanes=int(fleet["lanes"]),
            parameter_lag_updates=fleet["parameter_lag_updates"],
            episodes=self._episodes,
            finished=progress.finished,
            waiting=progress.waiting,
            evaluators=len(self._members) - int(fleet["actors"]),
            loss=progress.loss,
            batch_wait_ratio=progress.batch_wait_ratio,
        )
        if progress.seconds_left is not None:
            response.seconds_left = progress.seconds_left
        if self._evaluation is not None:
            epoch, step = self._evaluation.version
            response.evaluated_version.CopyFrom(parameters_pb2.ParameterVersion(epoch=epoch, step=step))
        for name, value in self.returns().items():
            setattr(response, name, value)
        return response

    def fleet(self) -> dict[str, float]:
        """Size of the fleet and how far its parameters lag behind, for the experiment log."""
        self._forget_silent()
        actors = [m for m in self._members.values() if m.role == pb.ROLE_ACTOR]
        lags = [m.lag_updates for m in actors if m.lag_updates is not None]
        return {
            "actors": len(actors),
            "lanes": sum(m.lanes for m in actors),
            "parameter_lag_updates": float(np.mean(lags)) if lags else 0.0,
            "episodes": self._episodes,
        }

    @property
    def num_leases(self) -> int:
        """Exploration indices on loan."""
        return self._leases.num_indices

    def returns(self) -> dict[str, float]:
        """Mean returns that are known: greedy_return, exploring_return, evaluator_return."""
        known: dict[str, float] = {}
        if self._greedy:
            known["greedy_return"] = float(np.mean(self._greedy))
        if self._exploring:
            known["exploring_return"] = float(np.mean(self._exploring))
        if self._evaluation is not None:
            known["evaluator_return"] = self._evaluation.mean_return
        return known

    def _take_episodes(self, request: pb.HeartbeatRequest) -> None:
        if request.role == pb.ROLE_EVALUATOR:
            # Two short evaluations may come in one heartbeat: one is of one version.
            by_version: dict[ParameterVersion, list[pb.Episode]] = {}
            for episode in request.episodes:
                version = ParameterVersion(episode.version.epoch, episode.version.step)
                by_version.setdefault(version, []).append(episode)
            for version, episodes in by_version.items():
                returns = tuple(episode.episode_return for episode in episodes)
                self._evaluation = Evaluation(version, returns, episodes[0].epsilon)
                self._on_evaluation(self._evaluation)
            return
        self._episodes += len(request.episodes)
        for episode in request.episodes:
            band = self._greedy if episode.epsilon < GREEDY_EPSILON else self._exploring
            band.append(episode.episode_return)

    def _forget_silent(self) -> None:
        deadline = self._clock() - LEASE_TTL_SECONDS
        for key in [key for key, member in self._members.items() if member.last_seen < deadline]:
            del self._members[key]
