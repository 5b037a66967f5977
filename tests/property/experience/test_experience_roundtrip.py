"""From policy evaluations to chunks, over the mirror, to batches: nothing is lost, doubled, mixed up or changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apexrl.chunk_batch import ChunkBatch
from apexrl.env_types import DiscreteActions, EnvSpec, EnvStep
from apexrl.experience.batch import CPU, BatchBuffer, WindowBatch
from apexrl.experience.chunk_builder import ChunkBuilder
from apexrl.experience.device_mirror import CopyStream, DeviceMirror
from apexrl.experience.mirror import HostMirror, Place
from apexrl.experience.rows import EpisodeRows
from apexrl.experience.stacking import FrameStacker
from apexrl.experience.windows import NStepWindows
from apexrl.ops.frames import stack_frames
from apexrl.types import (
    ROW_COLUMNS,
    Chunk,
    Codec,
    ColumnSpec,
    Geometry,
    ItemWindows,
    Padding,
    RowKind,
    Scope,
    Signature,
)

DISCOUNT = 0.99
LANE_STRIDE = 100_000


@dataclass(frozen=True)
class Episode:
    length: int
    terminated: bool
    truncated: bool
    life_loss_at: int | None


@dataclass(frozen=True)
class Case:
    episodes: tuple[tuple[Episode, ...], ...]
    ticks: int
    stack: int
    n: int
    starts: int
    extra_context: int
    padding: Padding
    shape: tuple[int, ...]
    dtype: str
    codec: Codec
    close_early_every: int
    seed: int

    @property
    def num_lanes(self) -> int:
        return len(self.episodes)

    @property
    def signature(self) -> Signature:
        columns = (
            *(ColumnSpec(name, dtype) for name, dtype in ROW_COLUMNS),
            ColumnSpec("observation", self.dtype, self.shape, codec=self.codec),
            ColumnSpec("action", "int32"),
            ColumnSpec("row_id", "int64"),
            ColumnSpec("parameter_version", "uint64", scope=Scope.ITEM),
        )
        geometry = Geometry(self.stack - 1 + self.extra_context, self.starts, self.n)
        return Signature(columns, geometry, self.stack, self.padding)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    length = draw(st.integers(1, 9))
    end = draw(st.sampled_from(["terminated", "truncated", "both"]))
    return Episode(
        length=length,
        terminated=end != "truncated",
        truncated=end != "terminated",
        life_loss_at=draw(st.none() | st.integers(0, length - 1)),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape, dtype = draw(
        st.sampled_from(
            [((3,), "float32"), ((1,), "float64"), ((2, 4), "uint8"), ((1, 3, 2), "uint8"), ((3, 2, 2), "int16")]
        )
    )
    return Case(
        episodes=tuple(draw(st.lists(st.lists(episodes(), min_size=1, max_size=4).map(tuple), min_size=1, max_size=3))),
        ticks=draw(st.integers(1, 40)),
        stack=draw(st.integers(1, 4)),
        n=draw(st.integers(1, 5)),
        starts=draw(st.integers(1, 7)),
        extra_context=draw(st.integers(0, 2)),
        padding=draw(st.sampled_from(Padding)),
        shape=shape,
        dtype=dtype,
        codec=draw(st.sampled_from(Codec)),
        close_early_every=draw(st.sampled_from([0, 0, 3, 11])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


class Step(NamedTuple):
    """One environment step as it happened: the row it began in and what followed."""

    row_id: int
    action: int
    reward: float
    continuation: int
    next_row_id: int


@dataclass
class Played:
    case: Case
    chunks: list[Chunk] = field(default_factory=list)
    stacks: dict[int, np.ndarray] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    episodes: list[list[Step]] = field(default_factory=list)


class ScriptedLanes:
    """A vector environment with NEXT_STEP autoreset that plays scripted episodes over and over."""

    def __init__(self, case: Case, rng: np.random.Generator) -> None:
        self._case = case
        self._rng = rng
        self._number = [0] * case.num_lanes
        self._at = [0] * case.num_lanes

    def observe(self) -> np.ndarray:
        shape = (self._case.num_lanes, *self._case.shape)
        return self._rng.integers(1, 100, shape).astype(self._case.dtype)

    def step(self) -> EnvStep:
        lanes = self._case.num_lanes
        flags = np.zeros((3, lanes), dtype=np.bool_)
        rewards = self._rng.normal(size=lanes).astype(np.float32)
        for lane in range(lanes):
            script = self._case.episodes[lane]
            episode = script[self._number[lane] % len(script)]
            if self._at[lane] == episode.length:  # the final observation was shown: this step resets
                self._number[lane] += 1
                self._at[lane] = 0
                rewards[lane] = 0
                continue
            life_lost = self._at[lane] == episode.life_loss_at
            self._at[lane] += 1
            end = self._at[lane] == episode.length
            flags[:, lane] = (end and episode.terminated, end and episode.truncated, life_lost)
        return EnvStep(self.observe(), rewards, flags[0], flags[1], flags[2])


def priorities(windows: ItemWindows) -> np.ndarray:
    """|R + G v(s_k) - v(s_0)| from the scratch of both ends."""
    returns, discounts = n_step(windows.rewards, windows.continuations, windows.lengths)
    value = windows.scratch["value"]
    return np.abs(returns + discounts * value[np.arange(len(value)), windows.lengths] - value[:, 0]).astype(np.float32)


def n_step(rewards: np.ndarray, continuations: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    returns, discounts = np.zeros(len(lengths)), np.ones(len(lengths))
    for k in range(rewards.shape[1]):
        inside = k < lengths
        returns = np.where(inside, returns + discounts * rewards[:, k], returns)
        discounts = np.where(inside, discounts * DISCOUNT * continuations[:, k], discounts)
    return returns, discounts


def play(case: Case) -> Played:
    rng = np.random.default_rng(case.seed)
    played = Played(case)
    lanes = case.num_lanes
    env = ScriptedLanes(case, rng)
    spec = EnvSpec(case.shape, case.dtype, DiscreteActions(5), padding=case.padding)
    stacker = FrameStacker(lanes, spec, case.stack)
    rows = EpisodeRows(lanes)
    now = 0.0
    builder = ChunkBuilder(
        case.signature,
        lanes,
        NStepWindows(case.n),
        priorities,
        max_chunk_age_seconds=case.close_early_every or float("inf"),
        clock=lambda: now,
    )
    open_episodes: list[list[Step]] = [[] for _ in range(lanes)]
    observations = env.observe()
    for tick in range(case.ticks + 1):
        now = float(tick)
        ids = np.arange(lanes, dtype=np.int64) * LANE_STRIDE + tick
        stacks = stacker.push(observations, rows.first)
        scratch = {"value": rng.normal(size=lanes)}
        for lane in range(lanes):
            played.stacks[int(ids[lane])] = stacks[lane]
            played.values[int(ids[lane])] = float(scratch["value"][lane])
        items = {"parameter_version": np.full(lanes, tick, dtype=np.uint64)}
        if tick == case.ticks:
            columns = {"age": rows.ages, "observation": observations, "row_id": ids}
            played.chunks += builder.drain(columns, items, scratch)
            break
        actions = rng.integers(0, 5, lanes)
        step = env.step()
        last = rows.last
        columns = rows.complete(step, step.reward)
        for lane in np.flatnonzero(~last):
            open_episodes[lane].append(
                Step(
                    int(ids[lane]),
                    int(actions[lane]),
                    float(step.reward[lane]),
                    int(not (step.terminated[lane] or step.life_lost[lane])),
                    int(ids[lane]) + 1,
                )
            )
        for lane in np.flatnonzero(step.terminated | step.truncated):
            played.episodes.append(open_episodes[lane])
            open_episodes[lane] = []
        columns |= {"action": actions, "observation": observations, "row_id": ids}
        played.chunks += builder.append(columns, items, scratch)
        observations = step.observation
    played.episodes += [steps for steps in open_episodes if steps]
    return played


def batches(played: Played) -> Iterator[tuple[WindowBatch, np.ndarray]]:
    """Every item once, through a mirror whose slots held other chunks before; with the items' priorities."""
    signature = played.case.signature
    rng = np.random.default_rng(played.case.seed + 1)
    slots = rng.permutation(len(played.chunks))
    num_slots = max(1, len(slots))
    mirrors = (HostMirror(signature, num_slots), DeviceMirror(signature, num_slots, CopyStream(CPU)))
    mirror = mirrors[played.case.seed % 2]
    for order in (reversed(slots), slots):
        if played.chunks:
            mirror.put(np.fromiter(order, np.int64), ChunkBatch.of(played.chunks))
    items = [
        (slot, signature.geometry.context + start, chunk.lengths[start], chunk.prefixes[start], chunk.priorities[start])
        for slot, chunk in zip(slots, played.chunks, strict=True)
        for start in np.flatnonzero(chunk.lengths)
    ]
    order = rng.permutation(len(items))
    buffer = BatchBuffer(signature, 8)
    for begin in range(0, len(items), 5):
        chosen = [items[i] for i in order[begin : begin + 5]]
        page, start, length, prefix = (np.array(values) for values in list(zip(*chosen, strict=True))[:4])
        mirror.gather(page, start, length, prefix, [Place(buffer, 2, len(chosen))])
        part = slice(2, 2 + len(chosen))
        whole = buffer.as_window_batch()
        yield (
            WindowBatch(
                {name: column[part] for name, column in whole.columns.items()},
                {name: column[part] for name, column in whole.item_columns.items()},
                whole.lengths[part],
                whole.prefixes[part],
                whole.weights[part],
            ),
            np.array([item[4] for item in chosen]),
        )


