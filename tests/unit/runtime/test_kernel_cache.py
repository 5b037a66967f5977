"""An image's compiled kernels reach a directory that starts empty, and are not compiled again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCATOR = "apexrl.runtime.kernel_cache.CopyingCacheLocator"
_PROGRAM = """
from apexrl.replay import sum_tree_kernels as kernels
print(sum(kernels.find_bad.stats.cache_hits.values()), sum(kernels.find_bad.stats.cache_misses.values()))
"""


def hits_and_misses(cache: Path, **environment: str) -> tuple[int, int]:
    """What numba's cache gave a new process for one function that is compiled at import."""
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_CPU_NAME": "generic", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    hits, misses = done.stdout.split()
    return int(hits), int(misses)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the Dockerfile makes it."""
    directory = tmp_path_factory.mktemp("image") / "kernels"
    assert hits_and_misses(directory) == (0, 1)
    return directory


def test_what_the_image_has_is_not_compiled_again(image: Path, tmp_path: Path) -> None:
    chosen = {"NUMBA_CACHE_LOCATOR_CLASSES": LOCATOR, "APEX_COMPILED_KERNELS": str(image)}
    assert hits_and_misses(tmp_path, **chosen) == (1, 0)
    assert {path.name for path in tmp_path.rglob("*.nb?")} >= {path.name for path in image.rglob("*find_bad*.nb?")}
    assert hits_and_misses(tmp_path, **chosen) == (1, 0), "nothing is wrong with a directory that is filled already"


def test_another_processor_has_it_compiled_anew(image: Path, tmp_path: Path) -> None:
    chosen = {"NUMBA_CACHE_LOCATOR_CLASSES": LOCATOR, "APEX_COMPILED_KERNELS": str(image)}
    assert hits_and_misses(tmp_path, **chosen, NUMBA_CPU_FEATURES="-sse4.2") == (0, 1)
    assert hits_and_misses(tmp_path, **chosen, NUMBA_CPU_FEATURES="-sse4.2") == (1, 0)


@pytest.mark.parametrize("compiled", ["", "/no/such/directory"])
def test_an_image_without_any_is_an_empty_directory(compiled: str, tmp_path: Path) -> None:
    chosen = {"NUMBA_CACHE_LOCATOR_CLASSES": LOCATOR, "APEX_COMPILED_KERNELS": compiled}
    assert hits_and_misses(tmp_path, **chosen) == (0, 1)


@pytest.mark.parametrize(("stage", "package"), [("training", "apexrl"), ("replay", "apexrl.replay")])
def test_images_compile_all_modules_that_have_loops(stage: str, package: str) -> None:
    """One that is missing is compiled anew in every pod, and nobody would notice."""
    with_loops = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "apexrl").rglob("*.py")
        if re.search(r"^@compiled\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    of_stage = re.split(rf"^FROM \S+ AS {stage}$", dockerfile, flags=re.MULTILINE)[1].partition("\nFROM ")[0]
    named = set(re.findall(r"apexrl(?:\.\w+)+", of_stage))
    assert named == {module for module in with_loops if module.startswith(f"{package}.")}
