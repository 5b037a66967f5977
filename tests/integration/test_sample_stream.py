"""Draws, priorities, limits and fencing through a real shard."""

from __future__ import annotations

import os
import time

import grpc
import numpy as np
import pytest
from replay_scene import (
    OTHER_RUN,
    RUN,
    STARTS,
    TABLE,
    WAIT,
    RawStream,
    fill,
    handshake,
    inserted,
    inserter,
    learner,
    make_chunk,
    mark_of,
    opened,
    reply,
    shard,
    table_info,
    wait_until,
)

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.transport._generated.apex.v1.replay_pb2_grpc import ReplayStub
from apexrl.transport.channel import REPLAY_LIMITS, open_channel
from apexrl.transport.errors import Closed, Fenced, RefusalKind, refusal_of
from apexrl.transport.info_client import fetch_info
from apexrl.transport.io_thread import io_thread
from apexrl.transport.sample_client import LearnerIdentity, SampleClient
from apexrl.types import TableTotals

INSTANCE = bytes(16)


def call_update(
    address: str, request: pb.UpdatePrioritiesRequest
) -> grpc.aio.AioRpcError | pb.UpdatePrioritiesResponse:
    async def call() -> grpc.aio.AioRpcError | pb.UpdatePrioritiesResponse:
        channel = open_channel(address, REPLAY_LIMITS)
        try:
            return await ReplayStub(channel).UpdatePriorities(request, timeout=5.0)  # type: ignore[misc]
        except grpc.aio.AioRpcError as error:
            return error
        finally:
            await channel.close(None)

    return io_thread().run(call(), WAIT)


def draw(client: SampleClient, number: int, counts: list[int]) -> wire.DrawResult:
    assert client.request_draw("replay", number, counts)
    return reply(client).result


def test_a_draw_brings_items_and_their_chunks() -> None:
    with shard() as service:
        fill(service.address, 5)
        with learner(service.address) as client:
            info = opened(client)
            assert info.connection == 1
            assert info.tables["replay"].num_pages == TABLE.num_pages
            assert info.tables["replay"].mirror_slots == TABLE.num_pages
            assert info.tables["replay"].totals.num_items == 5 * STARTS
            result = draw(client, 0, [8, 4])
            assert result.counts.tolist() == [8, 4]
            assert len(result.keys) == 12
            # Equal priorities: every item has the same share.
            np.testing.assert_allclose(result.probabilities, 1 / 20, rtol=1e-5)
            assert result.totals.drawn == 12
            marks = {
                int(slot): mark_of(chunk)
                for slot, chunk in zip(result.new_slots, result.new_chunks.chunks(), strict=True)
            }
            assert set(result.slots.tolist()) == set(marks)
            # Pages are filled in order, so the slot tells the mark.
            assert all(slot == mark for slot, mark in marks.items())
            assert client.totals("replay") == result.totals
            assert client.report("replay") == (info.boot, result.totals)


def test_equal_seeds_and_numbers_give_equal_draws_and_others_do_not() -> None:
    results = []
    for seed, number in ((3, 7), (3, 7), (3, 8), (4, 7)):
        with shard() as service:
            fill(service.address, 20)
            with learner(service.address, run_seed=seed) as client:
                opened(client)
                results.append(draw(client, number, [32]))
    items = [list(zip(r.slots.tolist(), r.start_rows.tolist(), strict=True)) for r in results]
    assert items[0] == items[1]
    assert items[0] != items[2]
    assert items[0] != items[3]


def test_a_chunk_goes_over_the_wire_once_per_stream() -> None:
    with shard() as service:
        fill(service.address, 3)
        with learner(service.address) as client:
            opened(client)
            assert sorted(draw(client, 0, [200]).new_slots.tolist()) == [0, 1, 2]
            assert draw(client, 1, [200]).new_slots.tolist() == []
            # A new stream starts with an empty map, because the mirror of the old one is void.
            client.reconnect("a test wants to")
            info = opened(client)
            assert (info.connection, info.new_boot) == (2, False)
            assert sorted(draw(client, 2, [200]).new_slots.tolist()) == [0, 1, 2]


