"""A parameter relay: ``python -m apex_learner.relay --config FILE [--relay.upstream HOST:PORT ...]``.

Pulls parameters once and hands them to many actors: the same bytes, version and run, through the same service as the
learner's serving child. It needs neither torch nor an algorithm. With which configuration its callers are compared it
learns from its upstream, so a relay belongs to no run and follows whichever learner it finds there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from apexrl.config import RelayConfig, load_sections, require
from apexrl.runtime.errors import EXIT_FAILURE
from apexrl.runtime.lifecycle import Shutdown, run_service
from apexrl.telemetry.logging import configure_logging, get_logger
from apexrl.telemetry.metrics import RelayMetrics
from apexrl.telemetry.metrics_server import start_metrics_server
from apexrl.transport import security
from apexrl.transport.channel import LEARNER_LIMITS, PARAMETERS_CONNECTION_AGE_SECONDS
from apexrl.transport.errors import ListenError
from apexrl.transport.handlers import CallObserver
from apexrl.transport.handshake import Handshake
from apexrl.transport.io_thread import io_thread
from apexrl.transport.parameter_client import ParameterClient
from apexrl.transport.parameter_server import SERVICE_NAME, ParametersServicer
from apexrl.transport.security import Security
from apexrl.transport.server import RunningServer, start_server
from apexrl.types import Parameters

log = get_logger(__name__)

EXPORT_SECONDS = 1.0
#: Transfers under way when the relay stops. A relay must be gone within a second; its clients ask the next one.
STOP_GRACE_SECONDS = 0.2
EPILOG = (
    "Fields of the sections `relay` and `learner` can be set behind these options, e.g. --relay.listen 0.0.0.0:50071. "
    "Actors find relays by actor.parameter_addresses."
)


class Relay:
    """Listens at once, and is ready when it has parameters.

    Args:
        upstream: HOST:PORT of a learner or another relay.
        listen: HOST:PORT; port 0 = any free one.
        poll_period_seconds: between two looks for new parameters.
        calls: is told of every call.

    Raises:
        ListenError: the address cannot be bound.
    """

    def __init__(
        self, upstream: str, listen: str, poll_period_seconds: float, calls: CallObserver | None = None
    ) -> None:
        self._upstream = upstream
        self._handed_on: tuple[str, int] | None = None
        self._client: ParameterClient | None = None
        self._ready: asyncio.Task[None] | None = None
        self._io = io_thread()
        self._server, self._servicer = self._io.run(self._start(listen, calls))
        self._client = ParameterClient(
            upstream,
            Handshake(run_id="", shared_config_json=""),
            poll_period_seconds,
            relay=True,
            on_newer=self._hand_on,
        )

    @property
    def address(self) -> str:
        """HOST:PORT as bound."""
        return self._server.address

    @property
    def parameters(self) -> Parameters | None:
        """What is handed on."""
        return self._client.newest if self._client else None

    def waiting(self) -> str | None:
        """What the relay waits for, in words; None if for nothing."""
        waiting = self._client.waiting() if self._client else None
        if waiting is None and self.parameters is None:
            return f"parameter service {self._upstream} has not answered yet"
        return waiting

    def export(self, metrics: RelayMetrics) -> None:
        """Bring ``metrics`` up to date."""
        assert self._client is not None
        newest = self._client.newest
        if newest is not None:
            metrics.params_epoch.set(newest.version.epoch)
            metrics.params_version.set(newest.version.step)
        metrics.probes.beat()
        metrics.probes.ready = newest is not None
        metrics.upstream_live.set(0.0 if self.waiting() else 1.0)
        metrics.follow(metrics.params_publish, self._client.fetches)
        metrics.follow(metrics.params_fetch_bytes, self._client.fetched_bytes)
        metrics.follow(metrics.params_served_bytes, self._servicer.served_bytes)
        metrics.follow(metrics.params_not_modified, self._servicer.not_modified)
        metrics.params_waiting_transfers.set(self._servicer.waiting_transfers)

    def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Report not ready, give running transfers ``grace_seconds``, and free the port."""
        assert self._client is not None
        self._client.close()
        self._io.run(self._server.stop(grace_seconds))

    # --- on the loop ---

    async def _start(self, listen: str, calls: CallObserver | None) -> tuple[RunningServer, ParametersServicer]:
        servicer = ParametersServicer(absence=lambda: f"the relay has no parameters yet: {self.waiting()}")
        server = await start_server(
            listen,
            [servicer.register()],
            LEARNER_LIMITS,
            services=(SERVICE_NAME,),
            max_connection_age_seconds=PARAMETERS_CONNECTION_AGE_SECONDS,
            serving=False,
            calls=calls,
        )
        return server, servicer

    def _hand_on(self, parameters: Parameters) -> None:
        self._servicer.publish(parameters, Handshake(parameters.run_id, parameters.shared_config_json))
        origin = (parameters.run_id, parameters.version.epoch)
        if self._handed_on is None:
            self._ready = asyncio.get_running_loop().create_task(self._server.set_serving(True))
        if self._handed_on != origin:
            self._handed_on = origin
            log.info("handing on parameters", run_id=parameters.run_id, version=str(parameters.version))


def serve(config: RelayConfig, upstream: str, shutdown: Shutdown) -> None:
    """Run a relay until a stop is requested.

    Raises:
        ListenError: the address cannot be bound.
    """
    metrics = RelayMetrics()
    metrics_server = start_metrics_server(metrics, config.metrics_port)
    try:
        relay = Relay(upstream, config.listen, config.poll_period_seconds, metrics.calls)
        log.info("relay is listening", address=relay.address, upstream=upstream)
        try:
            while not shutdown.wait(EXPORT_SECONDS):
                relay.export(metrics)
        finally:
            relay.stop()
            log.info("relay has stopped", reason=shutdown.reason)
    finally:
        if metrics_server is not None:
            metrics_server.close()


def main() -> int:
    """Entry point of a relay."""
    parser = argparse.ArgumentParser(
        prog="apex_learner.relay", description="A relay of an Ape-X learner's parameters.", epilog=EPILOG
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    options, overrides = parser.parse_known_args()

    def body(shutdown: Shutdown) -> int:
        configure_logging("relay")
        sections = ["relay", "learner", "security"]
        config, learner, identity = load_sections(options.config, sections, overrides, prog="apex_learner.relay")
        security.use(Security.load(identity))
        upstream = config.upstream or learner.address
        require(config.listen != upstream, "relay.listen", config.listen, "another address than it pulls from")
        try:
            serve(config, upstream, shutdown)
        except ListenError as error:
            print(f"relay: {error}", file=sys.stderr)
            return EXIT_FAILURE
        return 0

    return run_service("relay", body)


if __name__ == "__main__":
    sys.exit(main())
