"""Structured logs: coloured lines on a terminal, one JSON object per line elsewhere. Always on stderr.

Services call :func:`configure_logging` once at their start; modules take a logger with :func:`get_logger` and log
events with values (``log.info("checkpoint saved", step=5, seconds=0.2)``). Records of the standard library's
``logging`` come out the same way.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["auto", "console", "json"]


def configure_logging(
    service: str,
    peer: str | None = None,
    *,
    log_format: LogFormat = "auto",
    level: str = "INFO",
    stream: TextIO | None = None,
) -> None:
    """Set up logging for this process.

    Args:
        service: Bound to every line, for example ``actor``.
        peer: Name of this process among its kind (pod name or host:pid), bound to every line if given.
        log_format: auto = console on a terminal, JSON elsewhere.
        level: Least level that is logged.
        stream: Where lines go; default stderr, so that a command's output stays clean.
    """
    stream = stream or sys.stderr
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared_processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _bind({"service": service} | ({"peer": peer} if peer else {})),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    ending: list[Any]
    if console:
        ending = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)]
    else:
        ending = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]

    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared_processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared_processors,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Loggers made before configuration, at import, follow it too.
        cache_logger_on_first_use=False,
    )


def get_logger(name: str, **values: Any) -> structlog.stdlib.BoundLogger:
    """A logger that adds ``values`` to each line. Levels can be set per ``name`` through the standard library."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name, **values)
    return logger


class Waiting:
    """Says what somebody waits for: once after ``patience_seconds``, then every ``period_seconds``.

    Whoever waits calls :meth:`on` at each look, with the current reason, and :meth:`done` when the wait is over. Short
    waits are not logged. ``reason`` is for status replies: the current one, None while not waiting.
    """

    def __init__(
        self,
        log: Any,
        *,
        patience_seconds: float = 1.0,
        period_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._patience = patience_seconds
        self._period = period_seconds
        self._clock = clock
        self._since: float | None = None
        self._next = 0.0
        self._logged = False
        self.reason: str | None = None

    def on(self, reason: str) -> None:
        """Still waiting for ``reason``, for example ``replay: 812 of 50000 items``."""
        now = self._clock()
        if self._since is None:
            self._since, self._next, self._logged = now, now + self._patience, False
        self.reason = reason
        if now >= self._next:
            self._log.info("waiting", reason=reason, seconds=round(now - self._since, 1))
            self._next = now + self._period
            self._logged = True

    def done(self) -> float:
        """The wait is over; returns how many seconds it took, 0.0 if there was none."""
        if self._since is None:
            return 0.0
        seconds = self._clock() - self._since
        if self._logged:
            self._log.info("done waiting", reason=self.reason, seconds=round(seconds, 1))
        self._since, self.reason = None, None
        return seconds


def _bind(values: dict[str, str]) -> Callable[[Any, str, dict[str, Any]], dict[str, Any]]:
    def add(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        for key, value in values.items():
            event.setdefault(key, value)
        return event

    return add
