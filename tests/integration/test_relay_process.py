"""`python -m apex_learner.relay` as a process: whom it asks, how it stops, what it says when it cannot start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parameter_scene import is_ready, parameter_client, parameters, server, unused_address
from replay_scene import WAIT, handshake, wait_until

from apexrl.transport.parameter_server import SERVICE_NAME, ParametersServicer


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text("algorithm: {name: apex_dqn}\nrelay: {listen: '127.0.0.1:0', poll_period_seconds: 0.05}\n")
    return path


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "apex_learner.relay", "--config", str(config), *arguments]


@contextmanager
def process(config: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running relay and its address."""
    child = subprocess.Popen(command(config, *arguments), stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        line = json.loads(child.stderr.readline())
        assert line["event"] == "relay is listening"
        yield child, line["address"]
    finally:
        child.kill()
        child.wait()


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_it_serves_the_learners_parameters_until_sigterm(config: Path) -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(2, 7))
    port = unused_address().rpartition(":")[2]
    with (
        server(servicer.register()) as learner,
        process(config, "--learner.address", learner.address, "--relay.metrics-port", port) as (child, address),
        parameter_client(address) as client,
    ):
        assert client.wait_newer(None, timeout=WAIT) == parameters(2, 7)
        wait_until(lambda: is_ready(address, SERVICE_NAME), "the relay is ready")
        wait_until(lambda: metric(int(port), "apex_relay_params_version") == 7.0, "the metrics follow")
        wait_until(lambda: metric(int(port), "apex_relay_params_served_bytes_total") == len(b"weights"), "so do these")
        assert metric(int(port), "apex_relay_params_epoch") == 2.0
        assert metric(int(port), "apex_relay_params_publish_total") == 1.0
        assert metric(int(port), "apex_relay_params_fetch_bytes_total") == len(b"weights")
        assert metric(int(port), "apex_relay_upstream_live") == 1.0
        child.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert child.wait(WAIT) == 0
        # A second by itself; the rest is for a busy machine.
        assert time.monotonic() - started < 3.0


def test_it_stops_while_it_waits_for_its_upstream(config: Path) -> None:
    upstream = unused_address()
    with process(config, "--relay.upstream", upstream) as (child, address), parameter_client(address) as client:
        wait_until(lambda: f"parameter service {upstream}" in (client.waiting() or ""), "its client knows why")
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT) == 0


def test_a_port_in_use_is_named_and_exits_with_1(config: Path) -> None:
    with server() as other:
        done = subprocess.run(
            command(config, "--relay.listen", other.address), capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert f"relay: cannot listen on {other.address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_relay_of_itself_exits_with_2(config: Path) -> None:
    arguments = ("--relay.listen", "127.0.0.1:50061", "--learner.address", "127.0.0.1:50061")
    done = subprocess.run(command(config, *arguments), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "relay.listen is '127.0.0.1:50061', must be another address than it pulls from" in done.stderr


def test_the_relay_imports_no_torch() -> None:
    modules = ("torch", "safetensors", "gymnasium", "ale_py")
    code = f"import sys, apex_learner.relay; print([m for m in {modules} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
