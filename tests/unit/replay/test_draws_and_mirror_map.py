"""Counter-based random numbers, and the map of what a mirror holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apexrl.replay.draws import uniforms
from apexrl.replay.mirror_map import MirrorMap, Placement


def test_uniforms_are_a_function_of_run_table_and_request() -> None:
    first = uniforms(1, "replay", 7, 512)
    np.testing.assert_array_equal(first, uniforms(1, "replay", 7, 512))
    np.testing.assert_array_equal(first[:10], uniforms(1, "replay", 7, 10))
    assert first.dtype == np.float64
    assert first.min() >= 0.0
    assert first.max() < 1.0
    for other in (uniforms(2, "replay", 7, 512), uniforms(1, "other", 7, 512), uniforms(1, "replay", 8, 512)):
        assert not np.isin(other, first).any()


def test_uniforms_are_pinned() -> None:
    # Resumed runs draw what they drew before only while this stays as it is.
    np.testing.assert_allclose(uniforms(1, "replay", 2**63, 2), PINNED, rtol=0, atol=0)


PINNED = [0.7031119736393612, 0.5249571406530251]


def place(mirror: MirrorMap, pages: list[int], generations: list[int]) -> Placement:
    return mirror.place(np.array(pages, np.uint32), np.array(generations, np.uint32))


def test_a_mirror_of_all_pages_asks_for_what_is_missing_or_of_another_generation() -> None:
    mirror = MirrorMap(8)
    first = place(mirror, [3, 1, 3, 7], [0, 5, 0, 2])
    assert first.lacking.tolist() == [1, 3, 7]
    assert first.generations.tolist() == [5, 0, 2]
    # Nothing changes before the reply has gone.
    assert place(mirror, [3, 1, 3, 7], [0, 5, 0, 2]).lacking.tolist() == [1, 3, 7]
    mirror.sent(first)
    again = place(mirror, [7, 3, 1], [2, 0, 6])
    assert again.lacking.tolist() == [1]
    # A page stays in its slot when it begins anew.
    assert again.slots.tolist() == first.slots[[3, 0, 1]].tolist()
    assert again.new_slots.tolist() == [first.slots[1]]


def test_mirror_slots() -> None:
    assert [MirrorMap(8, slots).mirror_slots for slots in (0, 3, 8, 100)] == [8, 3, 8, 8]


def test_a_small_mirror_gives_up_what_the_reply_does_not_need() -> None:
    mirror = MirrorMap(10, 3)
    first = place(mirror, [0, 1, 2], [0, 0, 0])
    mirror.sent(first)
    second = place(mirror, [5, 0, 0, 6], [0, 0, 0, 0])
    assert second.lacking.tolist() == [5, 6]
    assert second.slots[1] == second.slots[2] == first.slots[0]
    assert sorted({*second.slots.tolist()}) == [0, 1, 2]
    mirror.sent(second)
    assert place(mirror, [1], [0]).lacking.tolist() == [1]
    with pytest.raises(ValueError, match="4 pages are needed at once, must be at most 3"):
        place(mirror, [1, 2, 3, 4], [0, 0, 0, 0])


@given(st.integers(1, 6), st.data())
def test_what_a_mirror_is_believed_to_hold_is_what_was_sent_last(num_slots: int, data: st.DataObject) -> None:
    """Against a dictionary: the learner's slots, written as it is told, always hold what the items need."""
    mirror, slots = MirrorMap(12, num_slots), dict[int, tuple[int, int]]()
    generations = np.zeros(12, np.uint32)
    for _ in range(data.draw(st.integers(1, 30))):
        generations[data.draw(st.integers(0, 11))] += 1
        pages = np.array(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=num_slots)), np.uint32)
        placement = mirror.place(pages, generations[pages])
        if data.draw(st.booleans()):
            continue  # the reply was refused for another reason
        mirror.sent(placement)
        assert len(set(placement.new_slots.tolist())) == len(placement.lacking)
        for page, slot in zip(placement.lacking.tolist(), placement.new_slots.tolist(), strict=True):
            assert slots.get(slot) != (page, generations[page]), "sent although it was there"
            slots[slot] = (page, int(generations[page]))
        for page, slot in zip(pages.tolist(), placement.slots.tolist(), strict=True):
            assert slots[slot] == (page, generations[page])
