"""What passes between a learner and a shard on a sample stream, in plain types."""

from __future__ import annotations

from typing import NamedTuple

from apexrl.transport import replay_pb2 as pb
from apexrl.transport import wire
from apexrl.types import TableTotals

#: Wire value of "no limit".
NO_LIMIT = (1 << 64) - 1


class LearnerIdentity(NamedTuple):
    """Which learner this is: shards obey the highest epoch, and of equal ones only one instance (16 bytes)."""

    epoch: int
    instance: bytes

    def to_proto(self) -> pb.LearnerIdentity:
        return pb.LearnerIdentity(epoch=self.epoch, instance=self.instance)


class OpenedTable(NamedTuple):
    """What the shard says of a table when a stream opens."""

    num_pages: int
    mirror_slots: int
    totals: TableTotals


class StreamOpened(NamedTuple):
    """A new stream: the mirror starts empty, and every draw not answered on the former one is void."""

    connection: int
    """1 for the first stream, one more with each."""
    boot: bytes
    new_boot: bool
    """The shard has started anew since the former stream: its experience, counters and limits are gone."""
    tables: dict[str, OpenedTable]


class StreamReply(NamedTuple):
    """The answer to a draw request; to be applied in order."""

    connection: int
    result: wire.DrawResult


def opened_tables(message: pb.SampleOpened) -> dict[str, OpenedTable]:
    """Table name -> what the shard says of it."""
    return {
        table.totals.table: OpenedTable(table.num_pages, table.mirror_slots, wire.totals_from_proto(table.totals))
        for table in message.tables
    }
