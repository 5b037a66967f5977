"""The serving child: parameter service, coordinator and experiment log, apart from the trainer's process.

Several hundred actors that pull parameters every few seconds would take more than a core of the trainer's
interpreter. So the trainer serves nothing: it hands each version over by shared memory and its progress down a pipe
(:mod:`apex_learner.link`), and this process does the rest. It imports no torch, ends when the pipe does, and can be
restarted alone.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import grpc

from apex_learner.coordinator import Coordinator, Evaluation
from apex_learner.link import (
    Link,
    LinkClosedError,
    Message,
    evaluation_to_message,
    progress_from_message,
    take_payload,
)
from apexrl.config import ConfigError, SecurityConfig
from apexrl.telemetry.calls import CallCounts
from apexrl.telemetry.experiment_log import ExperimentLog
from apexrl.telemetry.experiment_log import Progress as Position
from apexrl.telemetry.logging import configure_logging, get_logger
from apexrl.transport import coordinator_pb2, security
from apexrl.transport._generated.apex.v1 import coordinator_pb2_grpc
from apexrl.transport.channel import LEARNER_LIMITS, PARAMETERS_CONNECTION_AGE_SECONDS
from apexrl.transport.errors import ListenError, Refused
from apexrl.transport.handshake import Handshake, verify
from apexrl.transport.io_thread import io_thread
from apexrl.transport.parameter_server import ParametersServicer
from apexrl.transport.security import Security
from apexrl.transport.server import RunningServer, abort_refused, start_server
from apexrl.types import Parameters, ParameterVersion


class CoordinatorServicer(coordinator_pb2_grpc.CoordinatorServicer):
    """Puts the coordinator on the wire."""

    def __init__(self, handshake: Handshake, coordinator: Coordinator) -> None:
        self._handshake = handshake
        self._coordinator = coordinator

    async def Heartbeat(
        self,
        request: coordinator_pb2.HeartbeatRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> coordinator_pb2.HeartbeatResponse:
        """See ``coordinator.proto``."""
        try:
            verify(self._handshake, Handshake.from_proto(request.handshake), check_run=False)
        except Refused as refusal:
            await abort_refused(context, refusal)
        return self._coordinator.heartbeat(request)

    async def GetStatus(
        self,
        request: coordinator_pb2.GetStatusRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> coordinator_pb2.GetStatusResponse:
        """See ``coordinator.proto``."""
        return self._coordinator.status()


class ServingProcess:
    """Both services and the experiment log, fed by the link. All state is touched on the io loop only."""

    def __init__(self, link: Link, hello: Message) -> None:
        self._link = link
        self._handshake = Handshake(hello["run_id"], hello["shared_config_json"])
        self._coordinator = Coordinator(
            hello["run_id"], hello["epoch"], resumed=hello["resumed"], on_evaluation=self._evaluated
        )
        self._log = ExperimentLog(Path(hello["log_directory"])) if hello["log_directory"] else None
        self._listen: str = hello["listen"]
        self._parameters = ParametersServicer(self._handshake)
        self._calls = CallCounts()
        self._server: RunningServer | None = None

    async def start(self) -> RunningServer:
        """Listen.

        Raises:
            ListenError: the address is taken.
        """
        coordinator = CoordinatorServicer(self._handshake, self._coordinator)
        self._server = await start_server(
            self._listen,
            [
                self._parameters.register(),
                lambda server: coordinator_pb2_grpc.add_CoordinatorServicer_to_server(coordinator, server),
            ],
            LEARNER_LIMITS,
            services=("apex.v1.Parameters", "apex.v1.Coordinator"),
            max_connection_age_seconds=PARAMETERS_CONNECTION_AGE_SECONDS,
            serving=False,
            calls=self._calls,
        )
        return self._server

    async def handle(self, message: Message) -> None:
        """Take in one message of the trainer."""
        kind = message["type"]
        if kind == "parameters":
            payload = take_payload(message["path"])
            version = ParameterVersion.unpack(message["version"])
            assert self._server is not None, "parameters before the start"
            self._parameters.publish(
                Parameters(version, self._handshake.run_id, payload, hashlib.sha256(payload).digest())
            )
            await self._server.set_serving(True)
        elif kind == "progress":
            self._coordinator.progress = progress_from_message(message)
            self._link.send({"type": "fleet", "values": self._fleet(), "calls": self._calls.snapshot()})
        elif kind == "scalars":
            self._write_scalars(message["values"])
        else:
            raise ValueError(f"link message type is {kind!r}, must be parameters, progress or scalars")

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0.2)
        if self._log is not None:
            self._log.close()

    def _write_scalars(self, values: dict[str, float]) -> None:
        if self._log is not None:
            returns = self._coordinator.returns()
            returns.pop("evaluator_return", None)  # has rows of its own, one per evaluation
            self._log.scalars(self._position(), {**values, **self._coordinator.fleet(), **returns})

    def _fleet(self) -> dict[str, float]:
        """What the trainer exports of this process."""
        return {
            **self._coordinator.fleet(),
            "leases": self._coordinator.num_leases,
            "served_bytes": self._parameters.served_bytes,
            "not_modified": self._parameters.not_modified,
            "waiting_transfers": self._parameters.waiting_transfers,
        }

    def _position(self) -> Position:
        progress = self._coordinator.progress
        return Position(
            wall_seconds=progress.wall_seconds,
            global_frames=progress.global_frames,
            learner_updates=progress.learner_updates,
            epoch=progress.version.epoch,
        )

    def _evaluated(self, evaluation: Evaluation) -> None:
        if self._log is not None:
            self._log.evaluation(self._position(), evaluation.returns, evaluation.version, evaluation.epsilon)
        self._link.send(evaluation_to_message(evaluation))


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the child: ``python -m apex_learner.serving --link FD``. Started by the trainer only."""
    parser = argparse.ArgumentParser(prog="apex_learner.serving", description=__doc__)
    parser.add_argument("--link", type=int, required=True, help="file descriptor of the trainer's pipe")
    options = parser.parse_args(arguments)
    configure_logging("learner-serving")
    log = get_logger(__name__)
    link = Link.from_descriptor(options.link)
    hello = link.receive()
    process = ServingProcess(link, hello)
    io = io_thread()
    try:
        security.use(Security.load(SecurityConfig(**hello["security"])))
        server = io.run(process.start())
    except (ListenError, ConfigError) as error:
        link.send({"type": "failed", "error": str(error)})
        return 1
    log.info("serving parameters and coordinator", address=server.address)
    link.send({"type": "ready", "address": server.address})
    try:
        while True:
            io.run(process.handle(link.receive()))
    except LinkClosedError:
        log.info("the trainer has gone; stopping")
    finally:
        io.run(process.stop())
    return 0


if __name__ == "__main__":
    sys.exit(main())
