"""Typed access to the Prometheus metrics of each service.

Names are declared in :mod:`apexrl.telemetry.metric_table`. A service makes its one object (:class:`ActorMetrics` ...),
sets its attributes and serves it with :mod:`apexrl.telemetry.metrics_server`. Each object has a registry of its own, so
a process may hold several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from apexrl import __version__
from apexrl.telemetry.calls import BOUNDS, CallCounts, Snapshot
from apexrl.telemetry.metric_table import METRICS, Kind
from apexrl.telemetry.probes import Probes

FamilyT = TypeVar("FamilyT", bound=Family)

_BY_NAME = {metric.name: metric for metric in METRICS}
_CLASSES: dict[Kind, Any] = {
    Kind.COUNTER: Counter,
    Kind.GAUGE: Gauge,
    Kind.HISTOGRAM: Histogram,
    Kind.SUMMARY: Summary,
}


def eps_band(epsilon: float) -> str:
    """Label for a lane's epsilon: greedy (below 0.01), mid, or explore (0.1 and above)."""
    return "greedy" if epsilon < 0.01 else "mid" if epsilon < 0.1 else "explore"


class ServiceMetrics:
    """The metrics of one service on a registry of their own, with those of the process."""

    def __init__(self, service: str) -> None:
        # A *_created series beside every counter would double what an actor exports and tell nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        self.probes = Probes()
        self._totals: dict[tuple[int, tuple[str, ...]], float] = {}
        ProcessCollector(registry=self.registry)
        self._gauge("apex_build_info").labels(version=__version__, service=service).set(1)

    def _make(self, name: str, kind: Kind) -> Any:
        metric = _BY_NAME[name]
        if metric.kind is not kind:
            raise TypeError(f"{name} is declared as a {metric.kind}, not as a {kind}")
        arguments: dict[str, Any] = {"buckets": metric.buckets} if metric.buckets else {}
        return _CLASSES[kind](metric.name, metric.help, metric.labels, registry=self.registry, **arguments)

    def _counter(self, name: str) -> Counter:
        counter: Counter = self._make(name, Kind.COUNTER)
        return counter

    def _gauge(self, name: str) -> Gauge:
        gauge: Gauge = self._make(name, Kind.GAUGE)
        return gauge

    def _histogram(self, name: str) -> Histogram:
        histogram: Histogram = self._make(name, Kind.HISTOGRAM)
        return histogram

    def _summary(self, name: str) -> Summary:
        summary: Summary = self._make(name, Kind.SUMMARY)
        return summary

    def follow_from(self, counter: Counter, total: float) -> None:
        """Let :meth:`follow` count what comes above ``total``: the part of former processes, which have counted it."""
        self._totals[id(counter), ()] = total

    def follow(self, counter: Counter, total: float, *labels: str) -> None:
        """Bring ``counter`` up to a running total kept elsewhere; a lower one than before is a total begun anew."""
        key = (id(counter), labels)
        last = self._totals.get(key, 0.0)
        self._totals[key] = total
        child = counter.labels(*labels) if labels else counter
        child.inc(total - last if total >= last else total)


def _family(make: Callable[..., FamilyT], name: str) -> FamilyT:
    metric = _BY_NAME[name]
    return make(metric.name, metric.help, labels=metric.labels)


class CallCollector(Collector):
    """Exports counts, read at every scrape."""

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read

    def collect(self) -> Iterator[Family]:
        """See prometheus_client."""
        handled = _family(CounterMetricFamily, "apex_grpc_server_handled_total")
        seconds = _family(HistogramMetricFamily, "apex_grpc_server_handling_seconds")
        in_flight = _family(GaugeMetricFamily, "apex_grpc_server_in_flight")
        bounds = [*map(str, BOUNDS), "+Inf"]
        for method, counts in self._read().items():
            in_flight.add_metric([method], counts["in_flight"])
            for code, number in counts["handled"].items():
                handled.add_metric([method, code], number)
            if any(counts["buckets"]):
                cumulative = list(zip(bounds, accumulate(counts["buckets"]), strict=True))
                seconds.add_metric([method], cumulative, counts["seconds"])
        yield from (handled, seconds, in_flight)


