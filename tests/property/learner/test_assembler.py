"""Several shards sample as one table would, also while some are slow, gone, or back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_scene import BETA, TABLE, Contents, System, make_chunk

from apexrl.experience.importance import importance_weights
from apexrl.types import SignatureError

LARGE = dataclasses.replace(TABLE, capacity_items=400)
ALPHA = 0.6


def fill(system: System, chunks: list[int], seed: int = 0) -> dict[tuple[int, int], float]:
    """Insert so many chunks into each shard; (mark, item) -> q of every item. The mark's hundreds name the shard."""
    rng = np.random.default_rng(seed)
    weights = {}
    for k, count in enumerate(chunks):
        for n in range(count):
            priorities = (rng.exponential(1.0 + 3.0 * k, 4) + 0.01).astype(np.float32)
            system.insert(make_chunk(100 * k + n, priorities.tolist()), k)
            for item, priority in enumerate(priorities):
                weights[100 * k + n, item] = (float(priority) + 1e-6) ** ALPHA
    return weights


def items(batch: Contents) -> list[tuple[int, int]]:
    return list(zip(batch.mark[:, 0].tolist(), batch.version.tolist(), strict=True))


def run(system: System, rounds: int) -> list[Contents]:
    batches = []
    for _ in range(rounds):
        while system.request():
            pass
        batches += system.receive_all()
    return batches


