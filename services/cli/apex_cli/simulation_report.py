"""What ``apex simulate`` says: rates, waits, and what each service and each actor needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MEGABYTE = 1e6


@dataclass
class Need:
    """What one process needs. None = not known."""

    name: str
    cpu_cores: float | None = None
    """CPU seconds per second."""
    rss_mb: float | None = None
    """Largest resident memory in the measured time, 10^6 bytes."""
    in_mb_per_second: float | None = None
    """Payload received: encoded chunks, parameters; without framing, keys and priorities."""
    out_mb_per_second: float | None = None
    """Payload sent."""


@dataclass
class Report:
    """A measured simulation."""

    config: str
    actors: int
    actors_joined: int
    lanes_per_actor: int
    env_steps_per_second_per_actor: float
    seconds: float
    learning: bool
    """Whether the learner made updates in the measured time."""
    offered_per_second: float
    """Transitions per second that the actors would play if nothing waited."""
    inserted_per_second: float
    """Transitions that shards took in."""
    sampled_per_second: float
    """Transitions that shards drew."""
    updates_per_second: float
    parameter_mb_per_second: float
    """To all actors."""
    insert_mb_per_second: float
    """Encoded chunks that shards took in."""
    insert_windows_full_ratio: float
    """Chunks that were not acknowledged at the end, of those that the actors' windows hold."""
    insert_blocked_seconds: float
    """Sum over actors."""
    insert_blocked_ratio: float
    """Of the actors' time."""
    batch_wait_ratio: float
    """Share of the learner's time spent waiting for batches."""
    simulator_late_ratio: float
    """Share of play skipped because the simulating process itself was too slow."""
    pods: list[Need] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """What services said at the end that they wait for."""

    def as_json(self) -> dict[str, Any]:
        """All fields; units are in their names."""
        return asdict(self)


def lines(report: Report) -> list[str]:
    """The report as a table."""
    shown = [
        f"{report.actors_joined} of {report.actors} actors took part, {report.lanes_per_actor} lanes and "
        f"{report.env_steps_per_second_per_actor:,.1f} env steps/s each; measured {report.seconds:.1f} s",
        "",
        f"{'inserted':<14}{report.inserted_per_second:>14,.1f} transitions/s, of {report.offered_per_second:,.1f} that "
        "the actors would play",
        f"{'sampled':<14}{report.sampled_per_second:>14,.1f} transitions/s",
        f"{'updates':<14}{report.updates_per_second:>14,.2f} /s" + ("" if report.learning else "   (not learning yet)"),
        f"{'inserts':<14}{report.insert_mb_per_second:>14,.3f} MB/s",
        f"{'parameters':<14}{report.parameter_mb_per_second:>14,.3f} MB/s",
        "",
        f"{'insert blocked':<16}{report.insert_blocked_ratio:>11.1%}  of the actors' time "
        f"({report.insert_blocked_seconds:,.1f} s in all)",
        f"{'insert windows':<16}{report.insert_windows_full_ratio:>11.1%}  full at the end; full = blocked",
        f"{'batch wait':<16}{report.batch_wait_ratio:>11.1%}  of the learner's time",
        "",
        f"{'':<26}{'CPU cores':>11}{'RSS MB':>10}{'in MB/s':>11}{'out MB/s':>11}",
    ]
    for pod in report.pods:
        shown.append(
            f"{pod.name:<26}{_number(pod.cpu_cores, 4):>11}{_number(pod.rss_mb, 1):>10}"
            f"{_number(pod.in_mb_per_second, 4):>11}{_number(pod.out_mb_per_second, 4):>11}"
        )
    shown += [f"waits: {line}" for line in report.waiting]
    if report.simulator_late_ratio > 0.01:
        shown.append(
            f"the simulating process was too slow for {report.simulator_late_ratio:.0%} of the play: rates are lower "
            "than those of so many real actors; use fewer actors per process, or more cores"
        )
    return shown


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
