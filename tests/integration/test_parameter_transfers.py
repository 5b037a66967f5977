"""A bounded number of transfers at a time: who waits is served in turn, and a stalled peer does not keep its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from parameter_scene import parameter_client, parameters, server
from replay_scene import RUN, WAIT, handshake, wait_until

from apexrl.transport import parameters_pb2 as pb
from apexrl.transport._generated.apex.v1.parameters_pb2_grpc import ParametersStub
from apexrl.transport.channel import LEARNER_LIMITS, MIB, open_channel
from apexrl.transport.handshake import Handshake
from apexrl.transport.io_thread import io_thread
from apexrl.transport.parameter_server import ParametersServicer
from apexrl.types import ParameterVersion

#: More than the transport takes in for a peer that does not read.
LARGE = bytes(64 * MIB)


@contextmanager
def stalled(address: str) -> Iterator[Any]:
    """A call that has read its header and reads no further."""
    io = io_thread()

    async def begin() -> tuple[grpc.aio.Channel, Any]:
        channel = open_channel(address, LEARNER_LIMITS)
        call: Any = ParametersStub(channel).GetParameters(pb.GetParametersRequest(handshake=handshake().to_proto()))
        assert (await call.read()).HasField("header")
        return channel, call

    async def end(channel: grpc.aio.Channel, call: Any) -> None:
        call.cancel()
        await channel.close(None)

    channel, call = io.run(begin(), WAIT)
    try:
        yield call
    finally:
        io.run(end(channel, call), WAIT)


def test_who_waits_gets_what_is_the_newest_when_its_turn_comes() -> None:
    servicer = ParametersServicer(handshake(peer="learner"), max_transfers=1)
    servicer.publish(parameters(1, 1, LARGE))
    with server(servicer.register()) as running, ExitStack() as place:
        place.enter_context(stalled(running.address))
        with parameter_client(running.address) as client:
            assert client.wait_newer(None, timeout=0.3) is None
            servicer.publish(parameters(1, 2, b"newer"))
            assert client.wait_newer(None, timeout=0.1) is None
            assert servicer.waiting_transfers == 1
            place.close()
            assert client.wait_newer(None, timeout=WAIT) == parameters(1, 2, b"newer")
            assert servicer.waiting_transfers == 0
            assert client.fetches == 1


def test_a_place_is_free_again_when_its_peer_leaves() -> None:
    servicer = ParametersServicer(handshake(peer="learner"), max_transfers=1)
    servicer.publish(parameters(1, 1, LARGE))
    with server(servicer.register()) as running:
        with stalled(running.address), parameter_client(running.address) as impatient:
            assert impatient.wait_newer(None, timeout=0.2) is None
        servicer.publish(parameters(1, 2, b"newer"))
        with parameter_client(running.address) as client:
            assert client.wait_newer(None, timeout=WAIT) == parameters(1, 2, b"newer")
        wait_until(lambda: servicer.served_bytes == len(b"newer"), "only the whole transfer counts")


def test_a_peer_that_does_not_read_loses_its_place() -> None:
    servicer = ParametersServicer(handshake(peer="learner"), max_transfers=1, transfer_seconds=0.3)
    servicer.publish(parameters(1, 1, LARGE))
    with server(servicer.register()) as running, stalled(running.address), parameter_client(running.address) as client:
        servicer.publish(parameters(1, 2, b"newer"))
        assert client.wait_newer(None, timeout=WAIT) == parameters(1, 2, b"newer")


def test_many_clients_at_once_are_all_served() -> None:
    servicer = ParametersServicer(handshake(peer="learner"), max_transfers=2)
    payload = bytes(MIB + 1)
    servicer.publish(parameters(1, 1, payload))
    with server(servicer.register()) as running, ExitStack() as stack:
        clients = [stack.enter_context(parameter_client(running.address)) for _ in range(12)]
        got = [client.wait_newer(None, timeout=WAIT) for client in clients]
        wait_until(lambda: servicer.served_bytes == 12 * len(payload), "the server counts")
    assert got == [parameters(1, 1, payload)] * 12


def test_a_relay_is_told_the_configuration_and_others_are_not() -> None:
    servicer = ParametersServicer()
    with pytest.raises(ValueError, match="handshake is None"):
        servicer.publish(parameters(1, 0))
    servicer.publish(parameters(1, 0), handshake(peer="learner"))

    async def header(request: pb.GetParametersRequest, address: str) -> pb.ParameterHeader:
        channel = open_channel(address, LEARNER_LIMITS)
        call: Any = ParametersStub(channel).GetParameters(request, timeout=WAIT)
        response = await call.read()
        await channel.close(None)
        assert isinstance(response, pb.GetParametersResponse)
        return response.header

    with server(servicer.register()) as running:
        actor = pb.GetParametersRequest(handshake=handshake().to_proto())
        relay = pb.GetParametersRequest(handshake=Handshake("", "").to_proto(), relay=True)
        to_actor = io_thread().run(header(actor, running.address), WAIT)
        to_relay = io_thread().run(header(relay, running.address), WAIT)
    assert to_actor.shared_config_json == ""
    assert to_relay.shared_config_json == handshake().shared_config_json
    assert (to_relay.run_id, to_relay.sha256) == (RUN, to_actor.sha256)
    assert ParameterVersion(to_relay.version.epoch, to_relay.version.step) == ParameterVersion(1, 0)
