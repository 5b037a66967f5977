"""From ``env.id`` to an environment: suites by name, and functions of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from apexrl.config import ConfigError, EnvConfig, require
from apexrl.env_types import EnvSpec, VectorEnv
from apexrl.envs.errors import nearest


class _Suite(NamedTuple):
    module: str
    """Has ``make(name, config, num_lanes, *, num_threads, evaluation, record)`` and ``names()``. Imported when the
    suite is used: no suite needs another one's packages."""
    install: str
    """How to get the packages it needs."""


_SUITES = {
    "atari": _Suite("apexrl.envs.atari", "pip install ale-py"),
    "dm_control": _Suite("apexrl.envs.dm_control_env", "pip install 'apex-rl[dm_control]'"),
    "gymnasium": _Suite("apexrl.envs.gymnasium_env", "pip install gymnasium"),
    "minatar": _Suite("apexrl.envs.minatar", "pip install 'apex-rl[minatar]'"),
    "apex": _Suite("apexrl.envs.problems", ""),
}

_VECTOR_ENV_MEMBERS = ("spec", "num_lanes", "reset", "step", "render", "close")


def suite_names() -> list[str]:
    """All suites."""
    return sorted(_SUITES)


def env_names(suite: str) -> list[str]:
    """All names of a suite; ConfigError if there is no such suite or its package is missing."""
    if suite not in _SUITES:
        raise ConfigError(f"suite is {suite!r}, must be one of {', '.join(suite_names())}")
    names: list[str] = _import_suite(suite, suite).names()
    return names


def make_vec(
    config: EnvConfig, num_lanes: int, *, num_threads: int = 1, evaluation: bool = False, record: bool = False
) -> VectorEnv:
    """Make the environment ``config.id`` with ``num_lanes`` lanes in lockstep.

    Args:
        config: The environment and its preprocessing. Rewards are neither clipped nor scaled here.
        num_lanes: Environments in the batch.
        num_threads: Threads of the environment's own stepper (Atari; other suites step in the caller's thread).
        evaluation: Play as evaluations are reported: full games, life losses not marked, and on Atari and MinAtar at
            most 108,000 frames an episode whatever the training limit.
        record: ``render`` shows what the environment itself draws, which costs time in lane 0. Without it,
            ``render`` shows the observation.

    Raises:
        ConfigError: No such environment, a package or ROM is missing, or an option does not fit.
    """
    require(num_lanes >= 1, "num_lanes", num_lanes, "at least 1")
    require(num_threads >= 1, "num_threads", num_threads, "at least 1")
    suite, name = _split(config.id)
    if not suite:
        return _make_own(config, name, num_lanes, num_threads, evaluation)
    module = _import_suite(suite, config.id)
    made: VectorEnv = module.make(
        name, config, num_lanes, num_threads=num_threads, evaluation=evaluation, record=record
    )
    return made


def env_spec(config: EnvConfig) -> EnvSpec:
    """What networks and tables must know of ``config.id``. Makes one lane and closes it."""
    env = make_vec(config, 1)
    try:
        return env.spec
    finally:
        env.close()


def _split(env_id: str) -> tuple[str, str]:
    """(suite, name), or ("", PACKAGE.MODULE:FUNCTION)."""
    suite, slash, name = env_id.partition("/")
    if slash and suite in _SUITES and name:
        return suite, name
    if ":" in env_id and (not slash or ":" in suite):
        return "", env_id
    hints = [f"{close}/{name or 'NAME'}" for close in nearest(suite, _SUITES)]
    raise ConfigError(
        f"env.id is {env_id!r}, must be SUITE/NAME with suite one of {', '.join(suite_names())}, or "
        f"PACKAGE.MODULE:FUNCTION" + (f"; nearest: {', '.join(hints)}" if hints else "")
    )


def _import_suite(suite: str, env_id: str) -> Any:
    try:
        return importlib.import_module(_SUITES[suite].module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("apexrl"):
            raise
        raise ConfigError(
            f"env.id is {env_id!r}, but the Python package {error.name!r} is not installed; get it with: "
            f"{_SUITES[suite].install}"
        ) from error


def _make_own(config: EnvConfig, path: str, num_lanes: int, num_threads: int, evaluation: bool) -> VectorEnv:
    function = _load_function(path)
    env = function(config, num_lanes, num_threads=num_threads, evaluation=evaluation)
    missing = [member for member in _VECTOR_ENV_MEMBERS if not hasattr(env, member)]
    if missing:
        raise ConfigError(
            f"env.id is {path!r}: it returned a {type(env).__name__} without {', '.join(missing)}; it must return an "
            "apexrl.env_types.VectorEnv (for a gymnasium vector environment: "
            "apexrl.envs.gymnasium_env.GymnasiumEnv(vector_env))"
        )
    if env.num_lanes != num_lanes:
        raise ConfigError(f"env.id is {path!r}: asked for {num_lanes} lanes, it returned {env.num_lanes}")
    own: VectorEnv = env
    return own


def _load_function(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = module_name == error.name or module_name.startswith(f"{error.name}.")
        raise ConfigError(
            f"env.id is {path!r}: there is no Python module {error.name!r}"
            + (" on the path; install its package or set PYTHONPATH" if own else f", which {module_name!r} imports")
        ) from error
    except (ImportError, ValueError) as error:
        raise ConfigError(f"env.id is {path!r}: cannot import {module_name!r}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        close = nearest(function_name, functions)
        raise ConfigError(
            f"env.id is {path!r}: {module_name} has no function {function_name!r}"
            + (f"; nearest: {', '.join(close)}" if close else "")
        )
    loaded: Callable[..., Any] = function
    return loaded
