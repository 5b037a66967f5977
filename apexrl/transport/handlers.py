"""What a server puts around its methods: a count of their calls, and other things that every call goes through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
#: A method as a servicer implements it: a coroutine of the request, or of the iterator over them, and the context.
Behaviour = Callable[[Any, Context], Awaitable[Any]]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
#: Label of calls of methods that the server does not have: their names are the caller's, who could invent any number.
UNKNOWN_METHOD = "unknown"


class CallObserver(Protocol):
    """Is told of every call. Methods are called on the server's loop and must be quick."""

    def started(self, method: str) -> None:
        """A call of ``method``, e.g. "apex.v1.Replay/GetInfo", has come."""
        ...

    def ended(self, method: str, code: str, seconds: float | None) -> None:
        """It is over, with the name of a gRPC status. ``seconds`` since it came; None if both sides stream."""
        ...


def kind_of(handler: Any) -> str:
    """Which side of a method streams: unary_unary, unary_stream, stream_unary or stream_stream."""
    return next(kind for kind in _KINDS if getattr(handler, kind) is not None)


def around(handler: Any, wrap: Callable[[Behaviour], Behaviour]) -> Any:
    """The same method with its behaviour wrapped. Behaviours are coroutines, as everywhere in this project."""
    kind = kind_of(handler)
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(wrap(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer)


class CallWatch(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Tells an observer of every call: those that are refused, and those of unknown methods, included."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            self._observer.started(UNKNOWN_METHOD)
            self._observer.ended(UNKNOWN_METHOD, grpc.StatusCode.UNIMPLEMENTED.name, None)
            return None
        method = str(handler_call_details.method).removeprefix("/")
        timed = kind_of(handler) != "stream_stream"

        def watched(behaviour: Behaviour) -> Behaviour:
            async def call(request: Any, context: Context) -> Any:
                started = time.perf_counter()
                self._observer.started(method)
                code = grpc.StatusCode.UNKNOWN.name
                try:
                    response = await behaviour(request, context)
                    code = _code(context)
                    return response
                except grpc.aio.AbortError:
                    code = _code(context)
                    raise
                except asyncio.CancelledError:
                    code = grpc.StatusCode.CANCELLED.name
                    raise
                finally:
                    self._observer.ended(method, code, time.perf_counter() - started if timed else None)

            return call

        return around(handler, watched)


def _code(context: Context) -> str:
    """Name of the status that the call was given; OK if none was."""
    code: Any = context.code()
    return _CODES.get(code, grpc.StatusCode.UNKNOWN.name) if isinstance(code, int) else code.name if code else "OK"
