"""``python -m apex_replay --config FILE [--replay.listen HOST:PORT ...]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from apex_replay.journal import Journal, JournalError
from apex_replay.service import ReplayService
from apexrl.config import ReplayConfig, load_sections
from apexrl.runtime.errors import EXIT_FAILURE
from apexrl.runtime.lifecycle import Shutdown, run_service
from apexrl.telemetry.logging import configure_logging, get_logger
from apexrl.telemetry.metrics import ReplayMetrics
from apexrl.telemetry.metrics_server import start_metrics_server
from apexrl.transport import security
from apexrl.transport.errors import ListenError
from apexrl.transport.security import Security

EXPORT_SECONDS = 1.0
REPORT_SECONDS = 10.0
EPILOG = (
    "Fields of the section `replay` can be set behind these options, e.g. --replay.listen 0.0.0.0:50051. What a table "
    "holds and how much is said by the learner and the actors that connect."
)


def serve(config: ReplayConfig, shutdown: Shutdown) -> int:
    """Run a shard until a stop is requested; returns the exit code.

    Raises:
        ListenError: the address cannot be bound.
        JournalError: the journal's directory cannot be used.
    """
    log = get_logger(__name__)
    metrics = ReplayMetrics()
    metrics_server = start_metrics_server(metrics, config.metrics_port)
    try:
        # With a limiter, no more than what the learner lets in before its first draw.
        first_items = config.min_items if config.samples_per_insert > 0 else None
        service = ReplayService(config.listen, _journal(config), metrics.calls, first_items)
        log.info("replay shard is listening", address=service.address)
        metrics.probes.ready = True
        try:
            reported = time.monotonic()
            said: list[str] = []
            while service.is_alive and not shutdown.wait(EXPORT_SECONDS):
                metrics.probes.beat()
                service.export(metrics)
                service.tick()
                if time.monotonic() - reported >= REPORT_SECONDS:
                    reported = time.monotonic()
                    said = _say_waiting(service.waiting(), said)
            if not service.is_alive:
                log.error("the engine has failed; stopping")
                return EXIT_FAILURE
        finally:
            metrics.probes.ready = False
            service.stop()
            log.info("replay shard has stopped", reason=shutdown.reason)
    finally:
        if metrics_server is not None:
            metrics_server.close()
    return 0


def _journal(config: ReplayConfig) -> Journal | None:
    if not config.journal_directory:
        return None
    return Journal(Path(config.journal_directory), flush_seconds=config.journal_flush_seconds)


def _say_waiting(lines: list[str], said: list[str]) -> list[str]:
    for line in lines:
        get_logger(__name__).info("waiting", reason=line)
    if said and not lines:
        get_logger(__name__).info("waiting for nothing any more")
    return lines


def main() -> int:
    """Entry point of a replay shard."""
    parser = argparse.ArgumentParser(prog="apex_replay", description="An Ape-X replay shard.", epilog=EPILOG)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    options, overrides = parser.parse_known_args()

    def body(shutdown: Shutdown) -> int:
        configure_logging("replay")
        config, identity = load_sections(options.config, ["replay", "security"], overrides, prog="apex_replay")
        security.use(Security.load(identity))
        try:
            return serve(config, shutdown)
        except (ListenError, JournalError) as error:
            print(f"replay: {error}", file=sys.stderr)
            return EXIT_FAILURE

    return run_service("replay", body)


if __name__ == "__main__":
    sys.exit(main())
