"""Whom a process asks for parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apex_actor.process import parameter_addresses
from apexrl.algorithms import CONFIGS
from apexrl.config import ExperimentConfig, load_experiment
from apexrl.transport import coordinator_pb2 as pb

CATCH = Path(__file__).parents[3] / "configs" / "catch_apex_dqn.yaml"
RELAYS = ("a:1", "b:1", "c:1")


@pytest.fixture
def config() -> ExperimentConfig[Any]:
    overrides = ["--actor.parameter-addresses", *RELAYS, "--learner.address", "learner:1"]
    return load_experiment(CATCH, overrides, algorithm_configs=CONFIGS)


def test_without_relays_everybody_asks_the_learner() -> None:
    config = load_experiment(CATCH, ["--learner.address", "learner:1"], algorithm_configs=CONFIGS)
    assert parameter_addresses(config, pb.ROLE_ACTOR, bytes(16)) == ("learner:1",)


def test_actors_are_spread_over_the_relays_and_know_all_of_them(config: ExperimentConfig[Any]) -> None:
    asked = [parameter_addresses(config, pb.ROLE_ACTOR, i.to_bytes(16, "little")) for i in range(6)]
    assert asked[:3] == [("a:1", "b:1", "c:1"), ("b:1", "c:1", "a:1"), ("c:1", "a:1", "b:1")]
    assert asked[3:] == asked[:3]


def test_an_evaluator_asks_the_learner(config: ExperimentConfig[Any]) -> None:
    assert parameter_addresses(config, pb.ROLE_EVALUATOR, bytes(16)) == ("learner:1",)
