"""Parameters through relays: the learner's serving child, relays behind it, and clients, over real sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from parameter_scene import is_ready, parameter_client, parameters, relay, server, unused_address
from replay_scene import OTHER_RUN, RUN, WAIT, handshake, wait_until

from apex_learner.publisher import Publisher
from apexrl.config import SecurityConfig
from apexrl.transport.channel import MIB
from apexrl.transport.parameter_server import SERVICE_NAME, ParametersServicer
from apexrl.types import ParameterVersion


@contextmanager
def serving_child(listen: str = "127.0.0.1:0", epoch: int = 1, run_id: str = RUN) -> Iterator[Publisher]:
    publisher = Publisher(
        run_id=run_id,
        epoch=epoch,
        shared_config_json=handshake().shared_config_json,
        listen=listen,
        log_directory=None,
        resumed=False,
        security=SecurityConfig(),
    )
    try:
        yield publisher
    finally:
        publisher.close()


def test_two_relays_hand_on_the_learners_bytes() -> None:
    payload = os.urandom(2 * MIB + 5)
    with (
        serving_child() as learner,
        relay(learner.address) as first,
        relay(first.address) as second,
        parameter_client(second.address) as client,
    ):
        learner.publish(ParameterVersion(1, 7), payload)
        assert client.wait_newer(None, timeout=WAIT) == parameters(1, 7, payload)
        learner.publish(ParameterVersion(1, 8), payload[::-1])
        assert client.wait_newer(ParameterVersion(1, 7), RUN, timeout=WAIT) == parameters(1, 8, payload[::-1])
        assert client.refusal is None


def test_many_clients_cost_the_upstream_one_transfer() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 0))
    with server(servicer.register()) as learner, relay(learner.address) as running:
        for _ in range(5):
            with parameter_client(running.address) as client:
                assert client.wait_newer(None, timeout=WAIT) == parameters(1, 0)
        wait_until(lambda: servicer.not_modified >= 3, "the relay's looks are answered without a payload")
        assert servicer.served_bytes == len(b"weights")


def test_a_client_of_a_relay_that_has_the_newest_gets_nothing() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(3, 9))
    with (
        server(servicer.register()) as learner,
        relay(learner.address) as running,
        parameter_client(running.address) as client,
    ):
        assert client.wait_newer(None, timeout=WAIT) == parameters(3, 9)
        assert client.wait_newer(ParameterVersion(3, 9), RUN, timeout=0.1) is None
        assert (client.fetches, client.fetched_bytes) == (1, len(b"weights"))
        assert client.waiting() is None


def test_a_relay_without_parameters_says_what_it_waits_for_and_is_not_ready() -> None:
    address = unused_address()
    with relay(address) as running, parameter_client(running.address) as client:
        wait_until(lambda: f"no parameters yet: parameter service {address}" in (client.waiting() or ""), "the reason")
        assert client.refusal is None
        assert address in (running.waiting() or "")
        assert not is_ready(running.address, SERVICE_NAME)
        servicer = ParametersServicer(handshake(peer="learner"))
        servicer.publish(parameters(1, 0))
        with server(servicer.register(), listen=address):
            assert client.wait_newer(None, timeout=WAIT) == parameters(1, 0)
            wait_until(lambda: is_ready(running.address, SERVICE_NAME), "the relay is ready")
            wait_until(lambda: running.waiting() is None, "the wait is over")


def test_a_relay_serves_what_it_has_while_its_upstream_is_away_and_follows_the_next_epoch() -> None:
    with serving_child() as learner:
        address = learner.address
        learner.publish(ParameterVersion(1, 5000), b"before")
        with relay(address) as running, parameter_client(running.address) as client:
            assert client.wait_newer(None, timeout=WAIT) == parameters(1, 5000, b"before")
            learner.close()
            wait_until(lambda: address in (running.waiting() or ""), "the relay misses its upstream")
            assert is_ready(running.address, SERVICE_NAME)
            with parameter_client(running.address) as late:
                assert late.wait_newer(None, timeout=WAIT) == parameters(1, 5000, b"before")
            with serving_child(address, epoch=2) as resumed:
                resumed.publish(ParameterVersion(2, 4000), b"resumed")
                newer = client.wait_newer(ParameterVersion(1, 5000), RUN, timeout=2 * WAIT)
            assert newer == parameters(2, 4000, b"resumed")


def test_a_relay_follows_a_new_run_and_its_configuration() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(9, 9000, b"old"))
    with (
        server(servicer.register()) as learner,
        relay(learner.address) as running,
        parameter_client(running.address) as client,
    ):
        assert client.wait_newer(None, timeout=WAIT) == parameters(9, 9000, b"old")
        servicer.publish(parameters(1, 0, b"new", OTHER_RUN), handshake(OTHER_RUN, "learner", **{"env.stack": 1}))
        with parameter_client(running.address, **{"env.stack": 1}) as other:
            assert other.wait_newer(None, timeout=WAIT) == parameters(1, 0, b"new", OTHER_RUN)
        client.request()
        wait_until(lambda: "env.stack: 1 here, 4 there" in (client.refusal or ""), "the old one is refused")
        assert client.newest == parameters(9, 9000, b"old")


def test_another_configuration_is_refused_as_the_learner_does() -> None:
    servicer = ParametersServicer(handshake(peer="here"))
    servicer.publish(parameters(1, 0))
    with server(servicer.register()) as learner, relay(learner.address) as running:
        wait_until(lambda: running.parameters is not None, "the relay has parameters")
        said = []
        for address in (learner.address, running.address):
            with parameter_client(address, **{"env.stack": 1}) as client:
                wait_until(lambda client=client: client.refusal is not None, "the refusal arrives")  # type: ignore[misc]
                status, _, text = (client.refusal or "").partition(": shared configuration of actor-7 differs (")
                said.append((status, text.partition(" = here)")[2]))
                assert client.newest is None
        assert said == [("FAILED_PRECONDITION", ": env.stack: 4 here, 1 there")] * 2


def test_a_client_turns_to_the_next_relay_when_one_is_dead() -> None:
    servicer = ParametersServicer(handshake(peer="learner"))
    servicer.publish(parameters(1, 1))
    dead = unused_address()
    with (
        server(servicer.register()) as learner,
        relay(learner.address) as second,
        relay(learner.address) as third,
        parameter_client(dead, fallbacks=(second.address, third.address)) as client,
    ):
        assert client.wait_newer(None, timeout=WAIT) == parameters(1, 1)
        assert client.address == second.address
        wait_until(lambda: client.waiting() is None, "nothing is waited for")
        second.stop()
        servicer.publish(parameters(1, 2))
        assert client.wait_newer(ParameterVersion(1, 1), RUN, timeout=WAIT) == parameters(1, 2)
        assert client.address == third.address
