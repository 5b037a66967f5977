"""Serial mode: traces are reproducible bit by bit, and a resumed system goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from apex_cli.serial import SerialSystem
from apexrl.algorithms import CONFIGS
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.runtime.checkpoint import CheckpointStore

CATCH = Path(__file__).parents[2] / "configs" / "catch_apex_dqn.yaml"
RUN = "ab" * 16
SMALL = (
    "--actor.lanes", "4",
    "--learner.batch-size", "8",
    "--replay.min-items", "64",
    "--replay.samples-per-insert", "2",
    "--replay.capacity-items", "600",
    "--algorithm.network.hidden-units", "16",
)  # fmt: skip


def load(*overrides: str) -> ExperimentConfig[Any]:
    return load_experiment(CATCH, [*SMALL, *overrides], algorithm_configs=CONFIGS)


def run(config: ExperimentConfig[Any], ticks: int) -> SerialSystem:
    system = SerialSystem(config, RUN)
    for _ in range(ticks):
        system.tick()
    return system


def test_a_trace_of_a_thousand_ticks_is_bit_stable() -> None:
    first, second = run(load(), 1000), run(load(), 1000)
    assert first.trainer.state.step > 500, "the learner learned meanwhile"
    assert first.engine.tables["replay"].evicted > 0, "and experience was evicted"
    assert first.trace.digest() == second.trace.digest()


def test_another_seed_gives_another_trace() -> None:
    assert run(load(), 60).trace.digest() != run(load("--seed", "2"), 60).trace.digest()


def test_every_environment_step_becomes_one_item_and_the_ratio_is_held() -> None:
    system = run(load("--replay.capacity-items", "20000"), 400)
    system.drain()
    table = system.engine.tables["replay"]
    frames = system.trainer.counters.global_frames
    assert table.inserted == table.num_items
    assert table.inserted >= frames
    assert table.drawn == system.trainer.state.step * 8
    assert table.drawn <= 2 * table.inserted + 4096


def learner_state(system: SerialSystem) -> dict[str, Any]:
    """Everything that must be equal after a resume."""
    trainer = system.trainer
    state: dict[str, Any] = {"step": trainer.state.step, "frames": trainer.counters.global_frames}
    for name, module in trainer.state.modules.items():
        state |= {f"{name}/{key}": value.clone() for key, value in module.state_dict().items()}
    for name, optimizer in trainer.state.optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            state |= {f"{name}/{index}/{key}": torch.as_tensor(value).clone() for key, value in values.items()}
    return state


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[key]), key
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, theirs[key], err_msg=key)
        else:
            assert value == theirs[key], key


def test_learner_and_replay_resume_bit_equal(tmp_path: Path) -> None:
    config = load("--replay.samples-per-insert", "0", "--algorithm.target-update-period", "30")
    filled = run(config, 200)
    with CheckpointStore(tmp_path) as store:
        store.save(filled.checkpoint(with_replay=True))
        start = store.load_newest()
        assert start is not None

        straight = SerialSystem(config, RUN, checkpoint=start, epoch=2)
        for _ in range(100):
            straight.tick(act=False)

        half = SerialSystem(config, RUN, checkpoint=start, epoch=2)
        for _ in range(50):
            half.tick(act=False)
        store.save(half.checkpoint(with_replay=True))
        middle = store.load_newest()
        assert middle is not None
        assert middle.version.step == start.version.step + 50
    resumed = SerialSystem(config, RUN, checkpoint=middle, epoch=2)
    for _ in range(50):
        resumed.tick(act=False)

    assert straight.trainer.state.step == start.version.step + 100
    assert_equal(learner_state(straight), learner_state(resumed))
    assert_equal(straight.engine.tables["replay"].state(), resumed.engine.tables["replay"].state())
    straight_draw = straight.engine.tables["replay"].draw(np.array([16], np.uint32), np.linspace(0, 0.99, 16))
    resumed_draw = resumed.engine.tables["replay"].draw(np.array([16], np.uint32), np.linspace(0, 0.99, 16))
    np.testing.assert_array_equal(straight_draw.keys, resumed_draw.keys)