class ActorMetrics(ServiceMetrics):
    """Metrics of an actor."""

    def __init__(self) -> None:
        super().__init__("actor")
        self.env_frames = self._counter("apex_actor_env_frames_total")
        self.env_steps = self._counter("apex_actor_env_steps_total")
        self.episodes = self._counter("apex_actor_episodes_total")
        self.episode_return = self._summary("apex_actor_episode_return")
        self.episode_length_steps = self._summary("apex_actor_episode_length_steps")
        self.epsilon = self._gauge("apex_actor_epsilon")
        self.slot = self._gauge("apex_actor_slot")
        self.lease_info = self._gauge("apex_actor_lease_info")
        self.params_age_seconds = self._gauge("apex_actor_params_age_seconds")
        self.params_epoch = self._gauge("apex_actor_params_epoch")
        self.params_version = self._gauge("apex_actor_params_version")
        self.params_fetch_seconds = self._histogram("apex_actor_params_fetch_seconds")
        self.params_fetch_bytes = self._counter("apex_actor_params_fetch_bytes_total")
        self.transitions_sent = self._counter("apex_actor_transitions_sent_total")
        self.transitions_dropped = self._counter("apex_actor_transitions_dropped_total")
        self.insert_queue_transitions = self._gauge("apex_actor_insert_queue_transitions")
        self.phase_seconds = self._counter("apex_actor_phase_seconds_total")

    def observe_episode(self, episode_return: float, length_steps: int, epsilon: float) -> None:
        """Count a finished episode."""
        band = eps_band(epsilon)
        self.episodes.inc()
        self.episode_return.labels(band).observe(episode_return)
        self.episode_length_steps.labels(band).observe(length_steps)


class ReplayMetrics(ServiceMetrics):
    """Metrics of a replay shard."""

    def __init__(self) -> None:
        super().__init__("replay")
        self.calls = CallCounts()
        self.registry.register(CallCollector(self.calls.snapshot))
        self.size_transitions = self._gauge("apex_replay_size_transitions")
        self.capacity_transitions = self._gauge("apex_replay_capacity_transitions")
        self.bytes = self._gauge("apex_replay_bytes")
        self.inserts = self._counter("apex_replay_inserts_total")
        self.samples = self._counter("apex_replay_samples_total")
        self.evictions = self._counter("apex_replay_evictions_total")
        self.priority_updates = self._counter("apex_replay_priority_updates_total")
        self.duplicates = self._counter("apex_replay_duplicates_total")
        self.rejected = self._counter("apex_replay_rejected_total")
        self.priority_sum = self._gauge("apex_replay_priority_sum")
        self.priority_max = self._gauge("apex_replay_priority_max")
        self.learner_epoch = self._gauge("apex_replay_learner_epoch")
        self.insert_streams = self._gauge("apex_replay_insert_streams")
        self.sample_streams = self._gauge("apex_replay_sample_streams")
        self.engine_queue_commands = self._gauge("apex_replay_engine_queue_commands")
        self.journal_bytes = self._counter("apex_replay_journal_bytes_total")
        self.journal_dropped = self._counter("apex_replay_journal_dropped_total")
        self.journal_failing = self._gauge("apex_replay_journal_failing")

    def observe_table(
        self,
        table: str,
        *,
        num_items: int,
        capacity_items: int,
        block_bytes: int,
        slab_bytes: int,
        mass: float,
        max_priority: float,
        inserted: int,
        drawn: int,
        evicted: int,
        updates_applied: int,
        updates_stale: int,
        duplicates: int,
    ) -> None:
        """Export a table's state; the last six are totals since the shard's start."""
        self.size_transitions.labels(table).set(num_items)
        self.capacity_transitions.labels(table).set(capacity_items)
        self.bytes.labels(table, "blocks").set(block_bytes)
        self.bytes.labels(table, "slabs").set(slab_bytes)
        self.priority_sum.labels(table).set(mass)
        self.priority_max.labels(table).set(max_priority)
        self.follow(self.inserts, inserted, table)
        self.follow(self.samples, drawn, table)
        self.follow(self.evictions, evicted, table)
        self.follow(self.priority_updates, updates_applied, table, "applied")
        self.follow(self.priority_updates, updates_stale, table, "stale")
        self.follow(self.duplicates, duplicates, table)


