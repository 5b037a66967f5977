"""Optimiser steps that clip and skip on the device, without waiting for it, and copies to target networks.

Both :class:`RMSProp` and torch's fused Adam read two optional scalar tensors before a step: ``grad_scale``, by which
gradients are divided, and ``found_inf``, which turns the step into no step at all when it is 1. Gradient clipping and
the skipping of non-finite updates are expressed through the two, so no host decision stands between backward and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def clip_scale(grad_norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """What to divide gradients by so that their global norm is at most ``max_norm``: max(1, norm / max_norm)."""
    return (grad_norm / max_norm).clamp(min=1.0)


def guarded_step(optimizer: torch.optim.Optimizer, *, grad_scale: torch.Tensor, skip: torch.Tensor) -> None:
    """One optimiser step with gradients divided by ``grad_scale``; none, to the bit, where ``skip`` holds.

    Args:
        optimizer: an :class:`RMSProp`, or a torch optimiser made with ``fused=True``.
        grad_scale: scalar f32.
        skip: scalar bool.
    """
    guarded: Any = optimizer
    guarded.grad_scale = grad_scale
    guarded.found_inf = skip.to(torch.float32)
    try:
        optimizer.step()
    finally:
        del guarded.grad_scale, guarded.found_inf


@torch.no_grad()
def copy_parameters(source: torch.nn.Module, destination: torch.nn.Module) -> None:
    """Copy all parameters between two modules of one architecture, in place."""
    torch._foreach_copy_(list(destination.parameters()), list(source.parameters()))


class RMSProp(torch.optim.Optimizer):
    r"""RMSProp, centred or not, whose variance estimate is never negative.

    .. math:: m \leftarrow \rho m + (1 - \rho) g, \quad v \leftarrow \rho v + (1 - \rho) g^2, \quad
       x \leftarrow x - \mathrm{lr} \, g / (\sqrt{\max(v - m^2, 0)} + \epsilon)

    (m is 0 when not centred.) In float32 v - m^2 may round below 0, which would make the parameters NaN.
    The step is a fixed sequence of device operations, so it can be captured in a CUDA graph.

    Args:
        params: to optimise.
        learning_rate: lr.
        decay: rho.
        epsilon: added to the root.
        centered: whether to subtract m^2.
        compile: run the step through torch.compile: one pass over all tensors instead of one per operation.
    """

    # GradScaler's name for optimisers that read grad_scale and found_inf.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        learning_rate: float,
        *,
        decay: float = 0.95,
        epsilon: float = 1.5e-7,
        centered: bool = True,
        compile: bool = False,
    ) -> None:
        defaults = {"learning_rate": learning_rate, "decay": decay, "epsilon": epsilon, "centered": centered}
        super().__init__(params, defaults)
        self._update = torch.compile(_rmsprop, dynamic=False) if compile else _rmsprop

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("RMSProp.step takes no closure")
        skip: torch.Tensor | None = getattr(self, "found_inf", None)
        if skip is not None and skip.device.type == "cpu":
            # On the host the decision is free, and not touching anything is the cheapest way to skip.
            if bool(skip):
                return
            skip = None
        scale: torch.Tensor | None = getattr(self, "grad_scale", None)
        for group in self.param_groups:
            self._step_group(group, scale, skip)

    def _step_group(self, group: dict[str, Any], scale: torch.Tensor | None, skip: torch.Tensor | None) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            state = self.state[p]
            if not state:
                state["square_average"] = torch.zeros_like(p)
                if group["centered"]:
                    state["average"] = torch.zeros_like(p)
        self._update(
            params,
            [p.grad for p in params],
            [self.state[p]["square_average"] for p in params],
            [self.state[p]["average"] for p in params] if group["centered"] else None,
            scale,
            skip,
            group["learning_rate"],
            group["decay"],
            group["epsilon"],
        )


def _rmsprop(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    squares: list[torch.Tensor],
    means: list[torch.Tensor] | None,
    scale: torch.Tensor | None,
    skip: torch.Tensor | None,
    learning_rate: float,
    decay: float,
    epsilon: float,
) -> None:
    """One step of :class:`RMSProp`, in place; gradients are divided by ``scale`` and lost."""
    if scale is not None:
        torch._foreach_div_(grads, scale)
    retain: float | torch.Tensor = decay
    if skip is not None:
        # With zero gradients and nothing forgotten, every line below leaves its operands as they are.
        retain = torch.where(skip.bool(), 1.0, decay)
        for grad in grads:
            grad.masked_fill_(skip.bool(), 0.0)
    torch._foreach_mul_(squares, retain)
    torch._foreach_addcmul_(squares, grads, grads, value=1.0 - decay)
    if means is not None:
        torch._foreach_mul_(means, retain)
        torch._foreach_add_(means, grads, alpha=1.0 - decay)
        denominators = torch._foreach_addcmul(squares, means, means, value=-1.0)
        torch._foreach_clamp_min_(denominators, 0.0)
        torch._foreach_sqrt_(denominators)
    else:
        denominators = torch._foreach_sqrt(squares)
    torch._foreach_add_(denominators, epsilon)
    torch._foreach_addcdiv_(params, grads, denominators, value=-learning_rate)
