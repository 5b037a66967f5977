"""``python -m apex_actor --config FILE [--role evaluator] [--SECTION.FIELD VALUE ...]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apex_actor.process import run_actor, run_evaluator
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.runtime.lifecycle import Shutdown, run_service
from apexrl.runtime.malloc import give_freed_memory_back, keep_freed_memory
from apexrl.telemetry.logging import configure_logging, get_logger
from apexrl.telemetry.metrics import ActorMetrics, EvaluatorMetrics
from apexrl.telemetry.metrics_server import start_metrics_server
from apexrl.transport import security
from apexrl.transport.security import Security

EPILOG = (
    "Every field of the configuration can be set behind these options, e.g. --actor.lanes 32; "
    "`apex inspect config FILE` prints them all."
)


def main() -> int:
    """Entry point of actor and evaluator."""
    parser = argparse.ArgumentParser(prog="apex_actor", description="An Ape-X actor or evaluator.", epilog=EPILOG)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument(
        "--role",
        choices=("actor", "evaluator"),
        default="actor",
        help="actor explores and inserts; evaluator plays whole episodes greedily and reports their returns",
    )
    options, overrides = parser.parse_known_args()

    def body(shutdown: Shutdown) -> None:
        configure_logging(options.role)
        if options.role == "actor":
            keep_freed_memory(few_heaps=True)
        else:
            give_freed_memory_back()
        config = load_experiment(options.config, overrides, algorithm_configs=CONFIGS, prog="apex_actor")
        security.use(Security.load(config.security))
        log = get_logger(__name__)
        metrics = ActorMetrics() if options.role == "actor" else EvaluatorMetrics()
        section = config.actor if options.role == "actor" else config.evaluator
        server = start_metrics_server(metrics, section.metrics_port)
        try:
            if isinstance(metrics, ActorMetrics):
                run_actor(config, shutdown, metrics, on_ready=lambda: log.info("acting", lanes=config.actor.lanes))
            else:
                run_evaluator(config, shutdown, metrics)
        finally:
            if server is not None:
                server.close()

    return run_service(options.role, body)


if __name__ == "__main__":
    sys.exit(main())
