"""`apex status` against real services in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parameter_scene import relay, server, unused_address
from replay_scene import RUN, STARTS, fill, handshake, shard

from apex_cli.status import StatusArguments, parse_arguments, phase, status
from apex_learner.coordinator import Coordinator, Progress
from apex_learner.serving import CoordinatorServicer
from apexrl.config import ConfigError, SecurityConfig
from apexrl.runtime.lifecycle import Shutdown
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import security
from apexrl.transport._generated.apex.v1 import coordinator_pb2_grpc
from apexrl.transport.security import Security
from apexrl.transport.server import RunningServer
from apexrl.types import ParameterVersion

LEARNING = Progress(
    version=ParameterVersion(3, 345),
    learner_updates=345,
    global_frames=123_456,
    updates_per_second=31.5,
    frames_per_second=2_000.4,
    samples_per_insert=1.97,
    replay_items=9_000,
    min_replay_items=8_000,
    loss=0.25,
    seconds_left=61.0,
)


@pytest.fixture(autouse=True)
def plain_again() -> Iterator[None]:
    yield
    security.use(Security())


@contextmanager
def coordinator(progress: Progress) -> Iterator[tuple[RunningServer, Coordinator]]:
    state = Coordinator(RUN, 3, resumed=False, on_evaluation=lambda evaluation: None)
    state.progress = progress
    servicer = CoordinatorServicer(handshake(), state)
    with server(lambda grpc: coordinator_pb2_grpc.add_CoordinatorServicer_to_server(servicer, grpc)) as running:
        yield running, state


def ask(*arguments: str) -> int:
    return status(parse_arguments(arguments), Shutdown())


def test_learner_and_shards_say_how_the_run_stands(capsys: pytest.CaptureFixture[str]) -> None:
    with coordinator(LEARNING) as (learner, state), shard() as first, shard() as second:
        actor = pb.HeartbeatRequest(role=pb.ROLE_ACTOR, incarnation=bytes(16), lanes=16)
        actor.episodes.add(episode_return=-3.25, epsilon=0.001)
        actor.report_number = 1
        state.heartbeat(actor)
        fill(first.address, 3)
        assert ask(first.address, learner.address, second.address) == 0
        shown = capsys.readouterr().out
    heading, *rows = shown.splitlines()
    assert heading.startswith(f"replay shard {first.address}, version ")
    assert f"run {RUN}" in heading
    assert any(row.split()[:3] == ["inserted", str(3 * STARTS), "items"] for row in rows)
    assert f"learner {learner.address}, learning, run {RUN}, epoch 3" in rows
    for part in (
        "123,456",
        "2,000 frames/s",
        "345 updates",
        "31.5 updates/s",
        "1.97 samples per insert",
        "learning starts at 8,000",
        "version 3.345",
        "1 actors, 16 lanes",
        "greedy lanes -3.2",
        "1m01s",
        "waits: no learner has opened a stream yet",
    ):
        assert part in shown
    assert f"replay shard {second.address}" in shown


def test_who_cannot_be_reached_is_named_and_the_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    gone = unused_address()
    with shard() as service, relay(gone) as other:
        assert ask(service.address, gone, other.address) == 1
        shown = capsys.readouterr().out
        assert f"replay shard {service.address}" in shown
        assert f"unreachable: {gone} gave no answer (UNAVAILABLE" in shown
        assert f"unreachable: {other.address} answers, but is neither a learner nor a replay shard" in shown


def test_json_has_the_fields_of_the_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    gone = unused_address()
    with coordinator(LEARNING) as (learner, _), shard() as service:
        fill(service.address, 1)
        assert ask(learner.address, service.address, gone, "--json") == 1
    asked, replay, unreachable = json.loads(capsys.readouterr().out)["services"]
    assert (asked["kind"], asked["phase"], asked["address"]) == ("learner", "learning", learner.address)
    assert asked["version"] == {"epoch": 3, "step": 345}
    assert (asked["learner_updates"], asked["loss"], asked["finished"]) == (345, 0.25, False)
    assert asked["evaluator_return"] is None
    assert replay["kind"] == "replay"
    assert replay["tables"][0]["totals"]["inserted"] == STARTS
    assert replay["tables"][0]["insert_limit"] is None
    assert "top_keys" not in replay["tables"][0]
    assert unreachable["kind"] is None
    assert gone in unreachable["error"]


def test_watch_asks_until_it_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with shard() as service:
        asked: list[float | None] = []

        class TwoRounds(Shutdown):
            def wait(self, timeout_seconds: float | None = None) -> bool:
                asked.append(timeout_seconds)
                fill(service.address, 1)
                return len(asked) == 2

        assert status(parse_arguments([service.address, "--watch", "2", "--json"]), TwoRounds()) == 0
    before, after = map(json.loads, capsys.readouterr().out.splitlines())
    assert asked == [2.0, 2.0]
    assert before["services"][0]["tables"] == []
    assert after["services"][0]["tables"][0]["totals"]["inserted"] == STARTS


def test_a_configuration_names_the_services_and_how_to_reach_them(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame")
    config = tmp_path / "experiment.yaml"
    config.write_text(
        "algorithm: {name: apex_dqn}\n"
        "learner: {address: 'learner:1'}\n"
        "replay: {addresses: ['a:1', 'b:1']}\n"
        f"security: {{token_file: {token}, mode: tls, ca_file: /in/the/cluster}}\n"
    )
    chosen = parse_arguments(["--config", str(config), "--security.ca-file", "/here"])
    assert chosen.addresses == ("learner:1", "a:1", "b:1")
    assert chosen.security == SecurityConfig("tls", ca_file="/here", token_file=str(token))
    forwarded = parse_arguments(["127.0.0.1:2", "--config", str(config)])
    assert forwarded.addresses == ("127.0.0.1:2",)
    assert StatusArguments().addresses == ("127.0.0.1:50061", "127.0.0.1:50051")


def test_the_token_of_the_command_line_is_shown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame")
    security.use(Security.load(SecurityConfig(token_file=str(token))))
    with shard() as service:
        assert ask(service.address) == 1
        assert ask(service.address, "--security.token-file", str(token)) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "ADDRESS is 'nowhere', must be HOST:PORT"),
        (["--watch", "-1"], "--watch is -1, must be 0 or above"),
        (["--timeout-seconds", "0"], "--timeout-seconds is 0, must be 0.001 or above"),
    ],
)
def test_arguments_that_cannot_work_are_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_arguments(arguments)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "starting"),
        ({"replay_items": 7_000}, "filling replay"),
        ({"replay_items": 8_000}, "learning"),
        ({"replay_items": 8_000, "waiting": ["waiting for inserts"]}, "waiting"),
        ({"replay_items": 8_000, "finished": True}, "finished"),
    ],
)
def test_the_phase_of_a_learner(fields: dict[str, object], name: str) -> None:
    state = pb.GetStatusResponse(min_replay_items=8_000, **fields)  # type: ignore[arg-type]
    if fields:
        state.version.epoch = 1
    assert phase(state) == name
