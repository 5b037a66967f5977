"""The sections of an experiment's configuration: frozen dataclasses with defaults, units and sources.

Every field is either *shared* or *local*. Shared fields change the meaning of stored rows or of parameters (the
environment, its preprocessing, the network, n, the discount, the chunk geometry); they are digested and compared
whenever two services meet. Local fields (learning rate, batch size, capacities, lanes) may differ or change at any
time without locking a peer out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from apexrl.config.fields import ConfigError, require, require_address, require_port, shared
from apexrl.config.security_section import SecurityConfig


@dataclass(frozen=True)
class EnvConfig:
    """The environment and its preprocessing."""

    id: str = shared("atari/pong")
    """SUITE/NAME with suite atari, dm_control, gymnasium, minatar or apex (small test problems), or
    PACKAGE.MODULE:FUNCTION for your own vector environment."""
    stack: int = shared(4)
    """Frames per observation. 1 = no stacking."""
    action_repeat: int = shared(4)
    """Emulator frames per step (Atari; DQN: 4). Other suites take 1."""
    life_loss_ends: bool = shared(True)
    """A lost life sets the continuation to 0 without a reset (Ape-X; R2D2 turns it off). Atari only."""
    full_action_space: bool = shared(False)
    """All 18 Atari actions (the papers), or all 6 of MinAtar, instead of the game's own."""
    sticky_actions: float = shared(0.0)
    """Probability that the emulator repeats the former action (Atari; MinAtar, whose paper has 0.1). 0 in the papers
    of this family."""
    noop_max: int = shared(30)
    """At most this many no-op frames at an episode's start. Atari only."""
    fire_reset: bool = shared(True)
    """Press FIRE after a reset in games that wait for it. Atari only."""
    max_episode_frames: int = shared(108_000)
    """Truncate episodes after this many emulator frames (Ape-X trained with 50,000). Atari and
    MinAtar; evaluations always have 108,000."""
    reward_clip: float = shared(1.0)
    """Clip training rewards to [-x, x]; 0 = no clipping. Reported returns are never clipped."""
    reward_scale: float = shared(1.0)
    """Factor on training rewards, before clipping."""
    worker_processes: int = 0
    """Processes that step the lanes of an actor or evaluator between them; 0 = its own. gymnasium and dm_control."""

    def __post_init__(self) -> None:
        require(bool(self.id), "env.id", self.id, "SUITE/NAME or PACKAGE.MODULE:FUNCTION")
        require(1 <= self.stack <= 16, "env.stack", self.stack, "in [1, 16]")
        require(1 <= self.action_repeat <= 16, "env.action_repeat", self.action_repeat, "in [1, 16]")
        require(0.0 <= self.sticky_actions < 1.0, "env.sticky_actions", self.sticky_actions, "in [0, 1)")
        require(0 <= self.noop_max <= 1000, "env.noop_max", self.noop_max, "in [0, 1000]")
        require(self.max_episode_frames > 0, "env.max_episode_frames", self.max_episode_frames, "above 0")
        require(self.reward_clip >= 0.0, "env.reward_clip", self.reward_clip, "0 (off) or above")
        require(self.reward_scale > 0.0, "env.reward_scale", self.reward_scale, "above 0")
        require(0 <= self.worker_processes <= 256, "env.worker_processes", self.worker_processes, "in [0, 256]")


