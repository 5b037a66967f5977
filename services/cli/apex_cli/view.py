"""The live view of a run: a panel on a terminal, plain lines elsewhere. Both show one ``GetStatusResponse``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import replay_pb2
from apexrl.transport.sample_client import NO_LIMIT

LINE_PERIOD_SECONDS = 10.0


class View(Protocol):
    """Shows how a run stands."""

    def __enter__(self) -> View: ...

    def __exit__(self, *error: object) -> None: ...

    def show(self, status: pb.GetStatusResponse | None, note: str = "") -> None:
        """Show a status; None while the learner does not answer yet. ``note`` is the launcher's own remark."""
        ...


def make_view(title: str) -> View:
    """A panel if standard output is a terminal, else lines."""
    return PanelView(title) if sys.stdout.isatty() else LineView()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as people read them: 1h02m, 3m07s, 12s."""
    total = max(0, int(seconds))
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _optional(status: pb.GetStatusResponse, name: str) -> str:
    return f"{getattr(status, name):.1f}" if status.HasField(name) else "-"  # type: ignore[arg-type]


def status_line(status: pb.GetStatusResponse) -> str:
    """One log line of a status."""
    parts = [
        f"frames {status.global_frames:,} ({status.frames_per_second:,.0f}/s)",
        f"replay {status.replay_items:,}/{status.min_replay_items:,} to start"
        if status.replay_items < status.min_replay_items
        else f"replay {status.replay_items:,}",
        f"updates {status.learner_updates:,} ({status.updates_per_second:.1f}/s)",
        f"samples/insert {status.samples_per_insert:.2f}",
        f"params {status.version.epoch}.{status.version.step} lag {status.parameter_lag_updates:.0f}",
        f"return greedy {_optional(status, 'greedy_return')} exploring {_optional(status, 'exploring_return')} "
        f"evaluator {_optional(status, 'evaluator_return')}",
    ]
    if status.HasField("seconds_left"):
        parts.append(f"left {duration(status.seconds_left)}")
    parts += [f"[{line}]" for line in status.waiting]
    return " | ".join(parts)


class LineView:
    """Plain lines, one every ten seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._note = ""

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, status: pb.GetStatusResponse | None, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last < LINE_PERIOD_SECONDS and note == self._note:
            return
        self._last, self._note = now, note
        line = status_line(status) if status is not None else "starting the services"
        print(f"{time.strftime('%H:%M:%S')} {line}" + (f" | {note}" if note else ""), flush=True)


class PanelView:
    """A panel that is redrawn in place."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._live = Live(console=Console(), refresh_per_second=4, transient=False)
        self._started = time.monotonic()

    def __enter__(self) -> PanelView:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, status: pb.GetStatusResponse | None, note: str = "") -> None:
        self._live.update(self._panel(status, note))

    def _panel(self, status: pb.GetStatusResponse | None, note: str) -> Panel:
        elapsed = duration(time.monotonic() - self._started)
        title = f"apex · {self._title} · {elapsed}"
        if status is None:
            return Panel(Text(note or "starting the services"), title=title, title_align="left")
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim")
        rows.add_column()
        rows.add_column()
        for name, value, extra in status_rows(status):
            rows.add_row(name, value, extra)
        parts: list[object] = [rows]
        if status.replay_items < status.min_replay_items:
            parts.append(ProgressBar(total=status.min_replay_items, completed=status.replay_items, width=60))
        parts += [Text(f"waits: {line}", style="yellow") for line in status.waiting]
        if note:
            parts.append(Text(note, style="bold"))
        return Panel(Group(*parts), title=title, title_align="left")  # type: ignore[arg-type]


def status_rows(status: pb.GetStatusResponse) -> list[tuple[str, str, str]]:
    """(name, value, remark) of everything the panel shows."""
    left = duration(status.seconds_left) if status.HasField("seconds_left") else "no end set"
    return [
        ("frames", f"{status.global_frames:,}", f"{status.frames_per_second:,.0f} frames/s"),
        ("replay", f"{status.replay_items:,} items", f"learning starts at {status.min_replay_items:,}"),
        (
            "learner",
            f"{status.learner_updates:,} updates",
            f"{status.updates_per_second:.1f} updates/s · {status.samples_per_insert:.2f} samples per insert · "
            f"waits {status.batch_wait_ratio:.0%} of its time",
        ),
        (
            "parameters",
            f"version {status.version.epoch}.{status.version.step}",
            f"actors lag {status.parameter_lag_updates:.0f} updates behind",
        ),
        ("fleet", f"{status.actors} actors, {status.lanes} lanes", f"{status.evaluators} evaluators"),
        (
            "return",
            f"evaluator {_optional(status, 'evaluator_return')}",
            f"greedy lanes {_optional(status, 'greedy_return')} · exploring lanes "
            f"{_optional(status, 'exploring_return')} · {status.episodes:,} episodes",
        ),
        ("loss", f"{status.loss:.4g}", ""),
        ("time left", left, ""),
    ]


def shard_heading(info: replay_pb2.GetInfoResponse) -> str:
    """Who a shard is and whom it serves."""
    return (
        f"version {info.version}, up {duration(info.uptime_seconds)}, run {info.run_id or '(none yet)'}, learner epoch "
        f"{info.learner_epoch}, {info.insert_streams} insert streams, {info.sample_streams} sample streams"
    )


def shard_rows(info: replay_pb2.GetInfoResponse) -> list[tuple[str, str, str]]:
    """(name, value, remark) of everything that a shard says of its tables."""
    rows: list[tuple[str, str, str]] = []
    for table in info.tables:
        totals = table.totals
        left = table.insert_limit - totals.inserted
        limit = "none" if table.insert_limit == NO_LIMIT else f"{table.insert_limit:,} items"
        rows += [
            (
                f"table {totals.table}",
                f"{totals.num_items:,} of {table.config.capacity_items:,} items",
                f"{table.pages_used:,} of {table.num_pages:,} pages",
            ),
            (
                "memory",
                f"{table.block_bytes / 2**20:,.1f} MiB",
                f"in slabs of {table.slab_bytes / 2**20:,.1f} MiB · at most "
                f"{table.config.budget_bytes / 2**20:,.0f} MiB",
            ),
            (
                "inserted",
                f"{totals.inserted:,} items",
                f"{totals.drawn:,} drawn · {table.evicted:,} evicted · {table.duplicates:,} duplicate chunks",
            ),
            (
                "insert limit",
                limit,
                "" if limit == "none" else f"{left:,} more may come now" if left > 0 else "it takes no more now",
            ),
            (
                "priorities",
                f"sum {totals.mass:.6g}",
                f"highest {table.max_priority:.4g} · {table.stale_updates:,} stale updates",
            ),
        ]
    return rows


def aligned(rows: Sequence[tuple[str, str, str]], indent: str = "  ") -> list[str]:
    """Lines of a table whose columns are as wide as what stands in them."""
    first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    return [f"{indent}{name:<{first}}  {value:<{second}}  {remark}".rstrip() for name, value, remark in rows]