def test_shards_of_unequal_mass_sample_as_one_table_of_the_union() -> None:
    """Frequencies, probabilities and weights against q_i / sum q over all shards."""
    system = System(shards=3, batch_size=32, table=LARGE)
    weights = fill(system, [3, 11, 6])
    total = sum(weights.values())
    batches = run(system, 250)
    assert len(batches) == 1000
    drawn = dict.fromkeys(weights, 0)
    for batch in batches:
        batch.assert_whole()
        assert (batch.shards == batch.mark[:, 0] // 100).all()
        for item in items(batch):
            drawn[item] += 1
        exact = np.array([weights[item] / total for item in items(batch)])
        np.testing.assert_allclose(batch.weights, importance_weights(exact, len(weights), BETA), rtol=1e-4)
    n = 32 * len(batches)
    expected = np.array([n * q / total for q in weights.values()])
    # Stratified within a shard: less variance than independent draws, so their chi-square bound holds all the more.
    chi_square = float(np.sum((np.array(list(drawn.values())) - expected) ** 2 / expected))
    assert chi_square < 79 + 4.5 * np.sqrt(2 * 79)


def test_a_stale_mass_changes_shares_and_not_weights() -> None:
    """The probability of an item is the share as used times what the shard says, not what would be right by now."""
    system = System(shards=2, batch_size=64, table=LARGE)
    fill(system, [4, 4])
    system.observe()
    believed = np.array(system.assembler.masses)
    for n in range(4, 24):
        system.insert(make_chunk(100 + n, [9.0] * 4), 1)  # not reported yet
    system.observe = lambda: None  # type: ignore[method-assign]
    system.request()
    probabilities = [
        (believed[k] / believed.sum()) * np.frombuffer(reply.probabilities, np.float32).astype(float)
        for k, shard in enumerate(system.shards)
        for reply in shard.replies
    ]
    (batch,) = system.receive_all()
    exact = importance_weights(np.concatenate(probabilities), 32, BETA)
    np.testing.assert_allclose(batch.weights, exact, rtol=1e-6)


def test_parts_of_a_lost_shard_come_from_the_others() -> None:
    system = System(shards=3, batch_size=16, table=LARGE)
    weights = fill(system, [5, 5, 5])
    while system.request():
        pass
    assert system.assembler.batches_in_flight == 4
    system.lose(1)
    while system.request():
        pass
    batches = system.receive_all()
    assert len(batches) == 4
    assert system.assembler.counts.redraws >= 1
    assert system.limiter._in_flight == 0
    assert not any((batch.shards == 1).any() for batch in batches)
    remaining = {item: q for item, q in weights.items() if item[0] // 100 != 1}
    # From now on it is as if the two others were all there is.
    total = sum(remaining.values())
    for batch in run(system, 5):
        batch.assert_whole()
        exact = np.array([remaining[item] / total for item in items(batch)])
        np.testing.assert_allclose(batch.weights, importance_weights(exact, 40, BETA), rtol=1e-4)
    system.open(1)
    assert any((batch.shards == 1).any() for batch in run(system, 5))


def test_an_overdue_part_is_asked_of_others_and_its_late_reply_fills_the_mirror() -> None:
    system = System(shards=2, batch_size=16, table=LARGE)
    fill(system, [5, 5])
    while system.request():
        pass
    late = list(system.shards[1].replies)
    system.shards[1].replies.clear()
    assert system.receive_all() == [], "every batch misses a part"
    system.now = 1.9
    assert system.request() == []
    system.now = 2.1
    plans = system.request()
    assert {plan.shard for plan in plans} == {0}
    while system.request():
        pass
    redrawn = system.receive_all()
    assert len(redrawn) == 4
    assert all((batch.shards == 0).all() for batch in redrawn)
    # While it owes answers the slow one is asked for nothing.
    assert {plan.shard for plan in system.request()} == {0}
    system.shards[1].replies.extend(late)
    received = system.received
    batches = system.receive_all()
    assert all((batch.shards == 0).all() for batch in batches)
    assert system.received > received, "chunks of the late replies were mirrored"
    after = run(system, 4)
    assert any((batch.shards == 1).any() for batch in after)
    for batch in after:
        batch.assert_whole()
        assert (batch.shards == batch.mark[:, 0] // 100).all()
    assert system.limiter._in_flight == 0


def test_the_only_shard_is_waited_for_however_slow() -> None:
    system = System(batch_size=8, table=LARGE)
    fill(system, [3])
    while system.request():
        pass
    system.now = 100.0
    assert system.request() == []
    assert len(system.receive_all()) == 4
    assert system.assembler.counts.redraws == 0


def test_a_broken_stream_of_the_only_shard_asks_again() -> None:
    system = System(batch_size=8, table=LARGE)
    fill(system, [3])
    while system.request():
        pass
    system.lose(0)
    assert system.request() == []
    system.open(0)
    while system.request():
        pass
    assert len(system.receive_all()) == 4
    assert system.limiter._in_flight == 0


def test_the_division_depends_on_the_run_and_the_request_alone() -> None:
    plans = []
    for _ in range(2):
        system = System(shards=3, batch_size=32, table=LARGE)
        fill(system, [4, 2, 7])
        plans.append([system.request() for _ in range(3)])
    assert plans[0] == plans[1]
    assert len({tuple(plan.counts) for plan in plans[0][0] + plans[0][1]}) > 3


def test_a_reply_with_other_counts_is_refused() -> None:
    system = System(batch_size=8, table=LARGE)
    fill(system, [3])
    system.request()
    system.shards[0].replies[0].request_number = 99
    with pytest.raises(SignatureError, match="request_number is 99"):
        system.receive()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_batch_is_lost_or_mixed_up_whatever_happens_to_shards(data: st.DataObject) -> None:
    """Random inserts, replies, silences, breaks and returns; at the end all batches come, whole, each item once."""
    num_shards = data.draw(st.integers(1, 4), label="shards")
    system = System(shards=num_shards, slots=data.draw(st.sampled_from([0, 5, 9]), label="slots"), batch_size=5)
    which = st.integers(0, num_shards - 1)
    marks, asked, got = 0, 0, []
    for _ in range(data.draw(st.integers(5, 60), label="steps")):
        step = data.draw(st.sampled_from("iiirrraaalot"), label="step")
        k = data.draw(which, label="shard")
        if step == "i":
            marks += 1
            system.insert(make_chunk(1000 * k + marks, [float(1 + marks % 5)] * 4), k)
        elif step == "r":
            before = system.assembler.batches_in_flight
            system.request()
            asked += system.assembler.batches_in_flight - before
        elif step == "a" and system.shards[k].replies:
            got += system.receive(k)
        elif step == "l":
            system.lose(k)
        elif step == "o":
            system.open(k)
        elif step == "t":
            system.now += 1.5
    for k in range(num_shards):
        system.open(k)
    if marks:
        for _ in range(200):
            if len(got) >= asked:
                break
            before = system.assembler.batches_in_flight
            system.request()
            asked += system.assembler.batches_in_flight - before
            got += system.receive_all()
        assert len(got) == asked
    for batch in got:
        batch.assert_whole()
        assert (batch.shards == batch.mark[:, 0] // 1000).all()
        assert np.isfinite(batch.weights).all()
        assert batch.weights.max() == pytest.approx(1.0)
    assert system.assembler.batches_in_flight == 0
    assert system.limiter._in_flight == 0
    assert system.assembler.ring.num_acquired == 0
