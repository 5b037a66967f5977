"""The parts that Grafana dashboards are written with; see ``dashboard_panels.py``.

In expressions ``{}`` stands for the chosen release, and ``{+label="x"}`` for the release and more labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Window of rates, which Grafana makes fit the time range and the scrape interval.
R = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries`` are (expression, legend); ``shares`` stacks them to 100 %."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    shares: bool = False
    logarithmic: bool = False
    width: int = 0


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels, each row with a title."""

    name: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def stat(title: str, description: str, unit: str, expr: str) -> Panel:
    """A single number."""
    return Panel(title, description, unit, ((expr, ""),), kind="stat")


def lines(title: str, description: str, unit: str, *queries: tuple[str, str], width: int = 0) -> Panel:
    """Lines over time."""
    return Panel(title, description, unit, queries, width=width)


def phases(title: str, description: str, metric: str) -> Panel:
    """Shares of time by phase."""
    query = (f"sum by (phase) (rate({metric}{{}}{R}))", "{{phase}}")
    return Panel(title, description, "percentunit", (query,), shares=True)


def mean(metric: str, by: str = "") -> str:
    """Mean of a summary over the last ten minutes: episodes may be rare."""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({metric}_sum{{}}[10m])) / (sum{group} (rate({metric}_count{{}}[10m])) > 0)"


def quantiles(metric: str, *by: str) -> tuple[tuple[str, str], ...]:
    """Median and 99th percentile of a histogram."""
    groups = ", ".join(("le", *by))
    legend = "".join(f" {{{{{label}}}}}" for label in by)
    return tuple(
        (f"histogram_quantile({q}, sum by ({groups}) (rate({metric}_bucket{{}}{R})))", f"{name}{legend}")
        for q, name in ((0.5, "median"), (0.99, "p99"))
    )


def calls(service: str) -> tuple[Panel, ...]:
    """Rate, errors, duration and number under way of the calls of a gRPC service, given as a regular expression."""
    methods = f'method=~"apex.v1.({service})/.*"'
    return (
        lines(
            "Calls",
            "That ended, by method.",
            "short",
            (f"sum by (method) (rate(apex_grpc_server_handled_total{{+{methods}}}{R}))", "{{method}}/s"),
        ),
        lines(
            "Calls that failed",
            "By gRPC status. CANCELLED: the caller went away. FAILED_PRECONDITION: a handshake was refused.",
            "short",
            (
                f'sum by (method, code) (rate(apex_grpc_server_handled_total{{+code!="OK",{methods}}}{R}))',
                "{{method}} {{code}}/s",
            ),
        ),
        lines(
            "Time of a call",
            "By method, without streams that stay open.",
            "s",
            *(
                (
                    f"histogram_quantile({q}, sum by (le, method) "
                    f"(rate(apex_grpc_server_handling_seconds_bucket{{+{methods}}}{R})))",
                    f"{{{{method}}}} {name}",
                )
                for q, name in ((0.5, "median"), (0.99, "p99"))
            ),
        ),
        lines(
            "Calls under way",
            "Of streams: the open ones.",
            "short",
            (f"sum by (method) (apex_grpc_server_in_flight{{+{methods}}})", "{{method}}"),
        ),
    )


def spread(metric: str) -> tuple[tuple[str, str], ...]:
    """Median, 90th percentile and maximum of a gauge over pods."""
    return (
        (f"quantile(0.5, {metric}{{}})", "median"),
        (f"quantile(0.9, {metric}{{}})", "p90"),
        (f"max({metric}{{}})", "max"),
    )
