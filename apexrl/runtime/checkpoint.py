"""Checkpoints: directories that are complete or do not exist, of which the newest readable one is resumed.

::

    checkpoints/
      .lock                      held by the learner that writes
      best.json                  the checkpoint nearest to the best evaluation; it is kept
      0000000003-00000000012000/ epoch 3, step 12,000
        manifest.json            format, run, version, configuration, counters, optimizer settings, SHA-256 of each file
        learner.safetensors      all tensors of the learner
        <attachment>             bytes somebody added (a replay snapshot)

A checkpoint is written under a temporary name, synced, and renamed. Names sort by (epoch, step), so that what a learner
that was replaced still wrote is never the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch

from apexrl import __version__
from apexrl.runtime.atomic_files import replace_file, sync_directory, write_durably
from apexrl.runtime.directory_lock import DirectoryLock
from apexrl.runtime.errors import CheckpointError
from apexrl.runtime.learner_snapshot import Snapshot
from apexrl.telemetry.logging import get_logger
from apexrl.types import ParameterVersion

FORMAT = 1
MANIFEST_NAME = "manifest.json"
TENSORS_NAME = "learner.safetensors"
BEST_NAME = "best.json"
_NAME = re.compile(r"(\d{10})-(\d{14})")
_ATTACHMENT_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


class CheckpointEntry(NamedTuple):
    """A checkpoint in the directory, not read yet."""

    version: ParameterVersion
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    snapshot: Snapshot
    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration as plain data."""
    counters: dict[str, Any] = field(default_factory=dict)
    """JSON of the caller: global frames, wall-clock, the limiter's counters, states of NumPy generators."""
    attachments: dict[str, bytes] = field(default_factory=dict)
    """Further files by name, for example a replay table's snapshot."""

    @property
    def version(self) -> ParameterVersion:
        return self.snapshot.version


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: Where they lie; created if needed.
        keep: How many of the newest stay, besides the best one.
        fence: Called right before a checkpoint gets its name; raises :class:`Fenced` if another learner took over.
        read_only: Only list and load; takes no lock and removes nothing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        *,
        fence: Callable[[], None] | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self.fence = fence
        self._keep = keep
        self._log = get_logger(__name__)
        # The best is marked by another thread than the one that saves and prunes.
        self._mutex = threading.Lock()
        self._lock = None if read_only else DirectoryLock(self.directory)
        if self._lock is not None:
            self._remove_leftovers()

    def entries(self) -> list[CheckpointEntry]:
        """All checkpoints, oldest first by (epoch, step)."""
        found = []
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                match = _NAME.fullmatch(path.name)
                if match:
                    found.append(CheckpointEntry(ParameterVersion(int(match[1]), int(match[2])), path))
        return sorted(found)

    def save(self, checkpoint: Checkpoint) -> CheckpointEntry:
        """Write a checkpoint and remove those that are no longer to be kept.

        A version that exists already is left as it is. Whatever goes wrong, earlier checkpoints are untouched.

        Raises:
            CheckpointError: it could not be written (disk full).
            Fenced: another learner took over; nothing was written under a valid name.
        """
        version = checkpoint.version
        target = self.directory / f"{version.epoch:010d}-{version.step:014d}"
        entry = CheckpointEntry(version, target)
        if target.exists():
            return entry
        temporary = self.directory / f".writing-{target.name}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self._write(temporary, checkpoint)
            sync_directory(temporary)
            if self.fence is not None:
                self.fence()
            os.rename(temporary, target)
            sync_directory(self.directory)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"checkpoint {version} cannot be written to {self.directory}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        try:
            with self._mutex:
                self._prune()
        except OSError as error:
            self._log.warning("an old checkpoint cannot be removed", error=str(error))
        return entry

    def load(self, entry: CheckpointEntry) -> Checkpoint:
        """Read one checkpoint, checking every byte against the manifest.

        Raises:
            CheckpointError: it is damaged or of an unknown format.
        """
        try:
            manifest = _read_manifest(entry.path / MANIFEST_NAME)
            files = {name: _read_file(entry.path / name, known) for name, known in manifest["files"].items()}
            tensors = safetensors.torch.load(files.pop(TENSORS_NAME))
            version = ParameterVersion(manifest["epoch"], manifest["step"])
            snapshot = Snapshot(version, tensors, manifest["structure"])
            if snapshot.architecture_digest() != manifest["architecture"]:
                raise CheckpointError("the tensors are not those that the manifest describes")
            return Checkpoint(snapshot, manifest["run_id"], manifest["config"], manifest["counters"], files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"checkpoint {entry.path}: damaged: {error!r}") from error
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {entry.path}: {error}") from error

    def load_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Damaged ones are skipped with a line in the log.

        Raises:
            CheckpointError: there are checkpoints, but not one can be read. Starting anew would hide that.
        """
        entries = self.entries()
        errors = []
        for entry in reversed(entries):
            try:
                return self.load(entry)
            except CheckpointError as error:
                self._log.warning("checkpoint skipped, trying the one before", reason=str(error))
                errors.append(str(error))
        if errors:
            raise CheckpointError(f"none of {len(errors)} checkpoints can be read; the newest: {errors[0]}")
        return None

    def mark_best(self, version: ParameterVersion, score: float) -> CheckpointEntry | None:
        """Keep the checkpoint nearest to ``version`` if ``score`` (mean evaluator return) beats the best so far.

        Returns:
            The checkpoint that is now the best, None if the score was no better or there is no checkpoint yet.
        """
        with self._mutex:
            return self._mark_best(version, score)

    def _mark_best(self, version: ParameterVersion, score: float) -> CheckpointEntry | None:
        entries = self.entries()
        best = self.best()
        if not entries or (best is not None and score <= best[1]):
            return None
        nearest = min(entries, key=lambda e: (abs(e.version.epoch - version.epoch), abs(e.version.step - version.step)))
        content = {"checkpoint": nearest.path.name, "score": score, "evaluated": list(version)}
        try:
            replace_file(self.directory / BEST_NAME, json.dumps(content).encode())
        except OSError as error:
            raise CheckpointError(f"the best checkpoint cannot be marked in {self.directory}: {error}") from error
        return nearest

    def best(self) -> tuple[CheckpointEntry, float] | None:
        """The best checkpoint and its score, if one was marked and still exists."""
        try:
            content = json.loads((self.directory / BEST_NAME).read_text(encoding="utf-8"))
            name, score = content["checkpoint"], float(content["score"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log.warning("the mark of the best checkpoint is not readable", error=repr(error))
            return None
        return next(((entry, score) for entry in self.entries() if entry.path.name == name), None)

    def set_aside_newest(self) -> CheckpointEntry | None:
        """Take the newest checkpoint out of the list if there is an older one (``suspect-...`` beside it).

        For a learner whose updates stopped being finite: the state in its newest checkpoint may be the cause, so the
        next start resumes the one before.
        """
        entries = self.entries()
        if len(entries) < 2:
            return None
        newest = entries[-1]
        target = self.directory / f"suspect-{newest.path.name}"
        shutil.rmtree(target, ignore_errors=True)
        os.rename(newest.path, target)
        self._log.warning("checkpoint set aside", path=str(target))
        return newest

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, directory: Path, checkpoint: Checkpoint) -> None:
        snapshot = checkpoint.snapshot
        for name in checkpoint.attachments:
            if not _ATTACHMENT_NAME.fullmatch(name) or name in (MANIFEST_NAME, TENSORS_NAME):
                raise CheckpointError(f"attachment {name!r}: must be a file name of a-z, 0-9, _ and single dots")
        files = {TENSORS_NAME: safetensors.torch.save(snapshot.tensors), **checkpoint.attachments}
        for name, data in files.items():
            write_durably(directory / name, data)
        manifest = {
            "format": FORMAT,
            "apex_version": __version__,
            "epoch": snapshot.version.epoch,
            "step": snapshot.version.step,
            "run_id": checkpoint.run_id,
            "saved_unix_seconds": time.time(),
            "config": checkpoint.config,
            "counters": checkpoint.counters,
            "architecture": snapshot.architecture_digest(),
            "structure": snapshot.structure,
            "files": {name: _fingerprint(data) for name, data in files.items()},
        }
        try:
            manifest = json.loads(json.dumps(manifest))  # as it will be read: string keys, no tuples
            text = json.dumps({**manifest, "sha256": _manifest_digest(manifest)}, indent=1)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"configuration or counters of checkpoint {snapshot.version}: {error}") from error
        write_durably(directory / MANIFEST_NAME, text.encode())

    def _prune(self) -> None:
        best = self.best()
        kept = {entry.path for entry in self.entries()[-self._keep :]} | ({best[0].path} if best else set())
        for entry in self.entries():
            if entry.path not in kept:
                # Renamed first: a removal that is interrupted must not leave what looks like a damaged checkpoint.
                doomed = self.directory / f".removing-{entry.path.name}"
                os.rename(entry.path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.directory.iterdir():
            if path.name.startswith((".writing-", ".removing-")):
                shutil.rmtree(path, ignore_errors=True)


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    number = manifest.get("format")
    if number != FORMAT:
        raise CheckpointError(f"format is {number!r}, must be {FORMAT}")
    if manifest.pop("sha256") != _manifest_digest(manifest):
        raise CheckpointError(f"{path.name} does not match its checksum")
    return manifest


def _read_file(path: Path, known: Mapping[str, Any]) -> bytes:
    if path.name == MANIFEST_NAME or not _ATTACHMENT_NAME.fullmatch(path.name):
        raise CheckpointError(f"the manifest names the file {path.name!r}")
    data = path.read_bytes()
    if _fingerprint(data) != known:
        raise CheckpointError(f"{path.name} does not match its checksum")
    return data
