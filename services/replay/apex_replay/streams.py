"""Both kinds of stream of a shard, without the socket: a message in, an answer out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apexrl.chunk_batch import ChunkBatch
from apexrl.replay.draws import uniforms
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.mirror_map import MirrorMap
from apexrl.replay.table import Table
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.channel import MIB, REPLAY_LIMITS
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake
from apexrl.transport.sample_events import NO_LIMIT
from apexrl.types import Chunk, SignatureError

#: What the chunks of one reply may have together; the rest of the message is item data.
MAX_REPLY_CHUNK_BYTES = REPLAY_LIMITS.server_sends - 8 * MIB

CloseCallback = Callable[[Refused], None]


def nobody_waits(refusal: Refused) -> None:
    """The callback of serial mode: whoever uses the stream next gets the refusal."""


class Stream:
    """A stream that its peer or the shard may end.

    ``on_close`` is called, on the engine's thread, when the shard ends it; later calls raise the refusal.
    """

    def __init__(self, handshake: Handshake, on_close: CloseCallback, on_end: Callable[[Stream], None]) -> None:
        self.handshake = handshake
        self._on_close = on_close
        self._on_end = on_end
        self._refusal: Refused | None = None
        self._ended = False

    def end(self, refusal: Refused) -> None:
        """The shard ends the stream."""
        if not self._ended:
            self._refusal = refusal
            self.close()
            self._on_close(refusal)

    def close(self) -> None:
        """The peer has ended the stream; may be called again."""
        if not self._ended:
            self._ended = True
            self._on_end(self)

    def _require_open(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._ended:
            raise Refused(RefusalKind.SUPERSEDED, "the stream has ended")


class Turns:
    """Insert streams of one table that wait at its limit, in the order in which they came to wait.

    A learner with a limiter takes less than a large fleet offers, a few chunks at a time. Without turns the streams
    that happen to be asked first would give all of them, and the experience of other actors would never come in.
    """

    def __init__(self) -> None:
        self._waiting: dict[InsertStream, None] = {}

    def is_next(self, stream: InsertStream) -> bool:
        """Whether ``stream`` may store chunks: it has waited longest, or nobody waits."""
        return next(iter(self._waiting), stream) is stream

    def wait(self, stream: InsertStream) -> None:
        """Let ``stream`` keep its place, or give it the last one."""
        self._waiting.setdefault(stream)

    def leave(self, stream: InsertStream) -> None:
        """``stream`` holds nothing back any more, or has ended: the next one may go on."""
        if stream in self._waiting:
            del self._waiting[stream]
            if self._waiting:
                next(iter(self._waiting)).note_room()

    def wake(self) -> None:
        """The insert limit has changed: tell those for whom there is room now, and not all that wait.

        One that comes before its turn waits on; whoever is done tells the one behind it in any case.
        """
        ahead = 0
        for stream in self._waiting:
            if not stream.table.may_insert(ahead):
                return
            stream.note_room()
            ahead += stream.num_pending_items


@dataclass
class _Message:
    """Chunks of one message, as far as they wait."""

    numbers: npt.NDArray[np.uint64]
    batch: ChunkBatch
    items_before: npt.NDArray[np.int64]
    """[n + 1] items that the chunks before each one add to the table."""
    taken: int = 0

    @property
    def is_done(self) -> bool:
        return self.taken == len(self.numbers)

    @property
    def num_items_left(self) -> int:
        return int(self.items_before[-1] - self.items_before[self.taken])

    def take(self, room: int | None) -> tuple[npt.NDArray[np.uint64], ChunkBatch]:
        """The next chunks that a table accepts with ``room`` for so many items (None = no limit).

        Each is accepted as long as any room is left.
        """
        begin, end = self.taken, len(self.numbers)
        if room is not None:
            before = self.items_before[begin:-1] - self.items_before[begin]
            end = begin + int(np.searchsorted(before, room, side="left"))
        self.taken = end
        if end - begin == len(self.numbers):
            return self.numbers, self.batch
        return self.numbers[begin:end], self.batch.part(begin, end)


class InsertStream(Stream):
    """Chunks of one actor incarnation into one table."""

    def __init__(
        self,
        engine: ReplayEngine,
        table: Table,
        handshake: Handshake,
        incarnation: bytes,
        *,
        on_close: CloseCallback,
        on_end: Callable[[Stream], None],
        on_room: Callable[[], None],
        turns: Turns,
    ) -> None:
        super().__init__(handshake, on_close, on_end)
        self.incarnation = incarnation
        self.table = table
        self._engine = engine
        self._on_room = on_room
        self._turns = turns
        self._message: _Message | None = None
        """The last one, as long as something of it waits."""

    @property
    def has_pending(self) -> bool:
        """Whether chunks of the last message wait for the insert limit. No message may come before they are in."""
        return self._message is not None

    @property
    def is_idle(self) -> bool:
        """Whether a message would be stored at once if there is room: the stream is open, and nobody waits for room."""
        return not self._ended and self._message is None and self._turns.is_next(self)

    @property
    def num_pending_items(self) -> int:
        """Items of the chunks that wait."""
        return 0 if self._message is None else self._message.num_items_left

    def opened(self) -> pb.InsertResponse:
        """The answer to the open request."""
        return pb.InsertResponse(opened=pb.InsertOpened(last_seen=self._last_seen()))

    def handle(self, request: pb.InsertRequest) -> pb.InsertResponse | None:
        """Take a message: all of it is checked before any of it is stored.

        Returns:
            The acknowledgement of what was stored; None if the insert limit let nothing in.

        Raises:
            SignatureError: it is malformed; nothing was stored.
            Refused: the stream was ended by the shard.
        """
        self._require_open()
        if request.WhichOneof("request") != "chunks":
            raise SignatureError("insert.request is not `chunks`, which every request but the first must be")
        if self.has_pending:
            raise RuntimeError("a message came before the last one was stored")
        numbers = wire.from_bytes(request.chunks.numbers, "uint64", None, "insert.numbers")
        batch = wire.chunks_from_proto(self.table.config.signature, request.chunks.chunks)
        if len(numbers) != len(batch):
            raise SignatureError(f"insert.numbers has {len(numbers)} entries, must have one per chunk ({len(batch)})")
        if len(numbers) and (numbers[0] < 1 or (numbers[1:] <= numbers[:-1]).any()):
            raise SignatureError("insert.numbers must begin at 1 or above and grow")
        self.table.checker.check_items(batch)  # the wire has checked the shapes
        if not len(numbers):
            return None
        # What was seen before adds nothing to the table.
        seen = int(np.searchsorted(numbers, np.uint64(self._last_seen()), side="right"))
        items_before = np.maximum(batch.items_before - batch.items_before[seen], 0)
        self._message = _Message(numbers, batch, items_before)
        return self.advance()

    def advance(self) -> pb.InsertResponse | None:
        """Store what waits, in its turn and as far as the insert limit allows.

        Returns:
            The acknowledgement, or None if nothing got in.
        """
        self._require_open()
        message, stored = self._message, 0
        if message is not None and self._turns.is_next(self):
            limit = self.table.insert_limit
            numbers, batch = message.take(None if limit is None else limit - self.table.inserted)
            stored = len(numbers)
            if stored:
                self._engine.insert_batch(self.incarnation, numbers, self.table.config.name, batch)
            if message.is_done:
                self._message = None
        if self.has_pending:
            self._turns.wait(self)
        else:
            self._turns.leave(self)
        return pb.InsertResponse(ack=pb.InsertAck(last_seen=self._last_seen())) if stored else None

    def close(self) -> None:
        """The peer has ended the stream; may be called again."""
        super().close()
        self._turns.leave(self)

    def note_room(self) -> None:
        """It is this stream's turn, or the insert limit has changed."""
        if self._message is not None and self.table.may_insert():
            self._on_room()

    def _last_seen(self) -> int:
        return self._engine.last_seen(self.incarnation, self.table.config.name)


