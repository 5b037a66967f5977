"""The trainer alone: exact resume, counters over restarts, broken updates, ends of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from apex_learner.process import make_state
from apex_learner.trainer import MAX_NONFINITE_UPDATES, Counters, NonfiniteLossError, Trainer
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.envs import env_spec
from apexrl.experience.batch import BatchBuffer
from apexrl.runtime.checkpoint import Checkpoint, CheckpointStore
from apexrl.runtime.learner_snapshot import restore, snapshot
from apexrl.runtime.parameter_payload import unpack_parameters

CATCH = Path(__file__).parents[3] / "configs" / "catch_apex_dqn.yaml"


def load(*overrides: str) -> ExperimentConfig[Any]:
    return load_experiment(CATCH, ["--learner.batch-size", "16", *overrides], algorithm_configs=CONFIGS)


def make_trainer(config: ExperimentConfig[Any], counters: Counters | None = None) -> Trainer:
    algorithm = make_algorithm(config, env_spec(config.env))
    device = torch.device("cpu")
    return Trainer(
        config=config,
        algorithm=algorithm,
        state=make_state(config, algorithm, device),
        device=device,
        epoch=1,
        counters=counters or Counters(action_repeat=4),
    )


def batch_of(config: ExperimentConfig[Any], step: int) -> BatchBuffer:
    """A batch that is a function of (seed, step)."""
    (table,) = make_algorithm(config, env_spec(config.env)).tables()
    generator = np.random.default_rng([config.seed, step])
    batch = BatchBuffer(table.config.signature, config.learner.batch_size)
    windows = batch.as_window_batch()
    windows.columns["observation"][:] = torch.from_numpy(
        generator.random(tuple(windows.columns["observation"].shape), dtype=np.float32)
    )
    windows.columns["reward"][:] = torch.from_numpy(
        generator.normal(size=tuple(windows.columns["reward"].shape)).astype(np.float32)
    )
    windows.columns["action"][:] = torch.from_numpy(generator.integers(0, 3, tuple(windows.columns["action"].shape)))
    windows.columns["continuation"].fill_(1)
    batch.lengths[:] = generator.integers(1, 4, config.learner.batch_size)
    batch.weights[:] = generator.random(config.learner.batch_size, dtype=np.float32)
    return batch


def learn(trainer: Trainer, config: ExperimentConfig[Any], updates: int) -> None:
    for _ in range(updates):
        trainer.update(batch_of(config, trainer.state.step))


@pytest.mark.parametrize("kind", ["adam", "rmsprop_centered", "rmsprop"])
def test_n_updates_equal_half_a_resume_and_the_other_half(kind: str, tmp_path: Path) -> None:
    config = load("--algorithm.optimizer.kind", kind, "--algorithm.target-update-period", "7")
    straight = make_trainer(config)
    learn(straight, config, 40)

    half = make_trainer(config, Counters(action_repeat=4, frames_before=1000, draw_requests=20))
    learn(half, config, 20)
    with CheckpointStore(tmp_path) as store:
        store.save(Checkpoint(snapshot(half.state, 1), counters=half.counters.to_dict()))
        saved = store.load_newest()
    assert saved is not None
    resumed = make_trainer(config, Counters(**saved.counters))
    restore(resumed.state, saved.snapshot)
    assert resumed.counters == half.counters
    learn(resumed, config, 20)

    ours, theirs = snapshot(straight.state, 1), snapshot(resumed.state, 1)
    assert ours.version == theirs.version
    assert ours.structure == theirs.structure
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name


def test_a_resumed_learner_takes_the_learning_rate_of_its_configuration() -> None:
    first = make_trainer(load())
    learn(first, load(), 2)
    changed = make_trainer(load("--algorithm.optimizer.learning-rate", "0.125"))
    restore(changed.state, snapshot(first.state, 1))
    (optimizer,) = changed.state.optimizers.values()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]


def test_frames_count_on_over_shards_and_learners() -> None:
    counters = Counters(action_repeat=4)
    counters.observe_inserted(100, b"a")
    assert counters.global_frames == 400
    counters.observe_inserted(10, b"b")
    assert counters.global_frames == 440, "a shard that came back empty"
    resumed = Counters(**counters.to_dict())
    resumed.observe_inserted(30, b"b")
    assert resumed.global_frames == 520, "the same shard, seen by the next learner"
    resumed.observe_inserted(7, b"c", shard=2)
    assert resumed.global_frames == 548, "another shard beside it"
    resumed.observe_inserted(2, b"d", shard=2)
    assert resumed.global_frames == 556
    assert Counters(**resumed.to_dict()) == resumed


def test_ten_broken_updates_in_a_row_end_the_learner() -> None:
    config = load()
    trainer = make_trainer(config)
    learn(trainer, config, 1)
    before = snapshot(trainer.state, 1)
    broken = batch_of(config, 1)
    broken.as_window_batch().columns["reward"].fill_(float("nan"))
    for _ in range(MAX_NONFINITE_UPDATES - 1):
        trainer.update(broken)
        assert not trainer.trustworthy
    for name, tensor in snapshot(trainer.state, 1).tensors.items():
        if name.startswith("modules/online"):
            assert torch.equal(tensor, before.tensors[name]), name
    learn(trainer, config, 1)
    assert trainer.trustworthy, "one good update breaks the row"
    for _ in range(MAX_NONFINITE_UPDATES - 1):
        trainer.update(broken)
    with pytest.raises(NonfiniteLossError, match="10 updates in a row"):
        trainer.update(broken)
    assert trainer.counters.nonfinite_updates == 2 * MAX_NONFINITE_UPDATES - 1


def test_half_precision_is_for_what_is_published_only() -> None:
    single, half = make_trainer(load()), make_trainer(load("--learner.publish-dtype", "float16"))
    learn(half, load(), 2)
    learn(single, load(), 2)
    sent = unpack_parameters(half.parameters_payload())
    assert 2 * len(half.parameters_payload()) == pytest.approx(len(single.parameters_payload()), rel=0.1)
    for name, tensor in single.published_module().state_dict().items():
        assert torch.equal(half.published_module().state_dict()[name], tensor), "the learner's own are not rounded"
        torch.testing.assert_close(sent[name], tensor, rtol=2.0**-11, atol=6e-8)
    saved = snapshot(half.state, 1).tensors
    for name, tensor in snapshot(single.state, 1).tensors.items():
        assert torch.equal(saved[name], tensor), f"checkpoint: {name}"


def test_a_tensor_that_half_precision_cannot_hold_is_published_whole_and_named_once() -> None:
    trainer = make_trainer(load("--learner.publish-dtype", "float16"))
    name, weights = next(iter(trainer.published_module().state_dict().items()))
    weights.view(-1)[0] = 1e6
    with capture_logs() as lines:
        payloads = [trainer.parameters_payload() for _ in range(2)]
    assert torch.equal(unpack_parameters(payloads[0])[name], weights)
    assert [line["tensor"] for line in lines] == [name]


def test_beta_follows_the_runs_frames() -> None:
    config = load(
        "--replay.importance-sampling-exponent-final", "1.0", "--replay.importance-sampling-anneal-frames", "1000"
    )
    trainer = make_trainer(config)
    assert trainer.importance_sampling_exponent() == pytest.approx(0.4)
    trainer.counters.observe_inserted(125, b"a")
    assert trainer.importance_sampling_exponent() == pytest.approx(0.7)
    trainer.counters.observe_inserted(9999, b"a")
    assert trainer.importance_sampling_exponent() == pytest.approx(1.0)


def test_a_run_ends_at_its_updates_or_frames() -> None:
    trainer = make_trainer(load("--learner.max-updates", "5", "--learner.max-frames", "100"))
    assert not trainer.finished()
    assert trainer.seconds_left(updates_per_second=1.0, frames_per_second=100.0) == pytest.approx(1.0)
    trainer.counters.observe_inserted(25, b"a")
    assert trainer.finished()
