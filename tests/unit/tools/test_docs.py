"""What the documentation says of fields, values, commands and files is what the code has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from apex_cli.__main__ import COMMANDS
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment, to_plain

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DEFAULTS = ROOT / "docs" / "configuration.md"


class MarkedTable(NamedTuple):
    """A table below a comment ``<!-- kind: arguments -->``; rows without header and rule."""

    kind: str
    arguments: list[str]
    rows: list[list[str]]


def marked_tables(path: Path) -> Iterator[MarkedTable]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        if marker := re.fullmatch(r"<!-- (fields|values): (.+) -->", line):
            rows = []
            for row in lines[i + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split(" | ")])
            yield MarkedTable(marker[1], marker[2].split(), rows[2:])


def value(cell: str) -> Any:
    """What a cell says: a number (with thousands separators), a list, a boolean, or text."""
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", cell.strip().strip("`"))
    try:
        return float(plain)
    except ValueError:
        return yaml.safe_load(plain)


def comparable(plain: Any) -> Any:
    return float(plain) if isinstance(plain, int | float) and not isinstance(plain, bool) else plain


def at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("algorithm", sorted(CONFIGS))
def test_configuration_page_has_every_field_with_its_default_and_scope(algorithm: str, tmp_path: Path) -> None:
    """A table that names no algorithm is apex_dqn's, or that of a section which all have."""
    path = tmp_path / "defaults.yaml"
    path.write_text(f"algorithm: {{name: {algorithm}}}\n")
    defaults = load_experiment(path, algorithm_configs=CONFIGS)
    tables = {}
    for table in marked_tables(DEFAULTS):
        section, *names = table.arguments
        if not section.startswith("algorithm") or (names or ["apex_dqn"]) == [algorithm]:
            tables[section] = table.rows
    wrong = []
    for section, rows in tables.items():
        fields = {field.name: field for field in dataclasses.fields(at(defaults, section))}
        said = {row[0].strip("`"): row for row in rows}
        nested = {name for name in fields if f"{section}.{name}" in tables}
        assert said.keys() == fields.keys() - nested, f"{section}: fields differ"
        for name, row in said.items():
            actual = comparable(to_plain(at(defaults, f"{section}.{name}")))
            if value(row[1]) != actual:
                wrong.append(f"{section}.{name}: {row[1]} in {DEFAULTS.name}, {actual} in the code")
            if (row[2] == "yes") != bool(fields[name].metadata.get("shared")):
                wrong.append(f"{section}.{name}: whether it is shared")
    assert wrong == []
    sections = {f.name for f in dataclasses.fields(defaults) if dataclasses.is_dataclass(getattr(defaults, f.name))}
    assert sections <= tables.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_of_values_are_those_of_the_configurations(page: Path) -> None:
    wrong = []
    for table in marked_tables(page):
        if table.kind != "values":
            continue
        configs = [load_experiment(ROOT / name, algorithm_configs=CONFIGS) for name in table.arguments]
        assert table.rows, f"{page.name}: no table below the comment"
        for row in table.rows:
            for name, config, cell in zip(table.arguments, configs, row[1:], strict=False):
                actual = comparable(to_plain(at(config, row[0].strip("`"))))
                if value(cell) != actual:
                    wrong.append(f"{page.name}, {row[0]}: {cell}, but {name} has {actual}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_and_files_are_whole(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [t for t in targets if t and not re.match(r"[a-z]+:", t)]
    # Pictures of runs are added when there is a run.
    broken = [t for t in local if not t.endswith(".png") and not (page.parent / t).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist_and_name_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = [*re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL), *re.findall(r"`([^`\n]+)`", text)]
    lines = [line.strip() for block in code for line in block.splitlines()]
    unknown = []
    for words in (line.split() for line in lines if line.startswith("apex ")):
        known = any(tuple(words[1 : 1 + len(name)]) == name for name in COMMANDS)
        if not known and words[1] not in ("--version", "COMMAND"):
            unknown.append(" ".join(words))
        unknown += [word for word in words if word.startswith("configs/") and not (ROOT / word).exists()]
    assert unknown == []
