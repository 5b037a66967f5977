"""What processes use: CPU time and memory, from /proc on this machine or from a service's /metrics elsewhere."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

SCRAPE_SECONDS = 2.0


class Usage(NamedTuple):
    """Of one process."""

    cpu_seconds: float
    """Ever, of all its threads."""
    rss_bytes: int


def process_usage(pid: int) -> Usage | None:
    """Usage of a process of this machine; None if there is none of this number."""
    try:
        # The name, in brackets, may hold anything; what follows it is separated by spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


def child_processes(pid: int) -> list[int]:
    """Processes that ``pid`` has started and that still run, oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found.append(int(entry.name))
    return sorted(found)


def scrape(address: str) -> dict[str, float]:
    """Metric -> sum over its labels, of the service whose /metrics is at HOST:PORT; {} if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=SCRAPE_SECONDS) as response:
            text = response.read().decode()
    except (OSError, ValueError):
        return {}
    return parse_metrics(text)


def parse_metrics(text: str) -> dict[str, float]:
    """Metric -> sum over its labels, of Prometheus' text format."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        found[name] = found.get(name, 0.0) + float(value)
    return found


def scraped_usage(metrics: dict[str, float]) -> Usage | None:
    """Usage that a service exports of itself; None if it does not."""
    try:
        return Usage(metrics["process_cpu_seconds_total"], int(metrics["process_resident_memory_bytes"]))
    except KeyError:
        return None
