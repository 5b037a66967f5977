"""Loops that numba compiles when their module is imported, and not within the first request or batch.

Imports compile for the argument types named, once for each machine (:mod:`apexrl.runtime.kernel_cache`); the loops run
without the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

#: Numba's types, which have no annotations.
types: Any = numba.types

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(*signatures: tuple[Any, ...]) -> Callable[[Loop], Loop]:
    """Compile a function for each of ``signatures``, types of all arguments. Other types are an error when called."""
    return cast(Callable[[Loop], Loop], numba.njit(list(signatures), cache=True, nogil=True))


def readonly(element: Any) -> Any:
    """A contiguous vector that need not be writable, as those over bytes that came over the wire are not."""
    return types.Array(element, 1, "C", readonly=True)
