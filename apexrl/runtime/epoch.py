"""The learner's epoch on its volume: grows with every start, and tells a learner that was replaced to stop.

Nothing prevents two learners on one volume for a moment (a pod that is still terminating beside its successor). The
newer one has the higher epoch; the older one finds it here before it would write a checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

from apexrl.runtime.atomic_files import replace_file
from apexrl.runtime.errors import CheckpointError, Fenced
from apexrl.types import EPOCH_BITS


class EpochFile:
    """A file with the highest epoch of a run and the random id of the learner that took it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[int, bytes]:
        """Epoch and instance in the file; (0, b"") if there is none yet.

        Raises:
            CheckpointError: the file is damaged. It is not guessed around, because an epoch must never come twice.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            epoch, instance = content["epoch"], bytes.fromhex(content["instance"])
        except FileNotFoundError:
            return 0, b""
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path}: not a readable epoch file ({error!r})") from error
        if type(epoch) is not int or not 0 <= epoch < 1 << EPOCH_BITS:
            raise CheckpointError(f"{self.path}: epoch is {epoch!r}, must be in [0, 2^{EPOCH_BITS})")
        return epoch, instance

    def take_next(self, instance: bytes, at_least: int = 0) -> int:
        """Take and store the next epoch: one more than the file's and than ``at_least`` (the highest of any shard)."""
        epoch = max(self.read()[0], at_least) + 1
        if epoch >= 1 << EPOCH_BITS:
            raise CheckpointError(f"{self.path}: epoch {epoch} is out of range, must be below 2^{EPOCH_BITS}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps({"epoch": epoch, "instance": instance.hex()}).encode())
        return epoch

    def check(self, epoch: int, instance: bytes) -> None:
        """Raise :class:`Fenced` unless the file still holds exactly this learner's epoch."""
        found, other = self.read()
        if (found, other) != (epoch, instance):
            raise Fenced(
                f"this learner has epoch {epoch} ({instance.hex()}), but {self.path} holds epoch {found} "
                f"({other.hex()}): another learner has taken over"
            )
