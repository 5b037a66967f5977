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
from replay_scene import STARTS, WAIT, fill, inserted, learner, mark_of, opened, reply, shard, table_info, wait_until

from apexrl.transport.channel import REPLAY_LIMITS, open_channel
from apexrl.transport.io_thread import io_thread

#: Less than a chunk of the scene takes in a journal.
RECORD_BYTES = 100


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
        lines = map(json.loads, child.stderr)
        yield child, next(line["address"] for line in lines if line["event"] == "replay shard is listening")
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


def test_a_killed_shard_with_a_journal_has_its_experience_again(config: Path, tmp_path: Path) -> None:
    options = ("--replay.journal-directory", str(tmp_path / "journal"), "--replay.journal-flush-seconds", "0.05")
    with process(config, *options) as (child, address):
        fill(address, 5)
        written = tmp_path / "journal"
        wait_until(
            lambda: sum(path.stat().st_size for path in written.glob("*.segment")) > 5 * RECORD_BYTES, "chunks on disk"
        )
        child.kill()
        child.wait()
    with process(config, *options) as (child, address):
        assert inserted(address) == table_info(address).totals.num_items == 5 * STARTS
        fill(address, 1, first_mark=5)
        with learner(address) as client:
            opened(client)
            assert client.request_draw("replay", 1, [64])
            assert {mark_of(chunk) for chunk in reply(client).result.new_chunks} == set(range(6))
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT) == 0


def test_a_journal_in_use_is_named_and_exits_with_1(config: Path, tmp_path: Path) -> None:
    options = ("--replay.journal-directory", str(tmp_path / "journal"))
    with process(config, *options):
        done = subprocess.run(command(config, *options), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "replay.journal_directory" in done.stderr
    assert "is in use by another shard" in done.stderr
    assert "Traceback" not in done.stderr


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