def test_a_page_that_was_written_anew_is_sent_again() -> None:
    with shard() as service:
        # More chunks than pages, twice: the second time nothing of the first is left, in the same pages.
        fill(service.address, TABLE.num_pages + 10)
        with learner(service.address) as client:
            opened(client)
            first = draw(client, 0, [4000])
            mirror = dict(zip(first.new_slots.tolist(), map(mark_of, first.new_chunks.chunks()), strict=True))
            fill(service.address, TABLE.num_pages + 10, first_mark=1000)
            second = draw(client, 1, [4000])
            mirror.update(zip(second.new_slots.tolist(), map(mark_of, second.new_chunks.chunks()), strict=True))
            assert set(first.slots.tolist()) & set(second.slots.tolist())
            assert all(mirror[slot] >= 1000 for slot in second.slots.tolist())
            assert not set(first.keys.tolist()) & set(second.keys.tolist())


def test_new_priorities_change_draws_and_stale_keys_are_counted() -> None:
    with shard() as service:
        fill(service.address, 2)
        with learner(service.address) as client:
            opened(client)
            keys = np.unique(draw(client, 0, [400]).keys)
            assert len(keys) == 2 * STARTS
            priorities = np.zeros(len(keys), np.float32)
            client.update_priorities("replay", keys, priorities + 5)
            priorities[3] = 1.0
            client.update_priorities(
                "replay", np.append(keys, np.uint64(1 << 20)), np.append(priorities, np.float32(1))
            )
            assert client.updates.flush(WAIT)
            # Both calls went out within one message or two; the later one won.
            assert client.updates.applied == 2 * len(keys)
            assert client.updates.stale == 1
            # The others keep (0 + 1e-6)^0.6 each, 0.0018 of the mass together: one draw of 100 at most.
            after = draw(client, 1, [100])
            assert np.count_nonzero(after.keys == keys[3]) >= 98


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_priorities_are_refused_before_they_leave_and_by_the_shard(bad: float) -> None:
    with shard() as service:
        fill(service.address, 1)
        with learner(service.address, identity=LearnerIdentity(1, INSTANCE)) as client:
            opened(client)
            key = draw(client, 0, [1]).keys
            with pytest.raises(ValueError, match="finite"):
                client.update_priorities("replay", key, np.array([bad], np.float32))
            request = pb.UpdatePrioritiesRequest(
                learner=pb.LearnerIdentity(epoch=1, instance=INSTANCE),
                table="replay",
                keys=wire.to_bytes(key, "uint64"),
                priorities=wire.to_bytes([bad], "float32"),
            )
            error = call_update(service.address, request)
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "priorities[0]" in (error.details() or "")


def test_totals_come_without_being_asked_for() -> None:
    reports: list[TableTotals] = []
    with shard() as service, learner(service.address, on_totals=lambda boot, totals: reports.append(totals["replay"])):
        wait_until(lambda: len(reports) >= 1, "the first report")
        fill(service.address, 2)
        started = time.monotonic()
        wait_until(lambda: reports[-1].inserted == 2 * STARTS, "totals of the inserts")
        assert time.monotonic() - started < 1.0


def test_a_restarted_shard_is_a_new_boot_and_forgets_limits() -> None:
    with shard() as first:
        address = first.address
        with learner(address) as client:
            info = opened(client)
            client.set_insert_limits({"replay": 0})
            wait_until(lambda: table_info(address).insert_limit == 0, "the limit arrives")
            first.stop(0.1)
            wait_until(lambda: client.info is None, "the client notices")
            assert not client.request_draw("replay", 0, [1])
            with shard(address):
                again = opened(client)
                assert again.new_boot
                assert again.boot != info.boot
                assert again.connection == 2
                fill(address, 1)
                assert len(draw(client, 0, [3]).new_chunks) == 1


