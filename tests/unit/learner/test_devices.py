"""What a learner's devices are called, and what compiling for them needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apex_learner.devices import pick_device, pick_mirror_device, require_compiler
from apexrl.config import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [pick_device(name) for name in ("auto", "cpu")] == [CPU, CPU]
    with pytest.raises(ConfigError, match=r"learner\.device is 'cuda'"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name) for name in ("auto", "cpu", "cuda")] == [CUDA, CPU, CUDA]


def test_the_mirror_lies_with_the_updates_or_on_the_host() -> None:
    assert [pick_mirror_device(name, CUDA) for name in ("auto", "cpu", "cuda")] == [CUDA, CPU, CUDA]
    assert [pick_mirror_device(name, CPU) for name in ("auto", "cpu")] == [CPU, CPU]
    with pytest.raises(ConfigError, match=r"learner\.mirror_device is 'cuda'"):
        pick_mirror_device("cuda", CPU)


@pytest.mark.parametrize(("device", "program", "variable"), [(CPU, "g++", "CXX"), (CUDA, "clang", "CC")])
def test_compiling_needs_a_compiler(
    device: torch.device, program: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=rf"learner\.compile is true, but there is no .*variable {variable}, or set"):
        require_compiler(device)
    for name in (program, "mycc"):
        (tmp_path / name).touch(mode=0o755)
    require_compiler(device)
    monkeypatch.setenv(variable, "mycc")
    require_compiler(device)
    monkeypatch.setenv(variable, "othercc")
    with pytest.raises(ConfigError, match="there is no othercc for"):
        require_compiler(device)
