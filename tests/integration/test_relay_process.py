"""`python -m apex_learner.relay` as a process: whom it asks, how it stops, what it says when it cannot start."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest
from parameter_scene import is_ready, parameter_client, parameters, server, unused_address
from process_scene import ServiceCommand, imported
from replay_scene import WAIT, handshake, wait_until

from apexrl.transport.parameter_server import SERVICE_NAME, ParametersServicer


@pytest.fixture
def relay(tmp_path: Path) -> ServiceCommand:
    path = tmp_path / "experiment.yaml"
    path.write_text("algorithm: {name: apex_dqn}\nrelay: {listen: '127.0.0.1:0', poll_period_seconds: 0.05}\n")
    return ServiceCommand("apex_learner.relay", "relay is listening", path)


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_it_serves_the_learners_parameters_until_sigterm(relay: ServiceCommand) -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(2, 7))
    port = unused_address().rpartition(":")[2]
    with (
        server(servicer.register()) as learner,
        relay.running("--learner.address", learner.address, "--relay.metrics-port", port) as (child, address),
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
        assert child.wait(WAIT) == 0


def test_it_stops_while_it_waits_for_its_upstream(relay: ServiceCommand) -> None:
    upstream = unused_address()
    with relay.running("--relay.upstream", upstream) as (child, address), parameter_client(address) as client:
        wait_until(lambda: f"parameter service {upstream}" in (client.waiting() or ""), "its client knows why")
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT) == 0


def test_a_port_in_use_is_named_and_exits_with_1(relay: ServiceCommand) -> None:
    with server() as other:
        done = relay.ended("--relay.listen", other.address)
    assert done.returncode == 1
    assert f"relay: cannot listen on {other.address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_relay_of_itself_exits_with_2(relay: ServiceCommand) -> None:
    arguments = ("--relay.listen", "127.0.0.1:50061", "--learner.address", "127.0.0.1:50061")
    done = relay.ended(*arguments)
    assert done.returncode == 2
    assert "relay.listen is '127.0.0.1:50061', must be another address than it pulls from" in done.stderr


def test_the_relay_imports_no_torch() -> None:
    assert imported("apex_learner.relay", "torch", "safetensors", "gymnasium", "ale_py") == []
