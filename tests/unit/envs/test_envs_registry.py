"""From env.id to an environment, and what is said when that fails."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apexrl.config import ConfigError, EnvConfig
from apexrl.envs import env_names, env_spec, make_vec, suite_names
from apexrl.envs.lanes import lane_seeds
from apexrl.envs.pictures import picture

OWN = """
from apexrl.envs.problems import CatchEnv

calls = []

def make(config, num_lanes, num_threads, evaluation):
    calls.append((config.id, num_lanes, num_threads, evaluation))
    return CatchEnv(num_lanes)

def too_few(config, num_lanes, num_threads, evaluation):
    return CatchEnv(1)

def nothing(config, num_lanes, num_threads, evaluation):
    return object()
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "apex_own_envs.py").write_text(OWN)
    (tmp_path / "apex_broken_envs.py").write_text("import apex_no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("apex_own_envs", None)


@pytest.mark.usefixtures("own_module")
def test_own_function_is_called_with_what_make_vec_got() -> None:
    env = make_vec(EnvConfig(id="apex_own_envs:make"), 3, num_threads=2, evaluation=True)
    assert env.reset(1).shape == (3, 50)
    assert sys.modules["apex_own_envs"].calls == [("apex_own_envs:make", 3, 2, True)]
    assert env_spec(EnvConfig(id="apex_own_envs:make")).num_actions == 3


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("apex_own_envs:mak", "no function 'mak'; nearest: make"),
        ("apex_own_envs:nothing", "returned a object without spec, num_lanes, reset, step, render, close"),
        ("apex_own_envs:too_few", "asked for 3 lanes, it returned 1"),
        ("apex_missing.envs:make", "no Python module 'apex_missing' on the path"),
        ("apex_broken_envs:make", "no Python module 'apex_no_such_package', which 'apex_broken_envs' imports"),
        ("pong", "must be SUITE/NAME with suite one of apex, atari, dm_control, gymnasium, minatar"),
        ("atri/pong", "nearest: atari/pong"),
        ("atari/", "must be SUITE/NAME"),
        ("atari/MsPacman", "suite 'atari' has no 'MsPacman'; nearest: atari/ms_pacman"),
        ("atari/pongg", "nearest: atari/pong"),
    ],
)
def test_errors_name_the_field_and_the_nearest_valid_ids(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_vec(EnvConfig(id=env_id), 3)
    assert str(caught.value).startswith(f"env.id is {env_id!r}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("env_id", "module", "package", "install"),
    [
        ("atari/pong", "apexrl.envs.atari", "ale_py", "pip install ale-py"),
        ("minatar/breakout", "apexrl.envs.minatar", "minatar", "pip install 'apex-rl[minatar]'"),
        ("gymnasium/CartPole-v1", "apexrl.envs.gymnasium_env", "gymnasium", "pip install gymnasium"),
        ("dm_control/cheetah-run", "apexrl.envs.dm_control_env", "dm_control", "pip install 'apex-rl[dm_control]'"),
    ],
)
def test_missing_package_says_how_to_get_it(
    env_id: str, module: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    really_import = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == package or name.startswith(f"{package}."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return really_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError) as caught:
        make_vec(EnvConfig(id=env_id), 1)
    assert f"env.id is {env_id!r}" in str(caught.value)
    assert package in str(caught.value)
    assert install in str(caught.value)


def test_suites_and_names() -> None:
    assert suite_names() == ["apex", "atari", "dm_control", "gymnasium", "minatar"]
    assert env_names("apex") == ["catch", "scripted"]
    assert "CartPole-v1" in env_names("gymnasium")
    with pytest.raises(ConfigError, match="must be one of apex, atari"):
        env_names("atary")


@pytest.mark.parametrize(("field", "options"), [("num_lanes", {"num_lanes": 0}), ("num_threads", {"num_threads": 0})])
def test_sizes_are_checked(field: str, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{field} is 0"):
        make_vec(EnvConfig(id="apex/catch"), **{"num_lanes": 1, **options})


def test_lane_seeds_of_neighbouring_seeds_share_nothing() -> None:
    seeds = [lane_seeds(seed, 64) for seed in range(20)]
    assert len(np.unique(np.concatenate(seeds))) == 20 * 64
    assert all((s >= 0).all() and (s < 2**31).all() for s in seeds)
    np.testing.assert_array_equal(lane_seeds(3, 8), lane_seeds(3, 8))


@pytest.mark.parametrize(
    ("observation", "shape"),
    [
        (np.linspace(0, 1, 4, dtype=np.float32), (160, 640, 3)),
        (np.arange(100, dtype=np.uint8).reshape(10, 10), (160, 160, 3)),
        (np.ones((4, 10, 10), np.uint8), (160, 160, 3)),
        (np.zeros((1, 84, 84), np.uint8), (168, 168, 3)),
        (np.zeros((3, 210, 160), np.uint8), (210, 160, 3)),
        (np.zeros(5, np.float32), (160, 800, 3)),
    ],
)
def test_pictures_of_observations(observation: np.ndarray, shape: tuple[int, ...]) -> None:
    drawn = picture(observation)
    assert drawn.shape == shape
    assert drawn.dtype == np.uint8
    assert drawn.any() == bool(observation.any())
