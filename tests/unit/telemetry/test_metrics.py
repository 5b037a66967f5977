"""Every metric is declared once, exported by exactly one service; those of gRPC servers by all that have one."""

from __future__ import annotations

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from apexrl.telemetry.metric_table import METRICS, Kind
from apexrl.telemetry.metrics import (
    ActorMetrics,
    EvaluatorMetrics,
    LearnerMetrics,
    RelayMetrics,
    ReplayMetrics,
    ServiceMetrics,
    eps_band,
)

SERVICES: tuple[type[ServiceMetrics], ...] = (
    ActorMetrics,
    ReplayMetrics,
    LearnerMetrics,
    RelayMetrics,
    EvaluatorMetrics,
)


def names(metrics: ServiceMetrics) -> set[str]:
    collectors = metrics.registry._collector_to_names
    declared = {metric.name for metric in METRICS}
    return {name for group in collectors.values() for name in group if name in declared}


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_declared_metric_belongs_to_one_service() -> None:
    everybody = {"apex_build_info"}
    servers = {metric.name for metric in METRICS if metric.name.startswith("apex_grpc_server_")}
    exported = {service: names(service()) for service in SERVICES}  # type: ignore[call-arg]
    own = [found - everybody - servers for found in exported.values()]
    assert set().union(*own) == {metric.name for metric in METRICS} - everybody - servers
    assert sum(map(len, own)) == len(METRICS) - len(everybody) - len(servers)
    assert len(servers) == 3
    for service, found in exported.items():
        assert everybody <= found
        assert found & servers == (servers if service in (ReplayMetrics, LearnerMetrics, RelayMetrics) else set())


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"apex_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help.endswith(".")
        assert (len(metric.buckets) > 0) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(metric.buckets)


def test_there_are_no_created_series() -> None:
    metrics = ActorMetrics()
    metrics.env_frames.inc(4)
    metrics.observe_episode(21.0, 900, 0.4)
    text = generate_latest(metrics.registry).decode()
    assert "_created" not in text
    assert 'apex_build_info{service="actor",version="' in text
    assert value(metrics, "apex_actor_env_frames_total") == 4
    assert value(metrics, "apex_actor_episode_return_sum", eps_band="explore") == 21.0
    assert value(metrics, "process_open_fds") is not None
    series = sum(len(family.samples) for family in text_string_to_metric_families(text))
    assert series <= 60


@pytest.mark.parametrize(("epsilon", "band"), [(0.0, "greedy"), (0.01, "mid"), (0.1, "explore"), (1.0, "explore")])
def test_bands_of_exploration(epsilon: float, band: str) -> None:
    assert eps_band(epsilon) == band


def test_a_table_is_exported_with_counters_that_follow_its_totals() -> None:
    metrics = ReplayMetrics()

    def observe(inserted: int) -> None:
        metrics.observe_table(
            "replay",
            num_items=5,
            capacity_items=10,
            block_bytes=100,
            slab_bytes=200,
            mass=1.5,
            max_priority=2.0,
            inserted=inserted,
            drawn=3,
            evicted=2,
            updates_applied=7,
            updates_stale=1,
            duplicates=4,
        )

    observe(10)
    observe(14)
    assert value(metrics, "apex_replay_inserts_total", table="replay") == 14
    assert value(metrics, "apex_replay_samples_total", table="replay") == 3
    assert value(metrics, "apex_replay_bytes", table="replay", kind="slabs") == 200
    assert value(metrics, "apex_replay_priority_updates_total", table="replay", result="stale") == 1
    observe(6)  # the table was cleared and counts from 0 again
    assert value(metrics, "apex_replay_inserts_total", table="replay") == 20


def test_a_counter_leaves_out_what_former_processes_have_counted() -> None:
    """Else a rate would take the whole run for the work of the first seconds after a resume."""
    metrics = LearnerMetrics()
    metrics.follow_from(metrics.steps, 5000)
    metrics.follow(metrics.steps, 5000)
    assert metrics.registry.get_sample_value("apex_learner_steps_total") == 0.0
    metrics.follow(metrics.steps, 5007)
    assert metrics.registry.get_sample_value("apex_learner_steps_total") == 7.0
