"""`apex simulate`: synthetic actors against real services, and bad input."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parameter_scene import unused_address

from apex_cli.simulate import SimulateArguments, simulate
from apexrl.config import ConfigError
from apexrl.runtime.lifecycle import Shutdown

CATCH = str(Path(__file__).parents[2] / "configs" / "catch_apex_dqn.yaml")


def apex_simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apex_cli", "simulate", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_small_fleet_is_measured(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # More actors than one connection may have streams, two shards, and a limiter that never binds.
    done = apex_simulate(
        *(CATCH, "--actors", "20", "--steps-per-second", "40", "--seconds", "2", "--recorded-steps", "512"),
        *("--json", str(report), "--actor.lanes", "2", "--replay.addresses", "a:1", "b:1"),
        *("--replay.samples-per-insert", "0", "--replay.slack-items", "0", "--replay.min-items", "200"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("20 of 20 actors", "transitions/s", "CPU cores", "replay-0", "replay-1", "actor, real, each"):
        assert part in done.stdout
    said = json.loads(report.read_text())
    assert said["actors_joined"] == 20
    assert said["learning"]
    assert said["offered_per_second"] == 800.0
    assert 0 < said["inserted_per_second"] < 1600.0
    assert said["sampled_per_second"] > 0
    assert said["parameter_mb_per_second"] > 0
    pods = {pod["name"]: pod for pod in said["pods"]}
    for name in ("replay-0", "replay-1", "learner", "learner's serving child"):
        assert pods[name]["cpu_cores"] >= 0.0
        assert pods[name]["rss_mb"] > 10.0
    assert pods["replay-0"]["in_mb_per_second"] > 0
    assert pods["replay-1"]["in_mb_per_second"] > 0
    assert pods["learner"]["in_mb_per_second"] > 0
    real, simulated = pods["actor, real, each (est.)"], pods["actor, simulated, each"]
    assert real["cpu_cores"] > simulated["cpu_cores"]


@pytest.mark.parametrize(
    ("fields", "overrides", "says"),
    [
        ({"actors": 0}, [], "--actors is 0, must be in [1, 4096]"),
        ({"actors": 5000}, [], "--actors is 5000, must be in [1, 4096]"),
        ({"seconds": 0.0}, [], "--seconds is 0.0, must be above 0"),
        ({"steps_per_second": -1.0}, [], "--steps-per-second is -1.0, must be above 0"),
        ({"recorded_steps": 0}, [], "--recorded-steps is 0, must be above 0"),
        ({"json": Path("no/such/place.json")}, [], "must be a file in a directory that exists"),
        ({"config": Path("nothing.yaml")}, [], "there is no such file"),
        ({}, ["--learner.batch-sise", "3"], "--learner.batch-size"),
        ({}, ["--env.id", "atari/pongg"], "pong"),
    ],
)
def test_bad_input_is_named(fields: dict[str, Any], overrides: list[str], says: str) -> None:
    arguments = dataclasses.replace(SimulateArguments(Path(CATCH), actors=1), **fields)
    with pytest.raises(ConfigError, match=re.escape(says)):
        simulate(arguments, overrides, Shutdown())


def test_a_cluster_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    address = unused_address()
    arguments = SimulateArguments(Path(CATCH), actors=2, cluster=True, warm_up_seconds=0.2, recorded_steps=64)
    overrides = ["--learner.address", address, "--replay.addresses", unused_address()]
    assert simulate(arguments, overrides, Shutdown()) == 1
    said = capsys.readouterr().out
    assert "no actor could join within 0.2 s" in said
    assert address in said
