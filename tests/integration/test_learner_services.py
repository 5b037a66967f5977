"""Parameters and the coordinator's calls over real servers."""

from __future__ import annotations

import threading

import pytest
from parameter_scene import parameter_client, parameters, server
from replay_scene import OTHER_RUN, RUN, WAIT, handshake, wait_until

from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import parameters_pb2
from apexrl.transport._generated.apex.v1 import coordinator_pb2_grpc
from apexrl.transport.channel import MIB
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.errors import Closed
from apexrl.transport.parameter_messages import NotModified, ParameterAssembler, encode
from apexrl.transport.parameter_server import ParametersServicer
from apexrl.transport.server import Register
from apexrl.types import Parameters, ParameterVersion, SignatureError


def test_parameters_of_several_parts_arrive_whole() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    payload = bytes(range(256)) * (3 * MIB // 256) + b"and a bit"
    servicer.publish(parameters(1, 0, payload))
    with server(servicer.register()) as running, parameter_client(running.address) as client:
        got = client.wait_newer(None, timeout=WAIT)
        assert got == parameters(1, 0, payload)
        assert len(encode(got)) == 1 + 4
        assert client.fetched_bytes == len(payload)
        wait_until(lambda: servicer.served_bytes == len(payload), "the server counts")


def test_whoever_has_the_newest_gets_nothing() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 5))
    with server(servicer.register()) as running, parameter_client(running.address) as client:
        got = client.wait_newer(None, timeout=WAIT)
        assert got is not None
        assert client.get_if_newer(got.version, RUN) is None
        wait_until(lambda: servicer.not_modified >= 1, "the second look is answered")
        assert client.fetches == 1
        assert client.wait_newer(got.version, RUN, timeout=0.1) is None


def test_a_higher_epoch_is_newer_even_with_a_lower_step() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 5000, b"old"))
    with server(servicer.register()) as running, parameter_client(running.address) as client:
        first = client.wait_newer(None, timeout=WAIT)
        assert first is not None
        servicer.publish(parameters(2, 4000, b"resumed"))
        second = client.wait_newer(first.version, RUN, timeout=WAIT)
        assert second is not None
        assert (second.version, second.payload) == (ParameterVersion(2, 4000), b"resumed")


def test_parameters_of_another_run_are_always_newer() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(9, 9000, b"old"))
    with server(servicer.register()) as running, parameter_client(running.address, RUN) as client:
        first = client.wait_newer(None, timeout=WAIT)
        assert first is not None
        servicer.publish(parameters(1, 0, b"new", OTHER_RUN), handshake(OTHER_RUN, "learner"))
        second = client.wait_newer(first.version, RUN, timeout=WAIT)
        assert second is not None
        assert (second.run_id, second.payload) == (OTHER_RUN, b"new")


def test_before_the_first_publication_the_client_waits_and_says_so() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    with server(servicer.register()) as running, parameter_client(running.address) as client:
        wait_until(lambda: "has published no parameters yet" in (client.waiting() or ""), "the answer arrives")
        assert client.refusal is None
        servicer.publish(parameters(1, 0))
        assert client.wait_newer(None, timeout=WAIT) is not None
        wait_until(lambda: client.waiting() is None, "the wait is over")


def test_another_configuration_gets_no_parameters_and_is_told_why() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 0))
    with server(servicer.register()) as running, parameter_client(running.address, **{"env.stack": 1}) as client:
        wait_until(lambda: client.refusal is not None, "the refusal arrives")
        assert "env.stack: 4 here, 1 there" in (client.refusal or "")
        assert client.newest is None


def test_closing_releases_whoever_waits_for_parameters() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    with server(servicer.register()) as running, parameter_client(running.address) as client:
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                client.wait_newer(None)
            except Closed as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        client.close()
        thread.join(WAIT)
        assert len(raised) == 1


def test_the_assembler_refuses_what_does_not_fit() -> None:
    header, part = encode(parameters(1, 2))
    with pytest.raises(SignatureError, match="before the header"):
        ParameterAssembler().feed(part)
    with pytest.raises(SignatureError, match="sha256"):
        feed(header, parameters_pb2.GetParametersResponse(part=b"weighty"))
    with pytest.raises(SignatureError, match="announced 7"):
        feed(header, parameters_pb2.GetParametersResponse(part=b"weights and more"))
    with pytest.raises(SignatureError, match="header came twice"):
        feed(header, header)
    huge = parameters_pb2.GetParametersResponse(header=parameters_pb2.ParameterHeader(payload_bytes=1 << 40))
    with pytest.raises(SignatureError, match="payload_bytes"):
        feed(huge)
    assert feed(header, part) == parameters(1, 2)


def feed(*responses: parameters_pb2.GetParametersResponse) -> Parameters | NotModified | None:
    assembler = ParameterAssembler()
    results = [assembler.feed(response) for response in responses]
    return results[-1]


class FakeCoordinator(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers every call."""

    def __init__(self) -> None:
        self.heartbeats: list[pb.HeartbeatRequest] = []

    def register(self) -> Register:
        return lambda to: coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self, to)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: object) -> pb.HeartbeatResponse:
        self.heartbeats.append(request)
        return pb.HeartbeatResponse(run_id=RUN, indices=[2, 3])

    async def GetStatus(self, request: pb.GetStatusRequest, context: object) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(run_id=RUN, actors=3)


def test_a_heartbeat_waits_for_a_coordinator_that_comes_late() -> None:
    coordinator = FakeCoordinator()
    with server(coordinator.register()) as running:
        address = running.address
    client = CoordinatorClient(address, handshake())
    with pytest.raises(TimeoutError, match=address):
        client.heartbeat(pb.HeartbeatRequest(), timeout=0.2)
    assert "cannot be reached" in (client.waiting() or "")
    answers: list[pb.HeartbeatResponse] = []
    thread = threading.Thread(target=lambda: answers.append(client.heartbeat(pb.HeartbeatRequest(lanes=2))))
    thread.start()
    with server(coordinator.register(), listen=address):
        thread.join(WAIT)
        assert list(answers[0].indices) == [2, 3]
        assert coordinator.heartbeats[0].handshake.peer == "actor-7"
        assert client.get_status(timeout=WAIT).actors == 3
        assert client.waiting() is None
    client.close()


def test_closing_releases_a_heartbeat_that_waits() -> None:
    with server() as running:
        address = running.address
    client = CoordinatorClient(address, handshake())
    raised: list[BaseException] = []

    def beat() -> None:
        try:
            client.heartbeat(pb.HeartbeatRequest())
        except Closed as error:
            raised.append(error)

    thread = threading.Thread(target=beat)
    thread.start()
    wait_until(lambda: client.waiting() is not None, "the call waits")
    client.close()
    thread.join(WAIT)
    assert len(raised) == 1
    with pytest.raises(Closed):
        client.get_status()
