"""The coordinator: reports counted once, the fleet, returns by band."""

from __future__ import annotations

import pytest

from apex_learner.coordinator import Coordinator, Evaluation, Progress
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import parameters_pb2
from apexrl.types import ParameterVersion


def episode(value: float, epsilon: float, step: int = 7) -> pb.Episode:
    version = parameters_pb2.ParameterVersion(epoch=1, step=step)
    return pb.Episode(episode_return=value, length_steps=10, epsilon=epsilon, version=version)


@pytest.fixture
def evaluations() -> list[Evaluation]:
    return []


@pytest.fixture
def coordinator(evaluations: list[Evaluation]) -> Coordinator:
    return Coordinator("f" * 32, 3, resumed=False, on_evaluation=evaluations.append)


def actor_request(number: int, **fields: object) -> pb.HeartbeatRequest:
    return pb.HeartbeatRequest(
        role=pb.ROLE_ACTOR,
        incarnation=b"a" * 16,
        lanes=2,
        report_number=number,
        **fields,  # type: ignore[arg-type]
    )


def test_a_repeated_report_counts_once(coordinator: Coordinator) -> None:
    request = actor_request(1, episodes=[episode(5.0, 0.001), episode(1.0, 0.4)])
    first = coordinator.heartbeat(request)
    second = coordinator.heartbeat(request)
    assert list(first.indices) == list(second.indices) == [0, 1]
    status = coordinator.status()
    assert status.episodes == 2
    assert status.greedy_return == 5.0
    assert status.exploring_return == 1.0
    assert not status.HasField("evaluator_return")


def test_evaluations_are_passed_on_with_version_and_epsilon(
    coordinator: Coordinator, evaluations: list[Evaluation]
) -> None:
    request = pb.HeartbeatRequest(
        role=pb.ROLE_EVALUATOR,
        incarnation=b"e" * 16,
        report_number=1,
        episodes=[episode(10.0, 0.001, 70), episode(20.0, 0.001, 70)],
    )
    response = coordinator.heartbeat(request)
    assert not response.indices, "an evaluator holds no index"
    assert evaluations == [Evaluation(ParameterVersion(1, 70), (10.0, 20.0), 0.001)]
    status = coordinator.status()
    assert status.evaluator_return == 15.0
    assert (status.actors, status.evaluators) == (0, 1)


def test_two_evaluations_in_one_heartbeat_stay_apart(coordinator: Coordinator, evaluations: list[Evaluation]) -> None:
    episodes = [episode(10.0, 0.001, 70), episode(20.0, 0.001, 70), episode(30.0, 0.001, 90)]
    coordinator.heartbeat(
        pb.HeartbeatRequest(role=pb.ROLE_EVALUATOR, incarnation=b"e" * 16, report_number=1, episodes=episodes)
    )
    assert evaluations == [
        Evaluation(ParameterVersion(1, 70), (10.0, 20.0), 0.001),
        Evaluation(ParameterVersion(1, 90), (30.0,), 0.001),
    ]
    status = coordinator.status()
    assert status.evaluated_version.step == 90
    assert status.evaluator_return == 30.0


def test_status_shows_the_trainers_progress_and_the_lag_of_actors(coordinator: Coordinator) -> None:
    coordinator.progress = Progress(
        version=ParameterVersion(3, 120), learner_updates=120, global_frames=4000, seconds_left=None, waiting=["shard"]
    )
    coordinator.heartbeat(actor_request(1, version=parameters_pb2.ParameterVersion(epoch=3, step=100)))
    status = coordinator.status()
    assert status.parameter_lag_updates == 20
    assert status.lanes == 2
    assert list(status.waiting) == ["shard"]
    assert not status.HasField("seconds_left")


def test_a_released_actor_is_gone_and_its_indices_are_free(coordinator: Coordinator) -> None:
    coordinator.heartbeat(actor_request(1))
    coordinator.heartbeat(actor_request(2, release=True))
    assert coordinator.status().actors == 0
    other = pb.HeartbeatRequest(role=pb.ROLE_ACTOR, incarnation=b"b" * 16, lanes=1, report_number=1)
    assert list(coordinator.heartbeat(other).indices) == [0]


def test_finished_reaches_the_actors(coordinator: Coordinator) -> None:
    coordinator.progress = Progress(finished=True, global_frames=9)
    response = coordinator.heartbeat(actor_request(1))
    assert response.finished
    assert response.global_frames == 9
