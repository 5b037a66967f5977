"""The data that actors, replay shards and the learner exchange, as plain Python and NumPy.

What goes over the wire has a counterpart in ``protos/apex/v1``; ``apexrl.transport.wire`` converts between the two.
Nothing in this module imports torch, grpc or an environment.

Vocabulary (see docs/architecture.md):

* A *lane* is one environment of an actor's vector environment.
* A *row* is one policy evaluation of a lane. Row t holds observation t (one frame, unstacked), its ``kind`` and
  ``age``, and, unless it is a last row, action t with the reward and the continuation that followed.
* A *chunk* is a run of consecutive rows of one lane: context rows, start rows, tail rows. It may span episodes.
* An *item* is what replay samples: a start row, a prefix and a length. Rows ``start - prefix`` to
  ``start + length`` belong to it, the last one only to bootstrap from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

#: Columns that every signature starts with: (name, dtype). ``observation`` columns and ``action`` are the
#: environment's and follow them.
ROW_COLUMNS: tuple[tuple[str, str], ...] = (
    ("kind", "uint8"),
    ("age", "uint16"),
    ("reward", "float32"),
    ("continuation", "uint8"),
)

#: Step columns above this many bytes per row are images to us: one lz4 block per chunk. Smaller ones travel raw.
COMPRESSION_THRESHOLD_BYTES_PER_CHUNK = 4096

STEP_BITS = 40
EPOCH_BITS = 24


class RowKind(IntEnum):
    """Place of a row in its episode."""

    FIRST = 0
    MID = 1
    LAST = 2


class Padding(StrEnum):
    """What a frame stack shows for rows before the episode's first."""

    ZEROS = "zeros"
    REPEAT_FIRST = "repeat_first"


class Scope(StrEnum):
    """Whether a column has one value per row of a chunk or one per start row (item)."""

    STEP = "step"
    ITEM = "item"


class Codec(StrEnum):
    """How a column's values of one chunk rest and travel."""

    RAW = "raw"
    LZ4 = "lz4"


class SelectorKind(StrEnum):
    """How items are drawn from a table."""

    PROPORTIONAL = "proportional"
    RANK_BASED = "rank_based"
    UNIFORM = "uniform"


class RemoverKind(StrEnum):
    """Which items leave a table that is over its capacity."""

    FIFO = "fifo"
    PRIORITIZED = "prioritized"


class InitialPriority(StrEnum):
    """Where a new item's priority comes from: the actor's estimate (Ape-X) or the table's maximum so far (PER)."""

    ACTOR = "actor"
    MAX = "max"


class ParameterVersion(NamedTuple):
    """Version of the learner's parameters, ordered by (epoch, step).

    The epoch grows with every start of a learner, so that a resumed learner, which is behind in steps, is still
    newer than what actors hold.
    """

    epoch: int
    step: int

    def pack(self) -> int:
        """One unsigned 64-bit integer that orders as the version does."""
        return (self.epoch << STEP_BITS) | self.step

    @classmethod
    def unpack(cls, packed: int) -> ParameterVersion:
        return cls(packed >> STEP_BITS, packed & ((1 << STEP_BITS) - 1))

    def __str__(self) -> str:
        return f"{self.epoch}.{self.step}"


class SignatureError(ValueError):
    """Data or a peer's declaration does not agree with a table's signature; the message names the field."""


class Fenced(RuntimeError):
    """Another learner has taken over: this one must stop at once and write nothing more. Exit code 75."""


@dataclass(frozen=True)
class ColumnSpec:
    """Name, element type and shape of one column. ``shape`` is that of one row (or of one item)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    scope: Scope = Scope.STEP
    codec: Codec = Codec.RAW

    def __post_init__(self) -> None:
        if np.dtype(self.dtype).hasobject:
            raise SignatureError(f"column {self.name!r}: dtype {self.dtype!r} is not a plain numeric type")
        if any(n < 1 for n in self.shape):
            raise SignatureError(f"column {self.name!r}: shape {self.shape} has a dimension below 1")

    @property
    def value_bytes(self) -> int:
        """Bytes of one value, that is of one row or one item."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape)


