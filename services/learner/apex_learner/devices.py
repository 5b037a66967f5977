"""Where the learner computes, and whether what it needs for that is there."""

from __future__ import annotations

import os
import shutil

import torch

from apexrl.config import ConfigError


def pick_device(name: str) -> torch.device:
    """The device that ``learner.device`` names.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("learner.device is 'cuda', but torch finds no CUDA device; use 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def pick_mirror_device(name: str, device: torch.device) -> torch.device:
    """The device that ``learner.mirror_device`` names, for updates on ``device``.

    Raises:
        ConfigError: it is neither the host nor where the updates run.
    """
    if name == "cuda" and device.type != "cuda":
        raise ConfigError("learner.mirror_device is 'cuda', but updates run on the CPU; use 'cpu' or 'auto'")
    return device if name != "cpu" else torch.device("cpu")


def require_compiler(device: torch.device) -> None:
    """Check that torch.compile will find what it compiles with, which it asks for at the first update only.

    Raises:
        ConfigError: it will not.
    """
    variable, programs = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    chosen = os.environ.get(variable)
    if not any(shutil.which(program) for program in ((chosen,) if chosen else programs)):
        raise ConfigError(
            f"learner.compile is true, but there is no {chosen or ' or '.join(programs)} for torch.compile to use; "
            f"install it, name another in the environment variable {variable}, or set learner.compile to false"
        )
