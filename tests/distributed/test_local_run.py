"""A small run of real services on loopback: they learn, survive kill -9 of each kind, stop in order, and resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apex_cli.processes import Service
from apex_cli.train import LocalRun, free_ports
from apex_cli.usage import scrape
from apexrl.algorithms import CONFIGS
from apexrl.config import load_experiment
from apexrl.runtime.checkpoint import CheckpointStore
from apexrl.runtime.run_directory import RunDirectory
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import replay_pb2
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.info_client import UnreachableError, fetch_info

CATCH = Path(__file__).parents[2] / "configs" / "catch_apex_dqn.yaml"
#: The machine may be busy; nothing here waits this long on an idle one.
WAIT_SECONDS = 120.0
OVERRIDES = (
    "--learner.max-frames", "0",
    "--learner.checkpoint-period-seconds", "1",
    "--actor.lanes", "4",
    "--local.actors", "2",
    "--local.evaluators", "0",
    "--replay.min-items", "200",
)  # fmt: skip


class Scene:
    """A local run and a client of its coordinator."""

    def __init__(self, directory: Path, *overrides: str) -> None:
        config = load_experiment(CATCH, [*OVERRIDES, *overrides], algorithm_configs=CONFIGS)
        self.directory = RunDirectory.create_or_resume(directory, config)
        self.run = LocalRun(config, self.directory)
        address = self.run.learner.arguments[self.run.learner.arguments.index("--learner.listen") + 1]
        self.client = CoordinatorClient(address)
        self.run.start()

    def until(self, condition: Callable[[pb.GetStatusResponse], bool], what: str) -> pb.GetStatusResponse:
        """The first status that meets ``condition``; services that die are started again meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for service in self.run.services:
                service.supervise()
            try:
                status = self.client.get_status(timeout=2.0)
            except TimeoutError:
                continue
            if condition(status):
                return status
            time.sleep(0.1)
        logs = "\n".join(f"--- {s.name}\n{s.log_tail(8)}" for s in self.run.services)
        raise AssertionError(f"not within {WAIT_SECONDS:.0f} s: {what}\n{logs}")

    def kill(self, service: Service) -> None:
        """End a service as the kernel would."""
        assert service.process is not None
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()

    def close(self) -> list[str]:
        self.client.close()
        return self.run.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "run")
    yield made
    made.close()


@pytest.mark.timeout(400)
def test_training_goes_on_after_a_kill_of_each_service(scene: Scene) -> None:
    status = scene.until(lambda s: s.learner_updates > 50 and s.actors == 2, "learning begins with two actors")

    scene.kill(scene.run.actors[0])
    frames, updates = status.global_frames, status.learner_updates
    status = scene.until(
        lambda s: s.global_frames > frames + 500 and s.learner_updates > updates + 50,
        "training goes on without an actor",
    )

    before = status
    scene.kill(scene.run.shards[0])
    scene.until(lambda s: bool(s.waiting) or s.replay_items < before.replay_items, "the learner notices the lost shard")
    # Batches that were drawn before the kill may feed many updates, so those alone would not show that actors insert.
    status = scene.until(
        lambda s: s.learner_updates > before.learner_updates + 50 and s.global_frames > before.global_frames,
        "training goes on with an empty shard, and frames count on over shards",
    )
    assert status.epoch == 1, "the learner was not restarted"

    scene.until(
        lambda s: len(CheckpointStore(scene.directory.checkpoints, read_only=True).entries()) > 0, "a checkpoint"
    )
    before = scene.until(lambda s: s.learner_updates > status.learner_updates + 50, "progress")
    scene.kill(scene.run.learner)
    status = scene.until(lambda s: s.epoch == 2 and s.learner_updates > 0, "the learner is back with a new epoch")
    assert status.learner_updates >= 1
    newest = CheckpointStore(scene.directory.checkpoints, read_only=True).entries()[-1].version
    resumed_at = status.learner_updates
    assert newest.step > 0
    status = scene.until(lambda s: s.learner_updates > resumed_at + 50, "training goes on from the checkpoint")
    assert status.run_id == before.run_id
    scene.until(lambda s: s.version.epoch == 2 and s.actors >= 2 and s.parameter_lag_updates < 10_000, "actors follow")


