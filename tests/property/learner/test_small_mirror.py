"""Batches do not depend on the size of the mirror: two learners at equal shards, one mirror whole, one very small."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_scene import SIGNATURE, TABLE, Contents, System, make_chunk

from apex_learner.batches import mirror_slots
from apexrl.config import ConfigError
from apexrl.experience.records import RecordLayout
from apexrl.types import RemoverKind, TableConfig

BATCH = 3
#: Items leave one by one, and their pages later.
PRIORITIZED = replace(TABLE, remover=RemoverKind.PRIORITIZED)


def assert_equal(ours: list[Contents], theirs: list[Contents]) -> None:
    for first, second in zip(ours, theirs, strict=True):
        first.assert_whole()
        first.assert_equal(second)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([TABLE, PRIORITIZED]))
def test_batches_are_those_of_a_whole_mirror_to_the_bit(data: st.DataObject, table: TableConfig) -> None:
    whole, small = System(table=table), System(table=table, slots=data.draw(st.integers(BATCH, 6), label="slots"))
    marks = 0
    for step in data.draw(st.lists(st.sampled_from("iiirrraaax"), min_size=5, max_size=60), label="steps"):
        if step == "i":
            marks += 1
            priorities = data.draw(
                st.lists(st.floats(0.125, 9.0, width=32), min_size=4, max_size=4), label="priorities"
            )
            for system in (whole, small):
                system.insert(make_chunk(marks, priorities))
        elif step == "r":
            assert whole.request() == small.request()
        elif step == "a" and whole.shards[0].replies:
            assert_equal(whole.receive(), small.receive())
        elif step == "x":
            for system in (whole, small):
                system.open()
    assert small.received >= whole.received


def test_a_whole_mirror_takes_every_chunk_once_and_a_small_one_again() -> None:
    whole, small = System(), System(slots=BATCH)
    for mark in range(6):
        whole.insert(make_chunk(mark, [1.0] * 4))
        small.insert(make_chunk(mark, [1.0] * 4))
    for _ in range(200):
        whole.request()
        small.request()
        assert_equal(whole.receive(), small.receive())
    assert whole.received == 6
    assert small.received > 200
    for system in (whole, small):
        counts = system.assembler.counts
        assert counts.chunks == system.received
        assert counts.items == 200 * BATCH
        assert counts.chunk_bytes >= counts.chunks


def test_a_mirror_must_hold_a_batch() -> None:
    page = RecordLayout(SIGNATURE).page_bytes
    assert mirror_slots(TABLE, 1, BATCH, 0) == 0
    assert mirror_slots(TABLE, 1, BATCH, BATCH * page) == BATCH
    assert mirror_slots(TABLE, 2, BATCH, 2 * BATCH * page) == BATCH
    assert mirror_slots(TABLE, 1, BATCH, 1 << 30) == 0
    with pytest.raises(ConfigError, match=rf"learner\.mirror_bytes is 10, must be 0 .* at least {BATCH * page}"):
        mirror_slots(TABLE, 1, BATCH, 10)
