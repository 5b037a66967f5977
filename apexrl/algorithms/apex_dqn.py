"""Ape-X DQN (Horgan et al. 2018, arXiv 1803.00933) and the members of its family that differ by configuration.

Double Q-learning with a dueling network, n-step returns and prioritized replay; priorities of new items come from the
actor's own Q-values. Switches reach plain DQN (``double``, ``network.dueling``, ``n_steps``), the Huber loss, and
unclipped rewards through the value rescaling h of Pohlen et al. 2018.

See docs/algorithms/apex_dqn.md for what is the paper's and what is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from apexrl.algorithms.base import ActorOutput, CoreState, LearnerState, TableSpec, UpdateOutput, WindowBatch
from apexrl.algorithms.captured_step import CapturedStep
from apexrl.algorithms.tables import n_step_table
from apexrl.config import ConfigError, ExperimentConfig, require, shared
from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.networks.q_networks import GreedyActions, NetworkConfig, QNetwork, make_q_network
from apexrl.ops.batch_parallel import BatchParallel
from apexrl.ops.exploration import epsilon_greedy
from apexrl.ops.frames import stack_frames
from apexrl.ops.optimization import RMSProp, clip_scale, copy_parameters, guarded_step
from apexrl.ops.rescaling import h_inverse
from apexrl.ops.returns import n_step
from apexrl.ops.value_learning import bootstrapped_targets, double_q_values, huber_loss, q_values_of, squared_loss
from apexrl.types import ItemWindows

#: Decay of the running mean of squared gradients where the configuration leaves it at 0.
USUAL_DECAY = {"rmsprop_centered": 0.95, "rmsprop": 0.95, "adam": 0.999}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser of the Q-network."""

    kind: Literal["rmsprop_centered", "rmsprop", "adam"] = "rmsprop_centered"
    """Ape-X: centred RMSProp without momentum."""
    learning_rate: float = 6.25e-5
    """Ape-X: 0.00025 / 4."""
    epsilon: float = 1.5e-7
    """Added to the root in the denominator. Ape-X: 1.5e-7."""
    decay: float = 0.0
    """Decay of the running mean of squared gradients: rho of RMSProp, beta_2 of Adam (whose beta_1 is 0.9). 0 = the
    kind's usual one: RMSProp 0.95 (Ape-X), Adam 0.999."""

    def __post_init__(self) -> None:
        require(self.kind in USUAL_DECAY, "algorithm.optimizer.kind", self.kind, f"one of {', '.join(USUAL_DECAY)}")
        require(self.learning_rate > 0.0, "algorithm.optimizer.learning_rate", self.learning_rate, "above 0")
        require(self.epsilon > 0.0, "algorithm.optimizer.epsilon", self.epsilon, "above 0")
        require(0.0 <= self.decay < 1.0, "algorithm.optimizer.decay", self.decay, "0 (the kind's usual) or in (0, 1)")


