"""A process stops when it is asked to, at once when asked twice, and its exit code says why."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from apexrl.config import ConfigError
from apexrl.runtime.errors import ArchitectureError, CheckpointError, Fenced
from apexrl.runtime.lifecycle import Deadline, Shutdown, peer_name, run_service


def test_a_signal_requests_a_stop_and_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    shutdown = Shutdown()
    called: list[str | None] = []
    with shutdown.on_signals():
        shutdown.on_request(lambda: called.append(shutdown.reason))
        assert not shutdown.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert shutdown.wait(30)
    assert shutdown.requested
    assert shutdown.reason == "SIGTERM"
    assert called == ["SIGTERM"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_callback_is_called_once_also_if_it_comes_late() -> None:
    shutdown = Shutdown()
    called: list[int] = []
    shutdown.on_request(lambda: called.append(1))
    shutdown.request("finished")
    shutdown.request("again")
    shutdown.on_request(lambda: called.append(2))
    assert called == [1, 2]
    assert shutdown.reason == "finished"


def test_an_event_loop_can_wait_for_a_signal() -> None:
    async def main(shutdown: Shutdown) -> str:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        shutdown.on_request(lambda: loop.call_soon_threadsafe(stopped.set))
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(stopped.wait(), 30)
        return str(shutdown.reason)

    shutdown = Shutdown()
    with shutdown.on_signals():
        assert asyncio.run(main(shutdown)) == "SIGINT"


SERVICE = """
import signal, sys, time
from apexrl.runtime.lifecycle import run_service

def body(shutdown):
    print("ready", flush=True)
    shutdown.wait(60)
    print("stopping", shutdown.reason, flush=True)
    if "stubborn" in sys.argv:
        time.sleep(60)

code = run_service("test", body)
if "echo" in sys.argv:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
sys.exit(code)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_stops_in_order(number: signal.Signals) -> None:
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, f"stopping {number.name}\n", "")


def test_a_second_signal_ends_it_at_once() -> None:
    process = start("stubborn")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping SIGINT\n"
    while process.poll() is None:  # until one is no echo of the first any more
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "second signal" in err


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    process = start()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "second signal" not in err


def test_an_echo_while_the_process_ends_changes_nothing() -> None:
    process = start("echo")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "stopping SIGTERM\n", "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("seed is -1, must be 0 or above"), 2, "learner: seed is -1, must be 0 or above\n"),
        (ArchitectureError("other networks"), 2, "learner: other networks\n"),
        (CheckpointError("disk gone"), 1, "learner: disk gone\n"),
    ],
)
def test_expected_errors_are_one_line(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(shutdown: Shutdown) -> None:
        raise error

    assert run_service("learner", body) == code
    assert capsys.readouterr().err == message


def test_a_fenced_learner_exits_75_and_bugs_pass_through() -> None:
    def fenced(shutdown: Shutdown) -> None:
        raise Fenced("another learner has taken over")

    def broken(shutdown: Shutdown) -> None:
        raise ZeroDivisionError

    assert run_service("learner", fenced) == 75
    with pytest.raises(ZeroDivisionError):
        run_service("learner", broken)
    assert run_service("learner", lambda shutdown: 3) == 3
    assert run_service("learner", lambda shutdown: None) == 0


def test_a_deadline_runs_out_and_stays_there() -> None:
    now = 5.0
    deadline = Deadline(10.0, clock=lambda: now)
    now = 8.0
    assert deadline.left_seconds() == 7.0
    now = 80.0
    assert deadline.left_seconds() == 0.0


def test_a_peer_is_called_after_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "apex-actor-7")
    assert peer_name() == "apex-actor-7"
    monkeypatch.delenv("POD_NAME")
    assert peer_name().endswith(f":{os.getpid()}")
