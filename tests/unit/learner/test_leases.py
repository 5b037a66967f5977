"""Leases of exploration indices."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from apex_learner.leases import LeaseTable


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lowest_free_indices_go_first() -> None:
    clock = Clock()
    table = LeaseTable(30.0, clock=clock)
    assert table.renew(b"a", 3, []) == [0, 1, 2]
    assert table.renew(b"b", 2, []) == [3, 4]
    table.release(b"a")
    assert table.renew(b"c", 4, []) == [0, 1, 2, 5]
    assert table.renew(b"b", 2, [3, 4]) == [3, 4]


def test_an_index_is_free_again_after_its_ttl() -> None:
    clock = Clock()
    table = LeaseTable(30.0, clock=clock)
    table.renew(b"a", 2, [])
    clock.now += 20
    table.renew(b"b", 1, [])
    clock.now += 15
    assert table.renew(b"c", 2, []) == [0, 1], "a was silent for 35 s, b for 15 s"
    assert table.renew(b"b", 1, [2]) == [2]


def test_after_a_resume_only_held_indices_are_confirmed_for_one_ttl() -> None:
    clock = Clock()
    table = LeaseTable(30.0, confirm_only=True, clock=clock)
    assert table.renew(b"new", 2, []) == []
    assert table.renew(b"old", 2, [0, 1]) == [0, 1]
    clock.now += 31
    table.renew(b"old", 2, [0, 1])
    assert table.renew(b"new", 2, []) == [2, 3]


def test_the_first_claimant_of_an_index_keeps_it() -> None:
    table = LeaseTable(30.0, clock=Clock())
    assert table.renew(b"a", 2, [5, 7]) == [5, 7]
    assert table.renew(b"b", 2, [5, 8]) == [8, 0]


def test_fewer_lanes_give_indices_back() -> None:
    table = LeaseTable(30.0, clock=Clock())
    table.renew(b"a", 4, [])
    assert table.renew(b"a", 2, [0, 1, 2, 3]) == [0, 1]
    assert table.renew(b"b", 2, []) == [2, 3]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(1, 5), st.booleans(), st.floats(0.0, 20.0)),
        min_size=1,
        max_size=60,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_two_holders_share_an_index_and_nobody_is_moved(actions: list[tuple[str, int, bool, float]]) -> None:
    clock = Clock()
    table = LeaseTable(30.0, clock=clock)
    held: dict[str, tuple[list[int], float]] = {}
    for name, lanes, leave, wait in actions:
        clock.now += wait
        held = {k: v for k, v in held.items() if v[1] >= clock.now - 30.0}
        if leave:
            table.release(name.encode())
            held.pop(name, None)
            continue
        before = held.get(name, ([], 0.0))[0]
        indices = table.renew(name.encode(), lanes, before)
        assert len(set(indices)) == lanes
        assert indices[: len(before)] == before[:lanes], "a renewed lease was moved"
        held[name] = (indices, clock.now)
        taken = [index for k, (own, _) in held.items() if k != name for index in own]
        assert not set(indices) & set(taken)
    assert table.num_holders == len(held)