@dataclass(frozen=True)
class ApexDQNConfig:
    """The algorithm section for ``name: apex_dqn``. Defaults are Ape-X's (Horgan et al. 2018, appendix C)."""

    name: Literal["apex_dqn"] = shared("apex_dqn")
    n_steps: int = shared(3)
    """Rewards summed before bootstrapping. Ape-X: 3."""
    discount: float = shared(0.99)
    """gamma per agent step. The paper gives no number; DQN's 0.99 is assumed."""
    rescaling_epsilon: float = shared(0.0)
    """epsilon of the value rescaling h(z) = sign(z)(sqrt(|z| + 1) - 1) + epsilon z; 0 = off (Ape-X clips rewards
    instead). Pohlen et al. 2018 use 0.01, R2D2 0.001, both with env.reward_clip 0."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    double: bool = True
    """The online network chooses the bootstrap action, the target network values it (Ape-X). False: the target network
    does both (Mnih et al. 2015)."""
    loss: Literal["squared", "huber"] = "squared"
    """squared: half the squared TD error (Ape-X). huber: linear beyond 1."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_grad_norm: float = 40.0
    """Global norm that gradients are scaled down to. Ape-X: 40."""
    target_update_period: int = 2500
    """Learner updates between two copies of the online network to the target network. Ape-X: 2500."""
    bfloat16: bool = False
    """Networks run in bfloat16 on CUDA devices; targets, losses and priorities stay in float32. A CPU always uses
    float32."""

    def __post_init__(self) -> None:
        require(self.name == "apex_dqn", "algorithm.name", self.name, "apex_dqn")
        require(1 <= self.n_steps <= 256, "algorithm.n_steps", self.n_steps, "in [1, 256]")
        require(0.0 <= self.discount <= 1.0, "algorithm.discount", self.discount, "in [0, 1]")
        require(
            0.0 <= self.rescaling_epsilon <= 1.0,
            "algorithm.rescaling_epsilon",
            self.rescaling_epsilon,
            "0 (off) or in (0, 1]",
        )
        require(self.loss in ("squared", "huber"), "algorithm.loss", self.loss, "squared or huber")
        require(self.max_grad_norm > 0.0, "algorithm.max_grad_norm", self.max_grad_norm, "above 0")
        require(
            self.target_update_period >= 1, "algorithm.target_update_period", self.target_update_period, "at least 1"
        )


class Transitions(NamedTuple):
    """A batch of n-step transitions, ready for the networks."""

    s_tm1: torch.Tensor
    """[B, *network_input_shape] stacked observations at the start rows."""
    a_tm1: torch.Tensor
    """[B] int64."""
    returns: torch.Tensor
    """[B] f32 R, the discounted rewards up to the bootstrap row."""
    bootstrap_discounts: torch.Tensor
    """[B] f32 G, what the bootstrap value counts for."""
    s_t: torch.Tensor
    """[B, *network_input_shape] stacked observations at the bootstrap rows."""
    weights: torch.Tensor
    """[B] f32 importance weights."""


class LossOutput(NamedTuple):
    """What a forward pass of the loss gives."""

    loss: torch.Tensor
    """Scalar: mean of w times the loss of each item."""
    td_errors: torch.Tensor
    """[B] f32 y - Q(s, a), detached."""
    q_tm1: torch.Tensor
    """[B, A] f32, detached."""


