"""The tables of results: filled from files, never by hand, and never saying more than the numbers do."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.record import RecordError, goals_met, write_record

ROOT = Path(__file__).resolve().parents[3]


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables: Any = _load()


def record(name: str, metrics: dict[str, Any], goals: dict[str, dict[str, float]], **changes: Any) -> dict[str, Any]:
    packages = ("python", "torch", "numpy", "grpcio", "gymnasium", "ale_py")
    return {
        "name": name,
        "command": f"python benchmarks/{name}.py",
        "date": "2026-01-31T12:00:00+00:00",
        "commit": {"hash": "0123456789abcdef", "dirty": False},
        "machine": {"cpu": "Some CPU", "cores": 2, "memory_gb": 23.5},
        "versions": dict.fromkeys(packages, "1"),
        "seeds": [1, 2],
        "metrics": metrics,
        "goals": goals,
        "met": goals_met(metrics, goals),
        "notes": "",
        **changes,
    }


def learning(**changes: Any) -> dict[str, Any]:
    metrics = {
        "iqm": 481.25,
        "iqm_ci95_low": 470.0,
        "iqm_ci95_high": 500.0,
        "threshold": 475.0,
        "seconds_to_threshold_median": 90.2,
        "seconds_to_threshold_max": None,
        "frames_per_second": 1234.5,
        "per_seed": [{"seed": 1}],
    }
    return record("poles", {**metrics, **changes}, {"iqm": {"at_least": 475}})


def speed(**changes: Any) -> dict[str, Any]:
    metrics = {
        "steps_per_second": {
            "env": {"median": 2000.4, "min": 1900.0, "max": 2100.0},
            "loop": {"median": 1500.0, "min": 1400.0, "max": 1600.0},
        },
        "fraction": 0.75,
        "lanes": 16,
        "device": "cpu",
    }
    return record("loops", metrics, {"fraction": {"at_least": 0.9}}, **changes)


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(
        "# x\n\n<!-- results:learning -->\nold\n<!-- /results:learning -->\n\n"
        "<!-- results:measurements -->\n<!-- /results:measurements -->\n\nend\n"
    )
    return path


def test_readme_of_the_repository_is_up_to_date() -> None:
    assert tables.main(["--check"]) == 0, "run: python tools/readme_tables.py"


def test_without_results_the_regions_say_so(readme: Path, tmp_path: Path) -> None:
    assert tables.main([], readme=readme, results=tmp_path / "absent") == 0
    text = readme.read_text()
    assert text.count(tables.NOTHING_YET) == 2
    assert "old" not in text
    assert text.endswith("\nend\n")


def test_a_learning_proof_is_one_row(readme: Path, tmp_path: Path) -> None:
    write_record(learning(), tmp_path)
    assert tables.main([], readme=readme, results=tmp_path) == 0
    assert (
        "| `poles` | 481.2 [470, 500] | 1, 2 | 475 | 90 s / never | 1,234 | yes | 2 cores (Some CPU), 23.5 GB | "
        "2026-01-31, 0123456789 |" in readme.read_text()
    )
    assert "`poles`: `python benchmarks/poles.py`" in readme.read_text()


def test_a_measurement_shows_spreads_headlines_and_missed_goals_but_no_settings() -> None:
    text = tables.measurements_table([speed(), learning()])
    assert "| `loops` | steps per second, env | 2,000 (1,900 to 2,100) |  |  |" in text
    assert "| `loops` | steps per second, loop | 1,500 (1,400 to 1,600) |  |  |" in text
    assert "| `loops` | fraction | 0.75 | ≥ 0.9 | **no** |" in text
    assert "lanes" not in text
    assert "poles" not in text


def test_many_spreads_are_left_to_the_file() -> None:
    spread = {"median": 2.0, "min": 1.0, "max": 3.0}
    sizes = {f"rate_at_{size}": spread for size in range(5)}
    text = tables.measurements_table([record("growth", {"ratio": 4.0, **sizes}, {"ratio": {"at_least": 3}})])
    assert "| `growth` | ratio | 4 | ≥ 3 | yes |" in text
    assert "rate at" not in text


def test_a_measurement_of_nothing_but_plain_numbers_shows_them_all() -> None:
    text = tables.measurements_table([record("sizes", {"bytes_per_frame": 148, "codec": "lz4"}, {})])
    assert "| `sizes` | bytes per frame | 148 |  |  |" in text
    assert "| codec |" not in text


def test_uncommitted_code_and_a_gpu_are_said() -> None:
    machine = {"cpu": "Some CPU", "cores": 16, "memory_gb": 128, "gpu": "Some GPU"}
    text = tables.measurements_table([speed(commit={"hash": "", "dirty": True}, machine=machine)])
    assert "2026-01-31, no commit and changes |" in text
    assert "16 cores (Some CPU), 128 GB, Some GPU |" in text


def test_check_changes_nothing_and_filling_twice_changes_nothing(readme: Path, tmp_path: Path) -> None:
    write_record(speed(), tmp_path)
    before = readme.read_text()
    assert tables.main(["--check"], readme=readme, results=tmp_path) == 1
    assert readme.read_text() == before
    assert tables.main([], readme=readme, results=tmp_path) == 0
    filled = readme.read_text()
    assert tables.main(["--check"], readme=readme, results=tmp_path) == 0
    assert tables.main([], readme=readme, results=tmp_path) == 0
    assert readme.read_text() == filled


def test_a_file_that_says_more_than_its_numbers_changes_nothing(
    readme: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loops.json").write_text(json.dumps({**speed(), "met": True}))
    before = readme.read_text()
    assert tables.main([], readme=readme, results=tmp_path) == 1
    assert "met is True, but metrics and goals say False" in capsys.readouterr().err
    assert readme.read_text() == before


def test_name_must_be_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(speed()))
    with pytest.raises(RecordError, match="name is 'loops', must be the file's, 'other'"):
        tables.read_records(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:learning -->\n", "has no end"),
        ("<!-- /results:learning -->\n", "line 1 is"),
        ("<!-- results:learning -->\n<!-- results:measurements -->\n", "line 2 is"),
        ("<!-- results:learning -->\n<!-- /results:measurements -->\n", "must be '<!-- /results:learning -->'"),
        ("<!-- results:speed -->\n", "line 1: the region is 'speed', must be one of learning, measurements"),
    ],
)
def test_broken_regions_are_refused(text: str, message: str) -> None:
    with pytest.raises(tables.RegionError) as caught:
        tables.render_readme(text, [])
    assert message in str(caught.value)
