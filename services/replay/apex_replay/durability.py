"""A shard that survives its process: what goes into the journal, and how it comes back."""

from __future__ import annotations

import base64
import binascii
import io
import json
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from apex_replay.admission import Admission
from apex_replay.journal import STATE_NAME, Journal, priorities_path, segments
from apex_replay.journal_format import FORMAT, Damage, FormatError, decode_segment
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.table import Table, TableCounters
from apexrl.telemetry.logging import get_logger
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.errors import Refused
from apexrl.transport.handshake import Handshake
from apexrl.types import Array, Chunk, SignatureError

log = get_logger(__name__)

#: Priorities and counters are written this often. What the learner has set since is lost with the process.
PRIORITIES_SECONDS = 30.0


@dataclass
class Recovered:
    """What came back."""

    items: int = 0
    chunks_refused: int = 0
    """That no longer agree with their table."""
    damage: Damage = field(default_factory=Damage)


class Durability:
    """Keeps the journal in step with the engine. All calls are the engine's owner's.

    Args:
        journal: opened, not started.
        engine: empty as yet.
        admission: of the same shard.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        journal: Journal,
        engine: ReplayEngine,
        admission: Admission,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = journal
        self._engine = engine
        self._admission = admission
        self._clock = clock
        self._saved_state = b""
        self._saved_priorities_at = clock()
        self.recovered = self._recover()
        engine.observer = self

    # --- what the engine tells ---

    def stored(self, incarnation: bytes, number: int, table: str, chunk: Chunk, inserted: int) -> None:
        """A chunk is in a table."""
        self.journal.stored(incarnation, number, table, chunk, inserted)

    def cleared(self) -> None:
        """The tables are gone."""
        self.journal.set_aside()
        self._saved_state = b""

    # --- in between ---

    def save_state(self) -> None:
        """Write down whom the shard serves and which tables it has, if that has changed."""
        state = json.dumps(self._state()).encode()
        if state != self._saved_state:
            self.journal.save(STATE_NAME, state)
            self._saved_state = state

    def tick(self) -> None:
        """Now and then: delete what has left the tables, write priorities and counters."""
        self.save_state()
        save = self._clock() - self._saved_priorities_at >= PRIORITIES_SECONDS
        for name, table in self._engine.tables.items():
            live = self.journal.live_sequences(name, table.pages_used)
            if save:
                self._save_priorities(name, table, live)
        if save:
            self._saved_priorities_at = self._clock()

    def close(self) -> None:
        """Write everything, and end the journal."""
        self._saved_priorities_at = -float("inf")
        self.tick()
        self.journal.close()

    def _save_priorities(self, name: str, table: Table, live: list[int]) -> None:
        data = io.BytesIO()
        arrays: dict[str, Array] = {
            "sequences": np.array(live, np.uint64),
            "priorities": table.priorities(),
            "counters": np.array(table.counters(), np.float64),
        }
        np.savez(data, **arrays)  # type: ignore[arg-type]
        self.journal.save(priorities_path(self.journal.directory, name).name, data.getvalue())

    def _state(self) -> dict[str, Any]:
        engine, (configuration, vouched) = self._engine, self._admission.state()
        return {
            "format": FORMAT,
            "run_id": engine.run_id,
            "boot": engine.boot,
            "boot_id": engine.boot_id.hex(),
            "learner_epoch": engine.learner_epoch,
            "learner_instance": engine.learner_instance.hex(),
            "shared_config_json": configuration.shared_config_json if configuration else None,
            "configured_by": configuration.peer if configuration else None,
            "vouched": vouched,
            "tables": {
                name: base64.b64encode(wire.table_config_to_proto(table.config).SerializeToString()).decode()
                for name, table in engine.tables.items()
            },
        }

    # --- the start ---

    def _recover(self) -> Recovered:
        recovered = Recovered()
        live: dict[str, list[int]] = {}
        state = self._read_state()
        if state is not None:
            started = time.monotonic()
            for name, found in segments(self.journal.directory).items():
                if name in self._engine.tables:
                    paths = [path for _, path in found]
                    live[name] = self._recover_table(name, paths, recovered)
            log.info(
                "experience recovered",
                items=recovered.items,
                seconds=round(time.monotonic() - started, 2),
                records_skipped=recovered.damage.records_skipped,
                bytes_cut=recovered.damage.bytes_cut,
                chunks_refused=recovered.chunks_refused,
            )
        elif segments(self.journal.directory):
            log.warning("the journal's state cannot be read; setting it aside", path=str(self.journal.directory))
            self.journal.set_aside()
        self.journal.start(live)
        return recovered

    def _read_state(self) -> dict[str, Any] | None:
        """Restore engine and admission; None if there is nothing to restore from."""
        try:
            state = json.loads((self.journal.directory / STATE_NAME).read_bytes())
            if state["format"] != FORMAT:
                raise FormatError(f"the journal has format {state['format']}, must be {FORMAT}")
            tables = [
                wire.table_config_from_proto(pb.TableConfig.FromString(base64.b64decode(text)))
                for text in state["tables"].values()
            ]
            self._engine.restore(
                run_id=state["run_id"],
                boot=state["boot"],
                boot_id=bytes.fromhex(state["boot_id"]),
                learner_epoch=state["learner_epoch"],
                learner_instance=bytes.fromhex(state["learner_instance"]),
                tables=tables,
            )
            if state["shared_config_json"] is not None:
                handshake = Handshake(state["run_id"], state["shared_config_json"], state["configured_by"])
                self._admission.restore(handshake, vouched=state["vouched"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, binascii.Error, Refused) as error:
            log.warning("the journal's state cannot be read", error=str(error))
            return None
        return dict(state)

    def _recover_table(self, name: str, paths: list[Any], recovered: Recovered) -> list[int]:
        """Fill a table; returns the sequence numbers of the chunks that it holds."""
        table = self._engine.table(name)
        keys, inserted = dict[int, Array](), 0
        for path in paths:
            try:
                for record in decode_segment(path.read_bytes(), recovered.damage):
                    try:
                        keys[record.sequence] = self._engine.restore_chunk(
                            record.incarnation, record.number, name, record.chunk
                        )
                        inserted = record.inserted
                    except SignatureError:
                        recovered.chunks_refused += 1
            except (OSError, FormatError) as error:
                log.warning("a segment of the journal cannot be read", path=str(path), error=str(error))
        sequences = sorted(keys)
        live = sequences[len(sequences) - table.pages_used :]
        self._recover_priorities(name, table, keys, live)
        counters = table.counters()
        table.restore_counters(counters._replace(inserted=max(inserted, counters.inserted)))
        recovered.items += table.num_items
        return live

    def _recover_priorities(self, name: str, table: Table, keys: dict[int, Array], live: list[int]) -> None:
        """Priorities that the learner had set, and counters that go on, as they were written last."""
        try:
            with np.load(priorities_path(self.journal.directory, name), allow_pickle=False) as saved:
                sequences, priorities = saved["sequences"].tolist(), saved["priorities"]
                counters = TableCounters(*saved["counters"].tolist())
                held = set(live)
                rows = [(row, sequence) for row, sequence in enumerate(sequences) if sequence in held]
                for row, sequence in rows:
                    own = keys[sequence].astype(np.uint64)
                    offsets = (own & np.uint64(1023)).astype(np.int64) - table.config.signature.geometry.context
                    table.update_priorities(own, priorities[row][offsets].astype(np.float32))
                table.restore_counters(counters)
        except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, SignatureError) as error:
            log.warning("priorities are those that chunks came with", table=name, reason=str(error))
