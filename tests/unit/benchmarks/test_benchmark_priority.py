"""Arithmetic of the priority benchmark, and our program of it on a small table."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.peers.priority_apex import Program, parts
from benchmarks.peers.priority_work import BATCH_SIZE, priority_batches
from benchmarks.priority import describe_limit, fastest, growth_over_log_growth


def test_the_fastest_peer_is_the_one_of_the_highest_median() -> None:
    rates = {"apex": [9.0, 9.0, 9.0], "a": [1.0, 8.0, 1.0], "b": [2.0, 2.0, 2.0]}
    assert fastest(rates) == "b"


def test_growth_is_relative_to_the_logarithm() -> None:
    # Twice the logarithm: twice the time is 1, the same time a half.
    assert growth_over_log_growth({100: [8.0], 10_000: [4.0]}) == pytest.approx(1.0)
    assert growth_over_log_growth({100: [8.0], 10_000: [8.0]}) == pytest.approx(0.5)
    assert growth_over_log_growth({100: [8.0], 1_000: [1.0], 10_000: [2.0]}) == pytest.approx(2.0)


def test_our_program_draws_and_updates_through_keys() -> None:
    program = Program(1024)
    assert program.table.num_items == 1024
    drawn, mass = program.table.drawn, program.table.totals().mass
    assert program.sample_update() == BATCH_SIZE
    assert program.table.drawn == drawn + BATCH_SIZE
    assert program.table.totals().mass != mass
    assert program.table.stale_updates == 0
    # A full table stays about as full under inserts.
    for _ in range(20):
        program.insert()
    assert program.table.inserted == 1024 + 20 * BATCH_SIZE
    assert program.table.num_items < 1024 + 32 * 32 + BATCH_SIZE


def test_every_piece_of_our_program_runs_and_is_in_the_limit() -> None:
    pieces = parts(Program(1024))
    assert all(piece() == 1 for piece in pieces.values())
    said = describe_limit({name: 10.0 for name in pieces}, 200.0, 100.0)
    assert "takes 200 us" in said
    assert "50 % of it" in said


def test_new_priorities_are_positive_and_of_a_batch() -> None:
    batches = priority_batches()
    first, second = next(batches), next(batches)
    assert first.shape == (BATCH_SIZE,)
    assert first.dtype == np.float32
    assert float(first.min()) >= 0.01
    assert not np.array_equal(first, second)
