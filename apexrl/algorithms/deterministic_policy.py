"""What algorithms with a deterministic policy over continuous actions share: Ape-X DPG and D4PG.

A critic learns from n-step transitions, the policy climbs the critic's value, actors add Gaussian noise. What the
critic's outputs mean, and how they are compared with what a transition says, is a :class:`ValueHead`; each algorithm
brings its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from apexrl.algorithms.base import ActorOutput, CoreState, LearnerState, TableSpec, UpdateOutput, WindowBatch
from apexrl.algorithms.captured_step import CapturedStep
from apexrl.algorithms.tables import n_step_table
from apexrl.config import ConfigError, ExperimentConfig, require, shared
from apexrl.env_types import ContinuousActions, EnvSpec
from apexrl.networks.actor_critic import ActorCritic, ActorCriticConfig
from apexrl.ops.batch_parallel import BatchParallel
from apexrl.ops.exploration import gaussian_exploration
from apexrl.ops.frames import stack_frames
from apexrl.ops.optimization import clip_scale, copy_parameters, guarded_step
from apexrl.ops.policy_gradient import action_gradients, deterministic_policy_losses
from apexrl.ops.returns import n_step
from apexrl.types import ItemWindows


@dataclass(frozen=True)
class DeterministicPolicyConfig:
    """Fields of the algorithm section that these algorithms share."""

    n_steps: int = shared(5)
    """Rewards summed before bootstrapping. D4PG: 5; assumed for Ape-X DPG."""
    discount: float = shared(0.99)
    """gamma per agent step (both papers)."""
    network: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    policy_learning_rate: float = 1e-4
    """Of Adam (both papers)."""
    critic_learning_rate: float = 1e-4
    """Of Adam (both papers)."""
    adam_epsilon: float = 1e-8
    """Added to the root in Adam's denominator."""
    action_gradient_clip: float = 1.0
    """Bound on each element of the value's gradient with respect to the action (Ape-X DPG: 1; Acme does so in D4PG);
    0 = none."""
    max_grad_norm: float = 40.0
    """Global norm that the gradients of each of the two networks are scaled down to (Acme's D4PG: 40)."""
    target_update_period: int = 100
    """Learner updates between two copies of both networks to their targets (both papers: 100)."""

    def __post_init__(self) -> None:
        require(1 <= self.n_steps <= 256, "algorithm.n_steps", self.n_steps, "in [1, 256]")
        require(0.0 <= self.discount <= 1.0, "algorithm.discount", self.discount, "in [0, 1]")
        for name in ("policy_learning_rate", "critic_learning_rate", "adam_epsilon", "max_grad_norm"):
            require(getattr(self, name) > 0.0, f"algorithm.{name}", getattr(self, name), "above 0")
        clip = self.action_gradient_clip
        require(clip >= 0.0, "algorithm.action_gradient_clip", clip, "0 (no clipping) or above")
        period = self.target_update_period
        require(period >= 1, "algorithm.target_update_period", period, "at least 1")


class Comparison(NamedTuple):
    """What a critic says of B pairs, held against what their transitions say. Only ``losses`` has a gradient."""

    losses: torch.Tensor
    """[B]"""
    priorities: torch.Tensor
    """[B] >= 0."""
    td_errors: torch.Tensor
    """[B] mean of the target minus mean of the critic."""
    details: dict[str, torch.Tensor]
    """name -> [B]; their means become metrics."""


class ValueHead(Protocol):
    """What a critic's outputs [B, num_outputs] mean."""

    num_outputs: int

    def mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Expected values [B]."""
        ...

    def noise(self, batch_size: int, generator: torch.Generator | None) -> torch.Tensor | None:
        """Random numbers [B, ...] for one :meth:`compare`; None if it needs none.

        All are drawn at once, so that parts of a batch may run in any order.
        """
        ...

    def compare(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> Comparison:
        """Losses and priorities of ``outputs`` at (s, a), given R [B], G [B] and the outputs at the bootstrap row."""
        ...

    def priorities(
        self,
        outputs: torch.Tensor,
        returns: torch.Tensor,
        bootstrap_discounts: torch.Tensor,
        bootstrap_outputs: torch.Tensor,
    ) -> torch.Tensor:
        """Those of :meth:`compare` alone, for the actor's initial priorities."""
        ...


