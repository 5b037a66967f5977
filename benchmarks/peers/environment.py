"""Virtual environments of the peers, made on first use from pinned requirements.

    python benchmarks/peers/environment.py cpprb torchrl

makes those of the names given, so that a benchmark later starts at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import ROOT

ENVIRONMENTS = ROOT / ".venv-peers"
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements"

SHOWN_LINES = 15
"""Of pip's output in an error: the reason is at its end."""


class PeerError(RuntimeError):
    """A peer cannot be set up or does not answer; the message says what was asked and what it said."""


def peer_python(name: str, *, environments: Path = ENVIRONMENTS, requirements: Path = REQUIREMENTS) -> Path:
    """Interpreter of the environment ``environments/NAME`` with what ``requirements/NAME.txt`` pins.

    Makes the environment unless it is complete and of this very text of requirements. Safe to call from several
    processes: one makes it, the others wait.

    Raises:
        PeerError: there are no such requirements, or pip fails; no half-made environment is ever taken for a whole one.
    """
    pinned = requirements / f"{name}.txt"
    if not pinned.is_file():
        known = ", ".join(sorted(path.stem for path in requirements.glob("*.txt"))) or "none"
        raise PeerError(f"peer is {name!r}, must be one with a file in {requirements}: {known}")
    directory = environments / name
    python = directory / "bin" / "python"
    made_from = directory / "made_from.sha256"
    digest = hashlib.sha256(pinned.read_bytes() + sys.version.encode()).hexdigest()
    environments.mkdir(parents=True, exist_ok=True)
    with (environments / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (python.exists() and made_from.is_file() and made_from.read_text(encoding="ascii") == digest):
            print(f"making {directory} from {pinned.name}", file=sys.stderr, flush=True)
            _call(name, [sys.executable, "-m", "venv", "--clear", str(directory)])
            _call(name, [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(pinned)])
            # Last, so that an interrupted installation is made anew.
            made_from.write_text(digest, encoding="ascii")
    return python


def _call(name: str, command: list[str]) -> None:
    """Run a step of making environment ``name``; its output is shown only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-SHOWN_LINES:])
        raise PeerError(f"environment of peer {name!r}: {' '.join(command)} ended with {done.returncode}:\n{said}")


def main() -> int:
    """Make the environments named on the command line."""
    try:
        for name in sys.argv[1:]:
            print(peer_python(name))
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
