"""Gradient clipping, guarded steps, and RMSProp against hand-computed steps and torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from apexrl.ops.optimization import RMSProp, clip_scale, guarded_step

NO = torch.tensor(False)
YES = torch.tensor(True)
ONE = torch.tensor(1.0)


def test_centred_rmsprop_reference_steps() -> None:
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = RMSProp([x], 6.25e-5, decay=0.95, epsilon=1.5e-7)
    for gradient, mean, square, value in ((0.2, 0.01, 0.002, 0.9997132313195005), (-0.1, 0.0045, 0.0024, None)):
        x.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert optimizer.state[x]["average"].item() == pytest.approx(mean, rel=1e-12)
        assert optimizer.state[x]["square_average"].item() == pytest.approx(square, rel=1e-12)
        if value is not None:
            assert x.item() == pytest.approx(value, rel=1e-14)
    assert x.item() == pytest.approx(0.9998413501643203, rel=1e-14)


@pytest.mark.parametrize("centered", [True, False])
def test_rmsprop_agrees_with_torch(centered: bool) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    theirs = copy.deepcopy(ours)
    mine = RMSProp(ours, 1e-2, decay=0.9, epsilon=1e-3, centered=centered)
    reference = torch.optim.RMSprop(theirs, lr=1e-2, alpha=0.9, eps=1e-3, centered=centered)
    for _ in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_variance_rounded_below_zero_gives_no_nan() -> None:
    """With a constant gradient v - m^2 tends to 0 and falls below it in float32."""
    x = nn.Parameter(torch.zeros(64))
    optimizer = RMSProp([x], 1e-4, decay=0.95, epsilon=1.5e-7)
    gradient = torch.linspace(0.1, 1000.0, 64)
    lowest = 0.0
    for _ in range(500):
        x.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state[x]
        lowest = min(lowest, (state["square_average"] - state["average"].square()).min().item())
    assert lowest < 0.0, "the case under test did not occur"
    assert bool(x.isfinite().all())


def test_clip_by_global_norm() -> None:
    gradients = [torch.tensor([30.0]), torch.tensor([40.0])]
    scale = clip_scale(torch.nn.utils.get_total_norm(gradients), 40.0)
    assert [(g / scale).item() for g in gradients] == pytest.approx([24.0, 32.0], rel=1e-6)


def test_gradients_below_the_norm_are_left_alone() -> None:
    assert clip_scale(torch.tensor(39.0), 40.0).item() == 1.0


def optimizers(params: list[nn.Parameter]) -> dict[str, torch.optim.Optimizer]:
    return {
        "rmsprop_centered": RMSProp(params, 1e-2, epsilon=1e-3),
        "rmsprop": RMSProp(params, 1e-2, epsilon=1e-3, centered=False),
        "adam": torch.optim.Adam(params, 1e-2, eps=1e-3, fused=True),
    }


@pytest.mark.parametrize("kind", ["rmsprop_centered", "rmsprop", "adam"])
def test_guarded_step_divides_gradients_by_the_scale(kind: str) -> None:
    plain, scaled = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for parameter, factor in ((plain, 1.0), (scaled, 8.0)):
        optimizer = optimizers([parameter])[kind]
        for _ in range(2):
            parameter.grad = factor * torch.tensor([0.5, -1.0, 2.0])
            guarded_step(optimizer, grad_scale=torch.tensor(factor), skip=NO)
    torch.testing.assert_close(plain, scaled)
    assert not torch.equal(plain, torch.ones(3))


@pytest.mark.parametrize("kind", ["rmsprop_centered", "rmsprop", "adam"])
def test_skipped_step_changes_no_bit(kind: str) -> None:
    torch.manual_seed(1)
    x = nn.Parameter(torch.randn(100))
    optimizer = optimizers([x])[kind]
    x.grad = torch.randn(100)
    guarded_step(optimizer, grad_scale=ONE, skip=NO)
    before, state = x.detach().clone(), copy.deepcopy(optimizer.state_dict())
    x.grad = torch.full((100,), float("nan"))
    guarded_step(optimizer, grad_scale=torch.tensor(float("nan")), skip=YES)
    assert torch.equal(x, before)
    assert state["state"].keys() == optimizer.state_dict()["state"].keys()
    for name, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, state["state"][0][name]), name


@pytest.mark.parametrize("centered", [True, False])
def test_skipping_on_a_device_uses_no_host_decision(centered: bool) -> None:
    """The branch-free path of other devices, driven on the CPU: skips to the bit, else does the ordinary step."""
    torch.manual_seed(2)
    ours = nn.Parameter(torch.randn(50))
    twin = nn.Parameter(ours.detach().clone())
    optimizer, ordinary = (RMSProp([p], 1e-2, epsilon=1e-3, centered=centered) for p in (ours, twin))
    for skip in (NO, YES, NO):
        before = ours.detach().clone()
        ours.grad = torch.full((50,), float("inf")) if skip else torch.randn(50)
        twin.grad = ours.grad.clone()
        with torch.no_grad():
            optimizer._step_group(optimizer.param_groups[0], ONE, skip)
        guarded_step(ordinary, grad_scale=ONE, skip=skip)
        assert torch.equal(ours, before) == bool(skip)
        torch.testing.assert_close(ours, twin)


def test_guarded_step_leaves_no_trace_on_the_optimizer() -> None:
    x = nn.Parameter(torch.ones(1))
    optimizer = RMSProp([x], 1e-2)
    x.grad = torch.ones(1)
    guarded_step(optimizer, grad_scale=ONE, skip=NO)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
