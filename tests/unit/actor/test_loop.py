"""The acting loop on a scripted environment: every step one item, true returns, drained windows, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_actor.evaluation import evaluate
from apex_actor.loop import ActorLoop
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.envs import env_spec, make_vec
from apexrl.envs.problems import ScriptedEnv, ScriptedEpisode, decode_observation, scripted_reward
from apexrl.experience.decoding import decode_chunk
from apexrl.types import Array, Chunk, ParameterVersion, RowKind, Signature

CATCH = Path(__file__).parents[3] / "configs" / "catch_apex_dqn.yaml"
SCRIPTED = (
    "--env.id", "apex/scripted", "--env.stack", "3", "--env.reward-clip", "0", "--env.reward-scale", "0.5",
    "--env.life-loss-ends", "--algorithm.network.kind", "auto", "--replay.chunk-starts", "7",
)  # fmt: skip


@pytest.fixture
def config() -> ExperimentConfig[Any]:
    return load_experiment(CATCH, SCRIPTED, algorithm_configs=CONFIGS)


def make_loop(config: ExperimentConfig[Any], lanes: int) -> tuple[ActorLoop, Signature]:
    algorithm = make_algorithm(config, env_spec(config.env))
    torch.manual_seed(0)
    env = make_vec(config.env, lanes)
    loop = ActorLoop(config=config, env=env, algorithm=algorithm, networks=algorithm.make_networks(), seed=1)
    return loop, algorithm.tables()[0].config.signature


def items_of(signature: Signature, chunks: list[Chunk]) -> list[dict[str, Any]]:
    """Every item: its start row's columns, its length, and the bootstrap row's observation."""
    items = []
    for chunk in chunks:
        columns: dict[str, Array] = decode_chunk(signature, chunk.rows, chunk.starts, chunk.blocks)
        for start in np.flatnonzero(chunk.lengths):
            row = signature.geometry.context + int(start)
            k = int(chunk.lengths[start])
            items.append(
                {name: columns[name][row] for name in ("kind", "age", "reward", "continuation", "observation")}
                | {
                    "length": k,
                    "bootstrap": columns["observation"][row + k],
                    "rewards": columns["reward"][row : row + k],
                    "version": int(columns["parameter_version"][start]),
                    "priority": float(chunk.priorities[start]),
                }
            )
    return items


def test_every_step_is_one_item_with_its_reward_and_its_bootstrap(config: ExperimentConfig[Any]) -> None:
    loop, signature = make_loop(config, lanes=3)
    loop.version = ParameterVersion(2, 5)
    chunks: list[Chunk] = []
    steps = 0
    episodes = []
    for _ in range(120):
        turn = loop.step()
        chunks += turn.chunks
        steps += turn.env_steps
        episodes += turn.episodes
    items = items_of(signature, chunks + loop.drain())
    assert len(items) == steps
    seen = set()
    for item in items:
        lane, episode, step = decode_observation(item["observation"])
        seen.add((lane, episode, step))
        assert item["age"] == step
        assert item["kind"] == (RowKind.FIRST if step == 0 else RowKind.MID)
        assert item["reward"] == pytest.approx(0.5 * scripted_reward(lane, episode, step + 1))
        assert decode_observation(item["bootstrap"]) == (lane, episode, step + item["length"]), "no window leaves it"
        assert item["version"] == ParameterVersion(2, 5).pack()
        assert np.isfinite(item["priority"])
        assert item["priority"] >= 0
    assert len(seen) == steps, "no step twice"
    assert len(episodes) > 20


def test_reported_returns_are_true_ones(config: ExperimentConfig[Any]) -> None:
    loop, _ = make_loop(config, lanes=1)
    reports = [report for _ in range(60) for report in loop.step().episodes]
    # The first lane's script: lengths 3, 5, 1, 8, 1, 13.
    assert [report.length_steps for report in reports[:6]] == [3, 5, 1, 8, 1, 13]
    for episode, report in enumerate(reports[:6]):
        expected = sum(scripted_reward(0, episode, step + 1) for step in range(report.length_steps))
        assert report.episode_return == pytest.approx(expected), "neither scaled nor clipped, whole games"


def test_rewards_are_scaled_then_clipped(config: ExperimentConfig[Any]) -> None:
    clipped = load_experiment(
        CATCH, [*SCRIPTED, "--env.reward-clip", "1.0", "--env.reward-scale", "0.1"], algorithm_configs=CONFIGS
    )
    loop, signature = make_loop(clipped, lanes=1)
    chunks = [chunk for _ in range(40) for chunk in loop.step().chunks]
    rewards = {round(float(item["reward"]), 6) for item in items_of(signature, chunks)}
    assert max(rewards) == 1.0
    assert 0.1 in rewards


def test_new_parameters_act_from_the_next_turn(config: ExperimentConfig[Any]) -> None:
    loop, signature = make_loop(config, lanes=2)
    chunks = [chunk for _ in range(10) for chunk in loop.step().chunks]
    zeros = {name: torch.zeros_like(value) for name, value in loop.networks.state_dict().items()}
    loop.load_parameters(zeros, ParameterVersion(1, 9))
    for _ in range(10):
        chunks += loop.step().chunks
    versions = [item["version"] for item in items_of(signature, chunks + loop.drain())]
    assert set(versions) == {0, ParameterVersion(1, 9).pack()}


def uneven() -> ScriptedEnv:
    """Lane 0 plays short episodes, lane 1 long ones."""
    return ScriptedEnv([[ScriptedEpisode(2)], [ScriptedEpisode(30)]])


def test_evaluation_does_not_favour_short_episodes(config: ExperimentConfig[Any]) -> None:
    env = uneven()
    algorithm = make_algorithm(config, env.spec)
    reports = evaluate(
        config=config,
        env=env,
        algorithm=algorithm,
        networks=algorithm.make_networks(),
        version=ParameterVersion(1, 1),
        episodes=4,
        epsilon=0.0,
        seed=3,
    )
    assert sorted(report.length_steps for report in reports) == [2, 2, 30, 30]
    assert {report.epsilon for report in reports} == {0.0}


def test_a_stopped_evaluation_reports_nothing(config: ExperimentConfig[Any]) -> None:
    env = uneven()
    algorithm = make_algorithm(config, env.spec)
    steps = iter(range(100))
    reports = evaluate(
        config=config,
        env=env,
        algorithm=algorithm,
        networks=algorithm.make_networks(),
        version=ParameterVersion(1, 1),
        episodes=4,
        epsilon=0.0,
        seed=3,
        stop=lambda: next(steps) > 20,
    )
    assert reports == []
