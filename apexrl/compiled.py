"""Loops that numba compiles when their module is imported, and not within the first request or batch.

Imports compile for the argument types named, once for each machine (:mod:`apexrl.runtime.kernel_cache`); the loops run
without the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.core import cgutils
from numba.extending import intrinsic

#: Numba's types, which have no annotations.
types: Any = numba.types

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(*signatures: tuple[Any, ...]) -> Callable[[Loop], Loop]:
    """Compile a function for each of ``signatures``, types of all arguments. Other types are an error when called."""
    return cast(Callable[[Loop], Loop], numba.njit(list(signatures), cache=True, nogil=True))


def readonly(element: Any) -> Any:
    """A contiguous vector that need not be writable, as those over bytes that came over the wire are not."""
    return types.Array(element, 1, "C", readonly=True)


def _copy_to(typing_context: Any, address: Any, source: Any, begin: Any, count: Any) -> Any:
    """Copy ``count`` elements of ``source`` from ``begin`` on to the memory at ``address``.

    ``source`` is contiguous, and its elements are numbered across all axes; nothing is checked. With addresses one call
    of a loop serves any number of targets. It is the C library's memcpy: on runs of kilobytes a quarter faster than the
    loop of an assignment, because it does not read what it will write.
    """
    signature = types.void(address, source, begin, count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, of, start, number = arguments
        _, origin, _, _ = signature.args
        at_origin = builder.gep(context.make_array(origin)(context, builder, of).data, [start])
        at_target = builder.inttoptr(to, at_origin.type)
        cgutils.raw_memcpy(  # type: ignore[no-untyped-call]
            builder, at_target, at_origin, number, origin.dtype.bitwidth // 8
        )
        return context.get_dummy_value()

    return signature, generate


#: For compiled loops; see the function it is made of. ``copy_to(address, source, begin, count)``
copy_to: Any = intrinsic(_copy_to)
