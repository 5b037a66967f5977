"""Resolves ``requirements/*.lock``: exact versions of everything, for every platform.

    python tools/resolve_locks.py             keep present versions where they still fit
    python tools/resolve_locks.py --upgrade   take the newest

Locks hold versions only (no addresses, no hashes), so they work with any package index. All three hold equal versions,
because each is resolved under the constraint of the one before; ``dev`` is resolved first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"

#: Lock -> what it is resolved from. The build backend is in the first two because the package itself is installed
#: without build isolation, from what is there.
LOCKS = {
    "dev": ["pyproject.toml", "--extra", "dev"],
    "train": ["pyproject.toml", "--extra", "minatar", "--extra", "build"],
    "replay": ["requirements/replay.in"],
}


def resolve(name: str, constraints: list[Path], upgrade: bool) -> None:
    """Write one lock."""
    output = FOLDER / f"{name}.lock"
    command = ["uv", "pip", "compile", *LOCKS[name], "--universal", "--python-version", "3.11", "--quiet"]
    command += ["--no-annotate", "--no-header", "--output-file", str(output)]
    for constraint in constraints:
        command += ["--constraints", str(constraint)]
    if upgrade:
        command.append("--upgrade")
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Resolve all locks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade: bool = parser.parse_args().upgrade
    resolve("dev", [], upgrade)
    for name in ("train", "replay"):
        resolve(name, [FOLDER / "dev.lock"], upgrade)


if __name__ == "__main__":
    main()
