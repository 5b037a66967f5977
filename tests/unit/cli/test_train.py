"""What `apex train` starts its services with."""

from __future__ import annotations

from pathlib import Path

from apex_cli.train import LocalRun
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.runtime.run_directory import RunDirectory

CATCH = Path(__file__).parents[3] / "configs" / "catch_apex_dqn.yaml"


def test_local_actors_ask_the_learner_though_the_configuration_names_relays(tmp_path: Path) -> None:
    config = load_experiment(CATCH, ["--actor.parameter-addresses", "a:1", "b:1"], algorithm_configs=CONFIGS)
    run = RunDirectory.create_or_resume(tmp_path / "run", config)
    local = LocalRun(config, run)
    local.stop()
    _, path, *overrides = local.actors[0].arguments
    started = load_experiment(path, overrides, algorithm_configs=CONFIGS)
    assert load_experiment(path, algorithm_configs=CONFIGS).actor.parameter_addresses == ("a:1", "b:1")
    assert started.actor.parameter_addresses == ()
    assert started.learner.address.startswith("127.0.0.1:")
