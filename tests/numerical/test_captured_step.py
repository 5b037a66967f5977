"""Updates as CUDA graphs: they do what the same updates do when every kernel is launched by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from apexrl.algorithms.apex_dqn import OptimizerConfig
from apexrl.algorithms.base import LearnerState, WindowBatch
from apexrl.algorithms.captured_step import WARM_UP_UPDATES
from apexrl.config import LearnerConfig
from apexrl.networks.q_networks import NetworkConfig
from tests.numerical import apex_dqn_scene, control_scene

UPDATES = WARM_UP_UPDATES + 5
CUDA = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _dqn(optimizer: str) -> tuple[Callable[[bool], Any], Callable[[int], WindowBatch]]:
    def make(graph: bool) -> Any:
        return apex_dqn_scene.make(
            apex_dqn_scene.ATARI,
            stack=4,
            learner=LearnerConfig(batch_size=16, cuda_graph=graph),
            network=NetworkConfig(conv_filters=(8, 16), hidden_units=(32,)),
            optimizer=OptimizerConfig(kind=optimizer, learning_rate=1e-3, epsilon=1e-3),  # type: ignore[arg-type]
            target_update_period=4,
        )

    return make, lambda seed: apex_dqn_scene.make_batch(apex_dqn_scene.ATARI, stack=4, seed=seed)


def _control(kind: str) -> tuple[Callable[[bool], Any], Callable[[int], WindowBatch]]:
    return (
        lambda graph: control_scene.make(kind, learner=LearnerConfig(batch_size=16, cuda_graph=graph)),
        lambda seed: control_scene.make_batch(seed=seed),
    )


SCENES = {
    "apex_dqn, rmsprop": _dqn("rmsprop_centered"),
    "apex_dqn, adam": _dqn("adam"),
    **{kind: _control(kind) for kind in control_scene.KINDS},
}


def _learned(algorithm: Any, batches: list[WindowBatch]) -> tuple[LearnerState, list[torch.Tensor]]:
    """A fresh state after all batches, and the priorities of each."""
    state = algorithm.init(algorithm.make_networks().to(CUDA), 0)
    return state, [algorithm.update(state, batch).priorities.clone() for batch in batches]


@pytest.mark.parametrize("scene", SCENES)
def test_gpu_graphs_learn_what_launched_kernels_learn(scene: str) -> None:
    make, batch_of = SCENES[scene]
    batches = [batch_of(seed).to(CUDA) for seed in range(UPDATES)]
    (launched, expected), (captured, found) = (_learned(make(graph), batches) for graph in (False, True))
    assert captured.step == launched.step == UPDATES
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(found[-1], found[-2])  # each replay reads its own batch
    first, second = (
        {name: value.float() for name, value in apex_dqn_scene.tensors(state).items()} for state in (launched, captured)
    )
    torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scene", SCENES)
def test_gpu_graphs_skip_what_is_not_finite_and_go_on(scene: str) -> None:
    make, batch_of = SCENES[scene]
    algorithm = make(True)
    good = [batch_of(seed).to(CUDA) for seed in range(UPDATES)]
    state, _ = _learned(algorithm, good)
    before = apex_dqn_scene.tensors(state)
    broken = batch_of(99).to(CUDA)
    broken.weights.fill_(float("nan"))
    assert algorithm.update(state, broken).metrics["nonfinite"].item() == 1.0
    apex_dqn_scene.assert_bit_equal(before, apex_dqn_scene.tensors(state))
    assert algorithm.update(state, good[0]).metrics["nonfinite"].item() == 0.0
    after = apex_dqn_scene.tensors(state)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_gpu_graphs_are_made_anew_for_another_state() -> None:
    make, batch_of = SCENES["apex_dqn, rmsprop"]
    algorithm = make(True)
    batches = [batch_of(seed).to(CUDA) for seed in range(UPDATES)]
    first, _ = _learned(algorithm, batches)
    kept = apex_dqn_scene.tensors(first)
    second, _ = _learned(algorithm, batches)
    apex_dqn_scene.assert_bit_equal(kept, apex_dqn_scene.tensors(first))
    torch.testing.assert_close(apex_dqn_scene.tensors(second), kept, rtol=1e-3, atol=1e-4)


def test_gpu_optimizers_are_saved_as_they_are_without_a_graph() -> None:
    make, batch_of = SCENES["apex_dqn, adam"]
    state, _ = _learned(make(True), [batch_of(seed).to(CUDA) for seed in range(UPDATES)])
    (group,) = state.optimizers["online"].state_dict()["param_groups"]
    assert group["capturable"] is False
