"""Asking a process: answers, failures, ends, and prints that must not come between."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.worker import PeerProcess, PeerProcessError, timed

SCRIPT = """
import os, sys
print("chatter before the first request", flush=True)
from benchmarks.peers.worker import serve

def answer(request):
    print("chatter of a library")
    if request.get("end"):
        os._exit(5)
    if "seconds" in request:
        return {"rate": 2 * request["seconds"]}
    return {"said": sys.argv[1:], "failed": 1 / request["divisor"], "variable": os.environ.get("SOME_VARIABLE")}

serve(answer)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "some_worker.py"
    path.write_text(SCRIPT)
    return path


def test_a_process_answers_one_request_after_the_other(script: Path) -> None:
    with PeerProcess(sys.executable, script, "a", "b", environment={"SOME_VARIABLE": "x"}) as peer:
        assert peer.ask({"divisor": 4}) == {"said": ["a", "b"], "failed": 0.25, "variable": "x"}
        assert peer.window(1.5) == 3.0


def test_a_failure_is_told_and_the_next_request_served(script: Path) -> None:
    with PeerProcess(sys.executable, script) as peer:
        with pytest.raises(PeerProcessError, match=r"(?s)some_worker failed when asked .*ZeroDivisionError"):
            peer.ask({"divisor": 0})
        assert peer.ask({"divisor": 1})["failed"] == 1.0


def test_a_process_that_ends_is_told_with_its_exit_code(script: Path) -> None:
    with PeerProcess(sys.executable, script) as peer:
        with pytest.raises(PeerProcessError, match="some_worker ended with 5"):
            peer.ask({"end": True})
        with pytest.raises(PeerProcessError, match="ended with 5"):
            peer.ask({"divisor": 1})
    peer.close()


def test_a_timed_window_counts_what_was_done_until_its_end() -> None:
    now, cpu = 0.0, 10.0

    def work() -> int:
        nonlocal now, cpu
        now += 0.4
        cpu += 0.3
        return 8

    # The third call passes the second.
    found = timed(work, 1.0, clock=lambda: now, cpu_clock=lambda: cpu)
    assert found["units"] == 24
    assert found["seconds"] == pytest.approx(1.2)
    assert found["rate"] == pytest.approx(20.0)
    assert found["cpu_seconds"] == pytest.approx(0.9)
