"""The engine of a replay shard: tables by name, inserts that count once, and which learner is served.

It has one owner (see :mod:`apexrl.replay.engine_thread`) and knows no network. Checks and the change they allow
happen in one call, so that nothing can come between them.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from apexrl.replay.keys import BOOT_BITS
from apexrl.replay.table import Keys, Table
from apexrl.types import Chunk, Signature, SignatureError, TableConfig, TableTotals

#: Incarnations that have been silent for this long are forgotten; an actor does not come back after that.
INCARNATION_SILENCE_SECONDS = 3600.0
#: Beyond this many the longest silent are forgotten (about 10 MB).
MAX_INCARNATIONS = 65_536


class RefusedError(RuntimeError):
    """A peer may not be served as things are: another run, or an older learner. Says what was and what is allowed."""


class AcceptedLearner(NamedTuple):
    """What accepting a learner changed."""

    superseded: bool
    """Another learner was served before: close its streams before answering."""
    cleared: bool
    """Experience of another run was dropped: every open stream refers to tables that are gone."""


class Observer(Protocol):
    """Whoever keeps a record of what the engine holds. Called by the engine's owner, at once."""

    def stored(self, incarnation: bytes, number: int, table: str, chunk: Chunk, inserted: int) -> None:
        """A chunk is in a table, into which so many items were ever ``inserted``."""
        ...

    def cleared(self) -> None:
        """The tables are gone."""
        ...


class TableInfo(NamedTuple):
    """A table's state for people."""

    config: TableConfig
    totals: TableTotals
    block_bytes: int
    slab_bytes: int
    pages_used: int
    num_pages: int
    max_priority: float
    insert_limit: int | None
    evicted: int
    stale_updates: int
    duplicates: int


class EngineInfo(NamedTuple):
    """A shard's state for people."""

    run_id: str
    learner_epoch: int
    tables: tuple[TableInfo, ...]
    waiting: tuple[str, ...]


@dataclass
class _Seen:
    number: int
    at: float
    """Clock time of the last insert."""


