"""Continuous control in serial mode: it learns a small problem, repeats bit by bit, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from apex_cli.serial import SerialSystem
from apexrl.algorithms import CONFIGS
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.runtime.checkpoint import CheckpointStore

RUN = "ab" * 16
#: Of a policy that stands still.
STILL_RETURN = -5.0
BASE: dict[str, Any] = {
    "env": {"id": "reach_problem:make", "stack": 1, "action_repeat": 1, "reward_clip": 0},
    "replay": {"capacity_items": 20_000, "budget_bytes": 1 << 25, "min_items": 200, "chunk_starts": 4},
    "actor": {"lanes": 8, "parameter_update_period_frames": 4, "exploration": {"mode": "fixed", "epsilon": 0.3}},
    "learner": {"batch_size": 32},
    "evaluator": {"epsilon": 0.0, "lanes": 20},
}
NETWORK = {"policy_units": [32, 32], "critic_units": [48, 48]}
LEARNING = {"n_steps": 3, "discount": 0.9, "policy_learning_rate": 2e-3, "critic_learning_rate": 3e-3}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "apex_dpg": {"name": "apex_dpg"},
    "categorical": {"name": "d4pg", "critic": {"v_min": -12, "v_max": 1}},
    "mixture": {"name": "d4pg", "critic": {"kind": "mixture"}},
}


def load(directory: Path, kind: str, **replay: Any) -> ExperimentConfig[Any]:
    plain = {**BASE, "algorithm": {"network": NETWORK, "target_update_period": 50, **LEARNING, **ALGORITHMS[kind]}}
    if kind != "apex_dpg":
        plain["replay"] = {**BASE["replay"], "selector": "uniform"}
    plain["replay"] = {**plain["replay"], **replay}
    path = directory / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(plain))
    return load_experiment(path, algorithm_configs=CONFIGS)


def tick(system: SerialSystem, ticks: int, *, act: bool = True) -> SerialSystem:
    for _ in range(ticks):
        system.tick(act=act)
    return system


@pytest.mark.parametrize("kind", list(ALGORITHMS))
def test_a_small_problem_is_learned(kind: str, tmp_path: Path) -> None:
    system = SerialSystem(load(tmp_path, kind), RUN)
    before = np.mean(system.evaluate(40))
    tick(system, 400)
    after = np.mean(system.evaluate(40))
    assert before < 0.7 * STILL_RETURN
    assert after > 0.3 * STILL_RETURN


@pytest.mark.parametrize("kind", list(ALGORITHMS))
def test_traces_are_bit_stable(kind: str, tmp_path: Path) -> None:
    config = load(tmp_path, kind, capacity_items=400)
    first, second = (tick(SerialSystem(config, RUN), 120) for _ in range(2))
    assert first.trainer.state.step > 50, "the learner learned meanwhile"
    assert first.engine.tables["replay"].evicted > 0, "and experience was evicted"
    assert first.trace.digest() == second.trace.digest()


@pytest.mark.parametrize(("kind", "read"), [("apex_dpg", True), ("categorical", False)])
def test_priorities_are_sent_where_the_table_reads_them(kind: str, read: bool, tmp_path: Path) -> None:
    system = tick(SerialSystem(load(tmp_path, kind), RUN), 60)
    assert system.trainer.state.step > 10
    assert (system.engine.tables["replay"].max_priority > 0.0) == read


@pytest.mark.parametrize("kind", list(ALGORITHMS))
def test_learner_and_replay_resume_bit_equal(kind: str, tmp_path: Path) -> None:
    config = load(tmp_path, kind)
    filled = tick(SerialSystem(config, RUN), 60)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        store.save(filled.checkpoint(with_replay=True))
        start = store.load_newest()
        assert start is not None
        straight = tick(SerialSystem(config, RUN, checkpoint=start, epoch=2), 40, act=False)
        store.save(
            tick(SerialSystem(config, RUN, checkpoint=start, epoch=2), 20, act=False).checkpoint(with_replay=True)
        )
        middle = store.load_newest()
        assert middle is not None
    resumed = tick(SerialSystem(config, RUN, checkpoint=middle, epoch=2), 20, act=False)
    assert straight.trainer.state.step == resumed.trainer.state.step == start.version.step + 40
    for name, module in straight.trainer.state.modules.items():
        theirs = resumed.trainer.state.modules[name].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in module.state_dict().items()), name
    assert straight.trainer.parameters_payload() == resumed.trainer.parameters_payload()
