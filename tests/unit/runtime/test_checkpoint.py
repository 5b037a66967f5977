"""Checkpoints are whole or absent, and the newest whole one is found."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from torch import nn

from apexrl.algorithms.base import LearnerState
from apexrl.runtime import atomic_files, checkpoint
from apexrl.runtime.checkpoint import Checkpoint, CheckpointStore
from apexrl.runtime.checkpoint_writer import CheckpointWriter, Written
from apexrl.runtime.epoch import EpochFile
from apexrl.runtime.errors import CheckpointError, Fenced
from apexrl.runtime.learner_snapshot import restore, snapshot
from apexrl.types import ParameterVersion


def make(step: int, epoch: int = 1, **content: Any) -> Checkpoint:
    torch.manual_seed(step)
    online = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    online(torch.ones(3)).sum().backward()
    optimizer.step()
    state = LearnerState({"online": online}, {"main": optimizer}, step, {"noise": torch.Generator().manual_seed(step)})
    return Checkpoint(snapshot(state, epoch), **content)


def versions(store: CheckpointStore) -> list[tuple[int, int]]:
    return [(entry.version.epoch, entry.version.step) for entry in store.entries()]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "run_id": "ab" * 16,
        "config": {"seed": 1, "algorithm": {"name": "x", "rate": 1e-4}},
        "counters": {"frames": 10**15, "wall_seconds": 0.1, "rng": {"state": 2**127 + 1}, "by_shard": {0: 5, 10: 6}},
        "attachments": {"replay.npz": b"\x00\x01", "empty": b""},
    }
    original = make(7, 2, **content)
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.load_newest() is None
        entry = store.save(original)
        loaded = store.load_newest()
    assert loaded is not None
    assert entry.version == loaded.version == ParameterVersion(2, 7)
    assert loaded.snapshot.structure == json.loads(json.dumps(original.snapshot.structure))
    assert loaded.snapshot.tensors.keys() == original.snapshot.tensors.keys()
    for name, tensor in original.snapshot.tensors.items():
        assert torch.equal(tensor, loaded.snapshot.tensors[name])
    assert (loaded.run_id, loaded.config, loaded.attachments) == (
        content["run_id"],
        content["config"],
        content["attachments"],
    )
    assert loaded.counters == {**content["counters"], "by_shard": {"0": 5, "10": 6}}


def test_a_loaded_checkpoint_restores_a_learner(tmp_path: Path) -> None:
    original = make(7)
    with CheckpointStore(tmp_path) as store:
        store.save(original)
        loaded = store.load_newest()
    assert loaded is not None
    online = nn.Linear(3, 2)
    state = LearnerState(
        {"online": online}, {"main": torch.optim.Adam(online.parameters())}, 0, {"noise": torch.Generator()}
    )
    restore(state, loaded.snapshot)
    again = snapshot(state, 1)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in original.snapshot.tensors.items())
    assert state.optimizers["main"].param_groups[0]["betas"] == (0.9, 0.999)
    assert state.optimizers["main"].param_groups[0]["lr"] == 1e-3


def test_a_resumed_learner_is_newer_than_one_that_was_further(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=10) as store:
        for epoch, step in [(1, 5000), (2, 4950), (1, 4900), (10, 1)]:
            store.save(make(step, epoch))
        assert versions(store) == [(1, 4900), (1, 5000), (2, 4950), (10, 1)]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep=2) as store:
        assert store.mark_best(ParameterVersion(1, 5), 3.0) is None
        for step in (10, 20):
            store.save(make(step))
        marked = store.mark_best(ParameterVersion(1, 12), 3.0)
        assert marked is not None
        assert marked.version == (1, 10)
        assert store.mark_best(ParameterVersion(1, 20), 3.0) is None
        for step in (30, 40):
            store.save(make(step))
        assert versions(store) == [(1, 10), (1, 30), (1, 40)]
        assert store.mark_best(ParameterVersion(1, 39), 5.0) is not None
        store.save(make(50))
        assert versions(store) == [(1, 40), (1, 50)]
        best = store.best()
        assert best is not None
        assert (best[0].version, best[1]) == ((1, 40), 5.0)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [".lock"]


def damage_tensor(path: Path) -> None:
    data = bytearray((path / "learner.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "learner.safetensors").write_bytes(data)


def truncate_tensors(path: Path) -> None:
    os.truncate(path / "learner.safetensors", 20)


def lose_tensors(path: Path) -> None:
    (path / "learner.safetensors").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 100)


def edit_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["step"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest))


def escape_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"]["../../secret"] = manifest["files"]["learner.safetensors"]
    manifest["sha256"] = checkpoint._manifest_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def other_format(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["format"] = 99
    (path / "manifest.json").write_text(json.dumps(manifest))


def no_object(path: Path) -> None:
    (path / "manifest.json").write_text("[]")


DAMAGES = [
    damage_tensor,
    truncate_tensors,
    lose_tensors,
    lose_manifest,
    cut_manifest,
    edit_manifest,
    escape_manifest,
    other_format,
    no_object,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path, damage: Any) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(make(1))
        newest = store.save(make(2))
        damage(newest.path)
        with pytest.raises(CheckpointError, match=str(newest.path)):
            store.load(newest)
        with structlog.testing.capture_logs() as logs:
            loaded = store.load_newest()
        assert loaded is not None
        assert loaded.version == (1, 1)
        assert [str(newest.path) in line["reason"] for line in logs] == [True]
        damage(store.entries()[0].path)
        with pytest.raises(CheckpointError, match="none of 2 checkpoints can be read"):
            store.load_newest()


@pytest.mark.parametrize("failing_write", [0, 1])
def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    writes = 0
    real = atomic_files.write_durably

    def full(path: Path, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > failing_write:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    with CheckpointStore(tmp_path) as store:
        store.save(make(1))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_durably", full)
            with pytest.raises(CheckpointError, match=r"checkpoint 1\.2 cannot be written.*No space left"):
                store.save(make(2))
        assert versions(store) == [(1, 1)]
        assert [p.name for p in tmp_path.iterdir() if "writing" in p.name] == []
        assert store.load_newest() is not None
        store.save(make(2))
        assert versions(store) == [(1, 1), (1, 2)]


def test_a_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    """A limit on file sizes makes write() fail half-way, as a full disk does (Python ignores SIGXFSZ)."""
    with CheckpointStore(tmp_path) as store:
        store.save(make(1))
        unfinished = make(2)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        try:
            with pytest.raises(CheckpointError, match=r"checkpoint 1\.2 cannot be written.*File too large"):
                store.save(unfinished)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert versions(store) == [(1, 1)]


def test_what_a_killed_learner_left_half_written_is_removed(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        entry = store.save(make(1))
    shutil.copytree(entry.path, tmp_path / ".writing-0000000001-00000000000002")
    shutil.copytree(entry.path, tmp_path / ".removing-0000000001-00000000000000")
    with CheckpointStore(tmp_path) as store:
        assert versions(store) == [(1, 1)]
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".writing", ".removing"))] == []


def test_two_learners_cannot_share_a_directory(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(make(1))
        with pytest.raises(CheckpointError, match=rf"another learner is writing to it \(process {os.getpid()}\)"):
            CheckpointStore(tmp_path)
        reader = CheckpointStore(tmp_path, read_only=True)
        assert reader.load_newest() is not None
    CheckpointStore(tmp_path).close()
    assert CheckpointStore(tmp_path / "absent", read_only=True).load_newest() is None
    assert not (tmp_path / "absent").exists()


def test_a_replaced_learner_writes_nothing(tmp_path: Path) -> None:
    epochs = EpochFile(tmp_path / "epoch.json")
    epoch = epochs.take_next(b"old")
    with CheckpointStore(tmp_path / "checkpoints", fence=lambda: epochs.check(epoch, b"old")) as store:
        store.save(make(1, epoch))
        epochs.take_next(b"new")
        with pytest.raises(Fenced, match="another learner has taken over"):
            store.save(make(2, epoch))
        assert versions(store) == [(1, 1)]


def test_the_newest_can_be_set_aside(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(make(1))
        assert store.set_aside_newest() is None
        store.save(make(2))
        aside = store.set_aside_newest()
        assert aside is not None
        assert aside.version == (1, 2)
        assert versions(store) == [(1, 1)]
        assert (tmp_path / f"suspect-{aside.path.name}" / "manifest.json").exists()


def test_wrong_contents_are_named(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(CheckpointError, match=r"attachment '\.\./x'"):
            store.save(make(1, attachments={"../x": b""}))
        with pytest.raises(CheckpointError, match="configuration or counters"):
            store.save(make(1, counters={"x": object()}))
        assert versions(store) == []


def test_the_writer_saves_in_the_background(tmp_path: Path) -> None:
    written: list[Written] = []
    with CheckpointStore(tmp_path) as store:
        writer = CheckpointWriter(store, on_written=written.append)
        writer.submit(make(1))
        assert writer.wait(30)
        assert [w.entry.version.step for w in written] == [1]
        assert written[0].num_bytes > 500
        writer.submit(make(2))
        assert writer.close(30)
        assert versions(store) == [(1, 1), (1, 2)]
        with pytest.raises(RuntimeError, match="closed"):
            writer.submit(make(3))


def test_of_several_waiting_checkpoints_the_newest_is_written(tmp_path: Path) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert gate.wait(30)

    with CheckpointStore(tmp_path, fence=slow) as store:
        writer = CheckpointWriter(store)
        writer.submit(make(1))
        assert entered.wait(30)
        for step in (2, 3, 4):
            writer.submit(make(step))
        assert not writer.wait(0.01)
        gate.set()
        assert writer.wait(30)
        assert versions(store) == [(1, 1), (1, 4)]
        assert writer.close(30)


def test_the_writer_survives_a_full_disk_and_reports_a_fence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[int] = []
    replaced = False

    def fence() -> None:
        if replaced:
            raise Fenced("another learner has taken over")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with CheckpointStore(tmp_path, fence=fence) as store:
        writer = CheckpointWriter(store, on_failed=lambda: failed.append(1))
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_durably", full)
            writer.submit(make(1))
            assert writer.wait(30)
        assert (writer.failures, failed) == (1, [1])
        writer.submit(make(2))
        assert writer.wait(30)
        assert versions(store) == [(1, 2)]
        replaced = True
        writer.submit(make(3))
        with pytest.raises(Fenced):
            writer.wait(30)
        with pytest.raises(Fenced):
            writer.check()
        assert versions(store) == [(1, 2)]
