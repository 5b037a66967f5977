"""`apex bench`: what there is, what it refuses, and that every benchmark of the suite exists and takes its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_cli import bench as module
from apex_cli.bench import ROOT, SUITE, BenchArguments, Benchmark, bench
from apexrl.config import ConfigError
from apexrl.runtime.lifecycle import Shutdown

CATCH = ROOT / "configs" / "catch_apex_dqn.yaml"


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(BenchArguments(list=True), Shutdown()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SUITE)
    assert any("dm-reverb" in line for line in lines)


def test_every_script_exists() -> None:
    assert all((ROOT / "benchmarks" / one.script).is_file() for one in SUITE.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (BenchArguments(names=("actr",)), "'actr' is not a benchmark; there are actor, inference, update"),
        (BenchArguments(config=Path("no/such.yaml")), r"--config is no/such\.yaml, must be the YAML file"),
    ],
)
def test_what_it_cannot_run_is_named(arguments: BenchArguments, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(arguments, Shutdown())


def test_without_the_source_tree_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match="clone the repository"):
        bench(BenchArguments(config=CATCH), Shutdown())


def test_results_are_written_and_shown_as_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_run", run_shortly)
    assert bench(BenchArguments(names=("update",), config=CATCH, output=tmp_path), Shutdown()) == 0
    assert (tmp_path / "learner_update_catch_apex_dqn.json").is_file()
    out = capfd.readouterr().out
    assert SUITE["update"].what in out
    assert "| `learner_update_catch_apex_dqn` | updates per second |" in out


def run_shortly(one: Benchmark, config: Path, output: Path, shutdown: Shutdown) -> int:
    from benchmarks.learner_update import main

    return main([str(config), "--seconds", "0.2", "--windows", "1", "--write", str(output)])