@settings(max_examples=120, deadline=None)
@given(cases())
def test_rebuilt_stacks_equal_what_the_policy_saw_bit_for_bit(case: Case) -> None:
    played = play(case)
    context = case.signature.geometry.context
    for batch, _ in batches(played):
        observations, ages = batch.columns["observation"], batch.columns["age"]
        ids = batch.columns["row_id"].numpy()
        first = stack_frames(observations, ages, context, case.stack, case.padding)
        last = stack_frames(observations, ages, context + batch.lengths, case.stack, case.padding)
        for i, length in enumerate(batch.lengths.tolist()):
            for rebuilt, row in ((first, context), (last, context + length)):
                seen = played.stacks[int(ids[i, row])]
                assert rebuilt[i].numpy().dtype == seen.dtype
                np.testing.assert_array_equal(rebuilt[i].numpy(), seen)


@settings(max_examples=120, deadline=None)
@given(cases())
def test_every_step_is_exactly_one_item_with_the_returns_of_its_own_episode(case: Case) -> None:
    played = play(case)
    context = case.signature.geometry.context
    expected: dict[int, tuple[int, float, float, int, int]] = {}
    for steps in played.episodes:
        for i, first in enumerate(steps):
            total, discount = 0.0, 1.0
            window = steps[i : i + case.n]
            for step in window:
                total += discount * step.reward
                discount *= DISCOUNT * step.continuation
            expected[first.row_id] = (len(window), total, discount, first.action, window[-1].next_row_id)
    found: set[int] = set()
    for batch, raw_priorities in batches(played):
        columns = {name: column.numpy() for name, column in batch.columns.items()}
        lengths = batch.lengths.numpy()
        after = slice(context, context + case.n)
        totals, discounts = n_step(columns["reward"][:, after], columns["continuation"][:, after], lengths)
        for i, length in enumerate(lengths):
            row_id = int(columns["row_id"][i, context])
            assert row_id not in found
            found.add(row_id)
            number, total, discount, action, next_id = expected[row_id]
            assert (length, columns["action"][i, context], columns["row_id"][i, context + length]) == (
                number,
                action,
                next_id,
            )
            np.testing.assert_allclose((totals[i], discounts[i]), (total, discount), rtol=0, atol=1e-6)
            assert RowKind.LAST not in columns["kind"][i, context : context + length]
            assert batch.item_columns["parameter_version"][i] == row_id % LANE_STRIDE
            delta = total + discount * played.values[next_id] - played.values[row_id]
            np.testing.assert_allclose(raw_priorities[i], abs(delta), rtol=0, atol=1e-5)
    assert found == expected.keys()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_chunks_are_full_except_at_the_drain_or_when_closed_early(case: Case) -> None:
    played = play(case)
    geometry = case.signature.geometry
    short = [chunk for chunk in played.chunks if chunk.rows < geometry.rows]
    if not case.close_early_every:
        drained = -(-(geometry.tail + geometry.starts) // geometry.starts)
        assert len(short) <= case.num_lanes * drained
    for chunk in played.chunks:
        assert 1 <= chunk.starts <= geometry.starts
        assert geometry.context + chunk.starts <= chunk.rows <= geometry.context + chunk.starts + geometry.tail
        assert len(chunk.lengths) == len(chunk.prefixes) == len(chunk.priorities) == chunk.starts
        assert chunk.num_items > 0
        assert np.all(geometry.context + np.arange(chunk.starts) + chunk.lengths < chunk.rows)
        assert np.all(chunk.priorities[chunk.lengths == 0] == 0)


@pytest.mark.parametrize(
    ("terminated", "discounts"),
    [(True, [0.970299, 0.970299, 0, 0, 0]), (False, [0.970299, 0.970299, 0.970299, 0.9801, 0.99])],
)
def test_golden_n_step_returns(terminated: bool, discounts: list[float]) -> None:
    rewards = np.array([1, 0, 2, -1, 5], dtype=np.float32)
    columns = (*(ColumnSpec(name, dtype) for name, dtype in ROW_COLUMNS), ColumnSpec("observation", "float32", (1,)))
    signature = Signature(columns, Geometry(0, 4, 3))
    builder = ChunkBuilder(signature, 1, NStepWindows(3), lambda windows: windows.rewards[:, 0] * 0 + 1)
    rows = EpisodeRows(1)
    chunks: list[Chunk] = []
    yes, no = np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.bool_)
    for i, reward in enumerate([*rewards, np.float32(0)]):
        end = yes if i == 4 else no
        step = EnvStep(np.zeros((1, 1)), np.array([reward]), end if terminated else no, no if terminated else end, no)
        row = rows.complete(step, step.reward) | {"observation": np.full((1, 1), i, dtype=np.float32)}
        chunks += builder.append(row, {}, {})
    assert not chunks  # rows 0-5: the chunk of start rows 0-3 waits for its third tail row
    chunks += builder.drain({"age": rows.ages, "observation": np.zeros((1, 1), dtype=np.float32)}, {}, {})
    mirror, buffer = HostMirror(signature, len(chunks)), BatchBuffer(signature, 5)
    count = 0
    for slot, chunk in enumerate(chunks):
        mirror.put(np.array([slot]), ChunkBatch.of([chunk]))
        starts = np.flatnonzero(chunk.lengths)
        page, place = np.full(starts.size, slot), Place(buffer, count, starts.size)
        mirror.gather(page, starts, chunk.lengths[starts], chunk.prefixes[starts], [place])
        count += starts.size
    batch = buffer.as_window_batch()
    assert count == 5
    assert batch.lengths.tolist() == [3, 3, 3, 2, 1]
    found = n_step(
        batch.columns["reward"].double().numpy(), batch.columns["continuation"].numpy(), batch.lengths.numpy()
    )
    np.testing.assert_allclose(found[0], [2.9602, 0.9999, 5.9105, 3.95, 5], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[1], discounts, rtol=0, atol=1e-12)
    bootstrap = batch.columns["observation"][torch.arange(5), batch.lengths, 0]
    assert bootstrap.tolist() == [3, 4, 5, 5, 5]
