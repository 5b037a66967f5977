"""The HTTP port of a service: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for the cluster's probes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from apexrl.config import ConfigError
from apexrl.telemetry.metrics import ServiceMetrics

StartResponse = Callable[..., Any]


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a probe comes every few seconds."""


class _BothFamiliesServer(ThreadingWSGIServer):
    """Listens on IPv6 and, on the same socket, on IPv4."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class MetricsServer:
    """Serves on a daemon thread, on all addresses of the machine.

    ``port`` is the one in use, also if 0 (any free one) was asked for.
    """

    def __init__(self, metrics: ServiceMetrics, port: int) -> None:
        self._metrics = metrics
        self._export = make_wsgi_app(metrics.registry)
        try:
            host, server = ("::", _BothFamiliesServer) if _has_ipv6() else ("0.0.0.0", ThreadingWSGIServer)
            self._server = make_server(host, port, self._answer, server, _QuietHandler)
        except OSError as error:
            raise ConfigError(
                f"metrics_port is {port}, must be a port that is free on this machine or 0 (off): {error.strerror}"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in ("/", "/metrics"):
            answer: Iterable[bytes] = self._export(environ, start_response)
            return answer
        probes = self._metrics.probes
        states = {"/healthz": (probes.alive, "the main loop hangs"), "/readyz": (probes.ready, "not ready")}
        if path not in states:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"there are /metrics, /healthz and /readyz\n"]
        good, otherwise = states[path]
        start_response("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if good else f"{otherwise}\n".encode()]

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _has_ipv6() -> bool:
    """Whether this machine has IPv6: the kernel may lack it though Python knows it."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def start_metrics_server(metrics: ServiceMetrics, port: int) -> MetricsServer | None:
    """Serve ``metrics`` at ``port`` (the configuration's ``metrics_port``); None if it is 0, which means off.

    Raises:
        ConfigError: the port is in use or may not be bound.
    """
    return MetricsServer(metrics, port) if port else None
