"""The form of results: what is written can be relied on, and nothing else is written."""

from __future__ import annotations

import copy
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import commit, machine, source_digest, versions
from benchmarks.record import (
    RESULTS,
    RecordError,
    goals_met,
    make_record,
    read_record,
    this_command,
    validate,
    write_record,
)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return make_record(
        "some_subject",
        metrics={"iqm": 480.5, "runs": [1, 2.5, None], "by_seed": {"1": {"return": 480.5}}, "note": "text"},
        goals={"iqm": {"at_least": 475}},
        seeds=[1, 2],
        command="python benchmarks/some.py",
    )


def test_a_record_says_where_it_comes_from(record: dict[str, Any]) -> None:
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["memory_gb"] > 0
    assert set(record["versions"]) >= {"python", "torch", "numpy", "grpcio", "gymnasium", "ale_py"}
    assert record["met"] is True
    assert record["commit"].keys() == {"hash", "dirty"}


def test_written_and_read_back(record: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(record, tmp_path / "results")
    assert path == tmp_path / "results" / "some_subject.json"
    assert read_record("some_subject", tmp_path / "results") == record
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_invalid_record_leaves_the_old_file(record: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    before = path.read_bytes()
    with pytest.raises(RecordError):
        write_record({**record, "met": False}, tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "Some Subject", "name is 'Some Subject'"),
        ("name", "../escape", "name is"),
        ("date", "yesterday", "date is 'yesterday'"),
        ("seeds", [1, "2"], "seeds is"),
        ("seeds", [True], "seeds is"),
        ("metrics", {}, "metrics is empty"),
        ("metrics", {"iqm": math.nan}, "metrics.iqm is nan"),
        ("metrics", {"iqm": 480.5, "runs": [1.0, math.inf]}, r"metrics.runs\[1\] is inf"),
        ("metrics", {"iqm": 480.5, "path": Path("x")}, "metrics.path is a"),
        ("met", False, "met is False, but metrics and goals say True"),
        ("met", None, "met is None"),
        ("goals", {"speed": {"at_least": 1}}, "goals.speed: there is no such metric"),
        ("goals", {"iqm": {"above": 1}}, "goals.iqm.above: unknown bound"),
        ("goals", {"note": {"at_least": 1}}, "metrics.note is 'text'"),
        ("machine", {"cpu": "x", "cores": True, "memory_gb": 1}, "machine.cores is True"),
        ("versions", {"python": "3"}, "versions.torch is missing"),
        ("notes", None, "notes is None"),
        ("surprise", 1, "surprise: unknown field"),
    ],
)
def test_what_is_not_in_the_form_is_refused_by_name(
    record: dict[str, Any], field: str, value: object, message: str
) -> None:
    broken = {**copy.deepcopy(record), field: value}
    with pytest.raises(RecordError, match=message):
        validate(broken)


def test_a_missing_field_is_named(record: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="command is missing"):
        validate({name: value for name, value in record.items() if name != "command"})


@pytest.mark.parametrize(
    ("metrics", "goals", "met"),
    [
        ({"x": 1.0}, {}, None),
        ({"x": 1.0}, {"x": {"at_least": 1.0}}, True),
        ({"x": 1.0}, {"x": {"at_least": 1.01}}, False),
        ({"x": 1.0, "y": 5}, {"x": {"at_least": 0}, "y": {"at_most": 4}}, False),
        ({"x": 2.0}, {"x": {"at_least": 1, "at_most": 3}}, True),
        ({"x": None}, {"x": {"at_most": 3}}, False),
    ],
)
def test_goals(metrics: dict[str, Any], goals: dict[str, dict[str, float]], met: bool | None) -> None:
    assert goals_met(metrics, goals) is met


def test_the_command_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    script = RESULTS.parent / "learning.py"
    monkeypatch.setattr("sys.argv", [str(script), "pong", "--seeds", "1,2", "--work-dir", "a b"])
    assert this_command() == "python benchmarks/learning.py pong --seeds 1,2 --work-dir 'a b'"


def test_results_in_the_repository_are_valid() -> None:
    for path in RESULTS.glob("*.json"):
        assert read_record(path.stem)["name"] == path.stem


def test_machine_and_versions_are_plain() -> None:
    assert json.loads(json.dumps([machine(), versions()])) == [machine(), versions()]


def test_commit_of_a_repository_and_results_do_not_make_it_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "-m", "first")
    clean = commit(tmp_path)
    assert len(clean["hash"]) == 40
    assert not clean["dirty"]
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "x.json").write_text("{}")
    assert not commit(tmp_path)["dirty"]
    (tmp_path / "code.py").write_text("a = 2\n")
    assert commit(tmp_path) == {"hash": clean["hash"], "dirty": True}


def test_commit_outside_of_a_repository(tmp_path: Path) -> None:
    assert commit(tmp_path) == {"hash": "", "dirty": True}


def test_source_digest_follows_code_only(tmp_path: Path) -> None:
    folder = tmp_path / "apexrl"
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    first = source_digest(tmp_path, ["apexrl"])
    (folder / "notes.txt").write_text("anything")
    assert source_digest(tmp_path, ["apexrl"]) == first
    (folder / "a.py").rename(folder / "b.py")
    assert source_digest(tmp_path, ["apexrl"]) != first