@dataclass(frozen=True)
class ReplayConfig:
    """The replay table and where its shards are."""

    addresses: tuple[str, ...] = ("127.0.0.1:50051",)
    """HOST:PORT of each shard; `apex train` starts as many, on free ports."""
    listen: str = "127.0.0.1:50051"
    """HOST:PORT on which a shard started from this file listens."""
    selector: Literal["proportional", "rank_based", "uniform"] = "proportional"
    """How items are drawn."""
    priority_exponent: float = 0.6
    """alpha: P(i) ~ p_i^alpha (Ape-X 0.6)."""
    uniform_mixture: float = 0.0
    """Share of draws that are uniform (0 in Ape-X, 1e-3 in dqn_zoo)."""
    importance_sampling_exponent: float = 0.4
    """beta of w = (N P)^-beta / max w (Ape-X 0.4, constant)."""
    importance_sampling_exponent_final: float = 0.4
    """beta after `importance_sampling_anneal_frames` (PER: 1.0)."""
    importance_sampling_anneal_frames: int = 0
    """Frames over which beta goes linearly to its final value; 0 = constant."""
    initial_priority: Literal["actor", "max"] = "actor"
    """Priority of new items: the actor's own TD error (Ape-X) or the table's maximum so far (PER)."""
    remover: Literal["fifo", "prioritized"] = "fifo"
    """What leaves a table beyond its capacity: the oldest pages (Ape-X DQN), or items drawn by priority (Ape-X DPG),
    which wants `chunk_starts` 1 and takes no journal."""
    remover_exponent: float = -0.4
    """alpha_evict of the prioritized remover: P(i leaves) ~ p_i^alpha_evict (Ape-X DPG -0.4; 0 = all alike)."""
    capacity_items: int = 2_000_000
    """Soft capacity in items (transitions) of all shards together. Ape-X: 2,000,000."""
    budget_bytes: int = 4 << 30
    """Hard budget in bytes of encoded experience of each shard."""
    min_items: int = 50_000
    """Items before the learner starts. Ape-X: 50,000."""
    samples_per_insert: float = 0.0
    """Items the learner draws per item inserted, held by a limiter; 0 = no limiter (the paper)."""
    slack_items: int = 0
    """Draws by which either side may run ahead of `samples_per_insert`; 0 = chosen from batch, prefetch and chunks."""
    chunk_starts: int = shared(32)
    """Start rows per chunk."""
    journal_directory: str = ""
    """Where a shard keeps its experience on disk, to have it again after a restart; "" = in memory only. Each shard
    needs a directory of its own."""
    journal_flush_seconds: float = 1.0
    """Between two syncs of the journal: so much is lost with the process at most."""
    metrics_port: int = 0
    """Port of a shard's /metrics; 0 = off."""

    @property
    def shard_capacity_items(self) -> int:
        """Soft capacity of each shard."""
        return math.ceil(self.capacity_items / len(self.addresses))

    def __post_init__(self) -> None:
        require(bool(self.addresses), "replay.addresses", self.addresses, "a list of HOST:PORT")
        require(len(set(self.addresses)) == len(self.addresses), "replay.addresses", self.addresses, "each shard once")
        require(
            len(self.addresses) == 1 or self.selector != "rank_based",
            "replay.selector",
            self.selector,
            "proportional or uniform with several shards (ranks are of one table)",
        )
        for i, address in enumerate(self.addresses):
            require_address(f"replay.addresses[{i}]", address)
        require_address("replay.listen", self.listen)
        require(0.0 <= self.priority_exponent <= 4.0, "replay.priority_exponent", self.priority_exponent, "in [0, 4]")
        require(0.0 <= self.uniform_mixture <= 1.0, "replay.uniform_mixture", self.uniform_mixture, "in [0, 1]")
        for name in ("importance_sampling_exponent", "importance_sampling_exponent_final"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"replay.{name}", value, "in [0, 1]")
        require(
            self.importance_sampling_anneal_frames >= 0,
            "replay.importance_sampling_anneal_frames",
            self.importance_sampling_anneal_frames,
            "0 (constant) or above",
        )
        removers = ("fifo", "prioritized")
        require(self.remover in removers, "replay.remover", self.remover, " or ".join(removers))
        require(-4.0 <= self.remover_exponent <= 0.0, "replay.remover_exponent", self.remover_exponent, "in [-4, 0]")
        require(
            self.remover == "fifo" or not self.journal_directory,
            "replay.remover",
            self.remover,
            f"fifo with replay.journal_directory = {self.journal_directory!r} (a journal gives back only what left "
            "first in, first out)",
        )
        require(1 <= self.chunk_starts <= 512, "replay.chunk_starts", self.chunk_starts, "in [1, 512]")
        require(
            self.shard_capacity_items >= self.chunk_starts,
            "replay.capacity_items",
            self.capacity_items,
            f"at least one chunk ({self.chunk_starts}) for each shard",
        )
        require(self.budget_bytes >= 1 << 20, "replay.budget_bytes", self.budget_bytes, "at least 1 MiB (1048576)")
        require(
            0 < self.min_items <= self.capacity_items,
            "replay.min_items",
            self.min_items,
            f"in [1, replay.capacity_items = {self.capacity_items}]",
        )
        require(self.samples_per_insert >= 0.0, "replay.samples_per_insert", self.samples_per_insert, "0 or above")
        require(self.slack_items >= 0, "replay.slack_items", self.slack_items, "0 (automatic) or above")
        require(self.journal_flush_seconds > 0, "replay.journal_flush_seconds", self.journal_flush_seconds, "above 0")
        require_port("replay.metrics_port", self.metrics_port)


