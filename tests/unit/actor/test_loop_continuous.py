"""The acting loop with continuous actions: what rows hold of them, and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apex_actor.evaluation import evaluate
from apex_actor.loop import ActorLoop
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ConfigError, ExperimentConfig, load_experiment
from apexrl.envs import env_spec, make_vec
from apexrl.experience.decoding import decode_chunk
from apexrl.types import Array, ParameterVersion, RowKind

PENDULUM = "env: {id: gymnasium/Pendulum-v1, stack: 1, action_repeat: 1}\n"


def experiment(tmp_path: Path, algorithm: str) -> ExperimentConfig[Any]:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"name: pendulum\nalgorithm: {{name: {algorithm}}}\n{PENDULUM}")
    return load_experiment(path, ("--replay.chunk-starts", "50"), algorithm_configs=CONFIGS)


@pytest.mark.parametrize("algorithm", ["apex_dpg", "d4pg"])
def test_rows_hold_the_actions_that_were_taken_and_zeros_where_none_was(tmp_path: Path, algorithm: str) -> None:
    config = experiment(tmp_path, algorithm)
    made = make_algorithm(config, env_spec(config.env))
    (table,) = made.tables()
    column = table.config.signature.column("action")
    assert (column.dtype, column.shape) == ("float32", (1,))
    torch.manual_seed(0)
    env = make_vec(config.env, 3)
    loop = ActorLoop(config=config, env=env, algorithm=made, networks=made.make_networks(), seed=1)
    taken: list[Array] = []
    step_env = env.step
    env.step = lambda actions: taken.append(np.array(actions)) or step_env(actions)  # type: ignore[method-assign, func-returns-value]
    chunks = [chunk for _ in range(260) for chunk in loop.step().chunks]
    chunks += loop.drain()
    signature = table.config.signature
    sent = {actions.tobytes() for turn in taken for actions in turn}
    kinds: dict[int, int] = {}
    for chunk in chunks:
        columns = decode_chunk(signature, chunk.rows, chunk.starts, chunk.blocks)
        assert columns["action"].dtype == np.float32
        for kind, action in zip(columns["kind"].tolist(), columns["action"], strict=True):
            kinds[kind] = kinds.get(kind, 0) + 1
            assert (action == 0.0).all() if kind == RowKind.LAST else action.tobytes() in sent
    assert kinds.keys() == {0, 1, 2}
    assert all(np.abs(actions).max() <= 1.0 for actions in taken)


def test_evaluation_plays_whole_episodes(tmp_path: Path) -> None:
    config = experiment(tmp_path, "apex_dpg")
    made = make_algorithm(config, env_spec(config.env))
    reports = evaluate(
        config=config,
        env=make_vec(config.env, 2, evaluation=True),
        algorithm=made,
        networks=made.make_networks(),
        version=ParameterVersion(1, 2),
        episodes=3,
        epsilon=0.0,
        seed=1,
    )
    assert [report.length_steps for report in reports] == [200] * 3
    assert all(report.episode_return < 0 for report in reports)


def test_a_learner_of_action_values_is_refused_where_actions_are_continuous(tmp_path: Path) -> None:
    config = experiment(tmp_path, "apex_dqn")
    with pytest.raises(ConfigError, match=r"'apex_dqn'.*discrete actions.*gymnasium/Pendulum-v1.*ContinuousActions"):
        make_algorithm(config, env_spec(config.env))
