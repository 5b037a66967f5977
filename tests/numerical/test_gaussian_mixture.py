"""Mixtures of Gaussians against the density written out, term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from apexrl.ops.gaussian_mixture import (
    GaussianMixture,
    as_mixture,
    bellman,
    log_density,
    mixture_mean,
    samples,
)


def mixtures(rows: int = 4, components: int = 3, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    return as_mixture(torch.randn(rows, 3 * components, generator=generator, dtype=torch.float64) * 2.0, 0.1)


def direct_density(weights: np.ndarray, means: np.ndarray, stddevs: np.ndarray, x: float) -> float:
    """sum_k c_k exp(-(x - mu_k)^2 / (2 sigma_k^2)) / (sigma_k sqrt(2 pi))."""
    terms = [
        c * math.exp(-((x - mu) ** 2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
        for c, mu, sigma in zip(weights, means, stddevs, strict=True)
    ]
    return sum(terms)


def test_outputs_become_normalised_mixtures() -> None:
    outputs = torch.tensor([[0.0, math.log(3.0), -5.0, 7.0, 0.0, -100.0]], dtype=torch.float64)
    mixture = as_mixture(outputs, min_stddev=0.5)
    np.testing.assert_allclose(mixture.log_weights.exp()[0], [0.25, 0.75], rtol=0, atol=1e-12)
    np.testing.assert_allclose(mixture.means[0], [-5.0, 7.0])
    np.testing.assert_allclose(mixture.stddevs[0], [0.5 + math.log(2.0), 0.5], rtol=0, atol=1e-12)
    assert mixture_mean(mixture).item() == pytest.approx(0.25 * -5.0 + 0.75 * 7.0, abs=1e-12)


def test_log_density_is_the_formula() -> None:
    mixture = mixtures()
    values = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64).repeat(4, 1)
    found = log_density(mixture, values).numpy()
    weights, means, stddevs = mixture.log_weights.exp().numpy(), mixture.means.numpy(), mixture.stddevs.numpy()
    expected = [
        [math.log(direct_density(weights[b], means[b], stddevs[b], x)) for x in row]
        for b, row in enumerate(values.tolist())
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_density_far_away_is_finite_and_integrates_to_one() -> None:
    mixture = mixtures()
    assert log_density(mixture, torch.full((4, 1), 1e4, dtype=torch.float64)).isfinite().all()
    grid = torch.linspace(-60.0, 60.0, 200_001, dtype=torch.float64)
    area = torch.trapezoid(log_density(mixture, grid.repeat(4, 1)).exp(), grid, dim=1)
    np.testing.assert_allclose(area, 1.0, rtol=0, atol=1e-9)


def test_samples_have_the_moments_of_the_mixture() -> None:
    mixture, count = mixtures(), 200_000
    generator = torch.Generator().manual_seed(1)
    uniforms = torch.rand(4, count, generator=generator, dtype=torch.float64)
    drawn = samples(mixture, uniforms, torch.randn(4, count, generator=generator, dtype=torch.float64))
    means = mixture_mean(mixture)
    weights = mixture.log_weights.exp()
    variances = (weights * (mixture.stddevs.square() + mixture.means.square())).sum(dim=1) - means.square()
    errors = (drawn.mean(dim=1) - means).abs() / (variances / count).sqrt()
    assert errors.max() < 5.0
    np.testing.assert_allclose(drawn.var(dim=1), variances, rtol=0.03)


def test_uniform_numbers_choose_components_in_proportion_to_their_weights() -> None:
    mixture = as_mixture(torch.tensor([[0.0, math.log(3.0), 1.0, 2.0, 0.0, 0.0]], dtype=torch.float64), 0.1)
    uniforms = torch.tensor([[0.0, 0.2499, 0.2501, 0.999999, 1.0]], dtype=torch.float64)
    drawn = samples(mixture, uniforms, torch.zeros_like(uniforms))
    assert drawn.tolist() == [[1.0, 1.0, 2.0, 2.0, 2.0]]


def test_bellman_moves_means_and_shrinks_stddevs_to_a_bound() -> None:
    mixture = mixtures(rows=2)
    returns = torch.tensor([1.5, -2.0], dtype=torch.float64)
    discounts = torch.tensor([0.9, 0.0], dtype=torch.float64)
    moved = bellman(mixture, returns, discounts, min_stddev=0.1)
    np.testing.assert_allclose(moved.means[0], 1.5 + 0.9 * mixture.means[0])
    np.testing.assert_allclose(moved.stddevs[0], (0.9 * mixture.stddevs[0]).clamp(min=0.1))
    # Behind a termination only R is left, with the least spread.
    np.testing.assert_allclose(moved.means[1], -2.0)
    np.testing.assert_allclose(moved.stddevs[1], 0.1)
    assert torch.equal(moved.log_weights, mixture.log_weights)
    np.testing.assert_allclose(mixture_mean(moved), returns + discounts * mixture_mean(mixture), rtol=0, atol=1e-12)
