"""A policy and a critic over vectors, for continuous actions (Ape-X DPG, appendix D; D4PG; Acme)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from apexrl.config import require, shared

#: Variance of the policy's last weights times their number of inputs: first actions are near the middle (Acme: 1e-4).
FINAL_POLICY_VARIANCE = 1e-4


@dataclass(frozen=True)
class ActorCriticConfig:
    """Shape of policy and critic."""

    policy_units: tuple[int, ...] = shared((300, 200))
    """Units of the policy's hidden layers. Ape-X DPG, D4PG: 300, 200."""
    critic_units: tuple[int, ...] = shared((400, 300))
    """Units of the critic's hidden layers; observation and action enter together. Ape-X DPG, D4PG: 400, 300."""
    layer_norm: bool = shared(False)
    """Normalise the first layer's outputs before their tanh (Ba et al. 2016), in both. D4PG: true."""

    def __post_init__(self) -> None:
        for name in ("policy_units", "critic_units"):
            sizes = getattr(self, name)
            require(
                bool(sizes) and all(1 <= n <= 1 << 14 for n in sizes),
                f"algorithm.network.{name}",
                sizes,
                "at least one size, each in [1, 16384]",
            )


class TanhDense(nn.Module):
    """Dense layers [B, F] -> [B, num_features]: tanh behind the first, normalised or not, ELU behind the others.

    The bounded first layer stands in for a normalisation of observations, which differ in scale.
    """

    def __init__(self, num_inputs: int, units: tuple[int, ...], layer_norm: bool) -> None:
        super().__init__()
        first, *others = units
        self.first = nn.Linear(num_inputs, first)
        self.norm = nn.LayerNorm(first) if layer_norm else None
        layers: list[nn.Module] = []
        self.num_features = first
        for num_units in others:
            layers.append(nn.Linear(self.num_features, num_units))
            self.num_features = num_units
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.first(inputs)
        if self.norm is not None:
            features = self.norm(features)
        features = torch.tanh(features)
        for layer in self.layers:
            features = F.elu(layer(features))
        return features


class Policy(nn.Module):
    """Observations [B, F] -> actions [B, A] in [-1, 1]."""

    def __init__(self, num_inputs: int, units: tuple[int, ...], layer_norm: bool, num_actions: int) -> None:
        super().__init__()
        self.dense = TanhDense(num_inputs, units, layer_norm)
        self.head = nn.Linear(self.dense.num_features, num_actions)
        bound = math.sqrt(3.0 * FINAL_POLICY_VARIANCE / self.dense.num_features)
        nn.init.uniform_(self.head.weight, -bound, bound)
        nn.init.zeros_(self.head.bias)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.head(self.dense(observations)))


class Critic(nn.Module):
    """Observations [B, F] and actions [B, A] -> outputs [B, num_outputs] that say what the pairs are worth.

    One output is the value itself; several are parameters of its distribution.
    """

    def __init__(
        self, num_inputs: int, num_actions: int, units: tuple[int, ...], layer_norm: bool, num_outputs: int
    ) -> None:
        super().__init__()
        self.dense = TanhDense(num_inputs + num_actions, units, layer_norm)
        self.head = nn.Linear(self.dense.num_features, num_outputs)

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.head(self.dense(torch.cat([observations, actions], dim=1)))  # type: ignore[no-any-return]


class ActorCritic(nn.Module):
    """A policy and its critic. Called like a policy: observations [B, F] -> actions [B, A] in [-1, 1]."""

    def __init__(self, config: ActorCriticConfig, num_inputs: int, num_actions: int, num_outputs: int) -> None:
        super().__init__()
        self.policy = Policy(num_inputs, config.policy_units, config.layer_norm, num_actions)
        self.critic = Critic(num_inputs, num_actions, config.critic_units, config.layer_norm, num_outputs)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.policy(observations)  # type: ignore[no-any-return]
