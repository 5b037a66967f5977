"""Algorithms: one file each, and one line each in ``REGISTRY``."""

from __future__ import annotations

import difflib
from typing import Any

from apexrl.algorithms.apex_dpg import ApexDPG
from apexrl.algorithms.apex_dqn import ApexDQN
from apexrl.algorithms.base import Algorithm, AlgorithmFactory
from apexrl.algorithms.d4pg import D4PG
from apexrl.config import ConfigError, ExperimentConfig
from apexrl.env_types import EnvSpec

#: Value of ``algorithm.name`` -> how to make the algorithm.
REGISTRY: dict[str, AlgorithmFactory] = {
    "apex_dpg": ApexDPG,
    "apex_dqn": ApexDQN,
    "d4pg": D4PG,
}

#: Value of ``algorithm.name`` -> the dataclass of that section.
CONFIGS: dict[str, type[Any]] = {name: factory.Config for name, factory in REGISTRY.items()}


def algorithm_config_class(name: str) -> type[Any]:
    """The dataclass of the ``algorithm`` section with this ``name``.

    Raises:
        ConfigError: no algorithm has that name; the message gives the nearest.
    """
    return _factory(name).Config


def make_algorithm(config: ExperimentConfig[Any], spec: EnvSpec) -> Algorithm:
    """The algorithm that ``config.algorithm.name`` names, for an environment.

    Raises:
        ConfigError: no algorithm has that name, or it cannot work with this environment.
    """
    return _factory(config.algorithm.name)(config, spec)


def _factory(name: str) -> AlgorithmFactory:
    try:
        return REGISTRY[name]
    except KeyError:
        known = ", ".join(sorted(REGISTRY))
        nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.0)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"algorithm.name is {name!r}, must be one of: {known}{hint}") from None
