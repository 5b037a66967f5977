"""D4PG (Barth-Maron et al. 2018, arXiv 1804.08617): a deterministic policy that climbs a distributional critic.

The critic's outputs are the probabilities of fixed atoms, or the parameters of a mixture of Gaussians. Actors, n-step
returns and replay are those of Ape-X; prioritized sampling is a switch of the ``replay`` section.

See docs/algorithms/d4pg.md for what is the paper's and what is not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from apexrl.algorithms.base import LearnerState, UpdateOutput, WindowBatch
from apexrl.algorithms.deterministic_policy import (
    Comparison,
    DeterministicPolicyAlgorithm,
    DeterministicPolicyConfig,
    ValueHead,
)
from apexrl.config import ExperimentConfig, require, shared
from apexrl.env_types import EnvSpec
from apexrl.networks.actor_critic import ActorCriticConfig
from apexrl.ops import categorical, gaussian_mixture

#: Priorities beyond this would only say that the critic knows nothing yet (as in dqn_zoo's Rainbow).
MAX_DIVERGENCE = 100.0
#: More target mass than this on the two end atoms: the support does not hold the returns.
END_MASS_ALARM = 0.05
#: Least time between two looks at that mass, and so between two warnings.
END_MASS_PERIOD_SECONDS = 60.0


@dataclass(frozen=True)
class D4PGNetworkConfig(ActorCriticConfig):
    """Shape of policy and critic, with the layer normalisation of D4PG."""

    layer_norm: bool = shared(True)


@dataclass(frozen=True)
class CriticConfig:
    """The distribution that the critic's outputs describe."""

    kind: Literal["categorical", "mixture"] = shared("categorical")
    """categorical: probabilities of ``num_atoms`` fixed returns. mixture: a mixture of Gaussians, which needs no range
    of returns; the paper found it worse."""
    num_atoms: int = shared(51)
    """Of kind categorical. D4PG: 51."""
    v_min: float = shared(-150.0)
    """Lowest atom. Acme: -150 for the DeepMind Control Suite."""
    v_max: float = shared(150.0)
    """Highest atom. Acme: 150 for the DeepMind Control Suite."""
    num_components: int = shared(5)
    """Of kind mixture. D4PG: 5."""
    min_stddev: float = shared(0.1)
    """Of kind mixture: least standard deviation of a component and of its target, in units of return."""
    num_samples: int = 32
    """Of kind mixture: samples of each target that the likelihood is averaged over."""

    def __post_init__(self) -> None:
        kinds = ("categorical", "mixture")
        require(self.kind in kinds, "algorithm.critic.kind", self.kind, " or ".join(kinds))
        require(2 <= self.num_atoms <= 4096, "algorithm.critic.num_atoms", self.num_atoms, "in [2, 4096]")
        name, allowed = "algorithm.critic.v_max", f"above algorithm.critic.v_min = {self.v_min}"
        require(self.v_max > self.v_min, name, self.v_max, allowed)
        count = self.num_components
        require(1 <= count <= 256, "algorithm.critic.num_components", count, "in [1, 256]")
        require(self.min_stddev > 0.0, "algorithm.critic.min_stddev", self.min_stddev, "above 0")
        require(1 <= self.num_samples <= 4096, "algorithm.critic.num_samples", self.num_samples, "in [1, 4096]")