def test_limits_hold_over_a_new_stream() -> None:
    with shard() as service, learner(service.address) as client:
        opened(client)
        client.set_insert_limits({"replay": STARTS})
        wait_until(lambda: table_info(service.address).insert_limit == STARTS, "the limit arrives")
        client.reconnect("a test wants to")
        opened(client)
        with inserter(service.address) as writer:
            writer.put([make_chunk(mark) for mark in range(3)])
            wait_until(lambda: writer.acked == 1, "the first chunk goes in")
            assert not writer.flush(0.3)
        assert inserted(service.address) == STARTS


def test_a_learner_of_a_higher_epoch_closes_the_former_ones_stream() -> None:
    with shard() as service:
        fill(service.address, 2)
        with learner(service.address, epoch=1) as old:
            opened(old)
            keys = draw(old, 0, [4]).keys
            with learner(service.address, epoch=2) as new:
                opened(new)
                with pytest.raises(Fenced, match="epoch 2"):
                    old.next_event(WAIT)
                with pytest.raises(Fenced):
                    old.request_draw("replay", 1, [1])
                with pytest.raises(Fenced):
                    old.update_priorities("replay", keys, np.ones(4, np.float32))
                assert old.fenced is not None
                assert len(draw(new, 0, [4]).keys) == 4
            with (
                learner(service.address, epoch=1) as back,
                pytest.raises(Fenced, match=r"learner\.epoch is 1, must be above 2"),
            ):
                back.wait_opened(WAIT)


def test_an_equal_epoch_needs_the_same_instance() -> None:
    with shard() as service, learner(service.address, epoch=4) as first:
        opened(first)
        with learner(service.address, epoch=4) as second, pytest.raises(Fenced):
            second.wait_opened(WAIT)
        assert first.fenced is None


def test_updates_are_for_the_learner_that_is_served() -> None:
    def update(epoch: int) -> grpc.aio.AioRpcError | pb.UpdatePrioritiesResponse:
        identity = LearnerIdentity(epoch, INSTANCE).to_proto()
        return call_update(service.address, pb.UpdatePrioritiesRequest(learner=identity, table="replay"))

    with shard() as service, learner(service.address, epoch=2) as client:
        opened(client)
        for epoch, kind in ((1, RefusalKind.FENCED), (2, RefusalKind.FENCED), (3, RefusalKind.STARTING)):
            error = update(epoch)
            assert isinstance(error, grpc.aio.AioRpcError)
            assert refusal_of(error) is kind


def test_experience_of_another_run_is_kept_unless_the_learner_discards_it() -> None:
    with shard() as service, inserter(service.address) as actor:
        actor.put([make_chunk(0)])
        assert actor.flush(WAIT)
        with learner(service.address, run_id=OTHER_RUN) as stranger:
            wait_until(lambda: stranger.refusal is not None, "the refusal arrives")
            assert f"holds experience of run {RUN}" in (stranger.refusal or "")
            assert stranger.fenced is None
        assert inserted(service.address) == STARTS
        with learner(service.address, run_id=OTHER_RUN, discard_other_run=True) as fresh:
            assert opened(fresh).tables["replay"].totals.num_items == 0
            assert fetch_info(service.address, timeout_seconds=5.0).run_id == OTHER_RUN
            # The actor of the old run was cut off and is refused until it learns of the new run.
            actor.put([make_chunk(1)])
            wait_until(lambda: actor.refusal is not None, "the actor is refused")
            assert OTHER_RUN in (actor.refusal or "")
            assert inserted(service.address) == 0


