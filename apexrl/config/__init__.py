"""Configuration: typed sections, loading from YAML and the command line, and the digest that services compare."""

from apexrl.config.conversion import to_plain
from apexrl.config.digest import config_digest, difference, shared_fields, shared_json
from apexrl.config.loading import dump_yaml, load_experiment, load_section, load_sections
from apexrl.config.sections import (
    ActorConfig,
    ConfigError,
    EnvConfig,
    EvaluatorConfig,
    ExperimentConfig,
    ExplorationConfig,
    LearnerConfig,
    LocalConfig,
    RelayConfig,
    ReplayConfig,
    require,
    shared,
)

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
    "config_digest",
    "difference",
    "dump_yaml",
    "load_experiment",
    "load_section",
    "load_sections",
    "require",
    "shared",
    "shared_fields",
    "shared_json",
    "to_plain",
]