@dataclass(frozen=True)
class D4PGConfig(DeterministicPolicyConfig):
    """The algorithm section for ``name: d4pg``. Defaults are the paper's as far as it gives them, else Acme's."""

    network: ActorCriticConfig = field(default_factory=D4PGNetworkConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    name: Literal["d4pg"] = shared("d4pg")

    def __post_init__(self) -> None:
        require(self.name == "d4pg", "algorithm.name", self.name, "d4pg")
        super().__post_init__()


class CategoricalValue:
    """M logits of fixed atoms. Loss: cross-entropy to the projected target; priority: the divergence KL(m || p)."""

    def __init__(self, config: CriticConfig) -> None:
        self.num_outputs = config.num_atoms
        self._v_min = config.v_min
        self._v_max = config.v_max

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """sum_j p_j z_j [B]."""
        return categorical.expectation(outputs.softmax(dim=1), self._v_min, self._v_max)

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
        """D4PG, equation of the distributional TD error: the projection of R + G Z(s', pi(s')) against Z(s, a)."""
        v_min, v_max = self._v_min, self._v_max
        with torch.no_grad():
            bootstrap = bootstrap_outputs.softmax(dim=1)
            target = categorical.project(bootstrap, returns, bootstrap_discounts, v_min, v_max)
            entropies = categorical.entropy(target)
            means = categorical.expectation(target, v_min, v_max)
            end_mass = categorical.end_mass(target)
        losses = categorical.cross_entropy(target, outputs.log_softmax(dim=1))
        divergences = (losses.detach() - entropies).clamp(0.0, MAX_DIVERGENCE)
        td_errors = means - self.mean(outputs.detach())
        return Comparison(losses, divergences, td_errors, {"target_end_mass": end_mass})

    def priorities(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
    ) -> torch.Tensor:
        """KL(m || p) [B], at most 100."""
        return self.compare(outputs, returns, bootstrap_discounts, bootstrap_outputs, None).priorities


class MixtureValue:
    """3 K parameters of a mixture of Gaussians. Loss: cross-entropy to samples of the target; priority: |TD error|.

    Samples are drawn anew for every update. With fixed nodes of a quadrature components would shrink onto the nodes,
    where their likelihood grows without bound.
    """

    def __init__(self, config: CriticConfig) -> None:
        self.num_outputs = 3 * config.num_components
        self._min_stddev = config.min_stddev
        self._num_samples = config.num_samples

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """sum_k c_k mu_k [B]."""
        return gaussian_mixture.mixture_mean(gaussian_mixture.as_mixture(outputs, self._min_stddev))

    def noise(self, batch_size: int, generator: torch.Generator | None) -> torch.Tensor:
        """[B, 2, S]: uniform numbers for the components, normal ones for the places in them."""
        assert generator is not None
        shape, device = (batch_size, self._num_samples), generator.device
        uniforms = torch.rand(shape, generator=generator, device=device)
        return torch.stack([uniforms, torch.randn(shape, generator=generator, device=device)], dim=1)

    def compare(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> Comparison:
        """Mean of - log Z(s, a) over samples of R + G Z(s', pi(s'))."""
        assert noise is not None
        mixture = gaussian_mixture.as_mixture(outputs, self._min_stddev)
        with torch.no_grad():
            bootstrap = gaussian_mixture.as_mixture(bootstrap_outputs, self._min_stddev)
            target = gaussian_mixture.bellman(bootstrap, returns, bootstrap_discounts, self._min_stddev)
            values = gaussian_mixture.samples(target, noise[:, 0], noise[:, 1])
            td_errors = gaussian_mixture.mixture_mean(target) - gaussian_mixture.mixture_mean(mixture)
        losses = -gaussian_mixture.log_density(mixture, values).mean(dim=1)
        return Comparison(losses, td_errors.abs(), td_errors, {})

    def priorities(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
    ) -> torch.Tensor:
        """|R + G E[Z(s', pi(s'))] - E[Z(s, a)]| [B]. A divergence would need samples, and differ from draw to draw."""
        return (returns + bootstrap_discounts * self.mean(bootstrap_outputs) - self.mean(outputs)).abs()


class EndMassAlarm:
    """Warns when target mass piles up at the ends of the support. Looks once a minute, at the mean since the last look.

    Masses stay on their device in between: looking waits for it.
    """

    def __init__(self, v_min: float, v_max: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._range = (v_min, v_max)
        self._clock = clock
        self._log = logging.getLogger(__name__)
        self._sum: torch.Tensor | None = None
        self._count = 0
        self._next = clock() + END_MASS_PERIOD_SECONDS

    def observe(self, end_mass: torch.Tensor) -> None:
        """Take in the mean mass of one batch of targets on the two end atoms."""
        self._sum = end_mass.detach().clone() if self._sum is None else self._sum + end_mass.detach()
        self._count += 1
        if self._clock() < self._next:
            return
        mean = float(self._sum) / self._count
        self._sum, self._count, self._next = None, 0, self._clock() + END_MASS_PERIOD_SECONDS
        if mean > END_MASS_ALARM:
            self._log.warning(
                "%.0f %% of the targets' mass lies on the end atoms %g and %g: widen algorithm.critic.v_min and v_max",
                100.0 * mean,
                *self._range,
            )


class D4PG(DeterministicPolicyAlgorithm):
    """The algorithm for one environment."""

    Config: ClassVar[type[D4PGConfig]] = D4PGConfig

    def __init__(
        self, config: ExperimentConfig[D4PGConfig], spec: EnvSpec, clock: Callable[[], float] = time.monotonic
    ) -> None:
        critic = config.algorithm.critic
        mixture = critic.kind == "mixture"
        head: ValueHead = MixtureValue(critic) if mixture else CategoricalValue(critic)
        self._alarm = None if mixture else EndMassAlarm(critic.v_min, critic.v_max, clock)
        super().__init__(config, config.algorithm, config.algorithm.name, spec, head)

    def update(self, state: LearnerState, batch: WindowBatch) -> UpdateOutput:
        """One step of critic and policy; warns when the support is too narrow."""
        output = super().update(state, batch)
        if self._alarm is not None:
            self._alarm.observe(output.metrics["target_end_mass"])
        return output
