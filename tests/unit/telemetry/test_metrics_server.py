"""Metrics and probes over HTTP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from apexrl.config import ConfigError
from apexrl.telemetry import metrics_server
from apexrl.telemetry.metrics import EvaluatorMetrics, LearnerMetrics, ReplayMetrics
from apexrl.telemetry.metrics_server import MetricsServer, start_metrics_server
from apexrl.telemetry.probes import Probes


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_are_served_over_http() -> None:
    metrics = EvaluatorMetrics()
    metrics.observe_episode(12.0, 30)
    with MetricsServer(metrics, 0) as server:
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5).read().decode()
    assert "apex_eval_episode_return_sum 12.0" in text
    with MetricsServer(metrics, server.port) as again:
        assert again.port == server.port


def loopback(address: str) -> bool:
    """Whether this machine has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_families_of_addresses_reach_it(address: str) -> None:
    if not loopback(address):
        pytest.skip(f"this machine has no {address}")
    with (
        MetricsServer(ReplayMetrics(), 0) as server,
        socket.create_connection((address, server.port), timeout=5) as connection,
    ):
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"503"


def test_a_machine_without_ipv6_is_served_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_has_ipv6", lambda: False)
    with MetricsServer(ReplayMetrics(), 0) as server:
        assert server._server.socket.family == socket.AF_INET
        assert get(server.port, "/readyz") == (503, "not ready\n")


def test_a_port_in_use_is_named() -> None:
    metrics = LearnerMetrics()
    with (
        MetricsServer(metrics, 0) as server,
        pytest.raises(ConfigError, match=rf"metrics_port is {server.port}.*in use"),
    ):
        start_metrics_server(metrics, server.port)
    assert start_metrics_server(metrics, 0) is None


def test_a_service_is_ready_once_it_says_so() -> None:
    metrics = ReplayMetrics()
    with MetricsServer(metrics, 0) as server:
        assert get(server.port, "/readyz") == (503, "not ready\n")
        metrics.probes.ready = True
        assert get(server.port, "/readyz") == (200, "ok\n")


def test_a_main_loop_that_hangs_is_not_alive() -> None:
    now = 0.0
    metrics = ReplayMetrics()
    metrics.probes = Probes(patience_seconds=10.0, clock=lambda: now)
    with MetricsServer(metrics, 0) as server:
        now = 10.0
        assert get(server.port, "/healthz") == (200, "ok\n")
        now = 10.5
        assert get(server.port, "/healthz") == (503, "the main loop hangs\n")
        metrics.probes.beat()
        assert get(server.port, "/healthz") == (200, "ok\n")


def test_other_paths_are_not_found() -> None:
    with MetricsServer(ReplayMetrics(), 0) as server:
        status, body = get(server.port, "/metric")
        assert status == 404
        assert "/healthz" in body