class ReplayEngine:
    """See the module. ``boot`` [0, 4095] goes into keys: random unless given, so that restarts differ."""

    def __init__(self, boot: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.boot = secrets.randbits(BOOT_BITS) if boot is None else boot
        self.observer: Observer | None = None
        self._first_items: int | None = None
        self._clock = clock
        self._seen: OrderedDict[tuple[bytes, str], _Seen] = OrderedDict()
        self.tables: dict[str, Table] = {}
        #: Random per start and per :meth:`clear`. Another value than before = experience and counters began anew.
        #: A stream must be closed when it no longer is what it was at the stream's opening.
        self.boot_id = secrets.token_bytes(16)
        #: The run whose experience is held; "" = none yet.
        self.run_id = ""
        self.learner_epoch = 0
        self.learner_instance = b""

    def create_or_match(self, config: TableConfig) -> Table:
        """The table of that name: made by whoever names it first, of the signature that later ones name.

        How it selects and how much it holds is the learner's to say (:meth:`configure`) and not compared here.
        Raises SignatureError listing the fields of the signature that differ.
        """
        table = self.tables.get(config.name)
        if table is None:
            table = self.tables[config.name] = Table(config, self.boot)
            table.insert_limit = self._first_items
            return table
        if table.config.signature != config.signature:
            differences = _differences(table.config.signature, config.signature)
            raise SignatureError(f"table {config.name!r} is another here: {'; '.join(differences)}")
        return table

    def hold_inserts(self, items: int) -> None:
        """Let every table, and those to come, take this many more items until a learner has told its insert limit.

        For a run with a limiter: a shard that starts while there is no learner would else take whatever comes.
        """
        self._first_items = items
        for table in self.tables.values():
            table.insert_limit = table.inserted + items

    def configure(self, config: TableConfig) -> bool:
        """Give the table of that name the learner's options, made if need be; returns whether it was rebuilt.

        A rebuilt table keeps counters, limit and as much of its newest experience as it may hold, under new keys:
        streams that were opened on the former one must be ended. Raises SignatureError as :meth:`create_or_match`,
        or if a table cannot have such options; nothing has changed then.
        """
        table = self.create_or_match(config)
        if table.config == config:
            return False
        boot = (self.boot + 1) % (1 << BOOT_BITS)
        self.tables[config.name] = table.rebuilt(config, boot)
        self.boot = boot
        return True

    def table(self, name: str) -> Table:
        """The table of that name; SignatureError if there is none."""
        if name not in self.tables:
            raise SignatureError(f"there is no table {name!r}; there are {sorted(self.tables)}")
        return self.tables[name]

    def last_seen(self, incarnation: bytes, table: str) -> int:
        """Highest chunk number stored of an actor's incarnation in a table; 0 = none."""
        seen = self._seen.get((incarnation, table))
        return 0 if seen is None else seen.number

    def insert_once(self, incarnation: bytes, number: int, table: str, chunk: Chunk, *, checked: bool = False) -> bool:
        """Insert a chunk unless its ``number`` was seen; returns False for a duplicate.

        Numbers of an incarnation begin at 1, grow, and may have gaps. A malformed chunk raises SignatureError and
        leaves no trace, so that a corrected one may come under its number. ``checked``: see :meth:`Table.insert`.
        """
        owner = self.table(table)
        if number < 1:
            raise SignatureError(f"chunk number is {number}, must be at least 1")
        key = (incarnation, table)
        seen = self._seen.get(key)
        if seen is not None and number <= seen.number:
            seen.at = self._clock()
            self._seen.move_to_end(key)
            owner.duplicates += 1
            return False
        if owner.insert(chunk, checked=checked).size and self.observer is not None:
            self.observer.stored(incarnation, number, table, chunk, owner.inserted)
        self._note_seen(incarnation, number, table)
        return True

    def restore(
        self,
        *,
        run_id: str,
        boot: int,
        boot_id: bytes,
        learner_epoch: int,
        learner_instance: bytes,
        tables: Sequence[TableConfig],
    ) -> None:
        """Become the shard that was: the same experience to everybody (``boot_id``), under keys never used before.

        Chunks follow by :meth:`restore_chunk`.
        """
        self.boot = (boot + 1) % (1 << BOOT_BITS)
        self.tables = {config.name: Table(config, self.boot) for config in tables}
        self.run_id, self.boot_id = run_id, boot_id
        self.learner_epoch, self.learner_instance = learner_epoch, learner_instance

    def restore_chunk(self, incarnation: bytes, number: int, table: str, chunk: Chunk) -> Keys:
        """Insert a chunk that was stored before; returns the keys of its items. SignatureError if it is malformed."""
        keys = self.table(table).insert(chunk)
        self._note_seen(incarnation, number, table)
        return keys

    def maintain(self, max_pages: int = 64) -> bool:
        """A bit of housekeeping between commands: trim tables, forget the silent. Returns whether there is more."""
        more = False
        for table in self.tables.values():
            if table.needs_trim:
                table.trim(max_pages)
                more |= table.needs_trim
        forget_before = self._clock() - INCARNATION_SILENCE_SECONDS
        while self._seen and next(iter(self._seen.values())).at < forget_before:
            self._seen.popitem(last=False)
        return more

    def adopt_run(self, run_id: str) -> None:
        """Hold experience of ``run_id`` from now on; RefusedError if there is another run's."""
        if not run_id:
            raise RefusedError("run_id is empty, must name the run that the experience belongs to")
        if self.run_id and self.run_id != run_id:
            raise RefusedError(f"run_id is {run_id}, must be {self.run_id}, the run whose experience is held")
        self.run_id = run_id

    def accept_learner(
        self, epoch: int, instance: bytes, run_id: str, discard_other_run: bool = False
    ) -> AcceptedLearner:
        """Serve this learner from now on: one of a higher epoch than before, or the same one again.

        A shard that holds another run's experience refuses unless ``discard_other_run``; one that holds none just
        changes over. Raises RefusedError, with nothing changed.
        """
        self._require_not_older(epoch, instance)
        if not run_id:
            raise RefusedError("run_id is empty, must name the learner's run")
        cleared = False
        if self.run_id and self.run_id != run_id:
            holds_data = any(table.inserted for table in self.tables.values())
            if holds_data and not discard_other_run:
                raise RefusedError(
                    f"run_id is {run_id}, but this shard holds experience of run {self.run_id}: resume that run, or "
                    "discard its experience"
                )
            self.clear()
            cleared = True
        superseded = self.learner_epoch > 0 and instance != self.learner_instance
        self.run_id = run_id
        self.learner_epoch = epoch
        self.learner_instance = instance
        return AcceptedLearner(superseded, cleared)

    def check_learner(self, epoch: int, instance: bytes) -> None:
        """RefusedError unless this is the learner that is served."""
        if (epoch, instance) != (self.learner_epoch, self.learner_instance):
            raise RefusedError(f"learner.epoch is {epoch}, but the learner served here has epoch {self.learner_epoch}")

    def clear(self) -> None:
        """Drop all experience, tables and counters, as a restart would; keys are not used again."""
        self.tables = {}
        self._seen.clear()
        self.run_id = ""
        self.boot = (self.boot + 1) % (1 << BOOT_BITS)
        self.boot_id = secrets.token_bytes(16)
        if self.observer is not None:
            self.observer.cleared()

    def _note_seen(self, incarnation: bytes, number: int, table: str) -> None:
        key = (incarnation, table)
        self._seen[key] = _Seen(number, self._clock())
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_INCARNATIONS:
            self._seen.popitem(last=False)

    def waiting(self) -> tuple[str, ...]:
        """What the shard waits for, one line each."""
        return tuple(
            f"table {name!r}: inserts wait for the learner at {table.insert_limit} items ({table.inserted} in)"
            for name, table in self.tables.items()
            if not table.may_insert()
        )

    def info(self) -> EngineInfo:
        tables = tuple(
            TableInfo(
                config=table.config,
                totals=table.totals(),
                block_bytes=table.block_bytes,
                slab_bytes=table.slab_bytes,
                pages_used=table.pages_used,
                num_pages=table.num_pages,
                max_priority=table.max_priority,
                insert_limit=table.insert_limit,
                evicted=table.evicted,
                stale_updates=table.stale_updates,
                duplicates=table.duplicates,
            )
            for table in self.tables.values()
        )
        return EngineInfo(self.run_id, self.learner_epoch, tables, self.waiting())

    def _require_not_older(self, epoch: int, instance: bytes) -> None:
        if len(instance) != 16:
            raise SignatureError(f"learner.instance has {len(instance)} bytes, must have 16")
        if epoch < 1:
            raise SignatureError(f"learner.epoch is {epoch}, must be at least 1")
        same = epoch == self.learner_epoch and instance == self.learner_instance
        if epoch <= self.learner_epoch and not same:
            raise RefusedError(
                f"learner.epoch is {epoch}, must be above {self.learner_epoch}, the epoch of the learner served here"
            )


def _flatten(value: Any, path: str) -> dict[str, Any]:
    """A configuration's leaves by dotted path, e.g. ``signature.columns[3].dtype``."""
    if dataclasses.is_dataclass(value):
        parts = [(f"{path}.{field.name}" if path else field.name, field.name) for field in dataclasses.fields(value)]
        return {k: v for name, attr in parts for k, v in _flatten(getattr(value, attr), name).items()}
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return {k: v for i, part in enumerate(value) for k, v in _flatten(part, f"{path}[{i}]").items()}
    return {path: value}


def _differences(here: Signature, offered: Signature) -> list[str]:
    mine, theirs = _flatten(here, "signature"), _flatten(offered, "signature")
    return [
        f"{name} is {theirs.get(name, 'missing')!s}, must be {mine.get(name, 'missing')!s}"
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name)
    ]