@dataclass(frozen=True)
class ExplorationConfig:
    """How much each lane explores: epsilon of epsilon-greedy actions, or the standard deviation of Gaussian noise."""

    mode: Literal["ladder", "paper", "fixed"] = "ladder"
    """ladder: leased index k gets base^(a + b u_k), u by bit reversal, so that scaling shifts nobody (equals the
    paper's grid at N = 2^m + 1). paper: u = k / (num_lanes - 1) for a fixed number of lanes. fixed: every lane
    `epsilon`."""
    base: float = 0.4
    """Ape-X: 0.4."""
    a: float = 1.0
    b: float = 7.0
    """Ape-X: epsilon_i = 0.4^(1 + 7 i / (N - 1))."""
    num_lanes: int = 360
    """N of mode paper. Lanes of all actors together; index modulo N beyond it."""
    epsilon: float = 0.05
    """Epsilon of mode fixed, and of mode paper with num_lanes 1."""
    anneal_frames: int = 0
    """Frames over which every lane's epsilon falls linearly from 1 to its own value; 0 = at once (Ape-X)."""

    def __post_init__(self) -> None:
        require(0.0 < self.base <= 1.0, "actor.exploration.base", self.base, "in (0, 1]")
        require(self.num_lanes >= 1, "actor.exploration.num_lanes", self.num_lanes, "at least 1")
        require(0.0 <= self.epsilon <= 1.0, "actor.exploration.epsilon", self.epsilon, "in [0, 1]")
        require(self.anneal_frames >= 0, "actor.exploration.anneal_frames", self.anneal_frames, "0 or above")


