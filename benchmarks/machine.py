"""What a measurement ran on: the machine, the versions of what matters, the state of the source code."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: Distributions whose versions can change a result.
DISTRIBUTIONS = {
    "torch": "torch",
    "numpy": "numpy",
    "numba": "numba",
    "grpcio": "grpcio",
    "gymnasium": "gymnasium",
    "ale_py": "ale-py",
    "minatar": "MinAtar",
}
#: Where the code lies that a run executes.
SOURCE_FOLDERS = ("apexrl", "services")


def machine() -> dict[str, Any]:
    """``cpu`` (model), ``cores`` this process may use, ``memory_gb``, and ``gpu`` (model) if torch sees one."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    gpu = _gpu_model()
    return {**found, "gpu": gpu} if gpu else found


def versions() -> dict[str, str]:
    """Versions of Python and of ``DISTRIBUTIONS``, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path = ROOT) -> dict[str, Any]:
    """``hash`` of the checked out commit ("" outside of git), and whether files differ from it (``dirty``).

    Results and pictures of results do not count: writing one must not make the next one dirty.
    """
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results", ":(exclude)docs/images")
    return {"hash": head.strip() if head else "", "dirty": changed is None or bool(changed.strip())}


def source_digest(root: Path = ROOT, folders: Iterable[str] = SOURCE_FOLDERS) -> str:
    """SHA-256 over all Python files of ``folders``: two runs with equal digests executed the same code."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
