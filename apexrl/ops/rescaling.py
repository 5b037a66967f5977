"""The signed hyperbolic value rescaling h (Pohlen et al. 2018, arXiv 1805.11593, section 3.2).

Networks that learn unclipped rewards output values in the space of h. Compute both functions in float32 or float64:
the inverse cancels near 0.
"""

from __future__ import annotations

import torch


def h(values: torch.Tensor, epsilon: float) -> torch.Tensor:
    r"""Rescale values: :math:`h(z) = \mathrm{sign}(z)(\sqrt{|z| + 1} - 1) + \epsilon z`. Shape is kept."""
    return values.sign() * ((values.abs() + 1.0).sqrt() - 1.0) + epsilon * values


def h_inverse(values: torch.Tensor, epsilon: float) -> torch.Tensor:
    r"""Invert :func:`h` (Proposition A.2). ``epsilon`` must be above 0.

    .. math:: h^{-1}(x) = \mathrm{sign}(x)\Big(\Big(\frac{\sqrt{1 + 4\epsilon(|x| + 1 + \epsilon)} - 1}
       {2\epsilon}\Big)^2 - 1\Big)
    """
    root = (1.0 + 4.0 * epsilon * (values.abs() + 1.0 + epsilon)).sqrt()
    return values.sign() * (((root - 1.0) / (2.0 * epsilon)).square() - 1.0)