@dataclass(frozen=True)
class Geometry:
    """Rows of a full chunk: ``context`` before the first start row, ``starts``, and ``tail`` behind the last."""

    context: int
    starts: int
    tail: int

    def __post_init__(self) -> None:
        for name, low in (("context", 0), ("starts", 1), ("tail", 1)):
            value = getattr(self, name)
            if not low <= value < 1 << 14:
                raise SignatureError(f"geometry.{name} is {value}, must be in [{low}, {(1 << 14) - 1}]")
        if self.context + self.starts > 1 << 10:
            raise SignatureError(
                f"geometry: context + starts is {self.context + self.starts}, must be at most 1024 "
                "(a key holds 10 bits for the start row)"
            )

    @property
    def rows(self) -> int:
        return self.context + self.starts + self.tail

    @property
    def window(self) -> int:
        """Rows gathered per item: its context, itself, and the longest window behind it."""
        return self.context + 1 + self.tail


@dataclass(frozen=True)
class Signature:
    """Everything needed to read a table's chunks: the columns, the geometry, and how frames are stacked."""

    columns: tuple[ColumnSpec, ...]
    geometry: Geometry
    stack: int = 1
    padding: Padding = Padding.ZEROS

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise SignatureError(f"signature has a column name twice: {sorted(names)}")
        if self.stack < 1 or self.stack - 1 > self.geometry.context:
            raise SignatureError(
                f"stack is {self.stack}, must be in [1, {self.geometry.context + 1}] for a context of "
                f"{self.geometry.context} rows"
            )

    def column(self, name: str) -> ColumnSpec:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)

    def block_bytes(self, column: ColumnSpec, rows: int, starts: int) -> int:
        """Uncompressed bytes of a column in a chunk of ``rows`` rows and ``starts`` start rows."""
        return column.value_bytes * (rows if column.scope is Scope.STEP else starts)

    @property
    def page_bytes(self) -> int:
        """Uncompressed bytes of a full chunk."""
        g = self.geometry
        return sum(self.block_bytes(column, g.rows, g.starts) for column in self.columns)


@dataclass(frozen=True)
class SelectorConfig:
    """How a table draws. ``exponent`` is alpha of P(i) ~ p_i^alpha (Schaul et al. 2016, eq. 1).

    ``uniform_mixture`` u mixes in uniform draws: P'(i) = (1 - u) P(i) + u / N.
    """

    kind: SelectorKind = SelectorKind.PROPORTIONAL
    exponent: float = 0.6
    uniform_mixture: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.exponent <= 4.0:
            raise SignatureError(f"selector.exponent is {self.exponent}, must be in [0, 4]")
        if not 0.0 <= self.uniform_mixture <= 1.0:
            raise SignatureError(f"selector.uniform_mixture is {self.uniform_mixture}, must be in [0, 1]")


@dataclass(frozen=True)
class TableConfig:
    """A table as data: the first stream that names it creates it, later ones must have its signature.

    Everything else follows the newest learner. ``capacity_items`` is soft: inserts never wait for eviction.
    ``budget_bytes`` is hard. ``remover_exponent`` is alpha_evict of the prioritized remover, which draws what leaves
    in proportion to (p + epsilon)^alpha_evict (Horgan et al. 2018, appendix D: -0.4).
    """

    name: str
    signature: Signature
    selector: SelectorConfig
    capacity_items: int
    budget_bytes: int
    remover: RemoverKind = RemoverKind.FIFO
    initial_priority: InitialPriority = InitialPriority.ACTOR
    remover_exponent: float = -0.4

    def __post_init__(self) -> None:
        if not self.name:
            raise SignatureError("table.name is empty")
        if self.capacity_items < self.signature.geometry.starts:
            raise SignatureError(
                f"table {self.name!r}: capacity_items is {self.capacity_items}, must be at least one chunk "
                f"({self.signature.geometry.starts} items)"
            )
        if self.budget_bytes < 1 << 20:
            raise SignatureError(f"table {self.name!r}: budget_bytes is {self.budget_bytes}, must be at least 1 MiB")
        if not -4.0 <= self.remover_exponent <= 0.0:
            raise SignatureError(
                f"table {self.name!r}: remover_exponent is {self.remover_exponent}, must be in [-4, 0]"
            )

    @property
    def reads_priorities(self) -> bool:
        """Whether draws or removals look at priorities. Where nothing does, nobody need compute or send them."""
        return self.selector.kind is not SelectorKind.UNIFORM or self.remover is not RemoverKind.FIFO

    @property
    def num_pages(self) -> int:
        """Pages allocated at creation: the soft capacity, a tenth more, and 64 for what arrives between two trims."""
        return math.ceil(self.pages_in_use * 1.1) + 64

    @property
    def pages_in_use(self) -> float:
        """Pages that the soft capacity fills.

        Under prioritized removal a page stays until its last item has left. Were all items as likely to leave, a page
        of s items would live 1 + 1/2 + ... + 1/s times as long as one item, and so many times the pages be in use.
        """
        starts = self.signature.geometry.starts
        longer = sum(1.0 / k for k in range(1, starts + 1)) if self.remover is RemoverKind.PRIORITIZED else 1.0
        return self.capacity_items / starts * longer


