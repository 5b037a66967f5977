"""Configuration: typed sections, loading from YAML and the command line, and the digest that services compare."""

from apexrl.config.conversion import to_plain
from apexrl.config.digest import config_digest, difference, shared_fields, shared_json
from apexrl.config.fields import ConfigError, require, shared
from apexrl.config.loading import dump_yaml, load_experiment, load_sections
from apexrl.config.sections import (
    ActorConfig,
    EnvConfig,
    EvaluatorConfig,
    ExperimentConfig,
    ExplorationConfig,
    LearnerConfig,
    LocalConfig,
    RelayConfig,
    ReplayConfig,
)
from apexrl.config.security_section import SecurityConfig

__all__ = [
    "ActorConfig",
    "ConfigError",
    "EnvConfig",
    "EvaluatorConfig",
    "ExperimentConfig",
    "ExplorationConfig",
    "LearnerConfig",
    "LocalConfig",
    "RelayConfig",
    "ReplayConfig",
    "SecurityConfig",
    "config_digest",
    "difference",
    "dump_yaml",
    "load_experiment",
    "load_sections",
    "require",
    "shared",
    "shared_fields",
    "shared_json",
    "to_plain",
]
