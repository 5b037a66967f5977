"""Mixtures of K one-dimensional Gaussians: density, mean, samples, and the Bellman operator on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class GaussianMixture(NamedTuple):
    """B mixtures; every tensor is [B, K]."""

    log_weights: torch.Tensor
    """Normalised: their exponentials sum to 1."""
    means: torch.Tensor
    stddevs: torch.Tensor


def as_mixture(outputs: torch.Tensor, min_stddev: float) -> GaussianMixture:
    """Network outputs [B, 3 K] (logits, means, raw scales) as mixtures with stddevs ``min_stddev`` + softplus(raw)."""
    logits, means, scales = outputs.tensor_split(3, dim=1)
    return GaussianMixture(logits.log_softmax(dim=1), means, min_stddev + F.softplus(scales))


def mixture_mean(mixture: GaussianMixture) -> torch.Tensor:
    """Means [B]."""
    return (mixture.log_weights.exp() * mixture.means).sum(dim=1)


def log_density(mixture: GaussianMixture, values: torch.Tensor) -> torch.Tensor:
    """The log of sum_k c_k N(x; mu_k, sigma_k^2) [B, S] of ``values`` x [B, S]."""
    log_weights, means, stddevs = (parameters[:, None, :] for parameters in mixture)
    distances = (values[:, :, None] - means) / stddevs
    return torch.logsumexp(log_weights - 0.5 * distances.square() - stddevs.log() - LOG_SQRT_2PI, dim=2)


def samples(mixture: GaussianMixture, uniforms: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    """Samples [B, S]: ``uniforms`` in [0, 1) choose the component, ``normals`` the place in it; both [B, S]."""
    bounds = mixture.log_weights.exp().cumsum(dim=1)
    chosen = torch.searchsorted(bounds, uniforms.contiguous(), right=True).clamp(max=bounds.shape[1] - 1)
    return mixture.means.gather(1, chosen) + mixture.stddevs.gather(1, chosen) * normals


def bellman(
    mixture: GaussianMixture, returns: torch.Tensor, bootstrap_discounts: torch.Tensor, min_stddev: float
) -> GaussianMixture:
    """The distribution of R + G Z, for R [B] and G [B].

    Stddevs are at least ``min_stddev``: behind a termination (G = 0) a point would remain, whose likelihood no density
    reaches. A lower bound, and not a summand, because a summand would add up over the steps of bootstrapping.
    """
    return GaussianMixture(
        mixture.log_weights,
        returns[:, None] + bootstrap_discounts[:, None] * mixture.means,
        (bootstrap_discounts[:, None] * mixture.stddevs).clamp(min=min_stddev),
    )
