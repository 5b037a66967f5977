"""The actor's side of experience: rows of lanes in lockstep become chunks.

A chunk holds ``context`` rows, then its start rows, then ``tail`` rows. The next chunk of the lane begins with the
start row behind, so neighbours share ``context + tail`` rows and every row is a start row exactly once. Chunks may span
episodes; windows never pass a last row (that is the window rule's work).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import numpy as np
import numpy.typing as npt

from apexrl.compiled import compiled, types
from apexrl.experience.codec import encode_blocks
from apexrl.experience.lane_buffers import LaneBuffer
from apexrl.experience.rows import MAX_AGE
from apexrl.experience.windows import WindowRule
from apexrl.types import ROW_COLUMNS, Array, Chunk, ItemWindows, RowKind, Scope, Signature, SignatureError

#: Columns that say what followed an action; a last row has none and holds zeros.
_AFTER_ACTION = ("action", "reward", "continuation")

_FIRST, _LAST = int(RowKind.FIRST), int(RowKind.LAST)


@compiled((types.uint8[::1], types.uint16[::1], types.uint8[::1], types.uint16[::1], types.boolean))
def _first_wrong_lane(
    kinds: npt.NDArray[np.uint8],
    ages: npt.NDArray[np.uint16],
    kinds_before: npt.NDArray[np.uint8],
    ages_before: npt.NDArray[np.uint16],
    draining: bool,
) -> int:
    """The first lane whose row cannot follow the one before it; -1 = none. See ``ChunkBuilder._check_order``.

    One compiled loop: a dozen array operations on so few numbers took a quarter of the time of building chunks.
    """
    for lane in range(kinds.size):
        begins = kinds_before[lane] == _LAST
        expected = 0 if begins else min(int(ages_before[lane]) + 1, MAX_AGE)
        wrong = int(ages[lane]) != expected or kinds[lane] > _LAST
        if wrong or (not draining and (kinds[lane] == _FIRST) != begins):
            return lane
    return -1


InitialPriorities = Callable[[ItemWindows], npt.NDArray[np.float32]]


class ChunkBuilder:
    """Collects one row per lane and step and returns chunks as soon as they are complete.

    All lanes advance together, so their chunks close in the same step and their priorities are computed in one call.
    """

    def __init__(
        self,
        signature: Signature,
        num_lanes: int,
        windows: WindowRule,
        priorities: InitialPriorities,
        max_chunk_age_seconds: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allocate the lanes' buffers.

        Args:
            signature: of the table; must hold all of ``ROW_COLUMNS``.
            num_lanes: L.
            windows: gives each start row its length and prefix; its tail must be the signature's.
            priorities: raw priorities [I] of complete windows, finite and >= 0.
            max_chunk_age_seconds: a chunk that has been filling for longer is closed short, with the windows that are
                complete, and the next one begins.
            clock: seconds, monotonic.

        Raises:
            SignatureError: signature and window rule do not fit, or a row column is missing or of another type.
        """
        if num_lanes < 1:
            raise ValueError(f"num_lanes is {num_lanes}, must be at least 1")
        if not max_chunk_age_seconds > 0:
            raise ValueError(f"max_chunk_age_seconds is {max_chunk_age_seconds}, must be above 0")
        geometry = signature.geometry
        if windows.tail != geometry.tail:
            raise SignatureError(f"geometry.tail is {geometry.tail}, must be {windows.tail}, the longest window")
        specs = {column.name: column for column in signature.columns}
        for name, dtype in ROW_COLUMNS:
            spec = specs.get(name)
            if spec is None or (spec.dtype, spec.shape, spec.scope) != (dtype, (), Scope.STEP):
                raise SignatureError(f"signature must hold a step column {name!r} of {dtype}[], found {spec}")
        self._signature = signature
        self._geometry = geometry
        self._num_lanes = num_lanes
        self._windows = windows
        self._priorities = priorities
        self._max_chunk_age_seconds = max_chunk_age_seconds
        self._clock = clock
        # Item columns are kept per row until the item is known: it takes the value of the row `start - prefix`.
        self._step_rows, self._item_rows = (
            {
                column.name: self._buffer(column.name, np.dtype(column.dtype), column.shape)
                for column in signature.columns
                if column.scope is scope
            }
            for scope in (Scope.STEP, Scope.ITEM)
        )
        self._scratch_rows: dict[str, LaneBuffer] | None = None
        #: [L] of the newest rows.
        self._kinds = np.zeros(num_lanes, dtype=np.uint8)
        self._ages = np.zeros(num_lanes, dtype=np.uint16)
        self._filled = 0
        self._opened_at: float | None = None
        self._blank()

    @property
    def pending_rows(self) -> int:
        """Rows of each lane that are start rows of no finished chunk yet."""
        return self._filled - self._geometry.context

    def append(
        self, columns: Mapping[str, Array], item_columns: Mapping[str, Array], scratch: Mapping[str, Array]
    ) -> list[Chunk]:
        """Add one complete row per lane.

        Args:
            columns: every step column of the signature, name -> [L, ...]. Last rows' action, reward and continuation
                are stored as 0 whatever is given.
            item_columns: every item column, name -> [L, ...].
            scratch: what initial priorities need, name -> [L, ...]; the same names and types at every call.

        Returns:
            The chunks that this row completes, in lane order.

        Raises:
            ValueError: a column is missing, unknown or of another shape or type; kinds and ages do not continue the
                lane; or a priority is not finite and >= 0.
        """
        self._write(columns, item_columns, scratch)
        now = self._clock()
        if self._opened_at is None:
            self._opened_at = now
        starts = self._filled - self._geometry.context - self._geometry.tail
        full = self._filled == self._geometry.rows
        if not full and (starts < 1 or now - self._opened_at <= self._max_chunk_age_seconds):
            return []
        every_lane = np.ones(self._num_lanes, dtype=np.int64)
        chunks = self._close(0, starts * every_lane, self._filled * every_lane)
        self._advance(starts)
        self._opened_at = now
        return [chunk for _, chunk in chunks]

    def drain(
        self, columns: Mapping[str, Array], item_columns: Mapping[str, Array], scratch: Mapping[str, Array]
    ) -> list[Chunk]:
        """Close all open windows as truncated: each lane's current observation becomes a last row.

        Lanes whose newest row is a last row already have no open window and get no other. Chunks without an item are
        left out. Afterwards the builder is as new: every lane must begin with a first row.

        Args:
            columns: as for :meth:`append`, of the current rows, whose actions were not taken; ``kind``, ``action``,
                ``reward`` and ``continuation`` may be absent.
            item_columns: as for :meth:`append`.
            scratch: as for :meth:`append`.

        Returns:
            The remaining chunks, mostly short, per lane oldest first.
        """
        if self.pending_rows == 0:
            return []
        ended = self._kinds == _LAST
        final = dict(columns)
        for name in ("kind", *_AFTER_ACTION):
            if name in self._step_rows:
                buffer = self._step_rows[name]
                final[name] = np.zeros(buffer.row_shape, dtype=buffer.dtype)
        final["kind"] = np.full(self._num_lanes, RowKind.LAST, dtype=np.uint8)
        final["age"] = np.where(ended, 0, np.asarray(final["age"])).astype(np.uint16)
        self._write(final, item_columns, scratch, draining=True)
        rows = self._filled - ended.astype(np.int64)
        geometry = self._geometry
        chunks: list[tuple[int, Chunk]] = []
        for offset in range(0, self.pending_rows, geometry.starts):
            starts = np.clip(rows - geometry.context - offset, 0, geometry.starts)
            chunks += self._close(offset, starts, np.minimum(rows, offset + geometry.rows))
        self._blank()
        return [chunk for _, chunk in sorted(chunks, key=lambda pair: pair[0])]

    # --- rows ---

    def _buffer(self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> LaneBuffer:
        return LaneBuffer(name, self._num_lanes, self._geometry.rows, dtype, shape)

    def _all_buffers(self) -> Iterable[LaneBuffer]:
        return chain(self._step_rows.values(), self._item_rows.values(), (self._scratch_rows or {}).values())

    def _blank(self) -> None:
        """Begin anew: context rows that no window reaches, because ages count from the lane's first row."""
        for buffer in self._all_buffers():
            buffer.rows[:, : self._geometry.context] = 0
        self._step_rows["kind"].rows[:, : self._geometry.context] = RowKind.LAST
        self._kinds[:] = RowKind.LAST
        self._ages[:] = 0
        self._filled = self._geometry.context
        self._opened_at = None

    def _write(
        self,
        columns: Mapping[str, Array],
        item_columns: Mapping[str, Array],
        scratch: Mapping[str, Array],
        draining: bool = False,
    ) -> None:
        """Check one row per lane completely, then store it."""
        if self._scratch_rows is None:
            self._scratch_rows = {
                name: self._buffer(name, value.dtype, value.shape[1:]) for name, value in scratch.items()
            }
        given = (
            ("columns", columns, self._step_rows),
            ("item_columns", item_columns, self._item_rows),
            ("scratch", scratch, self._scratch_rows),
        )
        for what, values, buffers in given:
            if values.keys() != buffers.keys():
                raise ValueError(f"names of {what} are {sorted(values)}, must be {sorted(buffers)}")
            for name, value in values.items():
                buffers[name].require_fits(what, value)
        # Copies, since the loop is compiled for one layout only.
        kinds, ages = columns["kind"].astype(np.uint8), columns["age"].astype(np.uint16)
        self._check_order(kinds, ages, draining)
        row = self._filled
        for _, values, buffers in given:
            for name, value in values.items():
                buffers[name].rows[:, row] = value
        last = kinds == _LAST
        if last.any():
            for name in _AFTER_ACTION:
                if name in self._step_rows:
                    self._step_rows[name].rows[last, row] = 0
        self._kinds, self._ages = kinds, ages
        self._filled += 1

    def _check_order(self, kinds: npt.NDArray[np.uint8], ages: npt.NDArray[np.uint16], draining: bool) -> None:
        """An episode begins exactly behind a last row or a blank one, and its rows count from 0.

        When draining, all rows are last rows, and those behind a last row are fillers that reach no chunk.
        """
        lane = _first_wrong_lane(kinds, ages, self._kinds, self._ages, draining)
        if lane >= 0:
            begins = self._kinds[lane] == RowKind.LAST
            after = "a last row" if begins else f"a row of age {self._ages[lane]}"
            raise ValueError(
                f"lane {lane}: row of kind {int(kinds[lane])} and age {int(ages[lane])} cannot follow {after}; an "
                f"episode begins behind a last row with kind 0 and age 0, and ages grow by 1 up to {MAX_AGE}"
            )

    def _advance(self, starts: int) -> None:
        """Move the rows that the next chunk shares with the last one to the front."""
        for buffer in self._all_buffers():
            buffer.move_to_front(starts, self._filled)
        self._filled -= starts

    # --- chunks ---

    def _close(
        self, offset: int, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> list[tuple[int, Chunk]]:
        """Make a chunk of each lane in which a row starts an item; returns (lane, chunk) pairs.

        Args:
            offset: buffer row at which the chunks begin (their first context row).
            starts: [L] start rows of each lane's chunk; 0 = no chunk.
            ends: [L] buffer row behind each lane's chunk.
        """
        most = int(starts.max())
        first_start = offset + self._geometry.context
        kinds = self._step_rows["kind"].rows[:, : self._filled].astype(np.uint8, copy=False)
        lengths, prefixes = self._windows.windows(kinds, first_start, most)
        inside = np.arange(most) < starts[:, None]
        lengths = np.where(inside, lengths, 0)
        lanes, items = np.nonzero(lengths)
        priorities = np.zeros(lengths.shape, dtype=np.float32)
        if lanes.size:
            priorities[lanes, items] = self._initial_priorities(lanes, first_start + items, lengths[lanes, items])
        prefixes = np.where(lengths > 0, prefixes, 0)
        origins = first_start + np.arange(most) - prefixes
        chosen = np.flatnonzero(lengths.any(axis=1))
        blocks = self._encode(chosen, offset, (ends - offset)[chosen], origins[chosen], starts[chosen])
        short_lengths, short_prefixes = lengths.astype(np.uint16), prefixes.astype(np.uint16)
        return [
            (
                lane,
                Chunk(
                    rows=int(ends[lane]) - offset,
                    starts=int(starts[lane]),
                    lengths=short_lengths[lane, : starts[lane]],
                    prefixes=short_prefixes[lane, : starts[lane]],
                    priorities=priorities[lane, : starts[lane]],
                    blocks=own,
                ),
            )
            for lane, own in zip(chosen.tolist(), blocks, strict=True)
        ]

    def _encode(
        self,
        lanes: npt.NDArray[np.intp],
        offset: int,
        rows: npt.NDArray[np.int64],
        origins: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
    ) -> Iterable[tuple[bytes, ...]]:
        """All blocks of each chosen lane's chunk, lane by lane.

        Args:
            lanes: [C] chosen ones.
            offset: buffer row at which the chunks begin.
            rows: [C] of each chunk.
            origins: [C, S] buffer row from which each start row takes its item columns.
            starts: [C] start rows of each chunk.
        """
        if not lanes.size:
            return []
        every = lanes.size == self._num_lanes  # then a view will do
        most = offset + int(rows.max())
        columns = []
        for column in self._signature.columns:
            if column.scope is Scope.STEP:
                values = self._step_rows[column.name].rows
                window = values[:, offset:most] if every else values[lanes, offset:most]
                columns.append(encode_blocks(column, window, rows.tolist()))
            else:
                picked = self._item_rows[column.name].pick(lanes[:, None], origins)
                columns.append(encode_blocks(column, picked, starts.tolist()))
        return zip(*columns, strict=True)

    def _initial_priorities(
        self, lanes: npt.NDArray[np.intp], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> Array:
        """Raw priorities of the items that start at buffer rows ``starts`` of ``lanes``."""
        steps = np.arange(self._geometry.tail + 1)
        # Rows behind an item's length may not exist; they are read at its bootstrap row and zeroed.
        rows = starts[:, None] + np.minimum(steps, lengths[:, None])
        at = lanes[:, None]
        short = np.flatnonzero(lengths < self._geometry.tail)
        behind = steps > lengths[short, None]
        not_before = steps[:-1] >= lengths[short, None]

        def picked(buffer: LaneBuffer, rows: npt.NDArray[np.integer], outside: Array) -> Array:
            values = buffer.pick(at, rows)
            part = values[short]
            part[outside] = 0
            values[short] = part
            return values

        windows = ItemWindows(
            rewards=picked(self._step_rows["reward"], rows[:, :-1], not_before).astype(np.float32, copy=False),
            continuations=picked(self._step_rows["continuation"], rows[:, :-1], not_before).astype(np.float32),
            lengths=lengths.astype(np.int64),
            scratch={name: picked(buffer, rows, behind) for name, buffer in (self._scratch_rows or {}).items()},
        )
        priorities = np.asarray(self._priorities(windows), dtype=np.float32)
        if priorities.shape != lengths.shape:
            raise ValueError(f"initial priorities have shape {priorities.shape}, must be {lengths.shape}")
        if not np.all(np.isfinite(priorities) & (priorities >= 0)):
            wrong = priorities[~(np.isfinite(priorities) & (priorities >= 0))][0]
            raise ValueError(f"initial priorities hold {wrong}, must be finite and at least 0")
        return priorities
