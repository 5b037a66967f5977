"""Logs are readable on a terminal, machine-readable elsewhere, and say what a process waits for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from apexrl.telemetry.logging import Waiting, configure_logging, get_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_lines_are_json_with_the_service_bound() -> None:
    stream = io.StringIO()
    configure_logging("actor", "host:7", stream=stream)
    get_logger("apexrl.test", lane=3).info("hello", value=1.5)
    logging.getLogger("other").warning("from the %s", "library")
    logging.getLogger("other").debug("unseen")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["service"], first["peer"], first["lane"], first["value"], first["level"]) == (
        "hello",
        "actor",
        "host:7",
        3,
        1.5,
        "info",
    )
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["service"], second["level"]) == ("from the library", "actor", "warning")


def test_an_exception_stays_on_one_line() -> None:
    stream = io.StringIO()
    configure_logging("learner", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("apexrl.test").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: broken" in json.loads(line)["exception"]


def test_a_terminal_gets_plain_lines() -> None:
    stream = Terminal()
    configure_logging("replay", stream=stream, level="warning")
    get_logger("apexrl.test").info("unseen")
    get_logger("apexrl.test").warning("disk full", path="/x")
    (line,) = stream.getvalue().splitlines()
    assert "disk full" in line
    assert "replay" in line
    assert "{" not in line


class Recorder:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        self.lines.append((event, values))


def test_waiting_is_said_every_ten_seconds() -> None:
    now = 0.0
    log = Recorder()
    waiting = Waiting(log, clock=lambda: now)
    for tick in range(0, 260):
        now = tick / 10
        waiting.on(f"{tick} of 260 items")
    assert [values["seconds"] for _, values in log.lines] == [1.0, 11.0, 21.0]
    assert log.lines[0] == ("waiting", {"reason": "10 of 260 items", "seconds": 1.0})
    assert waiting.reason == "259 of 260 items"
    now = 26.0
    assert waiting.done() == 26.0
    assert log.lines[-1] == ("done waiting", {"reason": "259 of 260 items", "seconds": 26.0})
    assert waiting.reason is None
    assert waiting.done() == 0.0


def test_a_short_wait_is_not_worth_a_line() -> None:
    now = 0.0
    log = Recorder()
    waiting = Waiting(log, clock=lambda: now)
    for _ in range(100):
        waiting.on("a batch")
        now += 0.5
        assert waiting.done() == 0.5
    assert log.lines == []
