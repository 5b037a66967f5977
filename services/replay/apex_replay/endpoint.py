"""A shard without sockets: who may speak, which streams there are, and every message's answer.

All calls belong to the engine's owner: the engine thread of a service, or the one thread of serial mode. Messages come
and go as protobuf, so that serial mode goes through the same checks as the network.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from apex_replay.admission import Admission
from apex_replay.durability import Durability
from apex_replay.journal import Journal
from apex_replay.streams import CloseCallback, InsertStream, SampleStream, Stream, Turns, nobody_waits
from apexrl import __version__
from apexrl.replay.engine import ReplayEngine, TableInfo
from apexrl.replay.table import Table
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import INCARNATION_BYTES
from apexrl.transport.sample_events import NO_LIMIT, LearnerIdentity
from apexrl.types import RemoverKind, SignatureError, TableConfig

MAX_TOP_ITEMS = 1000


class ReplayEndpoint:
    """Answers messages from the tables of ``engine``.

    Whatever is refused raises :class:`~apexrl.transport.errors.Refused` or, where a message does not agree with its
    table, :class:`~apexrl.types.SignatureError`; nothing of a refused message was stored.

    Args:
        engine: of this shard; with a journal it must be empty.
        clock: seconds, monotonic.
        journal: opened and not started; experience that it holds is recovered now.
    """

    def __init__(
        self, engine: ReplayEngine, clock: Callable[[], float] = time.monotonic, journal: Journal | None = None
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._started = clock()
        self._admission = Admission(engine)
        self._durability = None if journal is None else Durability(journal, engine, self._admission, clock)
        self._inserts: dict[tuple[bytes, str], InsertStream] = {}
        self._samples: set[SampleStream] = set()
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._stopping = False
        self.refusals: Counter[RefusalKind] = Counter()
        """Messages and peers refused, by kind."""
        self.updates_applied: Counter[str] = Counter()
        """Priorities set, by table."""

    @property
    def insert_streams(self) -> int:
        """Open streams of actors."""
        return len(self._inserts)

    @property
    def sample_streams(self) -> int:
        """Open streams of learners."""
        return len(self._samples)

    # --- streams ---

    def open_insert(
        self,
        request: pb.InsertRequest,
        *,
        on_close: CloseCallback = nobody_waits,
        on_room: Callable[[], None] = lambda: None,
    ) -> tuple[InsertStream, pb.InsertResponse]:
        """Open an actor's stream; an older one of the same incarnation and table is ended first.

        Args:
            request: the first of the stream.
            on_close: called when the shard ends the stream.
            on_room: called when a stream that waits at the insert limit may go on.
        """
        self._require_running()
        if request.WhichOneof("request") != "open":
            raise SignatureError("insert.request is not `open`, which the first request must be")
        message = request.open
        handshake = Handshake.from_proto(message.handshake)
        if len(message.incarnation) != INCARNATION_BYTES:
            raise SignatureError(
                f"insert.open.incarnation has {len(message.incarnation)} bytes, must have {INCARNATION_BYTES}"
            )
        config = wire.table_config_from_proto(message.table)
        self._require_keepable(config)
        self._admission.admit_actor(handshake)
        table = self._table(config)
        key = (message.incarnation, config.name)
        if key in self._inserts:
            self._inserts[key].end(Refused(RefusalKind.SUPERSEDED, f"{handshake.peer} has opened a newer stream"))
        stream = InsertStream(
            self.engine,
            table,
            handshake,
            message.incarnation,
            on_close=on_close,
            on_end=lambda _: self._forget_insert(key, stream),
            on_room=on_room,
            turns=self._turns[config.name],
        )
        self._inserts[key] = stream
        self._remember()
        return stream, stream.opened()

    def open_sample(
        self, request: pb.SampleRequest, *, on_close: CloseCallback = nobody_waits
    ) -> tuple[SampleStream, pb.SampleResponse]:
        """Open a learner's stream; those of a former learner, or an older one of this learner, are ended first."""
        self._require_running()
        if request.WhichOneof("request") != "open":
            raise SignatureError("sample.request is not `open`, which the first request must be")
        message = request.open
        handshake = Handshake.from_proto(message.handshake)
        identity = LearnerIdentity(message.learner.epoch, message.learner.instance)
        configs = [wire.table_config_from_proto(mirrored.table) for mirrored in message.tables]
        if not configs or len({config.name for config in configs}) != len(configs):
            raise SignatureError("sample.open.tables must name at least one table, and each once")
        for config in configs:
            self._require_keepable(config)
        accepted = self._admission.admit_learner(handshake, identity, configs, message.discard_other_run)
        for former in list(self._samples):
            former.end(
                Refused(RefusalKind.FENCED, f"a learner of epoch {identity.epoch} ({handshake.peer}) has taken over")
                if accepted.superseded
                else Refused(RefusalKind.SUPERSEDED, f"{handshake.peer} has opened a newer stream")
            )
        # The former learner's insert limits hold until this one tells its own, or that there are none, which it does as
        # soon as it can. Without a limit until then a fleet would run minutes ahead of it.
        self._end_inserts_of_others(accepted.cleared)
        for config in configs:
            self._configure(config)
        self._wake_inserts()
        slots = [mirrored.mirror_slots for mirrored in message.tables]
        stream = SampleStream(
            self.engine,
            [(self._table(config), count) for config, count in zip(configs, slots, strict=True)],
            handshake,
            message.run_seed,
            on_close=on_close,
            on_end=lambda ended: self._samples.discard(stream),
            on_limits=self._wake_inserts,
        )
        self._samples.add(stream)
        self._remember()
        return stream, stream.opened()

    def tick(self) -> None:
        """Housekeeping of the journal, to be called every second or so."""
        if self._durability is not None:
            self._durability.tick()

    def stop(self) -> None:
        """End all streams and refuse new ones; what was stored is written down."""
        if self._stopping:
            return
        self._stopping = True
        for stream in self._streams():
            stream.end(_stopping())
        if self._durability is not None:
            self._durability.close()

    # --- calls ---

    def update_priorities(self, request: pb.UpdatePrioritiesRequest) -> pb.UpdatePrioritiesResponse:
        """Set priorities by key."""
        self._require_running()
        self._admission.check_learner(LearnerIdentity(request.learner.epoch, request.learner.instance))
        keys = wire.from_bytes(request.keys, "uint64", None, "update.keys")
        priorities = wire.from_bytes(request.priorities, "float32", len(keys), "update.priorities")
        applied, stale = self.engine.table(request.table).update_priorities(keys, priorities)
        self.updates_applied[request.table] += applied
        return pb.UpdatePrioritiesResponse(applied=applied, stale=stale)

    def get_info(self, request: pb.GetInfoRequest) -> pb.GetInfoResponse:
        """The shard's state, for people."""
        if request.top > MAX_TOP_ITEMS:
            raise SignatureError(f"info.top is {request.top}, must be at most {MAX_TOP_ITEMS}")
        info = self.engine.info()
        return pb.GetInfoResponse(
            version=__version__,
            run_id=info.run_id,
            learner_epoch=info.learner_epoch,
            uptime_seconds=self._clock() - self._started,
            tables=[_table_info(self.engine, table, request.top) for table in info.tables],
            waiting=self.waiting(),
            insert_streams=len(self._inserts),
            sample_streams=len(self._samples),
        )

    def waiting(self) -> list[str]:
        """What the shard waits for, one line each; empty = nothing."""
        lines = list(self.engine.waiting())
        if not self.engine.learner_epoch:
            lines.append("no learner has opened a stream yet")
        blocked = sum(stream.has_pending for stream in self._inserts.values())
        if blocked:
            lines.append(f"{blocked} insert streams hold chunks back")
        return lines

    def count_refusal(self, kind: RefusalKind) -> None:
        """A message or a peer was refused."""
        self.refusals[kind] += 1

    # --- inside ---

    def _table(self, config: TableConfig) -> Table:
        try:
            return self.engine.create_or_match(config)
        except SignatureError as error:
            raise Refused(RefusalKind.TABLE, str(error)) from None

    def _configure(self, config: TableConfig) -> None:
        """Give a table the learner's options; actors' streams into a table that was rebuilt begin anew."""
        try:
            rebuilt = self.engine.configure(config)
        except SignatureError as error:
            raise Refused(RefusalKind.TABLE, str(error)) from None
        if rebuilt:
            for (_, name), stream in list(self._inserts.items()):
                if name == config.name:
                    stream.end(Refused(RefusalKind.SUPERSEDED, f"the learner has given table {name!r} other options"))

    def _require_keepable(self, config: TableConfig) -> None:
        """Refuse a table that the journal cannot keep: its segments die whole, from the oldest on."""
        if self._durability is not None and config.remover is not RemoverKind.FIFO:
            raise Refused(
                RefusalKind.TABLE,
                f"table {config.name!r}: replay.remover is {config.remover}, must be {RemoverKind.FIFO} on a shard "
                "with replay.journal_directory",
            )

    def _remember(self) -> None:
        """A learner or a configuration that was accepted must still be after a restart."""
        if self._durability is not None:
            self._durability.save_state()

    def _require_running(self) -> None:
        if self._stopping:
            raise _stopping()

    def _streams(self) -> Iterable[Stream]:
        return [*self._inserts.values(), *self._samples]

    def _forget_insert(self, key: tuple[bytes, str], stream: InsertStream) -> None:
        if self._inserts.get(key) is stream:
            del self._inserts[key]

    def _end_inserts_of_others(self, cleared: bool) -> None:
        """End the streams of actors whose chunks do not belong to what the learner wants any more."""
        for stream in list(self._inserts.values()):
            if not self._admission.matches(stream.handshake):
                stream.end(Refused(RefusalKind.RUN, f"a learner of run {self.engine.run_id} has taken over this shard"))
            elif cleared:
                stream.end(Refused(RefusalKind.SUPERSEDED, "the learner had this shard begin anew"))

    def _wake_inserts(self) -> None:
        for turns in self._turns.values():
            turns.wake()


def _stopping() -> Refused:
    return Refused(RefusalKind.STOPPING, "the replay shard is stopping")


def _table_info(engine: ReplayEngine, info: TableInfo, top: int) -> pb.TableInfo:
    keys, priorities = engine.table(info.config.name).top(top) if top else ((), ())
    return pb.TableInfo(
        config=wire.table_config_to_proto(info.config),
        totals=wire.totals_to_proto(info.config.name, info.totals),
        block_bytes=info.block_bytes,
        slab_bytes=info.slab_bytes,
        pages_used=info.pages_used,
        num_pages=info.num_pages,
        max_priority=info.max_priority,
        insert_limit=NO_LIMIT if info.insert_limit is None else info.insert_limit,
        evicted=info.evicted,
        stale_updates=info.stale_updates,
        duplicates=info.duplicates,
        top_keys=wire.to_bytes(keys, "uint64"),
        top_priorities=wire.to_bytes(priorities, "float32"),
    )
