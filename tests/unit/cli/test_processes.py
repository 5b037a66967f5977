"""Supervision of child processes: restarted, given up, stopped in order, killed at the deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_cli.processes import MAX_RESTARTS, Service, ServiceFailedError, stop_in_order

WAIT_SECONDS = 20.0
SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)\n"
)


class Bench:
    """Makes services out of small modules."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.services: list[Service] = []

    def service(self, name: str, code: str) -> Service:
        (self.directory / f"{name}.py").write_text(code)
        service = Service(name, name, [], self.directory / "logs" / f"{name}.log")
        service.start()
        self.services.append(service)
        return service


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.chdir(tmp_path)
    made = Bench(tmp_path)
    yield made
    for service in made.services:
        if service.process is not None:
            service.process.kill()
            service.process.wait()


def until_up(service: Service) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while "up" not in (service.log.read_text() if service.log.exists() else ""):
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.01)


def ended(service: Service) -> int:
    assert service.process is not None
    return service.process.wait(WAIT_SECONDS)


def test_a_dead_service_is_started_again_and_at_last_given_up(bench: Bench) -> None:
    service = bench.service("crasher", "print('the reason'); raise SystemExit(1)\n")
    first = service.process
    for _ in range(MAX_RESTARTS):
        assert ended(service) == 1
        service.supervise()
    assert service.process is not first
    assert ended(service) == 1
    with pytest.raises(ServiceFailedError, match=r"crasher ended with code 1(.|\n)*the reason"):
        service.supervise()


@pytest.mark.parametrize("code", [2, 75])
def test_what_a_restart_cannot_mend_is_given_up_at_once(bench: Bench, code: int) -> None:
    service = bench.service("refused", f"raise SystemExit({code})\n")
    assert ended(service) == code
    with pytest.raises(ServiceFailedError, match=f"code {code}"):
        service.supervise()


def test_a_living_service_is_left_alone(bench: Bench) -> None:
    service = bench.service("sleeper", SLEEPER)
    first = service.process
    service.supervise()
    assert service.process is first
    assert service.running


def test_stages_are_stopped_in_order_and_the_stubborn_killed(bench: Bench) -> None:
    sleeper, stubborn = bench.service("sleeper", SLEEPER), bench.service("stubborn", STUBBORN)
    until_up(sleeper)
    until_up(stubborn)
    assert stop_in_order([([sleeper], WAIT_SECONDS), ([stubborn], 0.2)]) == ["stubborn"]
    assert not sleeper.running
    assert not stubborn.running
