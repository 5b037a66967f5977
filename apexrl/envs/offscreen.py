"""MuJoCo draws in processes of its own.

It loads its graphics driver when it is imported, as ``MUJOCO_GL`` says. Mesa's driver brings another LLVM than
triton's, and a process that loads first the one and then the other dies (seen with torch 2.15 and Mesa's EGL). So no
process loads a driver but the workers that draw, which have no use for triton.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_may_draw = False


def allow_drawing() -> None:
    """MuJoCo may load its graphics driver in this process: EGL without a screen, unless ``MUJOCO_GL`` is set."""
    global _may_draw
    _may_draw = True
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen:
        os.environ.setdefault("MUJOCO_GL", "egl")


@contextmanager
def no_graphics_driver() -> Iterator[None]:
    """MuJoCo loads no driver if it is imported here, unless :func:`allow_drawing` was called."""
    if _may_draw:
        yield
        return
    chosen = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = chosen
