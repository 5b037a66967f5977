"""Inserts through a real shard: nothing lost, nothing twice, whatever breaks."""

from __future__ import annotations

import dataclasses
import threading
import time

import grpc
import numpy as np
import pytest
from replay_scene import (
    OTHER_RUN,
    STARTS,
    TABLE,
    WAIT,
    RawStream,
    fill,
    handshake,
    insert_chunks,
    inserted,
    inserter,
    learner,
    make_chunk,
    open_insert,
    opened,
    shard,
    table_info,
    wait_until,
)

from apex_replay.service import ReplayService
from apexrl.transport.errors import Closed, ListenError, RefusalKind, refusal_of
from apexrl.types import ColumnSpec, Signature

INCARNATION = bytes(range(16))


def test_chunks_arrive_once_and_are_acknowledged() -> None:
    with shard() as service:
        fill(service.address, 10)
        info = table_info(service.address)
        assert info.totals.inserted == 10 * STARTS
        assert info.duplicates == 0


def test_two_writers_do_not_disturb_each_other() -> None:
    with shard() as service, inserter(service.address) as a, inserter(service.address) as b:
        threads = [
            threading.Thread(target=lambda client=client: [client.put([make_chunk(i)]) for i in range(40)])
            for client in (a, b)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert a.flush(WAIT)
        assert b.flush(WAIT)
        assert (a.acked, b.acked) == (40, 40)
        assert inserted(service.address) == 80 * STARTS


def test_a_shard_that_restarts_gets_what_was_not_acknowledged() -> None:
    with shard() as first:
        address = first.address
        with inserter(address) as client:
            client.put([make_chunk(0), make_chunk(1)])
            assert client.flush(WAIT)
            first.stop(0.1)
            wait_until(lambda: not client.connected, "the client notices")
            client.put([make_chunk(mark) for mark in (2, 3, 4)])
            assert not client.flush(0.05)
            with shard(address):
                assert client.flush(WAIT)
                assert client.acked == 5
                assert inserted(address) == 3 * STARTS


def test_what_was_stored_but_not_acknowledged_counts_once() -> None:
    with shard() as service:
        first = RawStream(service.address, "Insert")
        first.send(open_insert(INCARNATION))
        assert first.receive().opened.last_seen == 0
        first.send(insert_chunks([1, 2], [make_chunk(0), make_chunk(1)]))
        wait_until(lambda: inserted(service.address) == 2 * STARTS, "the chunks arrive")
        # The acknowledgement is never read: the actor's new stream sends everything again, and a gap.
        second = RawStream(service.address, "Insert")
        second.send(open_insert(INCARNATION))
        assert second.receive().opened.last_seen == 2
        second.send(insert_chunks([1, 2, 5], [make_chunk(0), make_chunk(1), make_chunk(2)]))
        assert second.receive().ack.last_seen == 5
        info = table_info(service.address)
        assert info.totals.inserted == 3 * STARTS
        assert info.duplicates == 2
        # The new stream has ended the old one.
        failure = first.failure()
        assert failure.code() is grpc.StatusCode.ABORTED
        assert refusal_of(failure) is RefusalKind.SUPERSEDED
        first.close()
        second.close()


def test_a_client_whose_stream_breaks_sends_again_and_counts_once() -> None:
    with shard() as service, inserter(service.address) as client:
        client.put([make_chunk(0)])
        assert client.flush(WAIT)
        # Somebody opens a stream in the client's name: the shard ends the client's own.
        thief = RawStream(service.address, "Insert")
        thief.send(open_insert(client.incarnation))
        assert thief.receive().opened.last_seen == 1
        client.put([make_chunk(1)])
        assert client.flush(WAIT)
        assert client.acked == 2
        assert inserted(service.address) == 2 * STARTS
        thief.close()


def test_a_message_above_the_size_limit_is_refused_and_nothing_stored() -> None:
    with shard() as service:
        stream = RawStream(service.address, "Insert")
        stream.send(open_insert(INCARNATION))
        stream.receive()
        request = insert_chunks([1], [make_chunk(0)])
        request.chunks.chunks.columns[0].data = bytes(5 << 20)
        stream.send(request)
        failure = stream.failure()
        assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert inserted(service.address) == 0
        stream.close()
        fill(service.address, 1)


@pytest.mark.parametrize(
    ("numbers", "change", "field"),
    [
        ([1, 2], lambda chunk: {"priorities": np.full(STARTS, np.nan, np.float32)}, "chunk.priorities"),
        ([1, 2], lambda chunk: {"lengths": np.full(STARTS, 9, np.uint16)}, "chunk.lengths"),
        ([1, 2], lambda chunk: {"blocks": (chunk.blocks[0], b"1234", chunk.blocks[2])}, "mark"),
        ([1], lambda chunk: {}, "insert.numbers"),
        ([2, 2], lambda chunk: {}, "insert.numbers"),
        ([0, 1], lambda chunk: {}, "insert.numbers"),
    ],
)
def test_a_malformed_message_is_refused_and_nothing_of_it_stored(
    numbers: list[int], change: object, field: str
) -> None:
    chunk = make_chunk(1)
    bad = dataclasses.replace(chunk, **change(chunk))  # type: ignore[operator]
    with shard() as service:
        stream = RawStream(service.address, "Insert")
        stream.send(open_insert(INCARNATION))
        stream.receive()
        stream.send(insert_chunks(numbers, [make_chunk(0), bad]))
        failure = stream.failure()
        assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal_of(failure) is RefusalKind.MALFORMED
        assert field in (failure.details() or "")
        assert inserted(service.address) == 0
        stream.close()


def test_another_signature_is_refused_and_the_difference_named() -> None:
    other = dataclasses.replace(
        TABLE, signature=Signature((ColumnSpec("kind", "uint16"),), TABLE.signature.geometry, stack=2)
    )
    with shard() as service:
        fill(service.address, 1)
        stream = RawStream(service.address, "Insert")
        stream.send(open_insert(INCARNATION, other))
        failure = stream.failure()
        assert failure.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refusal_of(failure) is RefusalKind.TABLE
        assert "columns[0].dtype is uint16, must be uint8" in (failure.details() or "")
        assert inserted(service.address) == STARTS
        stream.close()


def test_another_configuration_is_refused_readably_and_the_client_waits_for_better() -> None:
    mine = [handshake(**{"env.stack": 1})]
    with shard() as service:
        fill(service.address, 1)
        with inserter(service.address, handshake=lambda: mine[0]) as client:
            client.put([make_chunk(1)])
            wait_until(lambda: client.refusal is not None, "the refusal arrives")
            assert "env.stack: 4 here, 1 there" in (client.refusal or "")
            assert "refuses" in (client.waiting() or "")
            assert not client.flush(0.05)
            mine[0] = handshake()
            assert client.flush(WAIT)
            assert client.refusal is None
            assert client.waiting() is None
        assert inserted(service.address) == 2 * STARTS


def test_an_actor_of_another_run_is_refused() -> None:
    with shard() as service:
        fill(service.address, 1)
        with inserter(service.address, handshake=handshake(OTHER_RUN)) as client:
            wait_until(lambda: client.refusal is not None, "the refusal arrives")
            assert f"run_id is {OTHER_RUN}" in (client.refusal or "")


def test_put_and_flush_return_at_their_deadline_while_nobody_listens() -> None:
    with shard() as service:
        address = service.address
    with inserter(address, max_unacked_chunks=2) as client:
        started = time.monotonic()
        assert client.put([make_chunk(mark) for mark in range(5)], timeout=0.2) == 2
        assert not client.flush(0.1)
        assert 0.3 <= time.monotonic() - started < 2.0
        assert client.blocked_seconds >= 0.2
        wait_until(lambda: "cannot be reached" in (client.waiting() or ""), "it says what it waits for")


def test_whoever_waits_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("apexrl.transport.reconnect.REPORT_PERIOD_SECONDS", 0.05)
    with shard() as service:
        address = service.address
    with inserter(address) as client, caplog.at_level("WARNING"):
        client.put([make_chunk(0)])
        expected = f"waiting: replay shard {address} cannot be reached"
        wait_until(lambda: any(expected in line and "1 chunks wait" in line for line in caplog.messages), "the report")
        assert client.unacked == 1


def test_closing_releases_a_call_that_waits() -> None:
    with shard() as service:
        address = service.address
    with inserter(address, max_unacked_chunks=1) as client:
        client.put([make_chunk(0)])
        raised: list[BaseException] = []

        def put() -> None:
            try:
                client.put([make_chunk(1)])
            except Closed as error:
                raised.append(error)

        thread = threading.Thread(target=put)
        thread.start()
        wait_until(lambda: client.blocked_seconds > 0, "put waits")
        client.close()
        thread.join(WAIT)
        assert len(raised) == 1
        with pytest.raises(Closed):
            client.put([make_chunk(2)])


def test_a_shard_that_stops_while_a_writer_waits_does_not_hang() -> None:
    with shard() as service, learner(service.address) as client:
        opened(client)
        client.set_insert_limits({"replay": STARTS})
        wait_until(lambda: table_info(service.address).insert_limit == STARTS, "the limit arrives")
        with inserter(service.address, max_unacked_chunks=2) as writer:
            writer.put([make_chunk(mark) for mark in range(3)], timeout=1.0)
            started = time.monotonic()
            service.stop(0.2)
            assert time.monotonic() - started < 3.0
            wait_until(lambda: not writer.connected, "the writer notices")
            assert writer.unacked > 0


def test_the_insert_limit_holds_a_writer_back_and_lets_it_go() -> None:
    with shard() as service, learner(service.address) as client:
        opened(client)
        client.set_insert_limits({"replay": 2 * STARTS})
        wait_until(lambda: table_info(service.address).insert_limit == 2 * STARTS, "the limit arrives")
        with inserter(service.address, max_unacked_chunks=3) as writer:
            taken = writer.put([make_chunk(mark) for mark in range(8)], timeout=1.5)
            assert taken == 2 + 3
            assert inserted(service.address) == 2 * STARTS
            assert writer.blocked_seconds > 0.5
            client.set_insert_limits({"replay": 3 * STARTS})
            wait_until(lambda: inserted(service.address) == 3 * STARTS, "one more chunk goes in")
            client.set_insert_limits({"replay": None})
            assert writer.put([make_chunk(9)], timeout=WAIT) == 1
            assert writer.flush(WAIT)
            assert inserted(service.address) == 6 * STARTS


def test_a_shard_without_a_learner_takes_what_comes_before_the_first_draw() -> None:
    service = ReplayService("127.0.0.1:0", first_items=2 * STARTS)
    try:
        with inserter(service.address, max_unacked_chunks=3) as writer:
            assert writer.put([make_chunk(mark) for mark in range(8)], timeout=1.5) == 2 + 3
            assert inserted(service.address) == 2 * STARTS
            said = f"table 'replay': inserts wait for the learner at {2 * STARTS} items ({2 * STARTS} in)"
            assert said in service.waiting()
            with learner(service.address) as client:
                opened(client)
                client.set_insert_limits({"replay": None})
                assert writer.flush(WAIT)
        assert inserted(service.address) == 5 * STARTS
    finally:
        service.stop(0.2)


def test_a_port_in_use_is_named() -> None:
    with shard() as service, pytest.raises(ListenError, match=service.address):
        ReplayService(service.address)