class LearnerMetrics(ServiceMetrics):
    """Metrics of the learner."""

    def __init__(self) -> None:
        super().__init__("learner")
        self.calls: Snapshot = {}
        """Of the serving child, as it said last."""
        self.registry.register(CallCollector(lambda: self.calls))
        self.steps = self._counter("apex_learner_steps_total")
        self.transitions = self._counter("apex_learner_transitions_total")
        self.step_seconds = self._histogram("apex_learner_step_seconds")
        self.phase_seconds = self._counter("apex_learner_phase_seconds_total")
        self.prefetch_batches = self._gauge("apex_learner_prefetch_batches")
        self.drawn_items = self._counter("apex_learner_drawn_items_total")
        self.mirror_chunks = self._counter("apex_learner_mirror_chunks_total")
        self.mirror_bytes = self._counter("apex_learner_mirror_bytes_total")
        self.mirror_decode_seconds = self._counter("apex_learner_mirror_decode_seconds_total")
        self.redraws = self._counter("apex_learner_redraws_total")
        self.sample_latency_seconds = self._histogram("apex_learner_sample_latency_seconds")
        self.loss = self._gauge("apex_learner_loss")
        self.td_error_abs_mean = self._gauge("apex_learner_td_error_abs_mean")
        self.q_mean = self._gauge("apex_learner_q_mean")
        self.q_max = self._gauge("apex_learner_q_max")
        self.grad_norm = self._gauge("apex_learner_grad_norm")
        self.is_weight_min = self._gauge("apex_learner_is_weight_min")
        self.nonfinite = self._counter("apex_learner_nonfinite_total")
        self.params_version = self._gauge("apex_learner_params_version")
        self.params_publish = self._counter("apex_learner_params_publish_total")
        self.params_served_bytes = self._counter("apex_learner_params_served_bytes_total")
        self.params_not_modified = self._counter("apex_learner_params_not_modified_total")
        self.params_waiting_transfers = self._gauge("apex_learner_params_waiting_transfers")
        self.active = self._gauge("apex_learner_active")
        self.finished = self._gauge("apex_learner_finished")
        self.epoch = self._gauge("apex_learner_epoch")
        self.global_frames = self._gauge("apex_learner_global_frames")
        self.samples_per_insert = self._gauge("apex_learner_samples_per_insert")
        self.min_replay_transitions = self._gauge("apex_learner_min_replay_transitions")
        self.replay_shards_expected = self._gauge("apex_learner_replay_shards_expected")
        self.replay_shards_live = self._gauge("apex_learner_replay_shards_live")
        self.actor_leases = self._gauge("apex_learner_actor_leases")
        self.parameter_lag_updates = self._gauge("apex_learner_parameter_lag_updates")
        self.checkpoint_interval_seconds = self._gauge("apex_learner_checkpoint_interval_seconds")
        self.checkpoint_last_success = self._gauge("apex_learner_checkpoint_last_success_timestamp_seconds")
        self.checkpoint_bytes = self._gauge("apex_learner_checkpoint_bytes")
        self.checkpoint_failures = self._counter("apex_learner_checkpoint_failures_total")


class RelayMetrics(ServiceMetrics):
    """Metrics of a parameter relay."""

    def __init__(self) -> None:
        super().__init__("relay")
        self.calls = CallCounts()
        self.registry.register(CallCollector(self.calls.snapshot))
        self.params_epoch = self._gauge("apex_relay_params_epoch")
        self.params_version = self._gauge("apex_relay_params_version")
        self.params_publish = self._counter("apex_relay_params_publish_total")
        self.params_fetch_bytes = self._counter("apex_relay_params_fetch_bytes_total")
        self.params_served_bytes = self._counter("apex_relay_params_served_bytes_total")
        self.params_not_modified = self._counter("apex_relay_params_not_modified_total")
        self.params_waiting_transfers = self._gauge("apex_relay_params_waiting_transfers")
        self.upstream_live = self._gauge("apex_relay_upstream_live")


class EvaluatorMetrics(ServiceMetrics):
    """Metrics of an evaluator."""

    def __init__(self) -> None:
        super().__init__("evaluator")
        self.episodes = self._counter("apex_eval_episodes_total")
        self.episode_return = self._summary("apex_eval_episode_return")
        self.episode_length_steps = self._summary("apex_eval_episode_length_steps")
        self.epsilon = self._gauge("apex_eval_epsilon")
        self.params_epoch = self._gauge("apex_eval_params_epoch")
        self.params_version = self._gauge("apex_eval_params_version")

    def observe_episode(self, episode_return: float, length_steps: int) -> None:
        """Count a finished episode."""
        self.episodes.inc()
        self.episode_return.observe(episode_return)
        self.episode_length_steps.observe(length_steps)
