"""Frame stacks on the learner's side, rebuilt from windows of single frames."""

from __future__ import annotations

import torch

from apexrl.types import Padding


def stack_frames(
    observations: torch.Tensor,
    ages: torch.Tensor,
    index: int | torch.Tensor,
    stack: int,
    padding: Padding,
) -> torch.Tensor:
    """The stacked observation that the policy saw at row ``index`` of each window, bit for bit.

    Plane j back from the newest is row ``index - j`` if j <= age of row ``index``, else padding: zeros, or the
    episode's first frame. Planes are ordered oldest first, newest last.

    Args:
        observations: [B, W, *shape] single frames.
        ages: [B, W] integers, rows since the episode's first.
        index: the row to stack at, one for all windows or [B] (int64), in [stack - 1, W - 1].
        stack: frames per observation.
        padding: what planes from before the episode show.

    Returns:
        [B, *EnvSpec.network_input_shape(stack)] of the observations' type, in memory of its own.

    Raises:
        ValueError: ``index`` is out of range. Not checked for a tensor on another device than the CPU, where looking
            would stall the device; there planes are taken from the window's first row at the earliest.
    """
    batch, window, *shape = observations.shape
    rows = _checked_index(index, batch, window, stack, observations.device)
    age = ages.to(torch.int64).gather(1, rows[:, None])
    back = torch.arange(stack - 1, -1, -1, device=observations.device)
    if padding is Padding.REPEAT_FIRST:
        planes = rows[:, None] - torch.minimum(back[None], age)
    else:
        planes = rows[:, None] - back[None]
    flat = torch.arange(batch, device=observations.device)[:, None] * window + planes.clamp_min(0)
    frames = observations.reshape(batch * window, *shape).index_select(0, flat.reshape(-1))
    if padding is Padding.ZEROS and stack > 1:
        blank = (back[None] > age).reshape(-1)
        if observations.device.type == "cpu":
            frames.index_fill_(0, blank.nonzero()[:, 0], 0)  # few rows: episodes are longer than stacks
        else:
            frames.masked_fill_(blank.reshape(-1, *[1] * len(shape)), 0)  # fixed shapes, no stall
    if len(shape) == 2:
        return frames.reshape(batch, stack, *shape)
    return frames.reshape(batch, stack * shape[0], *shape[1:])


def _checked_index(
    index: int | torch.Tensor, batch: int, window: int, stack: int, device: torch.device
) -> torch.Tensor:
    """``index`` as int64 [B] on ``device``."""
    low, high = stack - 1, window - 1
    if isinstance(index, torch.Tensor):
        if index.shape != (batch,):
            raise ValueError(f"index has shape {tuple(index.shape)}, must be ({batch},)")
        if index.device.type == "cpu" and batch and not low <= int(index.min()) <= int(index.max()) <= high:
            raise ValueError(f"index is in [{int(index.min())}, {int(index.max())}], must be in [{low}, {high}]")
        return index.to(device=device, dtype=torch.int64)
    if not low <= index <= high:
        raise ValueError(f"index is {index}, must be in [{low}, {high}]")
    return torch.full((batch,), index, dtype=torch.int64, device=device)