@pytest.mark.timeout(300)
def test_a_stopped_run_resumes_where_it_was(tmp_path: Path) -> None:
    first = Scene(tmp_path / "run")
    first.until(lambda s: s.learner_updates > 100, "a first stretch of learning")
    began = time.monotonic()
    killed = first.close()
    seconds = time.monotonic() - began
    assert killed == []
    assert seconds < 10.0
    with CheckpointStore(first.directory.checkpoints) as store:
        saved = store.load_newest()
    assert saved is not None
    assert saved.version.step > 100

    second = Scene(tmp_path / "run")
    try:
        status = second.until(lambda s: s.learner_updates > saved.version.step, "learning goes on")
    finally:
        second.close()
    assert status.epoch == 2
    assert status.run_id == saved.run_id
    assert status.global_frames > sum(saved.counters["shard_inserted"])


@pytest.mark.timeout(300)
def test_a_run_ends_by_itself_at_its_last_update(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    scene = Scene(tmp_path / "run", "--learner.max-updates", "60", "--learner.metrics-port", str(port))
    try:
        status = scene.until(lambda s: s.finished, "the end of the run")
        scene.until(lambda s: scrape(f"127.0.0.1:{port}").get("apex_learner_finished") == 1.0, "the metric says so")
        assert status.learner_updates == 60
        saved = CheckpointStore(scene.directory.checkpoints, read_only=True).entries()[-1]
        assert saved.version.step == 60
    finally:
        scene.close()


@pytest.mark.timeout(300)
def test_training_goes_on_while_one_of_two_shards_is_gone_and_takes_it_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", "--replay.addresses", "a:1", "b:1")
    try:
        assert [service.name for service in scene.run.shards] == ["replay-0", "replay-1"]
        scene.until(lambda s: s.learner_updates > 50, "learning begins")
        items = [shard_items(service) for service in scene.run.shards]
        assert all(count > 0 for count in items), f"both shards are filled: {items}"

        lost = scene.run.shards[1]
        scene.kill(lost)
        updates = scene.client.get_status(timeout=5.0).learner_updates
        deadline = time.monotonic() + WAIT_SECONDS
        while scene.client.get_status(timeout=5.0).learner_updates < updates + 100:
            assert time.monotonic() < deadline, "training goes on from the other shard"
            time.sleep(0.1)

        before = scene.until(lambda s: lost.running, "the shard is started again")
        scene.until(lambda s: s.learner_updates > before.learner_updates + 100, "training goes on")
        deadline = time.monotonic() + WAIT_SECONDS
        while shard_items(lost) == 0:
            assert time.monotonic() < deadline, "actors fill the returned shard"
            time.sleep(0.1)
        drawn = shard_drawn(lost)
        scene.until(lambda s: shard_drawn(lost) > drawn, "the learner draws from it again")
        status = scene.client.get_status(timeout=5.0)
        assert status.epoch == 1
        assert status.global_frames >= before.global_frames
    finally:
        scene.close()


def shard_items(service: Service) -> int:
    """Items that a shard holds; 0 if it cannot be asked."""
    totals = shard_totals(service)
    return 0 if totals is None else int(totals.num_items)


def shard_drawn(service: Service) -> int:
    """Items ever drawn from a shard; 0 if it cannot be asked."""
    totals = shard_totals(service)
    return 0 if totals is None else int(totals.drawn)


def shard_totals(service: Service) -> replay_pb2.TableTotals | None:
    address = service.arguments[service.arguments.index("--replay.listen") + 1]
    try:
        info = fetch_info(address, timeout_seconds=5.0)
    except UnreachableError:
        return None
    return info.tables[0].totals if info.tables else None
