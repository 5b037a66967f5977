"""Counter-based random numbers, and the map of what a mirror holds."""

import numpy as np
import pytest

from apexrl.replay.draws import uniforms
from apexrl.replay.mirror_map import MirrorMap


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


def test_mirror_map_asks_for_what_is_missing_or_of_another_generation() -> None:
    mirror = MirrorMap(8)
    pages = np.array([3, 1, 3, 7], np.uint32)
    generations = np.array([0, 5, 0, 2], np.uint32)
    assert mirror.lacking(pages, generations).tolist() == [1, 3, 7]
    # Nothing changes before the reply has gone.
    assert mirror.lacking(pages, generations).tolist() == [1, 3, 7]
    mirror.sent(np.array([1, 3], np.uint32), np.array([5, 0], np.uint32))
    assert mirror.lacking(pages, generations).tolist() == [7]
    assert mirror.lacking(np.array([1], np.uint32), np.array([6], np.uint32)).tolist() == [1]


def test_mirror_map_refuses_smaller_mirrors() -> None:
    assert MirrorMap(8, 8).mirror_slots == 8
    assert MirrorMap(8, 0).mirror_slots == 8
    with pytest.raises(ValueError, match="mirror_slots is 4, must be 0 or the number of the table's pages, 8"):
        MirrorMap(8, 4)
