"""The pipe between the trainer and its serving child: JSON messages, parameters by a file in shared memory.

The trainer's process must not spend its time serving hundreds of actors, so it hands each version over once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import uuid
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from apex_learner.coordinator import Evaluation, Progress
from apexrl.types import ParameterVersion

Message = dict[str, Any]


class LinkClosedError(ConnectionError):
    """The other end of the link has gone."""


class Link:
    """One end. Messages are dictionaries with a ``type``; no pickling."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Link:
        return cls(Connection(descriptor))

    def send(self, message: Message) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError as error:
            raise LinkClosedError("the link's other end is closed") from error

    def receive(self) -> Message:
        """The next message; waits. Raises :class:`LinkClosedError` once the other end has gone."""
        try:
            message: Message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise LinkClosedError("the link's other end is closed") from error
        return message

    def pending(self) -> bool:
        """Whether :meth:`receive` would return at once (or raise)."""
        try:
            return self._connection.poll()
        except OSError:
            return True

    def close(self) -> None:
        self._connection.close()


def shared_memory_directory() -> Path:
    """Where parameters are handed over: memory where the system has it, else the temporary directory."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def put_payload(payload: bytes) -> str:
    """Write a payload where the other process can take it; returns its path."""
    path = shared_memory_directory() / f"apex-parameters-{os.getpid()}-{uuid.uuid4().hex}"
    path.write_bytes(payload)
    return str(path)


def take_payload(path: str) -> bytes:
    """Read and remove a payload."""
    file = Path(path)
    payload = file.read_bytes()
    file.unlink()
    return payload


def progress_to_message(progress: Progress) -> Message:
    return {"type": "progress", **dataclasses.asdict(progress), "version": progress.version.pack()}


def progress_from_message(message: Message) -> Progress:
    fields = {key: value for key, value in message.items() if key != "type"}
    fields["version"] = ParameterVersion.unpack(fields["version"])
    return Progress(**fields)


def evaluation_to_message(evaluation: Evaluation) -> Message:
    return {
        "type": "evaluation",
        "version": evaluation.version.pack(),
        "returns": list(evaluation.returns),
        "epsilon": evaluation.epsilon,
    }


def evaluation_from_message(message: Message) -> Evaluation:
    return Evaluation(ParameterVersion.unpack(message["version"]), tuple(message["returns"]), message["epsilon"])