@dataclass(frozen=True)
class ActorConfig:
    """An actor process."""

    lanes: int = 16
    """Environments per actor process, stepped together."""
    env_threads: int = 1
    """Threads of the environment's own stepper (Atari)."""
    inference_threads: int = 1
    """Threads of the policy's forward pass."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    parameter_update_period_frames: int = 400
    """Frames of one lane between two looks for new parameters (Ape-X 400), jittered by 20 %."""
    parameter_addresses: tuple[str, ...] = ()
    """HOST:PORT of relays that actors pull parameters from; () = the learner itself. An actor keeps to one of several
    and turns to the next while that gives none."""
    max_unacked_chunks: int = 64
    """Chunks sent but not acknowledged; full = the actor waits."""
    max_chunk_age_seconds: float = 600.0
    """A chunk older than this is sent short (slow simulators)."""
    metrics_port: int = 0
    """Port of /metrics; 0 = off."""

    def __post_init__(self) -> None:
        require(1 <= self.lanes <= 4096, "actor.lanes", self.lanes, "in [1, 4096]")
        require(self.env_threads >= 1, "actor.env_threads", self.env_threads, "at least 1")
        require(self.inference_threads >= 1, "actor.inference_threads", self.inference_threads, "at least 1")
        require(
            self.parameter_update_period_frames >= 1,
            "actor.parameter_update_period_frames",
            self.parameter_update_period_frames,
            "at least 1",
        )
        for i, address in enumerate(self.parameter_addresses):
            require_address(f"actor.parameter_addresses[{i}]", address)
        require(
            len(set(self.parameter_addresses)) == len(self.parameter_addresses),
            "actor.parameter_addresses",
            self.parameter_addresses,
            "each relay once",
        )
        require(self.max_unacked_chunks >= 1, "actor.max_unacked_chunks", self.max_unacked_chunks, "at least 1")
        require(self.max_chunk_age_seconds > 0, "actor.max_chunk_age_seconds", self.max_chunk_age_seconds, "above 0")
        require_port("actor.metrics_port", self.metrics_port)


@dataclass(frozen=True)
class LearnerConfig:
    """The learner process."""

    address: str = "127.0.0.1:50061"
    """HOST:PORT at which actors find the parameter service and the coordinator."""
    listen: str = "127.0.0.1:50061"
    """HOST:PORT on which they listen."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = cuda if there is one."""
    threads: int = 0
    """CPU threads that share each operation of the update; 0 = all cores."""
    batch_threads: int = 1
    """CPU threads that each take an equal part of every batch through forward and backward pass. Where actors use the
    same cores this beats sharing operations, with ``threads`` 1. Without effect on CUDA."""
    compile: bool = False
    """Run the loss, on CUDA with the stacking of frames, and RMSProp through torch.compile. Needs a compiler: g++, or
    gcc or clang on CUDA."""
    cuda_graph: bool = True
    """On CUDA, launch each update as one graph, captured after the first few. Without effect on a CPU."""
    batch_size: int = 512
    """Items per update. Ape-X: 512."""
    prefetch_batches: int = 0
    """Batches kept ready. 0 = about 0.25 s of updates, between 2 and 64; the paper kept up to 16."""
    mirror_bytes: int = 0
    """Memory of the mirror, which keeps chunks decoded so that each comes over the wire once; 0 = as much as the whole
    replay needs (`apex inspect memory` says it). With less, chunks come again when they are drawn again."""
    mirror_device: Literal["auto", "cpu", "cuda"] = "auto"
    """Memory that holds the mirror, and where batches are put together; auto = where the update runs. cpu keeps GPU
    memory free and copies every batch over."""
    publish_period_seconds: float = 2.0
    """Least time between two publications of parameters."""
    publish_dtype: Literal["float32", "float16"] = "float32"
    """Element type of published tensors. float16 halves what actors fetch; a tensor with values beyond 65504 is sent
    as it is. Checkpoints are not concerned."""
    checkpoint_period_seconds: float = 60.0
    keep_checkpoints: int = 3
    """Newest checkpoints kept, besides the best by the evaluator."""
    max_updates: int = 0
    """End the run after this many updates; 0 = no end."""
    max_frames: int = 0
    """End the run after this many environment frames; 0 = no end."""
    max_seconds: float = 0.0
    """End the run after this many seconds of learning wall-clock, resumes included; 0 = no end."""
    metrics_port: int = 0
    """Port of /metrics; 0 = off."""

    def __post_init__(self) -> None:
        require_address("learner.address", self.address)
        require_address("learner.listen", self.listen)
        require(self.threads >= 0, "learner.threads", self.threads, "0 (automatic) or above")
        require(1 <= self.batch_size <= 1 << 16, "learner.batch_size", self.batch_size, "in [1, 65536]")
        require(
            1 <= self.batch_threads <= self.batch_size,
            "learner.batch_threads",
            self.batch_threads,
            f"in [1, learner.batch_size = {self.batch_size}]",
        )
        require(
            self.batch_threads == 1 or not self.compile,
            "learner.batch_threads",
            self.batch_threads,
            "1 with learner.compile",
        )
        require(0 <= self.prefetch_batches <= 64, "learner.prefetch_batches", self.prefetch_batches, "in [0, 64]")
        require(self.mirror_bytes >= 0, "learner.mirror_bytes", self.mirror_bytes, "0 (the whole replay) or above")
        require(self.publish_period_seconds >= 0, "learner.publish_period_seconds", self.publish_period_seconds, ">= 0")
        dtypes = ("float32", "float16")
        require(self.publish_dtype in dtypes, "learner.publish_dtype", self.publish_dtype, " or ".join(dtypes))
        require(
            self.checkpoint_period_seconds > 0,
            "learner.checkpoint_period_seconds",
            self.checkpoint_period_seconds,
            "above 0",
        )
        require(self.keep_checkpoints >= 2, "learner.keep_checkpoints", self.keep_checkpoints, "at least 2")
        for name in ("max_updates", "max_frames", "max_seconds"):
            require(getattr(self, name) >= 0, f"learner.{name}", getattr(self, name), "0 (no end) or above")
        require_port("learner.metrics_port", self.metrics_port)


