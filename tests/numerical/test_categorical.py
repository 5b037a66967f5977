"""Projection of value distributions onto fixed atoms: golden numbers, a slow loop, mass and mean."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.ops.categorical import (
    add_to_neighbours,
    atoms,
    cross_entropy,
    end_mass,
    entropy,
    expectation,
    project,
    weigh_by_nearness,
)

BELL = (0.1, 0.2, 0.4, 0.2, 0.1)
ENDS = (0.5, 0.0, 0.0, 0.0, 0.5)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def slow_projection(p: np.ndarray, total: float, factor: float, v_min: float, v_max: float) -> np.ndarray:
    """Bellemare et al. 2017, algorithm 1, atom by atom, with the branch for atoms that fall on another."""
    m = np.zeros_like(p)
    spacing = (v_max - v_min) / (len(p) - 1)
    for j, mass in enumerate(p):
        moved = min(max(total + factor * (v_min + j * spacing), v_min), v_max)
        b = min(max((moved - v_min) / spacing, 0.0), len(p) - 1.0)
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            m[low] += mass
        else:
            m[low] += mass * (high - b)
            m[high] += mass * (b - low)
    return m


@pytest.mark.parametrize(
    ("probabilities", "total", "factor", "expected"),
    [
        (BELL, 0.5, 0.9, (0.03, 0.15, 0.32, 0.32, 0.18)),
        (BELL, 3.0, 0.9, (0.0, 0.0, 0.0, 0.08, 0.92)),  # clipped at the upper end
        (BELL, 1.0, 1.0, (0.0, 0.1, 0.2, 0.4, 0.3)),  # every atom falls on another
        (BELL, 0.7, 0.0, (0.0, 0.0, 0.3, 0.7, 0.0)),  # behind a termination all mass lies on R
        (ENDS, -1.5, 0.99, (0.5, 0.0, 0.26, 0.24, 0.0)),
    ],
)
def test_golden_projections(
    probabilities: tuple[float, ...], total: float, factor: float, expected: tuple[float, ...]
) -> None:
    projected = project(tensor(*probabilities), tensor(total)[0], tensor(factor)[0], -2.0, 2.0)
    np.testing.assert_allclose(projected[0], expected, rtol=0, atol=1e-12)
    assert projected.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_golden_losses() -> None:
    target = project(tensor(*BELL), tensor(0.5)[0], tensor(0.9)[0], -2.0, 2.0)
    log_probabilities = tensor(0.0, 0.5, 1.0, 0.5, 0.0).log_softmax(dim=1)
    loss = cross_entropy(target, log_probabilities)
    assert loss.item() == pytest.approx(1.5264051587537395, abs=1e-12)
    assert (loss - entropy(target)).item() == pytest.approx(0.0987387658041579, abs=1e-12)
    assert expectation(target, -2.0, 2.0).item() == pytest.approx(0.47, abs=1e-12)
    assert end_mass(target).item() == pytest.approx(0.21, abs=1e-12)


class Case(NamedTuple):
    probabilities: np.ndarray
    returns: np.ndarray
    factors: np.ndarray
    v_min: float
    v_max: float


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_atoms, rows = draw(st.integers(2, 60)), draw(st.integers(1, 6))
    v_min = draw(st.floats(-1e3, 1e3))
    width = draw(st.floats(1e-2, 2e3))
    logits = rng.normal(size=(rows, num_atoms)) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    factors = np.where(rng.random(rows) < 0.2, 0.0, rng.uniform(0.5, 1.0, rows))
    # From returns that clip nothing to ones that clip everything.
    returns = rng.normal(size=rows) * width * draw(st.sampled_from([1e-3, 0.1, 1.0, 10.0]))
    return Case(weights / weights.sum(axis=1, keepdims=True), returns, factors, v_min, v_min + width)


def projected(case: Case, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    probabilities, returns, factors = (torch.from_numpy(values).to(dtype) for values in case[:3])
    return project(probabilities, returns, factors, case.v_min, case.v_max)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_projection_agrees_with_a_loop_and_keeps_the_mass(case: Case) -> None:
    found = projected(case).numpy()
    slow = [slow_projection(*row, case.v_min, case.v_max) for row in zip(*case[:3], strict=True)]
    np.testing.assert_allclose(found, slow, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), case.probabilities.sum(axis=1), rtol=0, atol=1e-12)
    assert found.min() >= 0.0
    single = projected(case, torch.float32)
    np.testing.assert_allclose(single.sum(dim=1), 1.0, rtol=0, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(cases(), st.booleans())
def test_both_ways_to_share_out_mass_agree(case: Case, on_atoms: bool) -> None:
    masses = torch.from_numpy(case.probabilities)
    last = masses.shape[1] - 1
    positions = torch.from_numpy(np.random.default_rng(0).uniform(-1.0, last + 1.0, masses.shape)).clamp(0.0, last)
    positions = positions.round() if on_atoms else positions
    added, weighed = add_to_neighbours(masses, positions), weigh_by_nearness(masses, positions)
    np.testing.assert_allclose(added, weighed, rtol=0, atol=1e-12)
    assert added.min() >= 0.0
    nan = torch.full_like(positions, float("nan"))
    assert add_to_neighbours(masses, nan).isnan().any()
    assert weigh_by_nearness(masses, nan).isnan().any()


@settings(max_examples=200, deadline=None)
@given(cases())
def test_projection_keeps_the_mean_where_nothing_is_clipped(case: Case) -> None:
    support = atoms(case.probabilities.shape[1], case.v_min, case.v_max, like=torch.zeros(1, dtype=torch.float64))
    moved = case.returns[:, None] + case.factors[:, None] * support.numpy()
    inside = np.all((moved >= case.v_min) & (moved <= case.v_max), axis=1)
    means = expectation(projected(case), case.v_min, case.v_max).numpy()
    expected = (case.probabilities * moved).sum(axis=1)
    clipped = (case.probabilities * moved.clip(case.v_min, case.v_max)).sum(axis=1)
    scale = abs(case.v_min) + abs(case.v_max)
    np.testing.assert_allclose(means[inside], expected[inside], rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(means, clipped, rtol=0, atol=1e-12 * scale)


def test_an_entropy_of_zeros_is_zero_and_nan_stays_visible() -> None:
    assert entropy(tensor(0.0, 1.0, 0.0)).item() == 0.0
    nan = torch.full((1,), float("nan"), dtype=torch.float64)
    assert project(tensor(*BELL), nan, tensor(0.9)[0], -2.0, 2.0).isnan().any()
