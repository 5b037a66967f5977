"""The tables of results: filled from files, never by hand, and never saying more than the numbers do."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tables: Any = _load()


def result(**changes: object) -> dict[str, object]:
    return {
        "name": "tiny",
        "command": "apex train configs/tiny.yaml",
        "date": "2026-01-31",
        "commit": "0123456789abcdef",
        "machine": {"cpu": "Some CPU", "cores": 2, "memory_gb": 24},
        "versions": {"python": "3.11.7"},
        "seeds": [1, 2, 3],
        "metrics": {"evaluator_return": [18.0, 20.0, 19.0], "frames_per_second": 12345.6},
        "goals": {"evaluator_return": ">= 18"},
        "met": True,
        **changes,
    }


def write(directory: Path, **changes: object) -> Path:
    content = result(**changes)
    path = directory / f"{content['name']}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text("# x\n\n<!-- results:all -->\nold\n<!-- /results:all -->\n\nend\n")
    return path


def test_readme_of_the_repository_is_up_to_date() -> None:
    assert tables.main(["--check"]) == 0, "run: python tools/readme_tables.py"


def test_without_results_the_region_says_so(readme: Path, tmp_path: Path) -> None:
    assert tables.main([], readme=readme, results=tmp_path / "absent") == 0
    text = readme.read_text()
    assert tables.NOTHING_YET in text
    assert "old" not in text
    assert text.endswith("\nend\n")


def test_rows_show_mean_spread_goal_and_machine(readme: Path, tmp_path: Path) -> None:
    write(tmp_path)
    assert tables.main([], readme=readme, results=tmp_path) == 0
    text = readme.read_text()
    assert (
        "| `tiny` | evaluator return | 19 ± 1 (sd of 3) | ≥ 18 | yes | 3 | 2 cores (Some CPU), 24 GB | "
        "2026-01-31, 0123456789 |" in text
    )
    assert "| `tiny` | frames per second | 12,346 |  |  | 3 |" in text
    assert "`tiny`: `apex train configs/tiny.yaml`" in text


def test_check_changes_nothing_and_filling_twice_changes_nothing(readme: Path, tmp_path: Path) -> None:
    write(tmp_path)
    before = readme.read_text()
    assert tables.main(["--check"], readme=readme, results=tmp_path) == 1
    assert readme.read_text() == before
    assert tables.main([], readme=readme, results=tmp_path) == 0
    filled = readme.read_text()
    assert tables.main(["--check"], readme=readme, results=tmp_path) == 0
    assert tables.main([], readme=readme, results=tmp_path) == 0
    assert readme.read_text() == filled


def test_region_selects_by_name_and_by_prefix(tmp_path: Path) -> None:
    for name in ("pong", "pong_small", "pongo"):
        write(tmp_path, name=name)
    results = tables.read_results(tmp_path)
    assert [r.name for r in tables.select(results, "pong")] == ["pong", "pong_small"]
    assert [r.name for r in tables.select(results, "all")] == ["pong", "pong_small", "pongo"]


def test_missed_goal_is_shown_as_missed(tmp_path: Path) -> None:
    write(tmp_path, goals={"evaluator_return": ">= 19.5"}, met=False)
    assert "| ≥ 19.5 | **no** |" in tables.render_table(tables.read_results(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"met": False}, "met is False, must be True"),
        ({"goals": {"evaluator_return": ">= 30"}}, "met is True, must be False"),
        ({"goals": {"evaluator_return": "at least 18"}}, "goals.evaluator_return is 'at least 18'"),
        ({"goals": {"score": ">= 1"}}, "goals.score"),
        ({"metrics": {"evaluator_return": float("nan")}}, "metrics.evaluator_return is nan"),
        ({"metrics": {"evaluator_return": []}}, "metrics.evaluator_return is []"),
        ({"machine": {"cpu": "x", "cores": 2}}, "machine.memory_gb is None"),
        ({"seeds": []}, "seeds is []"),
        ({"date": "31.1.2026"}, "date is '31.1.2026'"),
        ({"commit": " "}, "commit is ' '"),
        ({"speed": 3}, "fields is"),
    ],
)
def test_malformed_results_are_refused_by_field(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(tables.ResultError, match=r"^tiny\.json: ") as caught:
        tables.read_result(path)
    assert message in str(caught.value)


def test_name_must_be_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(result()))
    with pytest.raises(tables.ResultError, match="name is 'tiny', must be the file's, 'other'"):
        tables.read_result(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:a -->\n", "has no end"),
        ("<!-- /results:a -->\n", "line 1 is"),
        ("<!-- results:a -->\n<!-- results:b -->\n", "line 2 is"),
        ("<!-- results:a -->\n<!-- /results:b -->\n", "must be '<!-- /results:a -->'"),
    ],
)
def test_broken_regions_are_refused(text: str, message: str) -> None:
    with pytest.raises(tables.ResultError) as caught:
        tables.render_readme(text, [])
    assert message in str(caught.value)
