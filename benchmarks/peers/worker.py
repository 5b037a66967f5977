"""A peer in a process of its own that measures when it is asked to: one JSON object per line, each with one answer.

The benchmark holds a :class:`PeerProcess` and asks; the peer's script ends in :func:`serve`. This module and
:mod:`benchmarks.windows` import nothing but the standard library, so scripts may use them under any interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

SINGLE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
}
"""Environment in which libraries start no thread pools."""

ANSWERS_VARIABLE = "PEER_ANSWERS_FD"
"""Names the pipe of the answers to the script. Not its stdout, to which libraries print as they please."""

CLOSE_SECONDS = 10.0
"""After the end of its input a peer has so long to end before it is killed."""


class PeerProcessError(RuntimeError):
    """A peer's process said that it failed, or ended."""


class PeerProcess:
    """Runs ``python script arguments...`` from the repository's root, with ``benchmarks`` importable, and asks it.

    Args:
        python: interpreter, e.g. of :func:`benchmarks.peers.environment.peer_python`.
        script: relative to the repository's root, or absolute.
        arguments: of the script.
        environment: variables on top of this process's.

    What the script prints goes to stderr. The first answer waits until the script is ready, however long that takes.
    """

    def __init__(
        self, python: Path | str, script: Path | str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = Path(script).stem
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading, encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                [str(python), str(ROOT / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=sys.__stderr__,
                text=True,
                cwd=ROOT,
                env={**os.environ, **(environment or {}), "PYTHONPATH": path, ANSWERS_VARIABLE: str(writing)},
                pass_fds=(writing,),
            )
        except BaseException:
            self._answers.close()
            raise
        finally:
            # Only the script may hold it, so that its end is the end of the answers.
            os.close(writing)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            PeerProcessError: the peer failed at it, or has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerProcessError(f"{self.name} ended with {self._process.wait()} when asked {dict(request)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerProcessError(f"{self.name} failed when asked {dict(request)}:\n{answer['error']}")
        return answer

    def window(self, seconds: float) -> float:
        """A window as :data:`benchmarks.windows.Window`: the peer works for ``seconds`` and says its rate."""
        return float(self.ask({"seconds": seconds})["rate"])

    def close(self) -> None:
        """End the process; may be called again."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve(answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Answer requests on stdin until it ends. An exception is answered with its traceback, and the next is served.

    Started by hand, a script answers on stdout.
    """
    answers = os.fdopen(int(os.environ.get(ANSWERS_VARIABLE, "1")), "w", encoding="utf-8", closefd=False)
    for line in sys.stdin:
        try:
            said: Mapping[str, Any] = answer(json.loads(line))
            text = json.dumps(said)
        except Exception:
            text = json.dumps({"error": traceback.format_exc()})
        answers.write(text + "\n")
        answers.flush()


def timed(
    call: Callable[[], int],
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Call ``call`` again and again for ``seconds``; each call returns the units it did.

    Returns ``rate`` (units per second), ``units``, ``seconds``, and ``cpu_seconds`` of all threads of the process: what
    the answer to a window is made of.
    """
    units = 0
    cpu_started, started = cpu_clock(), clock()
    while True:
        units += call()
        now = clock()
        if now - started >= seconds:
            break
    taken = now - started
    return {"rate": units / taken, "units": units, "seconds": taken, "cpu_seconds": cpu_clock() - cpu_started}