@dataclass(frozen=True)
class RelayConfig:
    """A relay: pulls parameters once and hands them to many actors (`actor.parameter_addresses`)."""

    upstream: str = ""
    """HOST:PORT that it pulls from, a learner or another relay; "" = `learner.address`."""
    listen: str = "127.0.0.1:50071"
    """HOST:PORT on which it serves."""
    poll_period_seconds: float = 1.0
    """Between two looks for new parameters, jittered by 20 %; each relay on the way delays them by up to this."""
    metrics_port: int = 0
    """Port of /metrics; 0 = off."""

    def __post_init__(self) -> None:
        if self.upstream:
            require_address("relay.upstream", self.upstream)
        require_address("relay.listen", self.listen)
        require(self.upstream != self.listen, "relay.upstream", self.upstream, "another address than relay.listen")
        require(self.poll_period_seconds > 0, "relay.poll_period_seconds", self.poll_period_seconds, "above 0")
        require_port("relay.metrics_port", self.metrics_port)


@dataclass(frozen=True)
class EvaluatorConfig:
    """The evaluator: an actor that explores (almost) nothing and inserts nothing."""

    episodes: int = 5
    """Episodes played on one version of the parameters."""
    lanes: int = 5
    period_seconds: float = 60.0
    """Least time between the starts of two evaluations."""
    epsilon: float = 0.001
    """Ape-X's evaluation epsilon is not documented; Double DQN (tuned) and Dopamine use 0.001. Always reported."""
    metrics_port: int = 0
    """Port of /metrics; 0 = off."""

    def __post_init__(self) -> None:
        require(self.episodes >= 1, "evaluator.episodes", self.episodes, "at least 1")
        require(1 <= self.lanes <= 256, "evaluator.lanes", self.lanes, "in [1, 256]")
        require(self.period_seconds >= 0, "evaluator.period_seconds", self.period_seconds, "0 or above")
        require(0.0 <= self.epsilon <= 1.0, "evaluator.epsilon", self.epsilon, "in [0, 1]")
        require_port("evaluator.metrics_port", self.metrics_port)


@dataclass(frozen=True)
class LocalConfig:
    """What `apex train` starts on this machine."""

    actors: int = 1
    """Actor processes."""
    evaluators: int = 1

    def __post_init__(self) -> None:
        require(1 <= self.actors <= 512, "local.actors", self.actors, "in [1, 512]")
        require(0 <= self.evaluators <= 8, "local.evaluators", self.evaluators, "in [0, 8]")


AlgorithmConfigT = TypeVar("AlgorithmConfigT")


@dataclass(frozen=True)
class ExperimentConfig(Generic[AlgorithmConfigT]):
    """One experiment: everything that `apex train`, a service or the chart needs to know."""

    algorithm: AlgorithmConfigT
    """The algorithm's own section; its `name` chooses it."""
    name: str = "experiment"
    """Name of the experiment; run directories are called after it."""
    seed: int = 1
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    relay: RelayConfig = field(default_factory=RelayConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    local: LocalConfig = field(default_factory=LocalConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 31, "seed", self.seed, "in [0, 2^31)")
        require(
            bool(self.name) and "/" not in self.name and not self.name.startswith("."),
            "name",
            self.name,
            "a file name without '/'",
        )
        if self.replay.min_items < self.learner.batch_size:
            raise ConfigError(
                f"replay.min_items is {self.replay.min_items}, must be at least learner.batch_size = "
                f"{self.learner.batch_size}"
            )
