"""Calls of real servers are counted: what came of them, how long they took, which are under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parameter_scene import parameters, server
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from replay_scene import (
    TABLE,
    WAIT,
    RawStream,
    fill,
    handshake,
    insert_chunks,
    inserter,
    make_chunk,
    open_insert,
    wait_until,
)

from apex_replay.service import ReplayService
from apexrl.config import SecurityConfig
from apexrl.telemetry.calls import BOUNDS, CallCounts
from apexrl.telemetry.metrics import LearnerMetrics, ReplayMetrics
from apexrl.transport import security
from apexrl.transport.channel import LEARNER_LIMITS
from apexrl.transport.info_client import UnreachableError, fetch_info, fetch_states
from apexrl.transport.io_thread import io_thread
from apexrl.transport.parameter_client import ParameterClient
from apexrl.transport.parameter_server import ParametersServicer
from apexrl.transport.security import Security
from apexrl.transport.server import start_server

INSERT, INFO = "apex.v1.Replay/Insert", "apex.v1.Replay/GetInfo"


@pytest.fixture(autouse=True)
def plain_again() -> Iterator[None]:
    yield
    security.use(Security())


@contextmanager
def counted_shard() -> Iterator[tuple[ReplayService, ReplayMetrics]]:
    metrics = ReplayMetrics()
    service = ReplayService("127.0.0.1:0", calls=metrics.calls)
    try:
        yield service, metrics
    finally:
        service.stop(0.2)


def handled(metrics: ReplayMetrics, method: str, code: str) -> float | None:
    labels = {"method": method, "code": code}
    return metrics.registry.get_sample_value("apex_grpc_server_handled_total", labels)


def in_flight(metrics: ReplayMetrics, method: str) -> float | None:
    return metrics.registry.get_sample_value("apex_grpc_server_in_flight", {"method": method})


def test_answers_are_counted_and_timed() -> None:
    with counted_shard() as (service, metrics):
        for _ in range(3):
            fetch_info(service.address, timeout_seconds=WAIT)
    assert handled(metrics, INFO, "OK") == 3
    assert in_flight(metrics, INFO) == 0
    text = generate_latest(metrics.registry).decode()
    (family,) = (f for f in text_string_to_metric_families(text) if f.name == "apex_grpc_server_handling_seconds")
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    values = list(buckets.values())
    assert len(buckets) == len(BOUNDS) + 1
    assert values == sorted(values)
    assert buckets["+Inf"] == 3
    (seconds,) = (s.value for s in family.samples if s.name.endswith("_sum"))
    assert 0 < seconds < WAIT


def test_open_streams_are_under_way_and_not_timed() -> None:
    with counted_shard() as (service, metrics):
        with inserter(service.address) as client:
            assert client.put([make_chunk(1)], timeout=WAIT) == 1
            assert client.flush(WAIT)
            assert in_flight(metrics, INSERT) == 1
            assert handled(metrics, INSERT, "OK") is None
        wait_until(lambda: in_flight(metrics, INSERT) == 0, "the stream has ended")
        assert handled(metrics, INSERT, "CANCELLED") == 1
    assert "apex_grpc_server_handling_seconds_count" not in generate_latest(metrics.registry).decode()


def test_refusals_and_unknown_calls_are_counted_by_their_status() -> None:
    with counted_shard() as (service, metrics):
        fill(service.address, 1)
        malformed = RawStream(service.address, "Insert")
        malformed.send(insert_chunks([1], [make_chunk(1)]))
        malformed.failure()
        refused = RawStream(service.address, "Insert")
        refused.send(open_insert(bytes(16), TABLE, handshake(**{"env.stack": 5})))
        refused.failure()
        # Which asks for a learner's state first: a shard knows no such call.
        fetch_states([service.address], timeout_seconds=WAIT)
        wait_until(lambda: in_flight(metrics, INSERT) == 0, "the streams have ended")
        assert handled(metrics, INSERT, "INVALID_ARGUMENT") == 1
        assert handled(metrics, INSERT, "FAILED_PRECONDITION") == 1
        assert handled(metrics, "unknown", "UNIMPLEMENTED") == 1
        assert "Coordinator" not in generate_latest(metrics.registry).decode()
        malformed.close()
        refused.close()


def test_what_the_token_keeps_out_is_counted(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame")
    security.use(Security.load(SecurityConfig(token_file=str(token))))
    with counted_shard() as (service, metrics):
        security.use(Security())
        with pytest.raises(UnreachableError, match="token"):
            fetch_info(service.address, timeout_seconds=WAIT)
        assert handled(metrics, INFO, "UNAUTHENTICATED") == 1
        assert handled(metrics, INFO, "OK") is None


def test_counts_of_a_child_process_are_exported_by_its_parent() -> None:
    counts = CallCounts()
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 1))
    io = io_thread()
    running = io.run(start_server("127.0.0.1:0", [servicer.register()], LEARNER_LIMITS, calls=counts))
    client = ParameterClient(running.address, handshake())
    try:
        assert client.wait_newer(None, timeout=WAIT) is not None
    finally:
        client.close()
        io.run(running.stop(0.2))
    metrics = LearnerMetrics()
    method = {"method": "apex.v1.Parameters/GetParameters"}
    assert metrics.registry.get_sample_value("apex_grpc_server_handling_seconds_count", method) is None
    metrics.calls = counts.snapshot()
    assert (metrics.registry.get_sample_value("apex_grpc_server_handling_seconds_count", method) or 0) >= 1


def test_a_server_without_an_observer_serves() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    with server(servicer.register()) as running:
        (state,) = fetch_states([running.address], timeout_seconds=WAIT)
    assert isinstance(state, UnreachableError)
