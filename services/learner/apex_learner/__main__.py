"""``python -m apex_learner --config FILE --run-dir DIR [--SECTION.FIELD VALUE ...]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Before torch loads OpenMP. Its default is to spin for milliseconds: with several threads on cores that actors use too,
# an update then waits for threads that are not running, up to fifteen times as long. Sleeping at once (passive) costs
# a wake-up per operation. Spinning for some microseconds was the fastest of the three beside an actor.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from apex_learner.process import LearnerProcess
from apex_learner.trainer import NonfiniteLossError
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.runtime.errors import EXIT_FAILURE
from apexrl.runtime.lifecycle import Shutdown, run_service
from apexrl.runtime.malloc import keep_freed_memory
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.logging import configure_logging, get_logger
from apexrl.telemetry.metrics import LearnerMetrics
from apexrl.telemetry.metrics_server import start_metrics_server
from apexrl.transport import security
from apexrl.transport.security import Security

EPILOG = (
    "Every field of the configuration can be set behind these options, e.g. --learner.batch-size 64; "
    "`apex inspect config FILE` prints them all."
)


def main() -> int:
    """Entry point of the learner."""
    parser = argparse.ArgumentParser(prog="apex_learner", description="The Ape-X learner.", epilog=EPILOG)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the experiment")
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="directory of the run: checkpoints, logs; resumed if it holds one"
    )
    parser.add_argument("--fresh", action="store_true", help="begin a new run; an earlier one is moved aside")
    parser.add_argument(
        "--discard-other-run",
        action="store_true",
        help="let replay shards drop experience of another run; without it they refuse this learner",
    )
    options, overrides = parser.parse_known_args()

    def body(shutdown: Shutdown) -> int:
        configure_logging("learner")
        keep_freed_memory()
        config = load_experiment(options.config, overrides, algorithm_configs=CONFIGS, prog="apex_learner")
        security.use(Security.load(config.security))
        run = RunDirectory.create_or_resume(options.run_dir, config, fresh=options.fresh)
        metrics = LearnerMetrics()
        server = start_metrics_server(metrics, config.learner.metrics_port)
        try:
            discard = options.fresh or options.discard_other_run
            LearnerProcess(config, run, metrics, discard_other_run=discard).run(shutdown)
        except NonfiniteLossError as error:
            get_logger(__name__).error("the updates are broken; stopping without saving", reason=str(error))
            return EXIT_FAILURE
        finally:
            if server is not None:
                server.close()
        return 0

    return run_service("learner", body)


if __name__ == "__main__":
    sys.exit(main())