def test_the_learners_configuration_has_the_last_word_over_the_actors() -> None:
    """An actor with a wrong configuration that comes first must not lock the learner out."""
    with shard() as service, inserter(service.address, handshake=handshake(**{"env.stack": 1})) as wrong:
        wrong.put([make_chunk(0)])
        assert wrong.flush(WAIT)
        with learner(service.address) as client:
            assert opened(client).tables["replay"].totals.num_items == 0
            wrong.put([make_chunk(1)])
            wait_until(lambda: "env.stack" in (wrong.refusal or ""), "the actor is told what differs")
            fill(service.address, 1)
            # What a learner has vouched for does not give way to another configuration.
            with learner(service.address, epoch=2, handshake=handshake(peer="new", **{"env.id": "x"})) as other:
                wait_until(lambda: other.refusal is not None, "the refusal arrives")
                assert "env.id" in (other.refusal or "")
            assert inserted(service.address) == STARTS


def test_a_draw_from_an_empty_table_is_refused_readably() -> None:
    with shard() as service, learner(service.address) as client:
        opened(client)
        client.request_draw("replay", 0, [4])
        wait_until(lambda: client.refusal is not None, "the refusal arrives")
        assert "'replay' holds no items" in (client.refusal or "")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.SampleRequest(draw=pb.DrawRequest(table="other", counts=b"\1\0\0\0")), "sample.table"),
        (pb.SampleRequest(draw=pb.DrawRequest(table="replay", counts=b"\1\0\0")), "draw.counts"),
        (pb.SampleRequest(draw=pb.DrawRequest(table="replay", counts=b"\xff" * 8)), "draw.counts"),
        (pb.SampleRequest(limits=pb.InsertLimits(limits=[pb.InsertLimit(table="x")])), "sample.table"),
        (pb.SampleRequest(), "sample.request"),
    ],
)
def test_a_malformed_request_ends_the_stream_and_is_named(request_: pb.SampleRequest, field: str) -> None:
    with shard() as service:
        fill(service.address, 1)
        stream = RawStream(service.address, "Sample")
        learner_ = LearnerIdentity(1, os.urandom(16)).to_proto()
        tables = [pb.MirroredTable(table=wire.table_config_to_proto(TABLE))]
        stream.send(
            pb.SampleRequest(open=pb.SampleOpen(handshake=handshake().to_proto(), learner=learner_, tables=tables))
        )
        assert stream.receive().opened.boot
        stream.send(request_)
        failure = stream.failure()
        assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal_of(failure) is RefusalKind.MALFORMED
        assert field in (failure.details() or "")
        stream.close()


def test_a_stream_without_an_open_request_is_refused() -> None:
    with shard() as service:
        stream = RawStream(service.address, "Sample")
        stream.send(pb.SampleRequest(draw=pb.DrawRequest(table="replay")))
        failure = stream.failure()
        assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "`open`" in (failure.details() or "")
        stream.close()


def test_closing_releases_a_learner_that_waits() -> None:
    with shard() as service, learner(service.address) as client:
        opened(client)
        assert client.next_event(0.05) is None
        client.close()
        with pytest.raises(Closed):
            client.next_event(WAIT)


def test_info_names_streams_and_the_items_of_highest_priority() -> None:
    with shard() as service:
        assert fetch_info(service.address, timeout_seconds=5.0).waiting == ["no learner has opened a stream yet"]
        with inserter(service.address) as writer, learner(service.address) as client:
            writer.put([make_chunk(0, priority=0.5), make_chunk(1, priority=2.0)])
            assert writer.flush(WAIT)
            opened(client)
            info = fetch_info(service.address, timeout_seconds=5.0, top=5)
            assert (info.insert_streams, info.sample_streams) == (1, 1)
            assert (info.run_id, info.learner_epoch, list(info.waiting)) == (RUN, 1, [])
            priorities = np.frombuffer(info.tables[0].top_priorities, "<f4")
            np.testing.assert_array_equal(priorities, [2.0, 2.0, 2.0, 2.0, 0.5])
            assert len(info.tables[0].top_keys) == 40
