"""Both kinds of stream of a shard, without the socket: a message in, an answer out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from apexrl.replay.chunk_checks import ChunkChecker
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
    ) -> None:
        super().__init__(handshake, on_close, on_end)
        self.incarnation = incarnation
        self.table = table
        self._engine = engine
        self._checker = ChunkChecker(table.config.signature)
        self._on_room = on_room
        self._pending: deque[tuple[int, Chunk]] = deque()
        self.stored_at = 0
        """What the table had inserted, all streams together, when this one last stored something."""

    @property
    def has_pending(self) -> bool:
        """Whether chunks of the last message wait for the insert limit. No message may come before they are in."""
        return bool(self._pending)

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
        if self._pending:
            raise RuntimeError("a message came before the last one was stored")
        numbers = wire.from_bytes(request.chunks.numbers, "uint64", None, "insert.numbers")
        chunks = wire.chunks_from_proto(self.table.config.signature, request.chunks.chunks)
        if len(numbers) != len(chunks):
            raise SignatureError(f"insert.numbers has {len(numbers)} entries, must have one per chunk ({len(chunks)})")
        if len(numbers) and (numbers[0] < 1 or (numbers[1:] <= numbers[:-1]).any()):
            raise SignatureError("insert.numbers must begin at 1 or above and grow")
        for chunk in chunks:
            self._checker.check(chunk)
        self._pending.extend(zip(numbers.tolist(), chunks, strict=True))
        return self.advance()

    def advance(self) -> pb.InsertResponse | None:
        """Store what waits, as far as the insert limit allows; the acknowledgement, or None if nothing got in."""
        self._require_open()
        stored = 0
        while self._pending and self.table.may_insert():
            number, chunk = self._pending.popleft()
            self._engine.insert_once(self.incarnation, number, self.table.config.name, chunk, checked=True)
            stored += 1
        if stored:
            self.stored_at = self.table.inserted
        return pb.InsertResponse(ack=pb.InsertAck(last_seen=self._last_seen())) if stored else None

    def note_room(self) -> None:
        """The insert limit has changed."""
        if self._pending and self.table.may_insert():
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
