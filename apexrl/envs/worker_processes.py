"""Lanes stepped by worker processes, for environments whose step is expensive.

gymnasium's ``AsyncVectorEnv`` has a process for every lane; here a process steps several, so that processes can be as
many as cores (docs/adr/0009). Inside, each steps its lanes with gymnasium's ``SyncVectorEnv``: seeds, autoreset and
results are those of a ``SyncVectorEnv`` of all lanes, bit by bit.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import (
    batch_space,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)

from apexrl.envs.offscreen import allow_drawing

#: Makes the environment of one lane; pickled for a worker.
Maker = Callable[[], gymnasium.Env[Any, Any]]

#: A worker that has not ended this long after it was told to is terminated.
CLOSE_SECONDS = 5.0


class _Failure(NamedTuple):
    """What a worker says of an exception."""

    trace: str


class WorkerVectorEnv(VectorEnv[Any, Any, Any]):
    """A vector environment with NEXT_STEP autoreset whose lanes are stepped by ``num_processes`` processes.

    Observations come back through shared memory. Workers are started afresh (spawned: forking a process that has
    threads of gRPC or torch is not safe), ignore Ctrl-C, and end with this process however it ends. With ``draw`` the
    first of them can draw lane 0.

    Raises:
        RuntimeError: A worker raised or died; all workers are ended then. The message has its traceback or exit code.
    """

    def __init__(self, makers: Sequence[Maker], num_processes: int, env_id: str, *, draw: bool = False) -> None:
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._env_id = env_id
        self.draws = draw
        # Here for the spaces, and so that what cannot be made fails in the caller with an error of its own kind.
        probe = makers[0]()
        self.single_observation_space = probe.observation_space
        self.single_action_space = probe.action_space
        self.metadata = {**probe.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        probe.close()
        self.num_envs = len(makers)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        context: Any = multiprocessing.get_context("spawn")
        shared = create_shared_memory(self.single_observation_space, n=self.num_envs, ctx=context)
        self._observations: Any = read_from_shared_memory(self.single_observation_space, shared, n=self.num_envs)
        self._lanes = _shares(self.num_envs, min(num_processes, self.num_envs))
        for lanes in self._lanes:
            ours, theirs = context.Pipe()
            pickled = pickle.dumps(list(makers[lanes]))
            draws = draw and lanes.start == 0
            process = context.Process(target=_work, args=(theirs, pickled, lanes.start, shared, draws), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._collect(len(self._pipes))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all lanes; ``seed`` is a list with one per lane, or None."""
        self._call("reset", [(seed if seed is None else seed[lanes], options) for lanes in self._lanes])
        return copy.deepcopy(self._observations), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all lanes by ``actions`` [L, ...]. Infos stay with the workers."""
        answers = self._call("step", [actions[lanes] for lanes in self._lanes])
        rewards, terminated, truncated = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return copy.deepcopy(self._observations), rewards, terminated, truncated, {}

    def draw(self) -> Any:
        """Lane 0 as its environment draws it; RuntimeError, after which play can go on, if it cannot."""
        picture, problem = self._call("draw", [None])[0]
        if problem:
            raise RuntimeError(problem)
        return picture

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers; each closes its environments."""
        for pipe in self._pipes:
            pipe.close()  # a worker that reads the end of its pipe ends
        for process in self._processes:
            process.join(CLOSE_SECONDS)
            if process.is_alive():
                process.terminate()
                process.join()

    def _call(self, command: str, arguments: Sequence[Any]) -> list[Any]:
        """Have the first workers do something with an argument each."""
        if self.closed:
            raise RuntimeError("the environment is closed")
        for worker, (pipe, argument) in enumerate(zip(self._pipes, arguments, strict=False)):
            try:
                pipe.send((command, argument))
            except OSError:
                self._fail(worker, None)
        return self._collect(len(arguments))

    def _collect(self, workers: int) -> list[Any]:
        """One answer of each of the first ``workers``."""
        answers = []
        for worker, pipe in enumerate(self._pipes[:workers]):
            try:
                answer = pipe.recv()
            except (EOFError, OSError):
                self._fail(worker, None)
            if isinstance(answer, _Failure):
                self._fail(worker, answer)
            answers.append(answer)
        return answers

    def _fail(self, worker: int, failure: _Failure | None) -> NoReturn:
        process, lanes = self._processes[worker], self._lanes[worker]
        if failure is None:
            process.join(CLOSE_SECONDS)
        code = process.exitcode
        self.close()
        who = f"env.id is {self._env_id!r}: the worker process of lanes {lanes.start} to {lanes.stop - 1}"
        if failure is not None:
            raise RuntimeError(f"{who} failed:\n{failure.trace}")
        how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        raise RuntimeError(f"{who} {how} (out of memory? see the system's log)")


def _shares(num_lanes: int, num_processes: int) -> list[slice]:
    """Runs of lanes, one per process, as equal as possible."""
    ends = [num_lanes * (i + 1) // num_processes for i in range(num_processes)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _work(pipe: Connection, pickled_makers: bytes, first_lane: int, shared: Any, draws: bool) -> None:
    """The life of a worker: answer commands until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if draws:
        allow_drawing()  # before unpickling imports MuJoCo
    # OSError: nobody is left to answer to.
    with contextlib.suppress(EOFError, OSError):
        try:
            vector = SyncVectorEnv(pickle.loads(pickled_makers), copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        except Exception:
            pipe.send(_Failure(traceback.format_exc()))
            return
        with contextlib.closing(vector):
            pipe.send(None)
            while True:
                command, argument = pipe.recv()
                try:
                    answer: Any = _answer(vector, command, argument, first_lane, shared)
                except Exception:
                    answer = _Failure(traceback.format_exc())
                pipe.send(answer)


def _answer(vector: SyncVectorEnv[Any, Any], command: str, argument: Any, first_lane: int, shared: Any) -> Any:
    if command == "draw":
        try:
            return vector.envs[0].render(), ""
        except Exception as error:  # graphics drivers fail in their own ways
            return None, f"{type(error).__name__}: {error}"
    answer = None
    if command == "reset":
        seed, options = argument
        observations, _ = vector.reset(seed=seed, options=options)
    else:
        observations, *answer, _ = vector.step(argument)
    for lane, observation in enumerate(iterate(vector.observation_space, observations), first_lane):
        write_to_shared_memory(vector.single_observation_space, lane, observation, shared)
    return answer
