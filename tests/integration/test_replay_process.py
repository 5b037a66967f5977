"""`python -m apex_replay` as a process: where it listens, how it stops, what it says when it cannot start."""

from __future__ import annotations

import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from process_scene import ServiceCommand, imported
from replay_scene import STARTS, WAIT, fill, inserted, learner, mark_of, opened, reply, shard, table_info, wait_until

from apexrl.transport.channel import REPLAY_LIMITS, open_channel
from apexrl.transport.io_thread import io_thread

#: Less than a chunk of the scene takes in a journal.
RECORD_BYTES = 100


@pytest.fixture
def replay(tmp_path: Path) -> ServiceCommand:
    path = tmp_path / "experiment.yaml"
    path.write_text("algorithm: {name: apex_dqn}\nreplay: {listen: '127.0.0.1:0'}\n")
    return ServiceCommand("apex_replay", "replay shard is listening", path)


def test_it_serves_until_sigterm_and_exits_with_0(replay: ServiceCommand) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        metrics_port = probe.getsockname()[1]
    with replay.running("--replay.metrics-port", str(metrics_port)) as (child, address):
        fill(address, 2)
        assert inserted(address) == 2 * STARTS
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=WAIT) as page:
            assert b"apex_replay_insert_streams" in page.read()
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT) == 0


def test_a_killed_shard_with_a_journal_has_its_experience_again(replay: ServiceCommand, tmp_path: Path) -> None:
    options = ("--replay.journal-directory", str(tmp_path / "journal"), "--replay.journal-flush-seconds", "0.05")
    with replay.running(*options) as (child, address):
        fill(address, 5)
        written = tmp_path / "journal"
        wait_until(
            lambda: sum(path.stat().st_size for path in written.glob("*.segment")) > 5 * RECORD_BYTES, "chunks on disk"
        )
        child.kill()
        child.wait()
    with replay.running(*options) as (child, address):
        assert inserted(address) == table_info(address).totals.num_items == 5 * STARTS
        fill(address, 1, first_mark=5)
        with learner(address) as client:
            opened(client)
            assert client.request_draw("replay", 1, [64])
            assert {mark_of(chunk) for chunk in reply(client).result.new_chunks.chunks()} == set(range(6))
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT) == 0


def test_a_journal_in_use_is_named_and_exits_with_1(replay: ServiceCommand, tmp_path: Path) -> None:
    options = ("--replay.journal-directory", str(tmp_path / "journal"))
    with replay.running(*options):
        done = replay.ended(*options)
    assert done.returncode == 1
    assert "replay.journal_directory" in done.stderr
    assert "is in use by another shard" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named_and_exits_with_1(replay: ServiceCommand) -> None:
    with shard() as service:
        done = replay.ended("--replay.listen", service.address)
    assert done.returncode == 1
    assert f"cannot listen on {service.address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_exits_with_2_and_names_the_nearest(replay: ServiceCommand) -> None:
    done = replay.ended("--replay.listn", "x")
    assert done.returncode == 2
    assert "--replay.listen" in done.stderr


def test_the_shard_imports_neither_torch_nor_an_environment() -> None:
    assert imported("apex_replay.__main__", "torch", "gymnasium", "ale_py") == []


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
