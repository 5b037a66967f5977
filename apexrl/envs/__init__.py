"""Environments as batches of lanes in lockstep; :func:`make_vec` makes one from a configuration."""

from apexrl.envs.checks import check_env
from apexrl.envs.registry import env_names, env_spec, make_vec, suite_names

__all__ = ["check_env", "env_names", "env_spec", "make_vec", "suite_names"]
