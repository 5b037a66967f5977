"""Every metric that is declared is exported by the service it belongs to, from a run that learns."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from apex_cli.train import LocalRun, free_ports
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.runtime.run_directory import RunDirectory
from apexrl.telemetry.metric_table import METRICS

CATCH = Path(__file__).parents[2] / "configs" / "catch_apex_dqn.yaml"
WAIT_SECONDS = 120.0
#: What stays 0 while nothing goes wrong and nothing is full.
QUIET = {
    "apex_actor_slot",
    "apex_actor_transitions_dropped_total",
    "apex_actor_insert_queue_transitions",
    "apex_eval_epsilon",
    "apex_grpc_server_in_flight",  # of a learner, whose calls are short
    "apex_learner_finished",
    "apex_learner_nonfinite_total",
    "apex_learner_checkpoint_failures_total",
    "apex_learner_params_not_modified_total",
    "apex_learner_params_waiting_transfers",
    "apex_learner_prefetch_batches",
    "apex_learner_redraws_total",
    "apex_learner_parameter_lag_updates",
    "apex_learner_q_mean",
    "apex_learner_q_max",
    "apex_replay_evictions_total",
    "apex_replay_duplicates_total",
    "apex_replay_rejected_total",
    "apex_replay_engine_queue_commands",
    "apex_replay_journal_dropped_total",
    "apex_replay_journal_failing",
}


def scrape(port: int) -> dict[str, list[float]]:
    """Sample name -> values of all its label sets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    samples: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample.value)
    return samples


def silent(names: list[str], samples: dict[str, list[float]]) -> list[str]:
    """Declared names without a sample, or with nothing but zeros where something must have happened."""
    missing = []
    for name in names:
        found = samples.get(name) or samples.get(f"{name}_count")
        if (found is None and name not in QUIET) or (found is not None and name not in QUIET and not any(found)):
            missing.append(name)
    return missing


@pytest.mark.timeout(300)
def test_every_declared_metric_is_filled(tmp_path: Path) -> None:
    ports = dict(zip(("actor", "replay", "learner", "evaluator"), free_ports(4), strict=True))
    overrides = [f"--{section}.metrics-port={port}" for section, port in ports.items()]
    overrides += ["--learner.checkpoint-period-seconds=1", "--evaluator.period-seconds=0", "--learner.max-frames=0"]
    overrides += [f"--replay.journal-directory={tmp_path / 'journal'}"]
    config = load_experiment(CATCH, overrides, algorithm_configs=CONFIGS)
    run = LocalRun(config, RunDirectory.create_or_resume(tmp_path / "run", config))
    prefixes = {
        "actor": ("apex_actor_",),
        "replay": ("apex_replay_", "apex_grpc_server_"),
        "learner": ("apex_learner_", "apex_grpc_server_"),
        "evaluator": ("apex_eval_",),
    }
    deadline = time.monotonic() + WAIT_SECONDS
    left: dict[str, list[str]] = {}
    try:
        run.start()
        while time.monotonic() < deadline:
            for service in run.services:
                service.supervise()
            try:
                left = {
                    section: silent([m.name for m in METRICS if m.name.startswith(prefix)], scrape(ports[section]))
                    for section, prefix in prefixes.items()
                }
            except OSError:
                left = {"services": ["not listening yet"]}
            if not any(left.values()):
                for port in ports.values():
                    for path in ("healthz", "readyz"):
                        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as page:
                            assert page.status == 200
                break
            time.sleep(0.5)
    finally:
        run.stop()
    assert not any(left.values()), left