class Transitions(NamedTuple):
    """A batch of n-step transitions, ready for the networks."""

    s_tm1: torch.Tensor
    """[B, F] stacked observations at the start rows."""
    a_tm1: torch.Tensor
    """[B, A] actions taken, in [-1, 1]."""
    returns: torch.Tensor
    """[B] R, the discounted rewards up to the bootstrap row."""
    bootstrap_discounts: torch.Tensor
    """[B] G, what the bootstrap value counts for."""
    s_t: torch.Tensor
    """[B, F] stacked observations at the bootstrap rows."""
    weights: torch.Tensor
    """[B] importance weights."""


class LossOutput(NamedTuple):
    """What a forward pass of both losses gives; all but ``loss`` is detached."""

    loss: torch.Tensor
    """Scalar: the critic's plus the policy's. Each depends on the parameters of its own network only."""
    critic_loss: torch.Tensor
    """[B] weighted."""
    values: torch.Tensor
    """[B] q(s, a)."""
    policy_values: torch.Tensor
    """[B] q(s, pi(s))."""
    action_gradients: torch.Tensor
    """[B, A] of q(s, .) at pi(s)."""
    compared: Comparison


class DeterministicPolicyAlgorithm:
    """An algorithm for one environment. Stateless: all that changes is in :class:`LearnerState`.

    Raises:
        ConfigError: the environment's actions are not continuous, or its observations are no vectors.
    """

    def __init__(
        self,
        config: ExperimentConfig[Any],
        section: DeterministicPolicyConfig,
        name: str,
        spec: EnvSpec,
        head: ValueHead,
    ) -> None:
        if not isinstance(spec.actions, ContinuousActions):
            raise ConfigError(
                f"algorithm.name is {name!r}, which needs continuous actions, but env.id {config.env.id!r} has "
                f"{spec.actions}"
            )
        if len(spec.observation_shape) != 1:
            raise ConfigError(
                f"algorithm.name is {name!r}, which needs observations that are vectors, but those of env.id "
                f"{config.env.id!r} have shape {spec.observation_shape}"
            )
        self._section = section
        self._config = config
        self._spec = spec
        self._num_actions = spec.actions.size
        self._stack = config.env.stack
        self._context = self._stack - 1
        self._head = head
        (table,) = self.tables()
        # Actors need not evaluate the critic for priorities that nobody reads.
        self._estimates = table.config.reads_priorities and config.replay.initial_priority == "actor"
        self._compare = torch.compile(self._compared, dynamic=False) if config.learner.compile else self._compared
        self._value = torch.compile(self._value_of, dynamic=False) if config.learner.compile else self._value_of
        self._parallel: BatchParallel[LossOutput] = BatchParallel(
            config.learner.batch_threads, row_values=math.prod(spec.network_input_shape(self._stack))
        )
        self._step = CapturedStep(self._gradient_step, enabled=config.learner.cuda_graph)

    def make_networks(self) -> ActorCritic:
        """Policy and critic, on the CPU, initialised from torch's global generator."""
        (num_inputs,) = self._spec.network_input_shape(self._stack)
        return ActorCritic(self._section.network, num_inputs, self._num_actions, self._head.num_outputs)

    def tables(self) -> tuple[TableSpec, ...]:
        """One table ``replay`` of n-step items."""
        return (n_step_table(self._config, self._spec, self._section.n_steps),)

    def initial_core_state(self, num_lanes: int) -> CoreState:
        """The policy is feed-forward: {}."""
        return {}

    # --- acting ---

    def act(
        self,
        networks: nn.Module,
        observations: torch.Tensor,
        core_state: CoreState,
        epsilons: npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> ActorOutput:
        """clip(pi(s) + epsilon N(0, 1), -1, 1): a lane's exploration is the standard deviation of its noise.

        Scratch keeps the critic's outputs at the action taken and at the policy's, for initial priorities.
        """
        assert isinstance(networks, ActorCritic)
        with torch.inference_mode():
            inputs = observations.to(torch.float32)
            means = networks.policy(inputs)
            actions = gaussian_exploration(means.cpu().numpy(), epsilons, generator)
            scratch = {}
            if self._estimates:
                pairs = torch.cat([torch.from_numpy(actions).to(means.device), means])
                taken, best = networks.critic(inputs.repeat(2, 1), pairs).cpu().numpy().reshape(2, len(actions), -1)
                scratch = {"critic_taken": taken, "critic_policy": best}
        return ActorOutput(actions, {}, {}, scratch, core_state)

    def greedy_policy(self, networks: nn.Module) -> nn.Module:
        """The policy without its critic."""
        assert isinstance(networks, ActorCritic)
        return networks.policy

    def initial_priorities(self, windows: ItemWindows) -> npt.NDArray[np.float32]:
        """Priorities [I] with the actor's own networks in all roles (Ape-X, algorithm 1); 1 where nobody reads them."""
        if not self._estimates:
            return np.ones(len(windows.lengths), np.float32)
        returns, discounts = n_step(
            torch.from_numpy(windows.rewards),
            torch.from_numpy(windows.continuations),
            torch.from_numpy(windows.lengths),
            self._section.discount,
        )
        first = torch.from_numpy(windows.scratch["critic_taken"][:, 0])
        rows = np.arange(len(windows.lengths))
        last = torch.from_numpy(windows.scratch["critic_policy"][rows, windows.lengths])
        priorities: npt.NDArray[np.float32] = self._head.priorities(first, returns, discounts, last).numpy()
        return priorities.astype(np.float32)

    # --- learning ---

    def init(self, networks: nn.Module, seed: int) -> LearnerState:
        """Online and target networks with parameters that depend on ``seed`` alone, fresh optimisers and generator."""
        assert isinstance(networks, ActorCritic)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initial = self.make_networks().state_dict()
            target = self.make_networks()
        networks.load_state_dict(initial)
        target.load_state_dict(initial)
        device = next(networks.parameters()).device
        target.to(device).requires_grad_(False)
        section = self._section

        def adam(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
            return torch.optim.Adam(module.parameters(), learning_rate, eps=section.adam_epsilon, fused=True)

        return LearnerState(
            modules={"online": networks, "target": target},
            optimizers={
                "policy": adam(networks.policy, section.policy_learning_rate),
                "critic": adam(networks.critic, section.critic_learning_rate),
            },
            generators={"critic": torch.Generator(device).manual_seed(seed)},
        )

    def update(self, state: LearnerState, batch: WindowBatch) -> UpdateOutput:
        """One step of critic and policy, both from this batch and from the parameters before it.

        Where a loss or a gradient norm is not finite, parameters and optimisers stay as they are, ``nonfinite`` is 1
        and priorities may not be finite either. The host never waits for the device to find that out.
        """
        noise = self._head.noise(len(batch.lengths), state.generators["critic"])
        output = self._step(state, batch) if noise is None else self._step(state, batch, noise)
        state.step += 1
        if state.step % self._section.target_update_period == 0:
            copy_parameters(state.modules["online"], state.modules["target"])
        return output

    def _gradient_step(
        self, state: LearnerState, batch: WindowBatch, noise: torch.Tensor | None = None
    ) -> UpdateOutput:
        """What every update does, as one fixed sequence of device operations."""
        online, target = state.modules["online"], state.modules["target"]
        assert isinstance(online, ActorCritic)
        assert isinstance(target, ActorCritic)

        def loss_of(rows: slice) -> tuple[torch.Tensor, LossOutput]:
            part = None if noise is None else noise[rows]
            output = self.loss(online, target, self.transitions(batch.rows(rows)), part)
            return output.loss, output

        networks = {"policy": list(online.policy.parameters()), "critic": list(online.critic.parameters())}
        parameters = [*networks["policy"], *networks["critic"]]
        outputs, gradients = self._parallel.gradients(loss_of, parameters, len(batch.lengths))
        output = join_outputs(outputs)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        count = len(networks["policy"])
        norms = {
            "policy": torch.nn.utils.get_total_norm(gradients[:count]),
            "critic": torch.nn.utils.get_total_norm(gradients[count:]),
        }
        nonfinite = ~(output.loss.isfinite() & norms["policy"].isfinite() & norms["critic"].isfinite())
        for name, optimizer in state.optimizers.items():
            guarded_step(optimizer, grad_scale=clip_scale(norms[name], self._section.max_grad_norm), skip=nonfinite)
        return UpdateOutput.of(output.compared.priorities, self._metrics(output, batch, norms, nonfinite))

    def transitions(self, batch: WindowBatch) -> Transitions:
        """Cut n-step transitions out of windows; stacks are those that the actor saw."""
        columns, context = batch.columns, self._context
        steps = slice(context, context + self._section.n_steps)
        returns, discounts = n_step(
            columns["reward"][:, steps], columns["continuation"][:, steps], batch.lengths, self._section.discount
        )
        frames, ages, padding = columns["observation"], columns["age"], self._spec.padding
        dtype = returns.dtype
        return Transitions(
            s_tm1=stack_frames(frames, ages, context, self._stack, padding).to(dtype),
            a_tm1=columns["action"][:, context],
            returns=returns,
            bootstrap_discounts=discounts,
            s_t=stack_frames(frames, ages, context + batch.lengths, self._stack, padding).to(dtype),
            weights=batch.weights,
        )

    def loss(
        self, online: ActorCritic, target: ActorCritic, transitions: Transitions, noise: torch.Tensor | None
    ) -> LossOutput:
        """Both losses of a batch; differentiable with respect to ``online``.

        Importance weights are the critic's: they correct the distribution its targets are drawn from. The policy
        climbs in every state of the batch alike.
        """
        losses, values, compared = self._compare(online, target, transitions, noise)
        actions = online.policy(transitions.s_tm1)
        policy_values, gradients = action_gradients(lambda at: self._value(online, transitions.s_tm1, at), actions)
        clip = self._section.action_gradient_clip
        policy_loss = deterministic_policy_losses(actions, gradients, clip).mean()
        return LossOutput(losses.mean() + policy_loss, losses.detach(), values, policy_values, gradients, compared)

    def _compared(
        self, online: ActorCritic, target: ActorCritic, transitions: Transitions, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, Comparison]:
        """Weighted losses of the critic [B], its values q(s, a) [B], and the whole comparison, detached."""
        outputs = online.critic(transitions.s_tm1, transitions.a_tm1)
        with torch.no_grad():
            bootstrap_outputs = target.critic(transitions.s_t, target.policy(transitions.s_t))
        compared = self._head.compare(
            outputs, transitions.returns, transitions.bootstrap_discounts, bootstrap_outputs, noise
        )
        values = self._head.mean(outputs.detach())
        return transitions.weights * compared.losses, values, compared._replace(losses=compared.losses.detach())

    def _value_of(self, online: ActorCritic, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Expected values q(s, a) [B]."""
        return self._head.mean(online.critic(observations, actions))

    def _metrics(
        self, output: LossOutput, batch: WindowBatch, norms: dict[str, torch.Tensor], nonfinite: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        clip = self._section.action_gradient_clip or float("inf")
        return {
            "loss": output.critic_loss.mean(),
            "grad_norm": norms["critic"],
            "policy_grad_norm": norms["policy"],
            "nonfinite": nonfinite.to(torch.float32),
            "q_mean": output.values.mean(),
            "q_max": output.values.max(),
            "policy_q_mean": output.policy_values.mean(),
            "action_gradient_clipped": (output.action_gradients.abs() > clip).to(torch.float32).mean(),
            "td_error_abs_mean": output.compared.td_errors.abs().mean(),
            "weight_min": batch.weights.min(),
            **{name: values.mean() for name, values in output.compared.details.items()},
        }


def join_outputs(parts: list[LossOutput]) -> LossOutput:
    """The outputs of neighbouring parts of a batch as those of the whole; the loss is detached."""
    if len(parts) == 1:
        return parts[0]._replace(loss=parts[0].loss.detach())
    count = sum(len(part.values) for part in parts)

    def joined(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors))

    compared = [part.compared for part in parts]
    return LossOutput(
        loss=torch.stack([part.loss.detach() * (len(part.values) / count) for part in parts]).sum(),
        critic_loss=joined(part.critic_loss for part in parts),
        values=joined(part.values for part in parts),
        policy_values=joined(part.policy_values for part in parts),
        action_gradients=joined(part.action_gradients for part in parts),
        compared=Comparison(
            losses=joined(one.losses for one in compared),
            priorities=joined(one.priorities for one in compared),
            td_errors=joined(one.td_errors for one in compared),
            details={name: joined(one.details[name] for one in compared) for name in compared[0].details},
        ),
    )
