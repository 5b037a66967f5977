"""Conformance test for vector environments, above all for those of the user's own (``apex envs check``)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from apexrl.env_types import ActionSpec, ContinuousActions, DiscreteActions, EnvSpec, EnvStep, VectorEnv
from apexrl.types import Array

#: Ends whose final observation must differ from the following first one at least once before we complain.
_MIN_ENDS = 3

#: Steps repeated after a second reset.
_REPLAYED_STEPS = 100


def check_env(
    make: Callable[[int], VectorEnv], *, num_lanes: int = 2, num_steps: int = 1000, seed: int = 1
) -> list[str]:
    """Check what ``make(num_lanes)`` returns against the contract of :class:`~apexrl.env_types.VectorEnv`.

    Two copies are played side by side for twice ``num_steps`` steps: first with equal actions (determinism under a
    seed), then with actions that differ only where NEXT_STEP autoreset must ignore them.

    Returns:
        The problems found, in plain words; empty if there are none.
    """
    try:
        pair = make(num_lanes), make(num_lanes)
    except Exception as error:
        return [f"make({num_lanes}) raised {type(error).__name__}: {error}"]
    checker = _Checker(pair, num_lanes, num_steps, seed)
    try:
        checker.run()
    except Exception as error:
        checker.report(f"raised {type(error).__name__}: {error}")
    for env in pair:
        try:
            env.close()
            env.close()
        except Exception as error:
            checker.report(f"close, called twice, raised {type(error).__name__}: {error}")
    return checker.problems


class _Checker:
    def __init__(self, pair: tuple[VectorEnv, VectorEnv], num_lanes: int, num_steps: int, seed: int) -> None:
        self.problems: list[str] = []
        self._pair = pair
        self._num_lanes = num_lanes
        self._num_steps = num_steps
        self._seed = seed
        self._ends = 0
        self._ends_alike = 0

    def report(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def run(self) -> None:
        if not self._check_spec() or not self._check_reset() or not self._check_determinism():
            return
        self._check_ends()
        self._check_render()

    def _check_spec(self) -> bool:
        env = self._pair[0]
        spec = env.spec
        if env.num_lanes != self._num_lanes:
            self.report(f"num_lanes is {env.num_lanes}, asked for {self._num_lanes}")
        if env.spec != self._pair[1].spec:
            self.report(f"spec differs between two copies: {env.spec} and {self._pair[1].spec}")
        if not 1 <= len(spec.observation_shape) <= 3 or any(size < 1 for size in spec.observation_shape):
            self.report(f"spec.observation_shape is {spec.observation_shape}, must be [N], [H, W] or [C, H, W]")
        try:
            if np.dtype(spec.observation_dtype).kind not in "uif":
                self.report(f"spec.observation_dtype is {spec.observation_dtype!r}, must be an integer or float type")
        except TypeError:
            self.report(f"spec.observation_dtype is {spec.observation_dtype!r}, must be the name of a NumPy type")
        if not isinstance(spec.actions, DiscreteActions | ContinuousActions):
            self.report(f"spec.actions is {spec.actions!r}, must be DiscreteActions or ContinuousActions")
        if spec.action_repeat < 1:
            self.report(f"spec.action_repeat is {spec.action_repeat}, must be at least 1")
        return not self.problems

    def _check_reset(self) -> bool:
        self._check_observation(self._pair[0].reset(self._seed), "reset")
        return not self.problems

    def _check_determinism(self) -> bool:
        """Equal seeds and actions give equal steps, in two copies and after a second reset."""
        first, second = self._pair
        random = np.random.default_rng(self._seed)
        actions = [_random_actions(random, first.spec.actions, self._num_lanes) for _ in range(self._num_steps)]
        start = np.array(first.reset(self._seed))
        if not _equal(start, second.reset(self._seed)):
            self.report("reset: two copies with equal seeds return different observations")
            return False
        steps = []
        previous, saved = start, start.copy()
        for t in range(self._num_steps):
            step = first.step(actions[t].copy())
            if not self._check_step(step, first.spec):
                return False
            if not _equal(previous, saved):
                self.report("step: an observation returned earlier changed; return a new array each time")
                return False
            previous, saved = step.observation, step.observation.copy()
            if t < _REPLAYED_STEPS:
                steps.append(copy.deepcopy(step))
            if difference := _difference(step, second.step(actions[t].copy())):
                self.report(f"step: two copies with equal seeds and actions return different {difference}")
                return False
        if not _equal(start, first.reset(self._seed)):
            self.report("reset: a second reset with the same seed returns different observations")
            return False
        for t, step in enumerate(steps):
            if difference := _difference(step, first.step(actions[t].copy())):
                self.report(f"step: after a second reset with the same seed, equal actions give different {difference}")
                return False
        return True

    def _check_ends(self) -> None:
        """NEXT_STEP autoreset: the step after an end ignores its action, has reward 0 and starts an episode."""
        first, second = self._pair
        random = np.random.default_rng(self._seed + 1)
        previous = first.reset(self._seed + 1)
        second.reset(self._seed + 1)
        ended = np.zeros(self._num_lanes, np.bool_)
        for _ in range(self._num_steps):
            actions = _random_actions(random, first.spec.actions, self._num_lanes)
            others = actions.copy()
            others[ended] = _other_actions(first.spec.actions, actions[ended])
            step = first.step(actions)
            other = second.step(others)
            if not self._check_step(step, first.spec):
                return
            if difference := _difference(step, other):
                self.report(
                    f"autoreset: the action of the step after an episode's end changed the {difference}; it must be "
                    "ignored (NEXT_STEP)"
                )
                return
            self._check_first_steps(ended, step, previous)
            ended = np.asarray(step.terminated | step.truncated)
            previous = step.observation
        if not self._ends:
            self.report(f"no episode ended within {self._num_steps} steps: ends are unchecked; raise num_steps")
        if self._ends >= _MIN_ENDS and self._ends_alike == self._ends:
            self.report(
                "autoreset: the observation of every ending step equals the first one of the next episode; the ending "
                "step must return the final observation"
            )

    def _check_first_steps(self, ended: npt.NDArray[np.bool_], step: EnvStep, previous: Array) -> None:
        for lane in np.flatnonzero(ended):
            self._ends += 1
            self._ends_alike += _equal(step.observation[lane], previous[lane])
            if step.reward[lane] != 0:
                self.report(f"autoreset: the step after an end has reward {step.reward[lane]}, must be 0 (NEXT_STEP)")
            for name in ("terminated", "truncated", "life_lost"):
                if getattr(step, name)[lane]:
                    self.report(f"autoreset: the step after an end has {name} set, must be clear (NEXT_STEP)")

    def _check_step(self, step: EnvStep, spec: EnvSpec) -> bool:
        if not isinstance(step, EnvStep):
            self.report(f"step: returned a {type(step).__name__}, must be an apexrl.env_types.EnvStep")
            return False
        self._check_observation(step.observation, "step")
        for name, dtype in (("reward", "float32"), *((n, "bool") for n in ("terminated", "truncated", "life_lost"))):
            self._check_array(getattr(step, name), (self._num_lanes,), dtype, f"step: {name}")
        if self.problems:
            return False
        if not np.isfinite(step.reward).all():
            self.report(f"step: reward is {step.reward.tolist()}, must be finite")
        if (step.life_lost & step.terminated).any():
            self.report("step: life_lost and terminated are both set; life_lost is for a game that goes on")
        return not self.problems

    def _check_observation(self, observation: Array, where: str) -> None:
        spec = self._pair[0].spec
        shape = (self._num_lanes, *spec.observation_shape)
        if (
            self._check_array(observation, shape, spec.observation_dtype, f"{where}: observation")
            and observation.dtype.kind == "f"
            and not np.isfinite(observation).all()
        ):
            self.report(f"{where}: observation has values that are not finite")

    def _check_array(self, array: Array, shape: tuple[int, ...], dtype: str, name: str) -> bool:
        if not isinstance(array, np.ndarray):
            self.report(f"{name} is a {type(array).__name__}, must be a NumPy array")
            return False
        if array.shape != shape or array.dtype != np.dtype(dtype):
            self.report(f"{name} is {array.dtype} {list(array.shape)}, must be {dtype} {list(shape)}")
            return False
        return True

    def _check_render(self) -> None:
        drawn = self._pair[0].render()
        if not isinstance(drawn, np.ndarray):
            self.report(f"render: returned a {type(drawn).__name__}, must be uint8 [H, W, 3]")
        elif drawn.ndim != 3 or drawn.shape[-1] != 3 or drawn.dtype != np.uint8:
            self.report(f"render: returned {drawn.dtype} {list(drawn.shape)}, must be uint8 [H, W, 3]")


def _equal(a: Array, b: Array) -> bool:
    return np.array_equal(a, b)


def _difference(step: EnvStep, other: EnvStep) -> str:
    """Name of the first field that differs, or ""."""
    for name in EnvStep._fields:
        if not np.array_equal(getattr(step, name), getattr(other, name)):
            return name
    return ""


def _random_actions(random: np.random.Generator, spec: ActionSpec, num_lanes: int) -> Array:
    if isinstance(spec, DiscreteActions):
        return random.integers(0, spec.count, num_lanes)
    return random.uniform(-1.0, 1.0, (num_lanes, spec.size)).astype(np.float32)


def _other_actions(spec: ActionSpec, actions: Array) -> Array:
    """Valid actions that differ from ``actions`` (but for a space of a single one)."""
    return (actions + 1) % spec.count if isinstance(spec, DiscreteActions) else np.negative(actions)
