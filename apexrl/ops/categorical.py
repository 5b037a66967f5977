"""Value distributions over fixed, evenly spaced atoms (Bellemare et al. 2017).

Atom i of M lies at z_i = v_min + i (v_max - v_min) / (M - 1). Inputs are float32 or float64; nothing here belongs under
autocast.
"""

from __future__ import annotations

import torch


def atoms(num_atoms: int, v_min: float, v_max: float, *, like: torch.Tensor) -> torch.Tensor:
    """The support z [M], of the type and on the device of ``like``."""
    return torch.linspace(v_min, v_max, num_atoms, dtype=like.dtype, device=like.device)


def project(
    probabilities: torch.Tensor,
    returns: torch.Tensor,
    bootstrap_discounts: torch.Tensor,
    v_min: float,
    v_max: float,
) -> torch.Tensor:
    r"""The distribution of R + G Z on the atoms of Z.

    .. math:: m_i = \sum_j \max\Big(0, 1 - \frac{|\mathrm{clip}(R + G z_j) - z_i|}{\Delta z}\Big) p_j

    The projection of Bellemare et al. 2017, algorithm 1: each moved atom gives its mass to its two neighbours in
    proportion to their nearness. Positions are counted in atoms, so that atoms lie at whole numbers: the two shares add
    up to 1, and an atom that falls on another keeps all.

    Args:
        probabilities: [B, M] of Z, summing to 1.
        returns: [B] R.
        bootstrap_discounts: [B] G.
        v_min: lowest atom.
        v_max: highest atom.

    Returns:
        m [B, M]. Its sum is that of ``probabilities``; its mean is R + G E[Z] where nothing was clipped.
    """
    num_atoms = probabilities.shape[1]
    spacing = (v_max - v_min) / (num_atoms - 1)
    support = atoms(num_atoms, v_min, v_max, like=probabilities)
    moved = returns[:, None] + bootstrap_discounts[:, None] * support
    # Clipped behind the division: before it, the quotient may round beyond the last atom.
    positions = ((moved - v_min) / spacing).clamp(0.0, num_atoms - 1.0)
    # A GPU adds in an order of its own, and has room for the kernel; a CPU takes thirty times as long for it.
    shared_out = add_to_neighbours if probabilities.device.type == "cpu" else weigh_by_nearness
    return shared_out(probabilities, positions)


def add_to_neighbours(probabilities: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Masses [B, M] at ``positions`` [B, M] in [0, M - 1], each added to the atoms below and above it."""
    below = positions.floor().clamp(max=positions.shape[1] - 2.0)
    above_share = probabilities * (positions - below)
    # What is not a number has no place, but its share says so.
    places = below.nan_to_num(0.0).to(torch.int64)
    sums = torch.zeros_like(probabilities)
    sums.scatter_add_(1, places, probabilities - above_share)
    return sums.scatter_add_(1, places + 1, above_share)


def weigh_by_nearness(probabilities: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The same by the triangular kernel [B, M, M] (as in Acme), whose sums have a fixed order on every device."""
    num_atoms = positions.shape[1]
    places = torch.arange(num_atoms, dtype=positions.dtype, device=positions.device)
    kernel = (1.0 - (positions[:, None, :] - places[:, None]).abs()).clamp(min=0.0)
    return torch.bmm(kernel, probabilities[:, :, None]).squeeze(2)


def expectation(probabilities: torch.Tensor, v_min: float, v_max: float) -> torch.Tensor:
    """Mean [B] of distributions [B, M]."""
    return probabilities @ atoms(probabilities.shape[1], v_min, v_max, like=probabilities)


def cross_entropy(target: torch.Tensor, log_probabilities: torch.Tensor) -> torch.Tensor:
    """- sum_i m_i log p_i [B] of targets m [B, M] and log p [B, M]."""
    return -(target * log_probabilities).sum(dim=1)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """- sum_i m_i log m_i [B], where 0 log 0 = 0."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=1)


def end_mass(probabilities: torch.Tensor) -> torch.Tensor:
    """Mass [B] of the lowest and the highest atom together: where it grows, the support is too narrow."""
    return probabilities[:, 0] + probabilities[:, -1]
