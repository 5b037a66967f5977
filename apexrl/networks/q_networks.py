"""Action-value networks: a torso, dense layers, and a head that may be dueling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from apexrl.config import ConfigError, require, shared
from apexrl.env_types import EnvSpec
from apexrl.networks.torsos import ConvTorso, DenseTorso, linear

#: (kernel, stride) of the convolutions of Mnih et al. 2015.
NATURE_KERNELS = ((8, 4), (4, 2), (3, 1))

#: Images at least this high and wide go through the Nature convolutions when ``kind`` is auto.
NATURE_LEAST_PIXELS = 36


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a Q-network."""

    kind: Literal["auto", "nature", "minatar", "mlp"] = shared("auto")
    """nature: convolutions 8x8/4, 4x4/2, 3x3/1 over pixels / 255 (Mnih et al. 2015). minatar: 3x3/1 convolutions over
    planes of 0 and 1 (Young & Tian 2019). mlp: dense layers over the flattened observation. auto: nature for images
    from 36 x 36 on, minatar for smaller ones, mlp for vectors."""
    conv_filters: tuple[int, ...] = shared(())
    """Filters of each convolution; () = the kind's own: nature 32, 64, 64 (one to three layers), minatar 16, mlp
    none."""
    hidden_units: tuple[int, ...] = shared(())
    """Units of each dense layer; () = the kind's own: nature 512, minatar 128, mlp 128, 128. The last layer belongs to
    the head: with dueling, the value and the advantage stream have that many units each."""
    dueling: bool = shared(True)
    """Value and advantage streams (Wang et al. 2016), as in Ape-X."""

    def __post_init__(self) -> None:
        kinds = ("auto", "nature", "minatar", "mlp")
        require(self.kind in kinds, "algorithm.network.kind", self.kind, f"one of {', '.join(kinds)}")
        for name in ("conv_filters", "hidden_units"):
            sizes = getattr(self, name)
            require(
                all(1 <= n <= 1 << 14 for n in sizes), f"algorithm.network.{name}", sizes, "sizes in [1, 16384] or ()"
            )
        self.require_filters_for(self.kind)

    def require_filters_for(self, kind: str) -> None:
        """Raise :class:`ConfigError` unless a network of ``kind`` can have ``conv_filters``."""
        filters, name = self.conv_filters, "algorithm.network.conv_filters"
        if kind == "nature":
            require(len(filters) <= len(NATURE_KERNELS), name, filters, "at most 3 layers for kind nature")
        if kind == "mlp":
            require(not filters, name, filters, "() for kind mlp")


class QHead(nn.Module):
    """Dense hidden layer and action values: features [B, F] -> Q [B, A] float32.

    Dueling (Wang et al. 2016, eq. 9): Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a'). Both streams' hidden layers are one
    matrix, because one large product is faster than two small ones.
    """

    def __init__(self, num_features: int, hidden_units: int, num_actions: int, dueling: bool) -> None:
        super().__init__()
        self.dueling = dueling
        self.hidden_units = hidden_units
        self.hidden = nn.Linear(num_features, hidden_units * (2 if dueling else 1))
        self.advantage = nn.Linear(hidden_units, num_actions)
        self.value = nn.Linear(hidden_units, 1) if dueling else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(linear(self.hidden, features))
        if self.value is None:
            return self.advantage(hidden).float()  # type: ignore[no-any-return]
        of_value, of_advantage = hidden.tensor_split(2, dim=1)
        # Under autocast the streams arrive in bfloat16; their combination must not.
        return combine_streams(self.value(of_value).float(), self.advantage(of_advantage).float())


def combine_streams(value: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Dueling combination of value [B, 1] and advantages [B, A] with the mean advantage as baseline."""
    return value + advantages - advantages.mean(dim=1, keepdim=True)


class QNetwork(nn.Module):
    """Stacked observations [B, *network_input_shape] -> action values [B, A] float32."""

    def __init__(self, torso: ConvTorso | DenseTorso, dense: DenseTorso, head: QHead) -> None:
        super().__init__()
        self.torso = torso
        self.dense = dense
        self.head = head

    def prepare(self, observations: torch.Tensor) -> torch.Tensor:
        """Observations as :meth:`values` reads them; networks of one shape share the result."""
        return self.torso.prepare(observations)

    def values(self, prepared: torch.Tensor) -> torch.Tensor:
        """Action values [B, A] float32 of prepared observations."""
        return self.head(self.dense(self.torso(prepared)))  # type: ignore[no-any-return]

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.values(self.prepare(observations))


class GreedyActions(nn.Module):
    """Stacked observations [B, *network_input_shape] -> the actions [B] int64 that a network of values ranks first."""

    def __init__(self, values: nn.Module) -> None:
        super().__init__()
        self.values = values

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.values(observations).argmax(dim=1)  # type: ignore[no-any-return]


def make_q_network(config: NetworkConfig, spec: EnvSpec, stack: int) -> QNetwork:
    """The network that ``config`` describes for an environment's observations, stacked ``stack`` times.

    Raises:
        ConfigError: the kind of network cannot read such observations.
    """
    shape = spec.network_input_shape(stack)
    kind = _kind(config, shape)
    config.require_filters_for(kind)
    if kind == "mlp":
        units = config.hidden_units or (128, 128)
        torso: ConvTorso | DenseTorso = DenseTorso(shape, ())
    else:
        units = config.hidden_units or ((512,) if kind == "nature" else (128,))
        torso = _conv_torso(config, kind, shape, spec)
    dense = DenseTorso((torso.num_features,), units[:-1])
    return QNetwork(torso, dense, QHead(dense.num_features, units[-1], spec.num_actions, config.dueling))


def _kind(config: NetworkConfig, shape: tuple[int, ...]) -> str:
    if config.kind != "auto":
        return config.kind
    if len(shape) != 3:
        return "mlp"
    return "nature" if min(shape[1:]) >= NATURE_LEAST_PIXELS else "minatar"


def _conv_torso(config: NetworkConfig, kind: str, shape: tuple[int, ...], spec: EnvSpec) -> ConvTorso:
    if len(shape) != 3:
        raise ConfigError(
            f"algorithm.network.kind is {kind!r}, must be mlp or auto for observations of shape {shape} "
            "(convolutions need channels, height, width)"
        )
    filters = config.conv_filters or ((32, 64, 64) if kind == "nature" else (16,))
    kernels = NATURE_KERNELS[: len(filters)] if kind == "nature" else ((3, 1),) * len(filters)
    scale = 1.0 / 255.0 if kind == "nature" and spec.observation_dtype == "uint8" else 1.0
    try:
        return ConvTorso(shape, filters, kernels, scale)
    except ValueError as error:
        raise ConfigError(
            f"algorithm.network.kind is {kind!r}, must be another for this environment: {error}"
        ) from error
