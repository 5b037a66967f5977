"""The chart as the tests see it: scenarios, golden renders, outside tools.

``python tests/unit/chart/chart_scene.py`` renders the golden files anew; it needs helm. Tests of what manifests say
read the golden files, so that they run without helm too; where there is helm, another test keeps the two equal.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy" / "helm" / "apex"
GOLDEN = Path(__file__).resolve().parent / "golden"
#: Scenario -> values file. Each has a golden file.
SCENARIOS = {
    **{path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))},
    "cpu": CHART / "values-cpu.yaml",
    "paper": CHART / "values-paper.yaml",
}
HELM_OPTIONS = (
    *("--kube-version", "1.33.0"),
    *("--api-versions", "monitoring.coreos.com/v1", "--api-versions", "cert-manager.io/v1"),
    *("--api-versions", "keda.sh/v1alpha1"),
)

COMPONENT = "app.kubernetes.io/component"

Manifest = dict[str, Any]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def tool(name: str) -> str:
    """Path of an outside program; skips the test if there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (not in PATH)")
    return path


def load_tool(name: str) -> Any:
    """A program of ``tools/`` as a module."""
    folder = str(ROOT / "tools")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm; the caller looks at the outcome."""
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, check=False)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``helm template`` of a release called apex."""
    return helm("template", "apex", str(CHART), "--namespace", "lab", *HELM_OPTIONS, *arguments)


def render(*arguments: str) -> list[Manifest]:
    """What the chart renders."""
    done = template(*arguments)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def golden(scenario: str) -> list[Manifest]:
    """The golden manifests of a scenario."""
    return list(yaml.safe_load_all((GOLDEN / f"{scenario}.yaml").read_text(encoding="utf-8")))


def golden_text(manifests: Sequence[Manifest]) -> str:
    """Manifests in a form that is compared: sorted, without digests, dashboards, rules, and presets' texts."""
    presets = {path.read_text(encoding="utf-8").strip(): path.name for path in (CHART / "configs").glob("*.yaml")}
    for manifest in manifests:
        if manifest["kind"] == "PrometheusRule":
            manifest["spec"] = {"groups": [group["name"] for group in manifest["spec"]["groups"]]}
        for key, text in manifest.get("data", {}).items():
            if key.endswith(".json"):
                manifest["data"][key] = "(see dashboards/)"
            elif text.strip() in presets:
                manifest["data"][key] = f"(configs/{presets[text.strip()]})"
        for noted in _pod_annotations(manifest):
            if "checksum/config" in noted:
                noted["checksum/config"] = "(digest)"
    ordered = sorted(manifests, key=lambda m: (m["kind"], m["metadata"]["name"]))
    return yaml.dump_all(ordered, Dumper=_Dumper, sort_keys=True, width=100)


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def one(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one of a kind and name."""
    (found,) = [manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name]
    return found


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """(name, metadata, spec) of every pod that a scenario makes."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["metadata"]["name"], manifest["metadata"], manifest["spec"]
        elif manifest["kind"] in ("Deployment", "StatefulSet"):
            inner = manifest["spec"]["template"]
            yield manifest["metadata"]["name"], inner["metadata"], inner["spec"]


def main_container(manifests: list[Manifest], component: str) -> Manifest:
    """The container of a component."""
    found = [spec for _, metadata, spec in pods(manifests) if metadata["labels"][COMPONENT] == component]
    container: Manifest = found[0]["containers"][0]
    return container


def config_file(manifests: list[Manifest], folder: Path) -> Path:
    """The experiment of a scenario as a file."""
    texts = [m["data"]["experiment.yaml"] for m in of_kind(manifests, "ConfigMap") if "experiment.yaml" in m["data"]]
    text: str = texts[0]
    if text.startswith("(configs/"):
        return CHART / text.strip("()")
    file = folder / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def overrides(container: Manifest) -> list[str]:
    """The arguments of a service that set fields of the configuration."""
    own = ("--config=", "--run-dir=", "--discard-other-run")
    return [argument for argument in container["args"] if not argument.startswith(own)]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def _pod_annotations(manifest: Manifest) -> Iterator[dict[str, str]]:
    if manifest["kind"] in ("Deployment", "StatefulSet"):
        yield manifest["spec"]["template"]["metadata"].get("annotations", {})


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for scenario, path in SCENARIOS.items():
        (GOLDEN / f"{scenario}.yaml").write_text(golden_text(render("--values", str(path))), encoding="utf-8")
