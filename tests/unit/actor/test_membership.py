"""Heartbeats as the actor sends them: nothing reported twice, nothing lost, leases kept."""

from __future__ import annotations

import pytest

from apex_actor.exploring import hashed_indices, lane_epsilons
from apex_actor.membership import Membership
from apex_learner.coordinator import Coordinator
from apexrl.config import ExplorationConfig
from apexrl.transport import coordinator_pb2 as pb
from apexrl.types import EpisodeReport, ParameterVersion

REPORT = EpisodeReport(3.0, 10, 0.001, ParameterVersion(1, 2), 0)


class Line:
    """A coordinator behind a line that can lose requests or answers."""

    def __init__(self) -> None:
        self.coordinator = Coordinator("ab" * 16, 1, resumed=False, on_evaluation=lambda evaluation: None)
        self.lose_request = self.lose_answer = False

    def send(self, request: pb.HeartbeatRequest, timeout: float | None = None) -> pb.HeartbeatResponse:
        if self.lose_request:
            raise TimeoutError
        response = self.coordinator.heartbeat(pb.HeartbeatRequest.FromString(request.SerializeToString()))
        if self.lose_answer:
            raise TimeoutError
        return response


@pytest.mark.parametrize("lost", ["lose_request", "lose_answer"])
def test_an_episode_arrives_once_whatever_is_lost(lost: str) -> None:
    line = Line()
    membership = Membership(pb.ROLE_ACTOR, 2)
    membership.report([REPORT])
    setattr(line, lost, True)
    with pytest.raises(TimeoutError):
        membership.beat(line.send)
    membership.report([REPORT])
    setattr(line, lost, False)
    membership.beat(line.send)
    assert line.coordinator.status().episodes == 2


def test_indices_are_held_and_presented_again_to_a_new_coordinator() -> None:
    line, other = Line(), Line()
    Membership(pb.ROLE_ACTOR, 3).beat(line.send)
    membership = Membership(pb.ROLE_ACTOR, 2)
    assert membership.indices == []
    membership.beat(line.send)
    assert membership.indices == [3, 4]
    membership.beat(other.send)
    assert membership.indices == [3, 4], "what it held is confirmed"


def test_an_actor_without_a_lease_explores_by_hash() -> None:
    indices = hashed_indices(b"x" * 16, 64)
    assert len(indices) == 64
    assert indices == hashed_indices(b"x" * 16, 64)
    assert indices != hashed_indices(b"y" * 16, 64)
    epsilons = lane_epsilons(ExplorationConfig(), indices, 0)
    assert epsilons.min() >= 0.4**8 * 0.999
    assert epsilons.max() <= 0.4
    assert len(set(epsilons.round(12))) > 32, "spread over the ladder"


def test_epsilons_by_mode() -> None:
    ladder = lane_epsilons(ExplorationConfig(), [0, 1, 2], 0)
    assert ladder.tolist() == pytest.approx([0.4, 0.4**8, 0.4**4.5])
    paper = lane_epsilons(ExplorationConfig(mode="paper", num_lanes=8), [0, 3, 7, 8], 0)
    assert paper.tolist() == pytest.approx([0.4, 0.0256, 0.00065536, 0.4])
    fixed = lane_epsilons(ExplorationConfig(mode="fixed", epsilon=0.1, anneal_frames=100), [0, 5], 50)
    assert fixed.tolist() == pytest.approx([0.55, 0.55]), "half way from 1 to 0.1"
