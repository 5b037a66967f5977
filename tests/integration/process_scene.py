"""Services as processes of their own: started, asked where they listen, and killed at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ServiceCommand:
    """`python -m MODULE --config FILE`, whose log names its address in the event ``listening``."""

    def __init__(self, module: str, listening: str, config: Path) -> None:
        self._arguments = [sys.executable, "-m", module, "--config", str(config)]
        self._listening = listening

    @contextmanager
    def running(self, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """The process and its address."""
        child = subprocess.Popen([*self._arguments, *options], stderr=subprocess.PIPE, text=True)
        try:
            assert child.stderr is not None
            lines = map(json.loads, child.stderr)
            yield child, next(line["address"] for line in lines if line["event"] == self._listening)
        finally:
            child.kill()
            child.wait()

    def ended(self, *options: str) -> subprocess.CompletedProcess[str]:
        """A process that ends by itself, with what it said."""
        return subprocess.run([*self._arguments, *options], capture_output=True, text=True, timeout=30, check=False)


def imported(module: str, *heavy: str) -> list[str]:
    """Which of the packages ``heavy`` a process has loaded once it has imported ``module``."""
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.split()
