"""How torch uses this process's CPU cores."""

from __future__ import annotations

import torch


def configure_torch(num_threads: int) -> None:
    """Set torch's threads, and let subnormal floats be 0. Call it before anything is computed.

    The gradients of units that no longer fire are 0, so Adam's first moments of their weights decay into the
    subnormals and stay there. Arithmetic on those is many times slower: with 6 % of the moments there, a fused Adam
    step on a CPU takes twice as long. Threads that this one starts inherit the setting.

    Args:
        num_threads: 0 = as torch chooses.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    torch.set_flush_denormal(True)
