"""Steps per second of an environment's lanes: stepped by the caller, by worker processes, by a process per lane.

    python benchmarks/env_workers.py --lanes 8 --workers 2

``caller`` and ``workers`` are what ``env.worker_processes`` chooses between; ``async`` is gymnasium's
``AsyncVectorEnv`` of the same lanes, with shared memory. Actions are random and drawn before.
``caller_cpu_microseconds`` is this process's own CPU time for one step of all lanes: all of it with ``caller``, and
with ``workers`` what stays with the actor however many cores there are.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from apexrl.config import EnvConfig
from apexrl.env_types import VectorEnv
from apexrl.envs import dm_control_env, gymnasium_env, make_vec
from apexrl.envs.gymnasium_env import GymnasiumEnv
from benchmarks.aggregation import spread
from benchmarks.options import add_write, conclude, run
from benchmarks.windows import interleave, ratios, repeat

ENVIRONMENTS = (
    "gymnasium/Pendulum-v1",
    "gymnasium/HalfCheetah-v5",
    "gymnasium/Humanoid-v5",
    "dm_control/cheetah-run",
    "dm_control/humanoid-run",
)


def process_per_lane(env_id: str, lanes: int) -> GymnasiumEnv:
    """Gymnasium's own vector environment of processes."""
    suite, _, name = env_id.partition("/")
    maker: Callable[[], Any]
    if suite == "dm_control":
        maker = functools.partial(dm_control_env.ControlTask, *name.split("-", 1))
    else:
        maker = functools.partial(gymnasium_env.make_env, name, env_id, None)
    vector: Any = AsyncVectorEnv([maker] * lanes, context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP)
    return GymnasiumEnv(vector, env_id=env_id)


def stepper(env: VectorEnv) -> Callable[[], int]:
    """Steps all lanes; returns their number."""
    random = np.random.default_rng(0)
    size = env.spec.actions.shape[0]
    actions = random.uniform(-1, 1, (256, env.num_lanes, size)).astype(np.float32)
    env.reset(1)
    turn = 0

    def step() -> int:
        nonlocal turn
        env.step(actions[turn % len(actions)])
        turn += 1
        return env.num_lanes

    return step


def cpu_microseconds(step: Callable[[], int], turns: int = 300) -> float:
    """CPU time of this process for one step of all lanes."""
    step()
    started = time.process_time()
    for _ in range(turns):
        step()
    return round(1e6 * (time.process_time() - started) / turns, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lanes", type=int, default=8, help="lanes (%(default)s)")
    options.add_argument("--workers", type=int, default=2, help="worker processes (%(default)s)")
    options.add_argument("--seconds", type=float, default=1.5, help="length of a window (%(default)s)")
    options.add_argument("--windows", type=int, default=4, help="windows per program (%(default)s)")
    add_write(options)
    chosen = options.parse_args(arguments)
    metrics: dict[str, Any] = {"lanes": chosen.lanes, "worker_processes": chosen.workers}
    for env_id in ENVIRONMENTS:
        envs: dict[str, VectorEnv] = {
            "caller": make_vec(EnvConfig(id=env_id), chosen.lanes),
            "workers": make_vec(EnvConfig(id=env_id, worker_processes=chosen.workers), chosen.lanes),
            "async": process_per_lane(env_id, chosen.lanes),
        }
        steppers = {name: stepper(env) for name, env in envs.items()}
        cpu = {name: cpu_microseconds(step) for name, step in steppers.items()}
        programs = {name: repeat(step) for name, step in steppers.items()}
        rates = interleave(programs, seconds=chosen.seconds, windows=chosen.windows)
        for env in envs.values():
            env.close()
        metrics[env_id] = {
            "steps_per_second": {name: spread(values) for name, values in rates.items()},
            "caller_cpu_microseconds": cpu,
        }
        for other in ("caller", "async"):
            ratio = float(np.median(ratios(rates["workers"], rates[other])))
            metrics[f"workers_ratio_to_{other}_{env_id.partition('/')[2]}"] = round(ratio, 2)
    return conclude(
        "env_workers",
        metrics=metrics,
        goals={},
        seeds=[1],
        notes="Environment steps/s of all lanes together, no policy. async = gymnasium's AsyncVectorEnv.",
        write=chosen.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
