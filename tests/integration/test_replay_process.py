"""`python -m apex_replay` as a process: where it listens, how it stops, what it says when it cannot start."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from replay_scene import STARTS, WAIT, fill, inserted, shard

from apexrl.transport.channel import REPLAY_LIMITS, open_channel
from apexrl.transport.io_thread import io_thread


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text("algorithm: {name: apex_dqn}\nreplay: {listen: '127.0.0.1:0'}\n")
    return path


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "apex_replay", "--config", str(config), *arguments]


@contextmanager
def process(config: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running shard and its address."""
    child = subprocess.Popen(command(config, *arguments), stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        line = json.loads(child.stderr.readline())
        assert line["event"] == "replay shard is listening"
        yield child, line["address"]
    finally:
        child.kill()
        child.wait()


def test_it_serves_until_sigterm_and_exits_with_0(config: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics_port = probe.getsockname()[1]
    with process(config, "--replay.metrics-port", str(metrics_port)) as (child, address):
        fill(address, 2)
        assert inserted(address) == 2 * STARTS
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=WAIT) as page:
            assert b"apex_replay_insert_streams" in page.read()
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT) == 0


def test_a_port_in_use_is_named_and_exits_with_1(config: Path) -> None:
    with shard() as service:
        done = subprocess.run(
            command(config, "--replay.listen", service.address), capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert f"cannot listen on {service.address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_exits_with_2_and_names_the_nearest(config: Path) -> None:
    done = subprocess.run(
        command(config, "--replay.listn", "x"), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "--replay.listen" in done.stderr


def test_the_shard_imports_neither_torch_nor_an_environment() -> None:
    code = "import sys, apex_replay.__main__; print([m for m in ('torch', 'gymnasium', 'ale_py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_health_service_answers() -> None:
    async def check(address: str) -> int:
        channel = open_channel(address, REPLAY_LIMITS)
        try:
            request = health_pb2.HealthCheckRequest(service="apex.v1.Replay")
            response = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5.0)
            return int(response.status)
        finally:
            await channel.close(None)

    with shard() as service:
        assert io_thread().run(check(service.address), WAIT) == health_pb2.HealthCheckResponse.SERVING