class SampleStream(Stream):
    """Draws of one learner, and what its mirror holds of each table."""

    def __init__(
        self,
        engine: ReplayEngine,
        tables: Sequence[tuple[Table, int]],
        handshake: Handshake,
        run_seed: int,
        *,
        on_close: CloseCallback,
        on_end: Callable[[Stream], None],
        on_limits: Callable[[], None],
    ) -> None:
        super().__init__(handshake, on_close, on_end)
        self._engine = engine
        self._run_seed = run_seed
        self._on_limits = on_limits
        self._tables = {table.config.name: table for table, _ in tables}
        self._maps = {table.config.name: MirrorMap(table.num_pages, slots) for table, slots in tables}

    def opened(self) -> pb.SampleResponse:
        """The answer to the open request."""
        tables = [
            pb.OpenedTable(
                totals=wire.totals_to_proto(name, table.totals()),
                num_pages=table.num_pages,
                mirror_slots=self._maps[name].mirror_slots,
            )
            for name, table in self._tables.items()
        ]
        return pb.SampleResponse(opened=pb.SampleOpened(tables=tables, boot=self._engine.boot_id))

    def totals(self) -> pb.SampleResponse:
        """A report of all tables."""
        self._require_open()
        tables = [wire.totals_to_proto(name, table.totals()) for name, table in self._tables.items()]
        return pb.SampleResponse(totals=pb.Totals(tables=tables))

    def handle(self, request: pb.SampleRequest) -> pb.SampleResponse | None:
        """Take a message; the reply to a draw, else None. Replies must be sent in the order they were made.

        Raises:
            SignatureError: it is malformed.
            Refused: the stream was ended by the shard, or the draw cannot be answered.
        """
        self._require_open()
        kind = request.WhichOneof("request")
        if kind == "draw":
            return pb.SampleResponse(draw=self._draw(request.draw))
        if kind != "limits":
            raise SignatureError("sample.request is not `draw` or `limits`, which every request but the first must be")
        limits = [(self._table(limit.table), limit.inserted) for limit in request.limits.limits]
        for table, inserted in limits:
            table.insert_limit = None if inserted == NO_LIMIT else inserted
        self._on_limits()
        return None

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            raise SignatureError(f"sample.table is {name!r}, must be one the stream was opened with")
        return self._tables[name]

    def _draw(self, request: pb.DrawRequest) -> pb.DrawReply:
        table = self._table(request.table)
        mirror = self._maps[request.table]
        counts = wire.counts_from_bytes(request.counts)
        n = int(counts.sum())
        if not table.num_items:
            raise Refused(RefusalKind.EMPTY, f"draw.table {request.table!r} holds no items")
        draw = table.draw(counts, uniforms(self._run_seed, request.table, request.request_number, n))
        try:
            placement = mirror.place(draw.pages, table.generations(draw.pages))
        except ValueError as error:
            raise SignatureError(f"draw.counts asks for {n} items, but {error}: ask for fewer at a time") from None
        chunks = [table.page_chunk(int(page)) for page in placement.lacking]
        _check_reply_size(n, chunks)
        # From here on the reply is on its way: if it does not arrive, the stream and with it the map are gone.
        mirror.sent(placement)
        return wire.draw_to_proto(request, draw, placement.slots, placement.new_slots, chunks)


def _check_reply_size(n: int, chunks: Iterable[Chunk]) -> None:
    size = sum(chunk.num_bytes for chunk in chunks)
    if size > MAX_REPLY_CHUNK_BYTES:
        raise SignatureError(
            f"draw.counts asks for {n} items, whose new chunks have {size} bytes, must be at most "
            f"{MAX_REPLY_CHUNK_BYTES}: ask for fewer batches at a time"
        )
