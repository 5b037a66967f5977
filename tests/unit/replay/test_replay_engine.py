"""The engine: tables by name, inserts that count once, runs and learners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from apexrl.replay import engine as engine_module
from apexrl.replay.engine import AcceptedLearner, RefusedError, ReplayEngine
from apexrl.types import Chunk, SelectorConfig, SignatureError, TableConfig

MakeChunk = Callable[..., Chunk]
MakeConfig = Callable[..., TableConfig]

ACTOR, OTHER = b"a" * 16, b"b" * 16
FIRST, SECOND = b"1" * 16, b"2" * 16


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_config_makes_the_table_and_later_ones_must_have_its_signature(table_config: MakeConfig) -> None:
    engine = ReplayEngine()
    table = engine.create_or_match(table_config())
    assert engine.create_or_match(table_config(capacity_items=48, selector=SelectorConfig(exponent=0.7))) is table
    assert table.config == table_config()
    signature = table.config.signature
    columns = (replace(signature.columns[0], dtype="int32"), *signature.columns[1:])
    other = table_config(capacity_items=48, signature=replace(signature, columns=columns, stack=2))
    for refuse in (engine.create_or_match, engine.configure):
        with pytest.raises(SignatureError) as raised:
            refuse(other)
        message = str(raised.value)
        assert "signature.columns[0].dtype is int32, must be uint8" in message
        assert "signature.stack is 2, must be 4" in message
        assert "capacity_items" not in message
    fewer = table_config(signature=replace(signature, columns=signature.columns[:2]))
    with pytest.raises(SignatureError, match=r"columns\[2\].name is missing, must be observation"):
        engine.create_or_match(fewer)


def test_a_table_takes_the_learners_options_and_keeps_its_experience(
    table_config: MakeConfig, make_chunk: MakeChunk
) -> None:
    engine = ReplayEngine(boot=4095)
    assert not engine.configure(table_config())
    former = engine.table("replay")
    keys = [former.insert(make_chunk(priorities=(n + 1.0,) * 4, mark=n)) for n in range(6)]
    former.update_priorities(keys[5][:1], np.float32([50.0]))
    former.draw(np.uint32([3]), np.full(3, 0.5))
    former.insert_limit = 77
    engine.insert_once(ACTOR, 9, "replay", make_chunk(mark=6))

    larger = table_config(capacity_items=80, selector=SelectorConfig(exponent=1.0))
    assert engine.configure(larger)
    assert not engine.configure(larger)
    table = engine.table("replay")
    assert table is not former
    assert table.config == larger
    assert table.totals()[1:] == former.totals()[1:] == (28, 28, 3)
    assert (table.insert_limit, table.max_priority) == (77, 50.0)
    new_keys, priorities = table.top(28)
    np.testing.assert_array_equal(priorities, former.top(28)[1])
    assert not set(new_keys.tolist()) & set(former.top(28)[0].tolist())
    assert table.update_priorities(keys[0], np.ones(4, np.float32)) == (0, 4)
    assert table.page_chunk(2).blocks == former.page_chunk(2).blocks
    # With exponent 1 an item's probability is its share of the priorities.
    draw = table.draw(np.uint32([1]), np.array([0.999999]))
    assert draw.probabilities[0] == pytest.approx(1.0 / priorities.sum(), rel=1e-3)
    # What actors have sent stays seen.
    assert not engine.insert_once(ACTOR, 9, "replay", make_chunk())


def test_a_table_made_smaller_keeps_the_newest(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    engine.configure(table_config(capacity_items=4000))
    for n in range(300):
        engine.table("replay").insert(make_chunk(priorities=n + 1.0, mark=n))
    engine.configure(table_config(capacity_items=40))
    table = engine.table("replay")
    assert table.inserted == 1200
    assert table.evicted == 1200 - table.num_items
    while engine.maintain():
        pass
    kept = table.num_items
    assert 40 <= kept < 1200
    np.testing.assert_array_equal(np.unique(table.top(kept)[1]), np.arange(301 - kept // 4, 301))


def test_options_that_no_table_can_have_change_nothing(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    engine.configure(table_config())
    table = engine.table("replay")
    table.insert(make_chunk())
    with pytest.raises(SignatureError, match="capacity_items"):
        engine.configure(table_config(capacity_items=1 << 40))
    assert engine.table("replay") is table
    assert table.num_items == 4


def test_inserts_count_once_and_gaps_are_accepted(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    table = engine.create_or_match(table_config())
    chunk = make_chunk()
    assert engine.last_seen(ACTOR, "replay") == 0
    assert [engine.insert_once(ACTOR, n, "replay", chunk) for n in (1, 2, 2, 1, 7, 5, 8)] == [
        *(True, True, False, False),
        *(True, False, True),
    ]
    assert engine.insert_once(OTHER, 1, "replay", chunk)
    assert (engine.last_seen(ACTOR, "replay"), engine.last_seen(OTHER, "replay")) == (8, 1)
    assert table.inserted == 5 * 4
    assert table.duplicates == 3
    with pytest.raises(SignatureError, match="chunk number is 0"):
        engine.insert_once(OTHER, 0, "replay", chunk)
    with pytest.raises(SignatureError, match="no table 'elsewhere'"):
        engine.insert_once(ACTOR, 9, "elsewhere", chunk)


def test_a_refused_chunk_is_not_seen(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    engine.create_or_match(table_config())
    with pytest.raises(SignatureError, match=r"chunk.priorities\[0\]"):
        engine.insert_once(ACTOR, 1, "replay", make_chunk(priorities=-1.0))
    assert engine.last_seen(ACTOR, "replay") == 0
    assert engine.insert_once(ACTOR, 1, "replay", make_chunk())


def test_silent_incarnations_are_forgotten(
    table_config: MakeConfig, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = ReplayEngine(clock=clock)
    engine.create_or_match(table_config())
    engine.insert_once(ACTOR, 4, "replay", make_chunk())
    clock.now = 3000.0
    engine.insert_once(OTHER, 6, "replay", make_chunk())
    clock.now = 3601.0
    engine.maintain()
    assert (engine.last_seen(ACTOR, "replay"), engine.last_seen(OTHER, "replay")) == (0, 6)
    monkeypatch.setattr(engine_module, "MAX_INCARNATIONS", 3)
    for i in range(3):
        engine.insert_once(bytes([i]) * 16, 1, "replay", make_chunk())
        engine.insert_once(OTHER, 7 + i, "replay", make_chunk())
    assert engine.last_seen(OTHER, "replay") == 9
    assert [engine.last_seen(bytes([i]) * 16, "replay") for i in range(3)] == [0, 1, 1]


def test_maintain_trims_a_bit_at_a_time(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    table = engine.create_or_match(table_config())
    for n in range(1, 31):
        engine.insert_once(ACTOR, n, "replay", make_chunk())
    assert engine.maintain(max_pages=8)
    assert table.num_items == 88
    turns = 1
    while engine.maintain(max_pages=8):
        turns += 1
    assert (table.num_items, turns) == (40, 2)


def test_a_learner_of_a_higher_epoch_takes_over_and_a_lower_one_is_refused() -> None:
    engine = ReplayEngine()
    assert engine.accept_learner(3, FIRST, "run") == AcceptedLearner(superseded=False, cleared=False)
    # The same learner on a new stream.
    assert engine.accept_learner(3, FIRST, "run") == AcceptedLearner(superseded=False, cleared=False)
    with pytest.raises(RefusedError, match=r"learner.epoch is 3, must be above 3"):
        engine.accept_learner(3, SECOND, "run")
    with pytest.raises(RefusedError, match=r"learner.epoch is 2, must be above 3"):
        engine.accept_learner(2, FIRST, "run")
    engine.check_learner(3, FIRST)
    assert engine.accept_learner(4, SECOND, "run") == AcceptedLearner(superseded=True, cleared=False)
    with pytest.raises(RefusedError, match=r"learner.epoch is 3, but the learner served here has epoch 4"):
        engine.check_learner(3, FIRST)
    engine.check_learner(4, SECOND)
    with pytest.raises(SignatureError, match=r"learner.instance has 3 bytes"):
        engine.accept_learner(5, b"abc", "run")


def test_another_runs_experience_is_refused_until_it_is_discarded(
    table_config: MakeConfig, make_chunk: MakeChunk
) -> None:
    engine = ReplayEngine(boot=4095)
    engine.adopt_run("old")
    engine.adopt_run("old")
    old = engine.create_or_match(table_config())
    engine.insert_once(ACTOR, 1, "replay", make_chunk())
    keys = old.draw(np.array([4], np.uint32), np.zeros(4)).keys
    with pytest.raises(RefusedError, match="run_id is new, must be old"):
        engine.adopt_run("new")
    with pytest.raises(RefusedError, match="holds experience of run old"):
        engine.accept_learner(9, FIRST, "new")
    assert (engine.learner_epoch, engine.run_id) == (0, "old")

    boot_id = engine.boot_id
    assert engine.accept_learner(9, FIRST, "new", discard_other_run=True) == AcceptedLearner(False, cleared=True)
    assert engine.run_id == "new"
    assert engine.boot_id != boot_id
    assert engine.tables == {}
    assert engine.last_seen(ACTOR, "replay") == 0
    # An update by a key of the old run finds nothing, although page and row are in use again.
    table = engine.create_or_match(table_config())
    engine.insert_once(ACTOR, 1, "replay", make_chunk())
    assert table.update_priorities(keys, np.ones(4, np.float32)) == (0, 4)


def test_discarding_spares_the_learners_own_run(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    engine.adopt_run("run")
    engine.create_or_match(table_config())
    engine.insert_once(ACTOR, 1, "replay", make_chunk())
    assert not engine.accept_learner(1, FIRST, "run", discard_other_run=True).cleared
    assert engine.tables["replay"].num_items == 4
    for refused in (lambda: engine.adopt_run(""), lambda: engine.accept_learner(2, FIRST, "")):
        with pytest.raises(RefusedError, match="run_id is empty"):
            refused()


def test_a_shard_without_experience_changes_over_to_any_run(table_config: MakeConfig) -> None:
    engine = ReplayEngine()
    engine.adopt_run("old")
    engine.create_or_match(table_config())
    assert engine.accept_learner(1, FIRST, "new").cleared
    assert (engine.run_id, engine.tables) == ("new", {})


def test_a_table_takes_so_many_items_until_a_learner_has_told_a_limit(
    table_config: MakeConfig, make_chunk: MakeChunk
) -> None:
    engine = ReplayEngine()
    before = engine.create_or_match(table_config())
    engine.insert_once(ACTOR, 1, "replay", make_chunk())
    engine.hold_inserts(6)
    assert before.insert_limit == before.inserted + 6, "what is held already, from a journal, does not count"
    engine.clear()
    assert engine.create_or_match(table_config()).insert_limit == 6


def test_info_says_what_is_held_and_what_waits(table_config: MakeConfig, make_chunk: MakeChunk) -> None:
    engine = ReplayEngine()
    engine.adopt_run("run")
    table = engine.create_or_match(table_config())
    table.insert_limit = 4
    engine.insert_once(ACTOR, 1, "replay", make_chunk())
    info = engine.info()
    assert (info.run_id, info.learner_epoch) == ("run", 0)
    assert info.waiting == ("table 'replay': inserts wait for the learner at 4 items (4 in)",)
    (held,) = info.tables
    assert held.totals == table.totals()
    assert (held.pages_used, held.num_pages, held.insert_limit) == (1, 75, 4)
    assert held.slab_bytes >= held.block_bytes > 0
    table.insert_limit = None
    assert engine.info().waiting == ()
