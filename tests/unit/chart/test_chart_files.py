"""What the chart holds beside templates: copies, the schema, the README, and that every value does something."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from chart_scene import CHART, ROOT, load_tool

from apexrl import __version__
from apexrl.config import ExperimentConfig

chart: Any = load_tool("chart")
dashboards: Any = load_tool("dashboards")
SCHEMA: dict[str, Any] = load_tool("chart_schema").values_schema()
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
#: In the schema only so that the templates can refuse them with a reason, or because Helm adds it.
NOT_VALUES = {"global", "learner.replicas", "replay.replicas"}


def closed_objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if "properties" in schema:
        yield path, schema
        for name, inner in schema["properties"].items():
            yield from closed_objects(inner, f"{path}.{name}".lstrip("."))


def schema_paths(schema: dict[str, Any], path: str = "") -> set[str]:
    return {
        f"{where}.{name}".lstrip(".") for where, inner in closed_objects(schema, path) for name in inner["properties"]
    }


def value_paths(values: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        inner = f"{path}.{name}".lstrip(".")
        found.add(inner)
        if isinstance(value, dict):
            found |= value_paths(value, inner)
    return found


def free(path: str) -> bool:
    """Whether a path lies in what Kubernetes or the experiment defines, not the chart."""
    return re.search(r"([lL]abels|affinity|resources|config\.set)\.", path) is not None


def test_written_files_are_what_their_sources_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert chart.main(["--check"]) == 0, capsys.readouterr().err
    assert dashboards.main(["--check"]) == 0, capsys.readouterr().err


def test_check_finds_a_preset_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = chart.expected_files()
    changed = CHART / "configs" / "pong_small.yaml"
    monkeypatch.setattr(chart, "expected_files", lambda: {**expected, changed: "name: other\n"})
    assert chart.main(["--check"]) == 1


def test_app_version_is_that_of_the_code() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert about["appVersion"] == __version__
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG VERSION={__version__}\n" in dockerfile


def test_schema_and_values_have_the_same_keys() -> None:
    in_schema = {path for path in schema_paths(SCHEMA) if not free(path)}
    in_values = {path for path in value_paths(VALUES) if not free(path)}
    assert in_schema - NOT_VALUES == in_values


def test_schema_refuses_unknown_keys_everywhere() -> None:
    open_objects = [path for path, schema in closed_objects(SCHEMA) if schema.get("additionalProperties") is not False]
    assert open_objects == []


def test_config_set_has_the_sections_of_an_experiment() -> None:
    fields = {field.name for field in dataclasses.fields(ExperimentConfig)}
    assert set(SCHEMA["properties"]["config"]["properties"]["set"]["properties"]) == fields - {"local", "security"}


def test_every_value_is_read_by_a_template() -> None:
    templates = "\n".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").rglob("*.*"))
    leaves = {path.rpartition(".")[2] for path in value_paths(VALUES) if not free(path)}
    unread = sorted(name for name in leaves if not re.search(rf"[.\"]{name}\b", templates))
    assert unread == []


def test_every_value_has_a_description() -> None:
    table = (CHART / "README.md").read_text(encoding="utf-8").partition("<!-- values -->")[2]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
    assert len(rows) > 100


def test_presets_are_those_that_the_documentation_names() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    presets = {path.stem for path in (CHART / "configs").glob("*.yaml")}
    assert set(re.findall(r"config\.preset=([a-z0-9_]+)", page)) <= presets
    assert VALUES["config"]["preset"] in presets
