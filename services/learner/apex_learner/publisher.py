"""The trainer's side of the serving child: start it, feed it, restart it if it dies."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

from apex_learner.coordinator import Evaluation, Progress
from apex_learner.link import (
    Link,
    LinkClosedError,
    Message,
    evaluation_from_message,
    progress_to_message,
    put_payload,
)
from apexrl.config import SecurityConfig
from apexrl.telemetry.calls import Snapshot
from apexrl.telemetry.logging import get_logger
from apexrl.transport.errors import ListenError
from apexrl.types import ParameterVersion

log = get_logger(__name__)

#: The child is not started more often than this.
RESTART_SECONDS = 2.0


class Publisher:
    """Hands parameters and progress to the serving child, and collects what it reports.

    Args:
        run_id, epoch, shared_config_json: the learner's identity.
        listen: HOST:PORT of the parameter service and the coordinator; port 0 = a free one.
        log_directory: where the child keeps the experiment log; None = nowhere.
        resumed: whether actors may hold leases of an earlier start.

    Raises:
        ListenError: from the constructor, if the address is taken.
    """

    def __init__(
        self,
        *,
        run_id: str,
        epoch: int,
        shared_config_json: str,
        listen: str,
        log_directory: Path | None,
        resumed: bool,
        security: SecurityConfig,
    ) -> None:
        self._hello: Message = {
            "run_id": run_id,
            "epoch": epoch,
            "shared_config_json": shared_config_json,
            "listen": listen,
            "log_directory": str(log_directory) if log_directory else "",
            "resumed": resumed,
            "security": asdict(security),
        }
        self._evaluations: deque[Evaluation] = deque()
        self._newest: tuple[ParameterVersion, bytes] | None = None
        self.fleet: dict[str, float] = {}
        """What the child last said of itself: leases, parameter_lag_updates, served_bytes, not_modified ..."""
        self.calls: Snapshot = {}
        """The calls that the child has answered, as it said last."""
        self.address = ""
        self._start()

    def publish(self, version: ParameterVersion, payload: bytes) -> None:
        """Make ``payload`` (safetensors) the newest parameters."""
        self._newest = (version, payload)
        self._send_parameters(version, payload)

    def report(self, progress: Progress) -> None:
        self._send(progress_to_message(progress))

    def log_scalars(self, values: dict[str, float]) -> None:
        """Write one row of the experiment log."""
        self._send({"type": "scalars", "values": values})

    def evaluations(self) -> list[Evaluation]:
        """Evaluations that came in since the last call."""
        try:
            while self._link.pending():
                self._take(self._link.receive())
        except LinkClosedError:
            self._restart()
        taken = list(self._evaluations)
        self._evaluations.clear()
        return taken

    def close(self) -> None:
        self._link.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "apex_learner.serving", "--link", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._started = time.monotonic()
        self._link = Link.from_descriptor(ours.detach())
        self._link.send(self._hello)
        try:
            answer = self._link.receive()
        except LinkClosedError:
            code = self._process.wait()
            raise RuntimeError(f"the serving process ended with code {code} before it was ready") from None
        if answer["type"] == "failed":
            self._process.wait()
            raise ListenError(answer["error"])
        self.address = answer["address"]
        # The port is settled now: a restarted child must come back where actors look for it.
        self._hello["listen"] = self.address
        if self._newest is not None:
            self._send_parameters(*self._newest)

    def _send_parameters(self, version: ParameterVersion, payload: bytes) -> None:
        self._send({"type": "parameters", "version": version.pack(), "path": put_payload(payload)})

    def _send(self, message: Message) -> None:
        try:
            self._link.send(message)
        except LinkClosedError:
            self._restart()

    def _restart(self) -> None:
        """Start the child again. It has forgotten its leases, so their holders must be heard first."""
        self._link.close()
        code = self._process.wait()
        log.warning("the serving process ended; starting it again", exit_code=code)
        time.sleep(max(0.0, RESTART_SECONDS - (time.monotonic() - self._started)))
        self._hello["resumed"] = True
        self._start()

    def _take(self, message: Message) -> None:
        if message["type"] == "evaluation":
            self._evaluations.append(evaluation_from_message(message))
        elif message["type"] == "fleet":
            self.fleet, self.calls = message["values"], message["calls"]
        else:
            raise ValueError(f"link message type is {message['type']!r}, must be evaluation or fleet")
