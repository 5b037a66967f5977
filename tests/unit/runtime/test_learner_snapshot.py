"""A learner that is restored continues exactly as the one it was saved from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from apexrl.algorithms.base import LearnerState
from apexrl.runtime.errors import ArchitectureError, CheckpointError
from apexrl.runtime.learner_snapshot import load_module, restore, snapshot


class Network(nn.Module):
    def __init__(self, hidden: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Linear(4, hidden, bias=bias)
        self.head = nn.Linear(hidden, 2)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))  # type: ignore[no-any-return]


def make_state(
    optimizer: str = "adam", seed: int = 0, hidden: int = 8, dtype: torch.dtype = torch.float32
) -> LearnerState:
    torch.manual_seed(seed)
    online = Network(hidden).to(dtype)
    parameters: list[Any] = list(online.parameters())
    made: torch.optim.Optimizer
    if optimizer == "adam":
        groups: list[dict[str, Any]] = [{"params": parameters[:2], "lr": 1e-2}, {"params": parameters[2:]}]
        made = torch.optim.AdamW(groups, lr=3e-3, amsgrad=True)
    elif optimizer == "rmsprop":
        made = torch.optim.RMSprop(parameters, lr=2.5e-4 / 4, alpha=0.95, eps=1.5e-7, centered=True)
    elif optimizer == "tensor_lr":
        made = torch.optim.Adam(parameters, lr=torch.tensor(1e-3), capturable=False, foreach=False)
    else:
        made = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    generators = {"noise": torch.Generator().manual_seed(seed)}
    return LearnerState({"online": online, "target": copy.deepcopy(online)}, {"main": made}, 0, generators)


def update(state: LearnerState) -> None:
    online = state.modules["online"]
    dtype = next(online.parameters()).dtype
    x = torch.randn(16, 4, generator=state.generators["noise"]).to(dtype)
    loss = online(x).float().square().mean()
    state.optimizers["main"].zero_grad()
    loss.backward()
    state.optimizers["main"].step()
    online.get_buffer("updates").add_(1)
    state.step += 1
    if state.step % 3 == 0:
        state.modules["target"].load_state_dict(online.state_dict())


def assert_equal(a: LearnerState, b: LearnerState) -> None:
    first, second = snapshot(a, 1), snapshot(b, 1)
    assert first.structure == second.structure
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.dtype == second.tensors[name].dtype, name
        assert torch.equal(tensor, second.tensors[name]), name
    assert a.step == b.step


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd", "tensor_lr"])
def test_half_and_half_equals_the_whole(optimizer: str) -> None:
    whole = make_state(optimizer)
    for _ in range(7):
        update(whole)
    saved = snapshot(whole, epoch=3)
    assert saved.version == (3, 7)
    for _ in range(6):
        update(whole)
    resumed = make_state(optimizer, seed=99)
    update(resumed)
    restore(resumed, saved)
    for _ in range(6):
        update(resumed)
    assert_equal(whole, resumed)


def test_a_snapshot_shares_no_memory() -> None:
    state = make_state()
    update(state)
    saved = snapshot(state, 1)
    before = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    for _ in range(3):
        update(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in saved.tensors.items())
    restore(state, saved)
    update(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in saved.tensors.items())


def test_moments_keep_their_precision_under_low_precision_parameters() -> None:
    state = make_state("sgd", dtype=torch.bfloat16)
    update(state)
    optimizer = state.optimizers["main"]
    parameter = state.modules["online"].get_parameter("head.weight")
    moment = torch.full(parameter.shape, 1.0 + 2.0**-20)
    optimizer.state[parameter]["momentum_buffer"] = moment
    saved = snapshot(state, 1)
    other = make_state("sgd", seed=5, dtype=torch.bfloat16)
    restore(other, saved)
    restored = other.optimizers["main"].state[other.modules["online"].get_parameter("head.weight")]["momentum_buffer"]
    assert restored.dtype == torch.float32
    assert torch.equal(restored, moment)


def test_a_state_before_its_first_update_can_be_restored() -> None:
    fresh = snapshot(make_state(seed=1), 1)
    state = make_state(seed=2)
    update(state)
    restore(state, fresh)
    assert_equal(state, make_state(seed=1))


def test_another_architecture_is_refused_by_name_and_nothing_changes() -> None:
    saved = snapshot(make_state(hidden=16), 2)
    state = make_state(hidden=8)
    before = snapshot(state, 1)
    with pytest.raises(ArchitectureError) as caught:
        restore(state, saved)
    assert "checkpoint 2.0" in str(caught.value)
    assert "online/body.weight is float32[8, 4] here and float32[16, 4] in the checkpoint" in str(caught.value)
    assert "target/head.weight" in str(caught.value)
    assert all(torch.equal(before.tensors[name], t) for name, t in snapshot(state, 1).tensors.items())
    assert saved.architecture_digest() != before.architecture_digest()


def test_missing_tensors_optimizers_and_generators_are_named() -> None:
    saved = snapshot(make_state(), 1)
    state = make_state()
    state.modules["online"] = Network(bias=False)
    with pytest.raises(ArchitectureError, match=r"online/body\.bias is absent here and float32\[8\]"):
        restore(state, saved)
    state = make_state()
    state.generators["more"] = torch.Generator()
    with pytest.raises(ArchitectureError, match=r"generators are \['more', 'noise'\] here"):
        restore(state, saved)
    with pytest.raises(ArchitectureError, match="optimizer 'main' has parameter groups of"):
        restore(make_state("sgd"), saved)
    one_group = make_state()
    one_group.optimizers["main"] = torch.optim.SGD(one_group.modules["online"].parameters(), lr=0.1)
    with pytest.raises(ArchitectureError, match="is of another kind"):
        restore(make_state("rmsprop"), snapshot(one_group, 1))


def test_what_json_cannot_hold_is_named() -> None:
    state = make_state("sgd")
    state.optimizers["main"].param_groups[0]["hook"] = object()
    with pytest.raises(CheckpointError, match="optimizers/main/param_groups/0/hook is a object"):
        snapshot(state, 1)


def test_one_module_is_loaded_for_playing() -> None:
    state = make_state()
    update(state)
    saved = snapshot(state, 1)
    player = Network()
    load_module(player, saved, "online")
    x = torch.randn(3, 4)
    assert torch.equal(player(x), state.modules["online"](x))
    with pytest.raises(ArchitectureError, match=r"online/body\.weight is float32\[9, 4\] here"):
        load_module(Network(hidden=9), saved, "online")
    with pytest.raises(ArchitectureError, match=r"actor/body\.bias is float32\[8\] here and absent"):
        load_module(player, saved, "actor")
