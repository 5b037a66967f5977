"""A shard's journal: what is stored comes back, whatever happened to the process or to its files."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from apex_replay import journal as journal_module
from apex_replay.endpoint import ReplayEndpoint
from apex_replay.journal import ASIDE_NAME, STATE_NAME, Journal, JournalError, segment_path, segments
from apex_replay.journal_format import MAGIC, Damage, FormatError, Record, decode_segment, encode_record
from apexrl.replay.engine import ReplayEngine
from apexrl.replay.table import Table
from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport.errors import RefusalKind, Refused
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.sample_events import LearnerIdentity
from apexrl.types import Chunk, ColumnSpec, Geometry, RemoverKind, SelectorConfig, Signature, TableConfig

RUN, OTHER_RUN = "ab" * 16, "cd" * 16
SIGNATURE = Signature((ColumnSpec("mark", "int32"),), Geometry(1, 4, 1))
TABLE = TableConfig("replay/a", SIGNATURE, SelectorConfig(), capacity_items=40, budget_bytes=1 << 20)
ACTOR = b"a" * 16
WAIT_SECONDS = 20.0


def make_chunk(mark: int, lengths: tuple[int, ...] = (1, 1, 0, 1)) -> Chunk:
    return Chunk(
        6,
        4,
        np.array(lengths, np.uint16),
        np.zeros(4, np.uint16),
        (np.array([1.0, 2.0, 0.0, 3.0]) + mark).astype(np.float32),
        (np.full(6, mark, np.int32).tobytes(),),
    )


class Shard:
    """A shard in this thread, with a journal."""

    def __init__(self, directory: Path, **options: float) -> None:
        self.journal = Journal(directory, **options)  # type: ignore[arg-type]
        self.endpoint = ReplayEndpoint(ReplayEngine(), journal=self.journal)
        self.session = InsertSession(TABLE, 1 << 12, incarnation=ACTOR)

    @property
    def engine(self) -> ReplayEngine:
        return self.endpoint.engine

    @property
    def table(self) -> Table:
        return self.engine.table(TABLE.name)

    def open_insert(self, run: str = RUN, shared: str = "{}") -> int:
        """Highest chunk number that the shard has seen."""
        opening = self.session.open_request(Handshake(run, shared, "actor"))
        self.stream, opened = self.endpoint.open_insert(opening)
        self.session.on_response(opened)
        return int(opened.opened.last_seen)

    def open_sample(self, epoch: int = 1, run: str = RUN, shared: str = "{}", **fields: object) -> bytes:
        """The shard's boot."""
        message = pb.SampleOpen(
            handshake=Handshake(run, shared, "learner").to_proto(),
            learner=LearnerIdentity(epoch, bytes([epoch]) * 16).to_proto(),
            tables=[pb.MirroredTable(table=wire.table_config_to_proto(TABLE))],
            run_seed=1,
            **fields,  # type: ignore[arg-type]
        )
        _, response = self.endpoint.open_sample(pb.SampleRequest(open=message))
        return bytes(response.opened.boot)

    def insert(self, *marks: int) -> None:
        for mark in marks:
            self.session.put(make_chunk(mark))
        while (message := self.session.next_message(force=True)) is not None:
            ack = self.stream.handle(message)
            assert ack is not None
            self.session.on_response(ack)
        self.engine.maintain()

    def flush(self) -> None:
        self.endpoint.tick()
        assert self.journal.flush(WAIT_SECONDS)

    def crash(self) -> None:
        """End as kill -9 would, but for what the operating system has."""
        assert self.journal.flush(WAIT_SECONDS)
        self.journal.close()

    def marks(self) -> list[int]:
        """Of the chunks held, oldest first."""
        pages = self.table.pages_in_order().tolist()
        return [int(np.frombuffer(self.table.page_chunk(page).blocks[0], np.int32)[0]) for page in pages]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_record_survives_its_bytes() -> None:
    record = Record(7, 30, ACTOR, 99, make_chunk(5))
    (found,) = decode_segment(MAGIC + encode_record(record), Damage())
    assert found[:4] == record[:4]
    for name in ("lengths", "prefixes", "priorities"):
        ours, theirs = getattr(record.chunk, name), getattr(found.chunk, name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert found.chunk.blocks == record.chunk.blocks


def test_every_cut_loses_the_last_record_and_no_more() -> None:
    records = [encode_record(Record(n, 3 * n + 3, ACTOR, n + 1, make_chunk(n))) for n in range(3)]
    data = MAGIC + b"".join(records)
    for cut in range(1, len(records[2]) + 1):
        damage = Damage()
        found = list(decode_segment(data[:-cut], damage))
        assert [record.sequence for record in found] == [0, 1]
        assert damage == Damage(0, len(records[2]) - cut)


def test_a_flipped_bit_costs_one_record_or_the_rest_but_never_lets_a_wrong_one_in() -> None:
    records = [encode_record(Record(n, 3 * n + 3, ACTOR, n + 1, make_chunk(n))) for n in range(3)]
    data = bytearray(MAGIC + b"".join(records))
    for at in range(len(MAGIC), len(data)):
        data[at] ^= 0x10
        damage = Damage()
        found = list(decode_segment(bytes(data), damage))
        data[at] ^= 0x10
        assert damage.records_skipped + damage.bytes_cut > 0
        for record in found:
            assert encode_record(record) == records[record.sequence]
        assert len(found) >= (at - len(MAGIC)) // len(records[0]), "what lies before is there"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a segment"),
        (b"something else", "not a segment"),
        (MAGIC[:6] + struct.pack("<H", 9), "format 9, must be 1"),
    ],
)
def test_other_files_are_no_segments(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(decode_segment(data, Damage()))


def test_a_shard_comes_back_as_it_was(directory: Path) -> None:
    shard = Shard(directory)
    shard.open_insert()
    boot = shard.open_sample(epoch=3)
    shard.insert(*range(8))
    keys, _ = shard.table.top(40)
    shard.table.draw(np.uint32([5]), np.full(5, 0.5))
    shard.table.update_priorities(keys[:2], np.float32([70.0, 80.0]))
    before = shard.table
    shard.endpoint.stop()

    again = Shard(directory)
    table = again.table
    assert again.marks() == list(range(8))
    assert table.config == before.config
    assert table.counters() == before.counters()
    np.testing.assert_array_equal(table.priorities(), before.priorities())
    np.testing.assert_allclose(table.top(40)[1], before.top(40)[1])
    assert not set(table.top(40)[0].tolist()) & set(keys.tolist()), "keys are never used again"
    assert again.open_insert() == 8, "chunks that come again are not stored again"
    again.session.put(make_chunk(9))
    # To learner and limiter it is the same experience, with counters that go on; an older learner is still refused.
    with pytest.raises(Refused) as refusal:
        again.open_sample(epoch=2)
    assert refusal.value.kind is RefusalKind.FENCED
    assert again.open_sample(epoch=4) == boot
    again.endpoint.stop()


def test_without_a_last_word_little_is_lost(directory: Path) -> None:
    shard = Shard(directory)
    shard.open_insert()
    shard.insert(*range(5))
    shard.flush()
    shard.insert(5, 6)
    shard.crash()
    again = Shard(directory)
    assert again.marks() == list(range(7))
    assert again.table.inserted == 21
    assert again.table.top(1)[1].tolist() == [9.0], "priorities are those that chunks came with"
    assert again.open_insert() == 7
    for _ in range(7):
        again.session.put(make_chunk(0))  # numbers that were seen: not stored again
    again.insert(7)
    again.crash()
    third = Shard(directory)
    assert third.marks() == list(range(8))
    third.crash()


def test_segments_are_deleted_when_their_chunks_have_left(directory: Path) -> None:
    shard = Shard(directory, segment_bytes=300)
    shard.open_insert()
    shard.insert(*range(400))
    shard.flush()
    shard.flush()
    held = len(shard.marks())
    found = segments(directory)[TABLE.name]
    assert 1 < len(found) <= held + 2, "as many chunks as segments, at this size"
    marks = shard.marks()
    shard.crash()
    again = Shard(directory)
    assert again.marks() == marks
    assert again.table.inserted == 1200
    assert again.table.evicted == 1200 - again.table.num_items
    again.crash()


@pytest.mark.parametrize("left", [0, len(MAGIC), len(MAGIC) + 5])
def test_a_segment_that_broke_off_at_its_begin_is_not_written_again(directory: Path, left: int) -> None:
    shard = Shard(directory)
    shard.open_insert()
    shard.insert(0, 1, 2)
    shard.crash()
    # The process ended while it began the segment of chunk 3.
    broken = segment_path(directory, TABLE.name, 3)
    broken.write_bytes((MAGIC + encode_record(Record(3, 12, ACTOR, 4, make_chunk(3))))[:left])
    again = Shard(directory)
    assert again.open_insert() == 3
    for _ in range(3):
        again.session.put(make_chunk(0))  # numbers that were seen: not stored again
    again.insert(*range(3, 30))
    again.flush()
    again.flush()
    assert not broken.exists(), "what it could have held has left the table"
    marks = again.marks()
    assert marks[-1] == 29
    again.crash()
    third = Shard(directory)
    assert third.marks()[-len(marks) :] == marks
    third.crash()


def test_damage_in_the_middle_costs_little_and_is_counted(directory: Path) -> None:
    shard = Shard(directory, segment_bytes=300)
    shard.open_insert()
    shard.insert(*range(12))
    shard.crash()
    paths = [path for _, path in segments(directory)[TABLE.name]]
    assert len(paths) > 3
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 0xFF
    paths[1].write_bytes(data)
    paths[2].write_bytes(b"rubbish")
    again = Shard(directory)
    assert again.endpoint._durability is not None
    recovered = again.endpoint._durability.recovered
    assert recovered.damage.records_skipped == 1
    assert set(again.marks()) < set(range(12))
    assert again.marks()[0] == 0
    assert again.marks()[-1] == 11
    assert len(again.marks()) >= 12 - 2 * 3
    assert recovered.items == again.table.num_items
    again.crash()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1, "tables": {"replay": "??"}}'])