@dataclass(frozen=True)
class Chunk:
    """One encoded chunk, as an actor makes it and as replay keeps it.

    ``blocks`` holds one byte string per column of the signature, in its order, encoded with the column's codec.
    ``lengths``, ``prefixes`` [starts] u16 and ``priorities`` [starts] f32 describe the items; length 0 = no item at
    that start row. A full chunk has ``geometry.rows`` rows; only a drain or ``max_chunk_age`` makes shorter ones.
    """

    rows: int
    starts: int
    lengths: npt.NDArray[np.uint16]
    prefixes: npt.NDArray[np.uint16]
    priorities: npt.NDArray[np.float32]
    blocks: tuple[bytes, ...]

    @property
    def num_items(self) -> int:
        return int(np.count_nonzero(self.lengths))

    @property
    def num_bytes(self) -> int:
        return sum(len(block) for block in self.blocks) + 8 * self.starts


class TableTotals(NamedTuple):
    """A shard's report about one table. Counters are cumulative over the shard's life."""

    mass: float
    """Sum of the selector's weights q_i of all items."""
    num_items: int
    inserted: int
    """Items inserted, ever."""
    drawn: int
    """Items drawn, ever."""


class Draw(NamedTuple):
    """Items drawn from one table of one shard; all arrays have length n = sum(counts)."""

    keys: npt.NDArray[np.uint64]
    probabilities: npt.NDArray[np.float32]
    """q_i / T on this shard at the moment of the draw."""
    pages: npt.NDArray[np.uint32]
    start_rows: npt.NDArray[np.uint16]
    """Row of the page at which the item starts, context included."""
    prefixes: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.uint16]
    totals: TableTotals


class ItemWindows(NamedTuple):
    """Complete windows of I items on the actor's side, for initial priorities. T is the longest window (tail rows).

    Values behind an item's length are 0.
    """

    rewards: npt.NDArray[np.float32]
    """[I, T] training rewards r_{t+1} .. r_{t+T}."""
    continuations: npt.NDArray[np.float32]
    """[I, T], 0 after termination or life loss."""
    lengths: npt.NDArray[np.int64]
    """[I] in [1, T]."""
    scratch: dict[str, Array]
    """name -> [I, T + 1, ...]: scratch of the rows start .. start + T."""


@dataclass(frozen=True)
class EpisodeReport:
    """A finished episode: true return (unclipped), length, and how it was played."""

    episode_return: float
    length_steps: int
    epsilon: float
    version: ParameterVersion
    lane: int


@dataclass(frozen=True)
class Parameters:
    """Published parameters: safetensors bytes and their version. ``run_id`` names the run they belong to."""

    version: ParameterVersion
    run_id: str
    payload: bytes = field(repr=False)
    sha256: bytes = b""
    shared_config_json: str = field(default="", repr=False)
    """The run's shared configuration; only a relay is told, "" elsewhere."""
