"""Which of several addresses is asked."""

from __future__ import annotations

import pytest

from apexrl.transport.failover import Failover


def test_it_keeps_to_the_first_while_that_answers() -> None:
    failover = Failover(["a:1", "b:1"])
    assert [failover.choose() for _ in range(3)] == ["a:1"] * 3


def test_it_goes_round_while_none_answers() -> None:
    failover = Failover(["a:1", "b:1", "c:1"])
    asked = [(failover.choose(), failover.failed()) for _ in range(4)]
    assert asked == [("a:1", False), ("b:1", False), ("c:1", True), ("a:1", False)]


def test_it_returns_to_the_first_in_time_and_leaves_it_again_if_it_is_still_dead() -> None:
    now = [0.0]
    failover = Failover(["a:1", "b:1"], home_retry_seconds=60.0, clock=lambda: now[0])
    failover.failed()
    now[0] = 29.0
    assert failover.choose() == "b:1"
    now[0] = 91.0
    assert failover.choose() == "a:1"
    failover.failed()
    assert failover.choose() == "b:1"
    now[0] = 120.0
    assert failover.choose() == "b:1"
    now[0] = 182.0
    assert failover.choose() == "a:1"


def test_one_address_is_asked_for_ever() -> None:
    failover = Failover(["a:1"])
    assert failover.failed()
    assert failover.choose() == "a:1"
    with pytest.raises(ValueError, match="at least one"):
        Failover([])
