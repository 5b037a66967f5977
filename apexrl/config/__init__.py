"""Configuration: typed sections, loading from YAML and the command line, and the digest that services compare."""

from apexrl.config.sections import (
    ActorConfig,
    ConfigError,
    EnvConfig,
    EvaluatorConfig,
    ExperimentConfig,
    ExplorationConfig,
    LearnerConfig,
    LocalConfig,
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
    "ReplayConfig",
    "require",
    "shared",
]
