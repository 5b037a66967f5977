"""Writes what the Helm chart holds of other files: presets, the schema of its values, the table of its README.

    python tools/chart.py           write deploy/helm/apex/{configs/,values.schema.json,README.md}
    python tools/chart.py --check   exit 1 if they are not what their sources give

A chart cannot read files outside its folder, so the presets are copies of ``configs/``. The table of values stands
between ``<!-- values -->`` and ``<!-- /values -->``, made from comments of ``values.yaml`` that begin with ``# --``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "apex"
sys.path.insert(0, str(ROOT / "tools"))

from chart_schema import values_schema  # noqa: E402

#: Of keys that mean the same for every component, so that values.yaml need not say it five times.
COMMON = {
    "resources": "Requests and limits of the container",
    "terminationGracePeriodSeconds": "Time for an orderly stop",
    "priorityClassName": "PriorityClass of the pods",
    "nodeSelector": "Labels of the nodes to run on",
    "tolerations": "Taints of nodes to run on all the same",
    "affinity": "As in a pod",
    "podLabels": "Labels of the pods",
    "podAnnotations": "Annotations of the pods",
    "extraEnv": "Environment variables, as in a container",
    "extraVolumes": "Volumes, as in a pod",
    "extraVolumeMounts": "Their mounts",
    "repository": "Repository of the image",
    "tag": "Instead of image.tag",
    "digest": "sha256:..., wins over tags",
    "size": "Of each volume",
    "labels": "Labels of the object",
    "interval": "Between two scrapes",
    "minReplicas": "Never fewer",
    "maxReplicas": "Never more",
}
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):(?P<rest>.*)$")
_MARKERS = ("<!-- values -->", "<!-- /values -->")


@dataclass
class Value:
    """One key of ``values.yaml``."""

    path: str
    doc: str
    default: Any
    children: list[Value] = field(default_factory=list)

    @property
    def is_group(self) -> bool:
        """Whether its keys have rows of their own."""
        return any(child.doc or child.is_group for child in self.children)


def read_values(text: str) -> list[Value]:
    """The keys of a values file as a tree, with the comments above them."""
    data = yaml.safe_load(text)
    top: list[Value] = []
    stack: list[tuple[int, Value]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = [stripped[4:].strip()]
        elif stripped.startswith("#"):
            comment += [stripped[1:].strip()] if comment else []
        elif match := _KEY.match(line):
            indent = len(match["indent"])
            while stack and stack[-1][0] >= indent:
                stack.pop()
            path = f"{stack[-1][1].path}.{match['key']}" if stack else match["key"]
            value = Value(path, " ".join(comment), _at(data, path))
            (stack[-1][1].children if stack else top).append(value)
            stack.append((indent, value))
            comment = []
        else:
            comment = []
    return top


def rows(values: Sequence[Value]) -> Iterator[str]:
    """Rows of the table: a line for each key, groups with a line of their own if they have a comment."""
    for value in values:
        doc = value.doc or COMMON.get(value.path.rpartition(".")[2], "")
        if value.is_group or (value.children and not doc):
            if value.doc:
                yield f"| `{value.path}` | | {_cell(value.doc)} |"
            yield from rows(value.children)
        else:
            yield f"| `{value.path}` | `{_cell(_plain(value.default))}` | {_cell(doc)} |"


def render_readme(readme: str, values: str) -> str:
    """``readme`` with its table filled anew."""
    begin, end = (readme.index(marker) for marker in _MARKERS)
    table = "\n".join(["| value | default | |", "| --- | --- | --- |", *rows(read_values(values))])
    return f"{readme[:begin]}{_MARKERS[0]}\n\n{table}\n\n{readme[end:]}"


def expected_files() -> dict[Path, str]:
    """Path -> content of everything that this program writes."""
    readme = CHART / "README.md"
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    files = {
        readme: render_readme(readme.read_text(encoding="utf-8"), values),
        CHART / "values.schema.json": json.dumps(values_schema(), indent=1) + "\n",
    }
    for source in sorted((ROOT / "configs").glob("*.yaml")):
        files[CHART / "configs" / source.name] = source.read_text(encoding="utf-8")
    return files


def stale_files() -> list[Path]:
    """Presets in the chart that ``configs/`` does not have any more."""
    return [path for path in sorted((CHART / "configs").glob("*.yaml")) if not (ROOT / "configs" / path.name).exists()]


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Write what the chart holds of other files.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is not up to date")
    check: bool = parser.parse_args(arguments).check
    changed = stale_files()
    for path, content in expected_files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            changed.append(path)
            if not check:
                path.write_text(content, encoding="utf-8")
    if check and changed:
        names = ", ".join(str(path.relative_to(ROOT)) for path in changed)
        print(f"not up to date: {names}; run: python tools/chart.py", file=sys.stderr)
        return 1
    if not check:
        for path in stale_files():
            path.unlink()
    return 0


def _at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data[key]
    return data


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
