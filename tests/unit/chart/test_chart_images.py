"""The images: what the Dockerfile promises, and hadolint."""

from __future__ import annotations

import re
import subprocess

import pytest
from chart_scene import CHART, ROOT, tool

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
    assert re.search(rf"^FROM runtime AS {target}$", TEXT, flags=re.MULTILINE)
    assert f'ENTRYPOINT ["tini", "--", "python", "-m", "apex_{target}"]' in stage(target)
    assert "USER" not in stage(target)
    assert re.findall(r"^USER (.*)$", stage("runtime"), flags=re.MULTILINE) == ["10001:10001"]


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
