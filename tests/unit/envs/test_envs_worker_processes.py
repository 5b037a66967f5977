"""Lanes in worker processes: the same play as in one process, errors that can be read, no processes left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from apexrl.config import ConfigError, EnvConfig
from apexrl.env_types import EnvStep, VectorEnv
from apexrl.envs import check_env, make_vec
from apexrl.envs.worker_processes import WorkerVectorEnv, _shares
from apexrl.types import Array

HERE = Path(__file__).parent


@contextmanager
def opened(name: str, workers: int, lanes: int = 5) -> Iterator[VectorEnv]:
    env = make_vec(EnvConfig(id=f"gymnasium/{name}", worker_processes=workers), lanes)
    try:
        yield env
    finally:
        env.close()


def play(env: VectorEnv, actions: Array) -> tuple[list[Array], list[EnvStep]]:
    """Two runs from the same seed, one from another."""
    firsts, steps = [], []
    for seed in (3, 3, 4):
        firsts.append(env.reset(seed))
        steps += [env.step(action) for action in actions]
    return firsts, steps


def test_trajectories_are_those_of_one_process_bit_by_bit() -> None:
    actions = np.random.default_rng(0).integers(0, 2, (40, 5))
    played = []
    for workers in (0, 2):
        with opened("worker_scene:Walk-v0", workers) as env:
            played.append(play(env, actions))
    (firsts, steps), (worker_firsts, worker_steps) = played
    for ours, theirs in zip(firsts, worker_firsts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(steps, worker_steps, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, other)
            assert mine.dtype == other.dtype
    assert any(step.terminated.any() for step in steps)
    assert any(step.truncated.any() for step in steps)
    np.testing.assert_array_equal(steps[0].observation, steps[40].observation)
    assert (steps[0].observation != steps[80].observation).any()


def test_workers_keep_the_contract() -> None:
    config = EnvConfig(id="gymnasium/worker_scene:Walk-v0", worker_processes=2)
    assert check_env(lambda lanes: make_vec(config, lanes), num_lanes=3, num_steps=60) == []


def test_an_exception_in_a_worker_is_shown_with_its_traceback() -> None:
    with opened("worker_scene:WalkRaises-v0", 2) as env:
        env.reset(1)
        env.step(np.zeros(5, np.int64))
        with pytest.raises(RuntimeError, match=r"worker process of lanes 2 to 4 failed:(.|\n)*OSError: simulator gone"):
            env.step(np.array([0, 0, 0, 2, 0]))
        with pytest.raises(RuntimeError, match="closed"):
            env.step(np.zeros(5, np.int64))


def test_a_killed_worker_is_named_with_its_signal() -> None:
    with opened("worker_scene:WalkDies-v0", 3) as env:
        env.reset(1)
        with pytest.raises(RuntimeError, match="worker process of lanes 0 to 0 was killed by SIGKILL"):
            env.step(np.array([2, 0, 0, 0, 0]))


def test_what_cannot_be_made_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="nearest: gymnasium/CartPole-v1"):
        make_vec(EnvConfig(id="gymnasium/CartPole-v9", worker_processes=2), 2)
    for env_id in ("apex/catch", "minatar/breakout", "atari/pong"):
        with pytest.raises(ConfigError, match=r"env\.worker_processes is 2, must be 0"):
            make_vec(EnvConfig(id=env_id, worker_processes=2), 2)
    with pytest.raises(ConfigError, match=r"env\.worker_processes is -1"):
        EnvConfig(worker_processes=-1)


@pytest.mark.parametrize(
    ("name", "lanes", "record", "in_workers"),
    [
        ("CartPole-v1", 1, False, False),
        ("CartPole-v1", 1, True, False),
        ("CartPole-v1", 2, False, True),
        ("InvertedPendulum-v5", 1, False, False),
        ("InvertedPendulum-v5", 1, True, True),
    ],
)
def test_a_single_lane_is_stepped_by_the_caller_unless_mujoco_draws_it(
    name: str, lanes: int, record: bool, in_workers: bool
) -> None:
    env = make_vec(EnvConfig(id=f"gymnasium/{name}", worker_processes=2), lanes, record=record)
    assert isinstance(env._vector, WorkerVectorEnv) == in_workers  # type: ignore[attr-defined]
    env.close()


@pytest.mark.parametrize(("lanes", "processes", "sizes"), [(5, 2, [2, 3]), (4, 4, [1] * 4), (7, 3, [2, 2, 3])])
def test_lanes_are_shared_out_in_order(lanes: int, processes: int, sizes: list[int]) -> None:
    shares = _shares(lanes, processes)
    assert [share.stop - share.start for share in shares] == sizes
    assert [lane for share in shares for lane in range(lanes)[share]] == list(range(lanes))


PARENT = """
import sys, time
from apexrl.config import EnvConfig
from apexrl.envs import make_vec
if __name__ == "__main__":
    env = make_vec(EnvConfig(id="gymnasium/worker_scene:Walk-v0", worker_processes=2), 2)
    env.reset(1)
    print(*(process.pid for process in env._vector._processes), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path: Path, end: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([str(HERE), *sys.path])
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        # Readable when the process has ended; the parent is gone, so nobody else waits for it.
        ends = [os.pidfd_open(pid) for pid in workers]
        parent.send_signal(end)
        parent.wait()
        assert all(wait_readable(descriptor) for descriptor in ends)
        for descriptor in ends:
            os.close(descriptor)


def wait_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 30.0)[0])