def test_a_state_that_cannot_be_read_is_set_aside(directory: Path, content: bytes) -> None:
    shard = Shard(directory)
    shard.open_insert()
    shard.insert(1, 2)
    shard.flush()
    shard.crash()
    (directory / STATE_NAME).write_bytes(content)
    again = Shard(directory)
    assert again.engine.tables == {}
    assert again.journal.flush(WAIT_SECONDS)
    assert segments(directory) == {}
    assert len(segments(directory / ASIDE_NAME)) == 1
    assert again.open_insert() == 0
    again.insert(3)
    again.flush()
    again.crash()
    assert Shard(directory).marks() == [3]


def test_another_runs_experience_is_set_aside_when_it_is_dropped(directory: Path) -> None:
    shard = Shard(directory)
    shard.open_insert()
    shard.open_sample()
    shard.insert(1, 2)
    with pytest.raises(Refused) as refusal:
        shard.open_sample(epoch=2, run=OTHER_RUN)
    assert refusal.value.kind is RefusalKind.RUN
    shard.open_sample(epoch=2, run=OTHER_RUN, discard_other_run=True)
    shard.flush()
    shard.crash()
    assert len(segments(directory / ASIDE_NAME)[TABLE.name]) == 1
    again = Shard(directory)
    assert again.engine.run_id == OTHER_RUN
    assert again.table.num_items == 0
    again.crash()