class ApexDQN:
    """The algorithm for one environment. Stateless: all that changes is in :class:`LearnerState`."""

    Config: ClassVar[type[ApexDQNConfig]] = ApexDQNConfig

    def __init__(self, config: ExperimentConfig[ApexDQNConfig], spec: EnvSpec) -> None:
        if not isinstance(spec.actions, DiscreteActions):
            raise ConfigError(
                f"algorithm.name is 'apex_dqn', which needs discrete actions, but env.id {config.env.id!r} has "
                f"{spec.actions}"
            )
        self._config = config.algorithm
        self._experiment = config
        self._stack = config.env.stack
        self._spec = spec
        self._context = self._stack - 1
        self._compile = config.learner.compile
        loss: Callable[..., LossOutput] = self.loss
        loss_of_windows: Callable[..., LossOutput] = self._loss_of_windows
        self._loss = torch.compile(loss, dynamic=False) if self._compile else loss
        self._whole_loss = torch.compile(loss_of_windows, dynamic=False) if self._compile else loss_of_windows
        self._parallel: BatchParallel[LossOutput] = BatchParallel(
            config.learner.batch_threads, row_values=math.prod(spec.network_input_shape(self._stack))
        )
        self._step = CapturedStep(self._gradient_step, enabled=config.learner.cuda_graph)

    def make_networks(self) -> QNetwork:
        """The Q-network, on the CPU, initialised from torch's global generator."""
        return make_q_network(self._config.network, self._spec, self._stack)

    def tables(self) -> tuple[TableSpec, ...]:
        """One table ``replay`` of n-step items, with rows of one frame each."""
        return (n_step_table(self._experiment, self._spec, self._config.n_steps),)

    def initial_core_state(self, num_lanes: int) -> CoreState:
        """The policy is feed-forward: {}."""
        return {}

    def act(
        self,
        networks: nn.Module,
        observations: torch.Tensor,
        core_state: CoreState,
        epsilons: npt.NDArray[np.float64],
        generator: np.random.Generator,
    ) -> ActorOutput:
        """Epsilon-greedy actions; scratch keeps Q(s, a) and max Q(s, .) of every lane for initial priorities."""
        with torch.inference_mode():
            q = networks(observations).cpu().numpy()
        actions = epsilon_greedy(q, epsilons, generator)
        scratch = {"q_action": q[np.arange(len(q)), actions], "q_max": q.max(axis=1)}
        return ActorOutput(actions, {}, {}, scratch, core_state)

    def greedy_policy(self, networks: nn.Module) -> nn.Module:
        """Actions [B] int64 of the highest value."""
        return GreedyActions(networks)

    def initial_priorities(self, windows: ItemWindows) -> npt.NDArray[np.float32]:
        """|R + G max Q(s_last, .) - Q(s, a)| [I] with the actor's own network in both roles (Ape-X, algorithm 1)."""
        lengths = torch.from_numpy(windows.lengths)
        returns, discounts = n_step(
            torch.from_numpy(windows.rewards), torch.from_numpy(windows.continuations), lengths, self._config.discount
        )
        q_last = torch.from_numpy(windows.scratch["q_max"]).gather(1, lengths[:, None]).squeeze(1)
        q_first = torch.from_numpy(windows.scratch["q_action"])[:, 0]
        targets = bootstrapped_targets(returns, discounts, q_last, self._config.rescaling_epsilon)
        priorities: npt.NDArray[np.float32] = (targets - q_first).abs().to(torch.float32).numpy()
        return priorities

    def init(self, networks: nn.Module, seed: int) -> LearnerState:
        """Online and target network with parameters that depend on ``seed`` alone, and a fresh optimiser."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initial = self.make_networks().state_dict()
            target = self.make_networks()
        networks.load_state_dict(initial)
        target.load_state_dict(initial)
        target.to(next(networks.parameters()).device).requires_grad_(False)
        return LearnerState(
            modules={"online": networks, "target": target},
            optimizers={"online": make_optimizer(self._config.optimizer, networks, compile=self._compile)},
        )

    def update(self, state: LearnerState, batch: WindowBatch) -> UpdateOutput:
        """One double Q-learning step (Ape-X, algorithm 2).

        Where the loss or the gradient norm is not finite, parameters and optimiser stay as they are, ``nonfinite`` is
        1 and priorities may not be finite either. The host never waits for the device to find that out.
        """
        output = self._step(state, batch)
        state.step += 1
        if state.step % self._config.target_update_period == 0:
            copy_parameters(state.modules["online"], state.modules["target"])
        return output

    def _gradient_step(self, state: LearnerState, batch: WindowBatch) -> UpdateOutput:
        """What every update does, as one fixed sequence of device operations."""
        online, target = state.modules["online"], state.modules["target"]
        optimizer = state.optimizers["online"]
        parameters = list(online.parameters())
        on_cpu = batch.weights.device.type == "cpu"

        def loss_of(rows: slice) -> tuple[torch.Tensor, LossOutput]:
            part = batch.rows(rows)
            if on_cpu:  # Stacking stays outside what is compiled: there its shapes follow episode borders.
                output = self._loss(online, target, self.transitions(part))
            else:
                output = self._whole_loss(online, target, part)
            return output.loss, output

        outputs, gradients = self._parallel.gradients(loss_of, parameters, len(batch.lengths))
        output = join_outputs(outputs)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        nonfinite = ~(output.loss.isfinite() & grad_norm.isfinite())
        guarded_step(optimizer, grad_scale=clip_scale(grad_norm, self._config.max_grad_norm), skip=nonfinite)
        return UpdateOutput.of(output.td_errors.abs(), self._metrics(output, batch, grad_norm, nonfinite))

    def transitions(self, batch: WindowBatch) -> Transitions:
        """Cut n-step transitions out of windows; stacks are those that the actor saw."""
        columns, context = batch.columns, self._context
        steps = slice(context, context + self._config.n_steps)
        returns, discounts = n_step(
            columns["reward"][:, steps], columns["continuation"][:, steps], batch.lengths, self._config.discount
        )
        frames, ages, padding = columns["observation"], columns["age"], self._spec.padding
        return Transitions(
            s_tm1=stack_frames(frames, ages, context, self._stack, padding),
            a_tm1=self._actions(batch),
            returns=returns,
            bootstrap_discounts=discounts,
            s_t=stack_frames(frames, ages, context + batch.lengths, self._stack, padding),
            weights=batch.weights,
        )

    def _actions(self, batch: WindowBatch) -> torch.Tensor:
        """[B] int64 at the start rows."""
        return batch.columns["action"][:, self._context].to(torch.int64)

    def loss(self, online: QNetwork, target: QNetwork, transitions: Transitions) -> LossOutput:
        """Importance-weighted loss of a batch; differentiable with respect to ``online``."""
        config = self._config
        device_type = transitions.s_t.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=config.bfloat16 and device_type == "cuda"):
            q_tm1 = online(transitions.s_tm1)
            with torch.no_grad():
                prepared = online.prepare(transitions.s_t)
                q_t = target.values(prepared)
                q_t_selector = online.values(prepared) if config.double else q_t
        bootstrap_values = double_q_values(q_t, q_t_selector)
        targets = bootstrapped_targets(
            transitions.returns, transitions.bootstrap_discounts, bootstrap_values, config.rescaling_epsilon
        )
        td_errors = targets - q_values_of(q_tm1, transitions.a_tm1)
        losses = huber_loss(td_errors) if config.loss == "huber" else squared_loss(td_errors)
        return LossOutput((transitions.weights * losses).mean(), td_errors.detach(), q_tm1.detach())

    def _loss_of_windows(self, online: QNetwork, target: QNetwork, batch: WindowBatch) -> LossOutput:
        return self.loss(online, target, self.transitions(batch))

    def _metrics(
        self, output: LossOutput, batch: WindowBatch, grad_norm: torch.Tensor, nonfinite: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        epsilon = self._config.rescaling_epsilon
        q = h_inverse(output.q_tm1, epsilon) if epsilon > 0.0 else output.q_tm1
        return {
            "loss": output.loss,
            "grad_norm": grad_norm,
            "nonfinite": nonfinite.to(torch.float32),
            "q_mean": q_values_of(q, self._actions(batch)).mean(),
            "q_max": q.max(),
            "td_error_abs_mean": output.td_errors.abs().mean(),
            "weight_min": batch.weights.min(),
        }


def join_outputs(parts: list[LossOutput]) -> LossOutput:
    """The outputs of neighbouring parts of a batch as those of the whole; the loss is detached."""
    td_errors = torch.cat([part.td_errors for part in parts])
    losses = torch.stack([part.loss.detach() * (len(part.td_errors) / len(td_errors)) for part in parts])
    return LossOutput(losses.sum(), td_errors, torch.cat([part.q_tm1 for part in parts]))


def make_optimizer(config: OptimizerConfig, networks: nn.Module, *, compile: bool = False) -> torch.optim.Optimizer:
    """An optimiser of all parameters of ``networks`` that :func:`~apexrl.ops.optimization.guarded_step` can drive."""
    decay = config.decay or USUAL_DECAY[config.kind]
    if config.kind == "adam":
        return torch.optim.Adam(
            networks.parameters(), config.learning_rate, betas=(0.9, decay), eps=config.epsilon, fused=True
        )
    return RMSProp(
        networks.parameters(),
        config.learning_rate,
        decay=decay,
        epsilon=config.epsilon,
        centered=config.kind == "rmsprop_centered",
        compile=compile,
    )
