"""From acting to n-step transitions with action vectors, whatever the chunks' geometry: against a slow reference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from control_scene import make

from apex_actor.loop import ActorLoop
from apexrl.algorithms.base import WindowBatch
from apexrl.algorithms.deterministic_policy import DeterministicPolicyAlgorithm
from apexrl.chunk_batch import ChunkBatch
from apexrl.config import EnvConfig, ExperimentConfig, ReplayConfig
from apexrl.env_types import ContinuousActions, EnvSpec, EnvStep
from apexrl.experience.batch import BatchBuffer
from apexrl.experience.mirror import HostMirror, Place
from apexrl.types import Array, Chunk

LANES = 2
SPEC = EnvSpec((2,), "float32", ContinuousActions(2))
#: (steps, terminated) of the episodes that each lane plays over and over.
SCRIPTS = (((3, True), (1, False), (7, False), (1, True)), ((5, False), (2, True), (4, False)))


class Step(NamedTuple):
    """One environment step: where it began, what was done, what followed."""

    observation: Array
    action: Array
    reward: float
    continuation: float
    next_observation: Array


class RecordingEnv:
    """Plays the scripts with random observations and rewards, and records whole episodes as they happened."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.num_lanes = LANES
        self.episodes: list[list[Step]] = []
        self._random = np.random.default_rng(0)
        self._number = [0] * LANES
        self._open: list[list[Step]] = [[] for _ in range(LANES)]
        self._ended = np.zeros(LANES, np.bool_)
        self._observation = self._draw()

    def _draw(self) -> Array:
        return self._random.standard_normal((LANES, 2)).astype(np.float32)

    def reset(self, seed: int) -> Array:
        return self._observation

    def step(self, actions: Array) -> EnvStep:
        before, self._observation = self._observation, self._draw()
        rewards = self._random.standard_normal(LANES).astype(np.float32)
        terminated, truncated = np.zeros(LANES, np.bool_), np.zeros(LANES, np.bool_)
        for lane in range(LANES):
            if self._ended[lane]:  # NEXT_STEP: this step ignored its action and reset
                rewards[lane] = 0.0
                continue
            length, terminates = SCRIPTS[lane][self._number[lane] % len(SCRIPTS[lane])]
            ends = len(self._open[lane]) + 1 == length
            terminated[lane], truncated[lane] = ends and terminates, ends and not terminates
            self._open[lane].append(
                Step(before[lane], actions[lane].copy(), float(rewards[lane]), float(not terminated[lane]),
                     self._observation[lane])
            )  # fmt: skip
            if ends:
                self.episodes.append(self._open[lane])
                self._open[lane] = []
                self._number[lane] += 1
        self._ended = terminated | truncated
        return EnvStep(self._observation, rewards, terminated, truncated, np.zeros(LANES, np.bool_))

    def finished(self) -> list[list[Step]]:
        """All episodes, those that a drain cuts included."""
        return self.episodes + [steps for steps in self._open if steps]

    def render(self) -> Array:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        """Nothing to release."""


def play(
    algorithm: DeterministicPolicyAlgorithm, config: ExperimentConfig, ticks: int
) -> tuple[list[Chunk], RecordingEnv]:
    env = RecordingEnv()
    torch.manual_seed(0)
    loop = ActorLoop(config=config, env=env, algorithm=algorithm, networks=algorithm.make_networks(), seed=3)
    loop.epsilons = np.full(LANES, 0.5)
    chunks = [chunk for _ in range(ticks) for chunk in loop.step().chunks]
    return chunks + loop.drain(), env


def gather(algorithm: DeterministicPolicyAlgorithm, chunks: list[Chunk]) -> tuple[WindowBatch, np.ndarray]:
    """Every item of the chunks once, with its initial priority."""
    signature = algorithm.tables()[0].config.signature
    mirror = HostMirror(signature, len(chunks))
    buffer = BatchBuffer(signature, sum(chunk.num_items for chunk in chunks))
    count = 0
    priorities = []
    for slot, chunk in enumerate(chunks):
        mirror.put(np.array([slot]), ChunkBatch.of([chunk]))
        starts = np.flatnonzero(chunk.lengths)
        rows, slots = signature.geometry.context + starts, np.full(starts.size, slot)
        place = Place(buffer, count, starts.size)
        mirror.gather(slots, rows, chunk.lengths[starts], chunk.prefixes[starts], [place])
        priorities.append(chunk.priorities[starts])
        count += starts.size
    buffer.weights[:] = 1.0
    return buffer.as_window_batch(), np.concatenate(priorities)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@pytest.mark.parametrize("chunk_starts", [1, 2, 8])
def test_every_step_is_one_transition_of_its_own_episode(chunk_starts: int, n_steps: int) -> None:
    replay = ReplayConfig(chunk_starts=chunk_starts)
    algorithm = make(spec=SPEC, replay=replay, n_steps=n_steps)
    config = ExperimentConfig(algorithm=algorithm._section, env=EnvConfig(stack=1, reward_clip=0.0), replay=replay)
    chunks, env = play(algorithm, config, ticks=43)
    batch, priorities = gather(algorithm, chunks)
    found = algorithm.transitions(batch)
    expected = {}
    for steps in env.finished():
        for i, first in enumerate(steps):
            total, factor = 0.0, 1.0
            window = steps[i : i + n_steps]
            for step in window:
                total += factor * step.reward
                factor *= 0.99 * step.continuation
            expected[first.observation.tobytes()] = (first, total, factor, window[-1].next_observation)
    assert len(found.returns) == len(expected)
    torch.manual_seed(0)
    networks = algorithm.make_networks()
    with torch.no_grad():
        taken = networks.critic(found.s_tm1, found.a_tm1)
        bootstrap = networks.critic(found.s_t, networks.policy(found.s_t))
    ours = algorithm._head.priorities(taken, found.returns, found.bootstrap_discounts, bootstrap).numpy()
    np.testing.assert_allclose(priorities, ours, rtol=1e-4, atol=1e-5)
    for i in range(len(found.returns)):
        first, total, factor, last = expected.pop(found.s_tm1[i].numpy().tobytes())
        np.testing.assert_array_equal(found.a_tm1[i], first.action)
        np.testing.assert_allclose(found.returns[i], total, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.bootstrap_discounts[i], factor, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found.s_t[i], last)
    assert not expected, "every step is an item once"
    zero = found.bootstrap_discounts == 0
    assert 0 < zero.sum() < len(zero), "terminations and truncations both occurred"
