"""The gRPC side of a shard: streams of bytes become calls of the endpoint on the engine's thread, and back.

Nothing is decided here. A handler reads a message, lets the engine thread work on it (inserts of several streams go
there together, see :mod:`apex_replay.gathering`), and writes the answer before it reads the next one; so a shard that
does not want more simply does not read, and flow control holds the peer back.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

from apex_replay.endpoint import ReplayEndpoint
from apex_replay.gathering import HURRY_SECONDS, Gathering
from apex_replay.merging import handle_all
from apex_replay.streams import InsertStream, SampleStream, Stream
from apexrl.replay.engine_thread import EngineStoppedError, EngineThread
from apexrl.transport import replay_pb2 as pb
from apexrl.transport._generated.apex.v1 import replay_pb2_grpc
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.server import Register, abort_refused
from apexrl.types import SignatureError

logger = logging.getLogger(__name__)

SERVICE_NAME = "apex.v1.Replay"
TOTALS_PERIOD_SECONDS = 0.15
#: A stream that does not say who it is within this time is ended.
FIRST_MESSAGE_SECONDS = 10.0

T = TypeVar("T")
StreamT = TypeVar("StreamT", bound=Stream)
Context = grpc.aio.ServicerContext[Any, Any]


class ReplayServicer(replay_pb2_grpc.ReplayServicer):
    """Serves an endpoint that lives on ``thread``. To be made and used on the loop of the server."""

    def __init__(self, endpoint: ReplayEndpoint, thread: EngineThread) -> None:
        self._endpoint = endpoint
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._gathering: Gathering[tuple[InsertStream, pb.InsertRequest], pb.InsertResponse | None] = Gathering(
            self._loop, self._submit, lambda pairs: handle_all(endpoint.engine, pairs)
        )

    def register(self) -> Register:
        """For :func:`~apexrl.transport.server.start_server`."""
        return lambda server: replay_pb2_grpc.add_ReplayServicer_to_server(self, server)

    async def stop(self) -> None:
        """End all streams and refuse new ones: the shard is stopping."""
        with contextlib.suppress(Refused):  # An engine that has failed has ended them already.
            await self._engine(self._endpoint.stop)

    async def Insert(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]
        """See ``replay.proto``."""
        closing = self._loop.create_future()
        await self._until_closed(context, self._insert(context, closing), closing)

    async def Sample(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]
        """See ``replay.proto``."""
        closing = self._loop.create_future()
        await self._until_closed(context, self._sample(context, closing), closing)

    async def UpdatePriorities(
        self, request: pb.UpdatePrioritiesRequest, context: Context
    ) -> pb.UpdatePrioritiesResponse:
        """See ``replay.proto``."""
        return await self._answer(context, lambda: self._endpoint.update_priorities(request))

    async def GetInfo(self, request: pb.GetInfoRequest, context: Context) -> pb.GetInfoResponse:
        """See ``replay.proto``."""
        return await self._answer(context, lambda: self._endpoint.get_info(request))

    # --- streams ---

    async def _insert(self, context: Context, closing: asyncio.Future[Refused]) -> None:
        wake = asyncio.Event()
        first = await self._first(context, pb.InsertRequest)

        def on_room() -> None:
            self._loop.call_soon_threadsafe(wake.set)

        def open_stream() -> tuple[InsertStream, pb.InsertResponse]:
            return self._endpoint.open_insert(first, on_close=self._closer(closing), on_room=on_room)

        stream, opened = await self._open(open_stream)
        try:
            await context.write(opened)
            answered = -HURRY_SECONDS
            while (message := await self._read(context, pb.InsertRequest)) is not None:
                hurry = self._loop.time() - answered < HURRY_SECONDS
                ack = await self._gathering.run((stream, message), message.ByteSize(), hurry=hurry)
                while True:
                    if ack is not None:
                        await context.write(ack)
                    if not stream.has_pending:
                        break
                    # At the insert limit: nothing is read until there is room again.
                    await wake.wait()
                    wake.clear()
                    ack = await self._engine(stream.advance)
                answered = self._loop.time()
        finally:
            self._post(stream.close)

    async def _sample(self, context: Context, closing: asyncio.Future[Refused]) -> None:
        first = await self._first(context, pb.SampleRequest)

        def open_stream() -> tuple[SampleStream, pb.SampleResponse]:
            return self._endpoint.open_sample(first, on_close=self._closer(closing))

        stream, opened = await self._open(open_stream)
        writing = asyncio.Lock()

        async def report_totals() -> None:
            while True:
                await asyncio.sleep(TOTALS_PERIOD_SECONDS)
                totals = await self._engine(stream.totals)
                async with writing:
                    await context.write(totals)

        reporter: asyncio.Task[None] | None = None
        try:
            await context.write(opened)
            reporter = asyncio.create_task(report_totals())
            while (message := await self._read(context, pb.SampleRequest)) is not None:
                reply = await self._engine(functools.partial(stream.handle, message))
                if reply is not None:
                    async with writing:
                        await context.write(reply)
        finally:
            if reporter is not None:
                reporter.cancel()
            self._post(stream.close)

    async def _until_closed(
        self, context: Context, body: Coroutine[Any, Any, None], closing: asyncio.Future[Refused]
    ) -> None:
        """Run a stream until its peer ends it, it is refused, or the endpoint closes it."""
        task = asyncio.ensure_future(body)
        try:
            await asyncio.wait((task, closing), return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await abort_refused(context, closing.result())
            await self._refuse_errors(context, task)
        finally:
            task.cancel()
            closing.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _refuse_errors(self, context: Context, work: asyncio.Future[T]) -> T:
        try:
            return await work
        except Refused as refusal:
            error = refusal
        except SignatureError as malformed:
            error = Refused(RefusalKind.MALFORMED, str(malformed))
        if error.kind is not RefusalKind.STOPPING:
            logger.warning("refused %s: %s", context.peer(), error)
            self._endpoint.count_refusal(error.kind)
        await abort_refused(context, error)

    async def _answer(self, context: Context, call: Callable[[], T]) -> T:
        return await self._refuse_errors(context, asyncio.ensure_future(self._engine(call)))

    # --- the engine's thread ---

    async def _engine(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._submit(call))

    def _submit(self, call: Callable[[], T]) -> concurrent.futures.Future[T]:
        try:
            return self._thread.submit(lambda _: call())
        except EngineStoppedError:
            raise Refused(RefusalKind.STOPPING, "the replay shard is stopping") from None

    def _post(self, call: Callable[[], object]) -> None:
        """Let the engine's thread do something later, also if it has stopped by then."""
        try:
            self._submit(call)
        except Refused:
            logger.debug("the engine has stopped; %s is not needed any more", call)

    async def _open(self, call: Callable[[], tuple[StreamT, T]]) -> tuple[StreamT, T]:
        """Like :meth:`_engine`, but a stream that opens while its handler is cancelled is closed again."""
        future = self._submit(call)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:

            def close_again(done: concurrent.futures.Future[tuple[StreamT, T]]) -> None:
                if not done.cancelled() and done.exception() is None:
                    self._post(done.result()[0].close)

            future.add_done_callback(close_again)
            raise

    def _closer(self, closing: asyncio.Future[Refused]) -> Callable[[Refused], None]:
        def close(refusal: Refused) -> None:
            if not closing.done():
                closing.set_result(refusal)

        return lambda refusal: self._call_on_loop(close, refusal)

    def _call_on_loop(self, call: Callable[[Refused], None], refusal: Refused) -> None:
        self._loop.call_soon_threadsafe(call, refusal)

    # --- messages ---

    async def _first(self, context: Context, kind: type[T]) -> T:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                message = await self._read(context, kind)
        except TimeoutError:
            message = None
        if message is None:
            raise Refused(RefusalKind.MALFORMED, "the stream ended, or waited too long, before its first request")
        return message

    async def _read(self, context: Context, kind: type[T]) -> T | None:
        """The next request, None at the end of the stream."""
        message = await context.read()
        return message if isinstance(message, kind) else None
