"""Ape-X DPG (Horgan et al. 2018, arXiv 1803.00933, appendix D): DDPG in Ape-X's arrangement.

A deterministic policy and a critic of n-step returns; prioritized replay whose first priorities come from the actors'
own critic; bounded action gradients; Gaussian noise of one strength for all actors.

See docs/algorithms/apex_dpg.md for what is the paper's and what is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from apexrl.algorithms.deterministic_policy import (
    Comparison,
    DeterministicPolicyAlgorithm,
    DeterministicPolicyConfig,
)
from apexrl.config import ExperimentConfig, require, shared
from apexrl.env_types import EnvSpec
from apexrl.ops.value_learning import bootstrapped_targets, squared_loss


@dataclass(frozen=True)
class ApexDPGConfig(DeterministicPolicyConfig):
    """The algorithm section for ``name: apex_dpg``. Defaults are the paper's as far as it gives them."""

    name: Literal["apex_dpg"] = shared("apex_dpg")

    def __post_init__(self) -> None:
        require(self.name == "apex_dpg", "algorithm.name", self.name, "apex_dpg")
        super().__post_init__()


class ScalarValue:
    """One output: the value itself. Loss 1/2 delta^2, priority |delta|."""

    num_outputs = 1

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Values [B]."""
        return outputs.squeeze(1)

    def noise(self, batch_size: int, generator: torch.Generator | None) -> None:
        """None is needed."""
        return None

    def compare(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> Comparison:
        """The TD error delta = R + G q(s', pi(s')) - q(s, a)."""
        targets = bootstrapped_targets(returns, bootstrap_discounts, self.mean(bootstrap_outputs))
        errors = targets - self.mean(outputs)
        detached = errors.detach()
        return Comparison(squared_loss(errors), detached.abs(), detached, {})

    def priorities(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
    ) -> torch.Tensor:
        """|delta| [B]."""
        return self.compare(outputs, returns, bootstrap_discounts, bootstrap_outputs, None).priorities


class ApexDPG(DeterministicPolicyAlgorithm):
    """The algorithm for one environment."""

    Config: ClassVar[type[ApexDPGConfig]] = ApexDPGConfig

    def __init__(self, config: ExperimentConfig[ApexDPGConfig], spec: EnvSpec) -> None:
        super().__init__(config, config.algorithm, config.algorithm.name, spec, ScalarValue())
