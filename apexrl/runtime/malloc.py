"""What glibc does with freed memory: kept where the same blocks are wanted again at once, given back where not."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: The largest that glibc takes. Blocks above it are mapped and unmapped one by one.
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 1 << 30
#: Parts of parameters are of this size and come with a header, so they lie above it.
_LARGE_BLOCK_BYTES = 1 << 20
#: The main one, and one for threads.
_FEW_HEAPS = 2


def keep_freed_memory(*, few_heaps: bool = False) -> bool:
    """Let freed blocks of up to 32 MiB stay in the process; returns whether the C library takes the advice.

    torch on the CPU frees and allocates the same tensors in every update. By default glibc unmaps the large ones, and
    the next update touches fresh pages: 3,100 page faults and a seventh of the time of a small network's update of 64
    frames. Call it before the first large tensor.

    Args:
        few_heaps: let all threads but the main one share a heap, so that blocks of megabytes that now one thread takes
            and now another, as gRPC's do with parameters, need the memory of one. Not where several threads compute at
            once, which would wait for each other.
    """
    heaps = ((_M_ARENA_MAX, _FEW_HEAPS),) if few_heaps else ()
    return _set((_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES), (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES), *heaps)


def give_freed_memory_back() -> bool:
    """Keep little of what is freed in the process; returns whether the C library takes the advice.

    For a process that needs much only now and then. By default, and with :func:`keep_freed_memory`, glibc cuts large
    blocks from the heap of the thread that asks, where small blocks that stay come to lie between them: the heap of an
    evaluator's I/O thread, which takes parameters in, grew by 1 MB with each of them. Blocks of 1 MiB and more are
    mapped one by one instead (a fixed threshold also keeps glibc from raising its own). Smaller ones come from few
    heaps, so that what one thread has freed serves another; what is free in them leaves with :func:`trim_heaps`.
    """
    return _set(
        (_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES),
        (_M_TRIM_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_ARENA_MAX, _FEW_HEAPS),
    )


def trim_heaps() -> bool:
    """Give all whole pages of freed blocks back, wherever in the heaps they lie; returns whether any were.

    By itself glibc gives back only what is free at a heap's end, and a small block there that stays holds all below it.
    It takes some milliseconds, and the pages have to be touched anew: call it before a long wait.
    """
    trim = _c_function("malloc_trim")
    return trim is not None and bool(trim(0))


def _set(*options: tuple[int, int]) -> bool:
    mallopt = _c_function("mallopt")
    return mallopt is not None and all(mallopt(option, value) for option, value in options)


def _c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has no such function."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