def test_experience_that_means_something_else_is_refused_after_a_restart_too(directory: Path) -> None:
    shard = Shard(directory)
    shard.open_insert(shared='{"n": 3}')
    shard.open_sample(shared='{"n": 3}')
    shard.insert(1)
    shard.endpoint.stop()
    again = Shard(directory)
    with pytest.raises(Refused):
        again.open_insert(shared='{"n": 5}')
    with pytest.raises(Refused):
        again.open_sample(epoch=2, shared='{"n": 5}')
    assert again.open_insert(shared='{"n": 3}') == 1
    again.endpoint.stop()


def test_a_full_disk_stops_the_journal_and_not_the_shard(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    shard = Shard(directory, clock=lambda: clock[0])  # type: ignore[arg-type]
    shard.open_insert()
    shard.insert(0, 1)
    shard.flush()

    def full(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    shard.journal._close_files()  # as at the end of a segment: the next record begins a file
    with monkeypatch.context() as broken:
        broken.setattr(journal_module, "sync_directory", full)
        shard.insert(2, 3)
        assert shard.journal.flush(WAIT_SECONDS)
        assert shard.journal.failure is not None
        assert "No space left" in shard.journal.failure
    shard.insert(4)
    assert shard.journal.flush(WAIT_SECONDS)
    assert shard.journal.failure is not None, "the disk is left alone for a while"
    assert shard.journal.records_dropped == 3
    assert shard.marks() == [0, 1, 2, 3, 4]
    clock[0] += 31.0
    shard.insert(5)
    assert shard.journal.flush(WAIT_SECONDS)
    assert shard.journal.failure is None
    shard.endpoint.stop()
    again = Shard(directory)
    assert again.marks() == [0, 1, 5]
    again.crash()


def test_a_disk_that_is_too_slow_costs_durability_and_not_memory(directory: Path) -> None:
    shard = Shard(directory, max_queued_bytes=1)
    shard.open_insert()
    shard.insert(*range(5))
    shard.flush()
    assert shard.journal.records_dropped == 5
    assert shard.journal.records_written == 0
    assert shard.marks() == list(range(5))
    shard.crash()


def test_a_directory_belongs_to_one_shard(directory: Path) -> None:
    shard = Shard(directory)
    with pytest.raises(JournalError, match=r"replay\.journal_directory .* is in use by another shard"):
        Journal(directory)
    shard.crash()
    Shard(directory).crash()


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"replay\.journal_directory .*file/journal cannot be used"):
        Journal(tmp_path / "file" / "journal")


def test_new_options_of_the_learner_are_remembered(directory: Path) -> None:
    shard = Shard(directory)
    shard.open_insert()
    shard.open_sample()
    shard.insert(*range(6))
    larger = dataclasses.replace(TABLE, capacity_items=400)
    shard.engine.configure(larger)
    shard.flush()
    shard.crash()
    state = json.loads((directory / STATE_NAME).read_text())
    assert state["learner_epoch"] == 1
    again = Shard(directory)
    assert again.table.config == larger
    assert again.marks() == list(range(6))
    again.crash()


def test_a_table_that_no_journal_can_keep_is_refused(directory: Path) -> None:
    shard = Shard(directory)
    config = dataclasses.replace(TABLE, remover=RemoverKind.PRIORITIZED)
    expected = r"replay\.remover is prioritized, must be fifo on a shard with replay\.journal_directory"
    session = InsertSession(config, 16, incarnation=ACTOR)
    with pytest.raises(Refused, match=expected) as refused:
        shard.endpoint.open_insert(session.open_request(Handshake(RUN, "{}", "actor")))
    assert refused.value.kind is RefusalKind.TABLE
    message = pb.SampleOpen(
        handshake=Handshake(RUN, "{}", "learner").to_proto(),
        learner=LearnerIdentity(1, bytes(16)).to_proto(),
        tables=[pb.MirroredTable(table=wire.table_config_to_proto(config))],
    )
    with pytest.raises(Refused, match=expected):
        shard.endpoint.open_sample(pb.SampleRequest(open=message))
    # It was not accepted before it was refused.
    assert (shard.engine.learner_epoch, shard.engine.tables) == (0, {})
    shard.crash()
