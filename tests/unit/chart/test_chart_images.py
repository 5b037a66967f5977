"""The images: what the Dockerfile promises, and hadolint."""

from __future__ import annotations

import importlib
import re
import subprocess

import pytest
from chart_scene import CHART, ROOT, tool
from numba.core.caching import UserProvidedCacheLocator

from apexrl.runtime import kernel_cache

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def stage(name: str) -> str:
    """The instructions of one stage."""
    return re.split(rf"^FROM .* AS {name}$", TEXT, flags=re.MULTILINE)[1].partition("\nFROM ")[0]


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["replay", "actor", "learner"])
def test_targets_are_what_runs_as_a_numeric_user_behind_tini(target: str) -> None:
    assert f'ENTRYPOINT ["tini", "--", "python", "-m", "apex_{target}"]' in stage(target)
    assert re.findall(r"^USER (.*)$", stage(target), flags=re.MULTILINE) == ["10001:10001"]
    assert "RUN" not in stage(target).partition("USER")[2], "what is compiled must lie where the user cannot write"


def test_actor_and_learner_share_all_their_layers() -> None:
    for target in ("actor", "learner"):
        assert re.search(rf"^FROM training AS {target}$", TEXT, flags=re.MULTILINE)
        assert not re.search(r"^(RUN|COPY|ADD) ", stage(target), flags=re.MULTILINE)


@pytest.mark.parametrize("target", ["replay", "training"])
def test_kernels_of_the_image_are_those_of_the_code(target: str) -> None:
    """What is compiled at import is compiled for the image, as far as its packages allow."""
    compiled = set(re.findall(r"apexrl(?:\.\w+)+", stage(target)))
    having = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "apexrl").rglob("*.py")
        if re.search(r"^@compiled\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert compiled == {name for name in having if target == "training" or name.startswith("apexrl.replay.")}


def test_the_runtime_names_a_locator_that_exists() -> None:
    (named,) = re.findall(r"NUMBA_CACHE_LOCATOR_CLASSES=(\S+)", stage("runtime"))
    module, _, name = named.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), UserProvidedCacheLocator)
    assert f"{kernel_cache.COMPILED}=/opt/kernels" in stage("runtime")


def test_replay_image_takes_nothing_of_the_training_lock() -> None:
    assert "train.lock" not in stage("replay-environment")
    assert "requirements/replay.lock" in stage("replay-environment")


def test_what_is_copied_is_sent_to_the_builder() -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), flags=re.MULTILINE)
    copied = {
        word.partition("/")[0]
        for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, flags=re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert copied == set(allowed)
    assert all((ROOT / name).exists() for name in copied)


def test_the_build_backend_is_pinned_by_the_lock() -> None:
    pattern = re.search(r"grep -E '(\^\(hatchling.*?)'", TEXT)
    assert pattern is not None
    lock = (ROOT / "requirements" / "train.lock").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lock if re.match(pattern[1], line)}
    assert pinned == {"hatchling", "editables", "packaging", "pathspec", "pluggy", "trove-classifiers"}


def test_the_actor_can_leave_out_what_only_cuda_needs() -> None:
    pattern = re.search(r"grep -vE '(\^\(torch.*?)'", TEXT)
    assert pattern is not None
    lock = (ROOT / "requirements" / "train.lock").read_text(encoding="utf-8").splitlines()
    left_out = {line.partition("==")[0] for line in lock if re.match(pattern[1], line)}
    assert left_out >= {"torch", "triton"}
    assert all(re.match(r"torch$|triton$|nvidia-|cuda-", name) for name in left_out)


def test_the_user_of_the_images_is_that_of_the_pods() -> None:
    pod = (CHART / "templates" / "_pod.tpl").read_text(encoding="utf-8")
    assert "runAsUser: 10001" in pod
    assert "runAsGroup: 10001" in pod
