"""Serial mode: the whole system in one process and one thread, reproducible bit by bit.

The same classes as in the services, and the same messages: each is serialised and parsed, only the sockets are missing.
A tick is: every lane one step (unless the insert limit holds chunks back), finished chunks inserted, the engine's turn,
at most one update, and parameters handed over every period.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from google.protobuf.message import Message
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from apex_actor.evaluation import evaluate
from apex_actor.exploring import lane_epsilons
from apex_actor.loop import ActorLoop
from apex_actor.membership import Membership
from apex_learner.assembler import BatchAssembler, DrawPlan
from apex_learner.batches import PrefetchDepth, mirror_slots
from apex_learner.coordinator import Coordinator, Progress
from apex_learner.process import make_state
from apex_learner.sampling import make_limiter
from apex_learner.trainer import Counters, Trainer
from apex_replay.endpoint import ReplayEndpoint
from apexrl.algorithms import make_algorithm
from apexrl.config import ExperimentConfig, shared_json, to_plain
from apexrl.envs import env_spec, make_vec
from apexrl.replay.engine import ReplayEngine
from apexrl.runtime.checkpoint import Checkpoint, CheckpointStore
from apexrl.runtime.learner_snapshot import restore, snapshot
from apexrl.runtime.lifecycle import Shutdown
from apexrl.runtime.parameter_payload import unpack_parameters
from apexrl.runtime.run_directory import RunDirectory
from apexrl.runtime.seeding import integer_seed
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.telemetry.experiment_log import ExperimentLog
from apexrl.telemetry.experiment_log import Progress as Position
from apexrl.telemetry.learning_curve import draw_learning_curve
from apexrl.transport import coordinator_pb2, replay_pb2, wire
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_session import InsertSession
from apexrl.transport.sample_client import NO_LIMIT, LearnerIdentity, OpenedTable
from apexrl.types import Chunk

INCARNATION = bytes(16)
REPLAY_ATTACHMENT = "replay.safetensors"
LINE_SECONDS = 10.0

MessageT = TypeVar("MessageT", bound=Message)


def over_the_wire(message: MessageT) -> MessageT:
    """What the peer would get: the message serialised and parsed again."""
    return type(message).FromString(message.SerializeToString())


@dataclass
class Trace:
    """A running fingerprint of what happened: rows, keys, probabilities, priorities, parameters."""

    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, *parts: bytes | np.ndarray[Any, Any]) -> None:
        for part in parts:
            self._hash.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())

    def digest(self) -> str:
        return str(self._hash.hexdigest())


class SerialSystem:
    """All services of one run, driven by :meth:`tick`.

    Args:
        config: the experiment; one CPU thread is used whatever it says.
        run_id: of the run, 32 hex digits.
        checkpoint: resume from here, with the replay table if it holds one.
        epoch: of this start.
    """

    def __init__(
        self, config: ExperimentConfig[Any], run_id: str, *, checkpoint: Checkpoint | None = None, epoch: int = 1
    ) -> None:
        configure_torch(1)
        torch.use_deterministic_algorithms(True)
        self.config = config
        self.trace = Trace()
        self.ticks = 0
        self._run_id = run_id
        self._handshake = Handshake(run_id, shared_json(config), "serial")
        self._algorithm = make_algorithm(config, env_spec(config.env))
        (self._spec,) = self._algorithm.tables()
        self.engine = ReplayEngine(boot=epoch % 4096)
        self._endpoint = ReplayEndpoint(self.engine, clock=self._clock)
        self.trainer = self._make_trainer(checkpoint, epoch)
        self._open_streams(epoch, checkpoint)
        self._coordinator = Coordinator(
            run_id, epoch, resumed=False, on_evaluation=lambda evaluation: None, clock=self._clock
        )
        self._make_actor()

    def _clock(self) -> float:
        """Time that passes with ticks, so that nothing depends on the speed of the machine."""
        return self.ticks * 1e-3

    # --- one tick ---

    def tick(self, *, act: bool = True) -> None:
        """One turn of everything. ``act`` False: the learner alone, on what the table holds."""
        if act and not self._insert_stream.has_pending:
            self._act()
        self.engine.maintain()
        self._learn()
        self.ticks += 1
        period = max(1, self.config.actor.parameter_update_period_frames // self.config.env.action_repeat)
        if act and self.ticks % period == 0:
            self._exchange_parameters()

    def drain(self) -> None:
        """Close the open windows, as a stopping actor does."""
        self._insert(self._actor.drain())

    def _act(self) -> None:
        turn = self._actor.step()
        self._membership.report(turn.episodes)
        self._insert(turn.chunks)

    def _insert(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.trace.add(*chunk.blocks, chunk.priorities)
            self._session.put(chunk)
        while (message := self._session.next_message(force=True)) is not None:
            response = self._insert_stream.handle(over_the_wire(message))
            if response is not None:
                self._session.on_response(over_the_wire(response))

    def _learn(self) -> None:
        self._set_insert_limit()
        self._assembler.observe(0, self._table_totals(), self._boot)
        for plan in self._assembler.plan(ready=0):
            self._draw(plan)

    def _draw(self, plan: DrawPlan) -> None:
        request = replay_pb2.SampleRequest(
            draw=replay_pb2.DrawRequest(
                table=self._spec.config.name,
                request_number=plan.request_number,
                counts=wire.to_bytes(plan.counts, "uint32"),
            )
        )
        response = self._sample_stream.handle(over_the_wire(request))
        assert response is not None, "a draw has a reply"
        drawn = wire.draw_from_proto(self._spec.config.signature, self._mirror_slots, over_the_wire(response).draw)
        self.trace.add(drawn.keys, drawn.probabilities)
        for batch in self._assembler.apply(0, drawn, self._boot):
            for learned, priorities in self.trainer.update(batch):
                if priorities is not None:
                    self.trace.add(priorities)
                if priorities is not None and self._spec.config.reads_priorities:
                    update = replay_pb2.UpdatePrioritiesRequest(
                        learner=self._identity.to_proto(),
                        table=self._spec.config.name,
                        keys=wire.to_bytes(learned.keys, "uint64"),
                        priorities=wire.to_bytes(priorities, "float32"),
                    )
                    self._endpoint.update_priorities(over_the_wire(update))
                self._assembler.ring.release(learned)

    def _set_insert_limit(self) -> None:
        (limit,) = self._limiter.insert_limits()
        limits = replay_pb2.InsertLimits(
            limits=[replay_pb2.InsertLimit(table=self._spec.config.name, inserted=NO_LIMIT if limit is None else limit)]
        )
        self._sample_stream.handle(over_the_wire(replay_pb2.SampleRequest(limits=limits)))
        if self._insert_stream.has_pending:
            response = self._insert_stream.advance()
            if response is not None:
                self._session.on_response(over_the_wire(response))

    def _table_totals(self) -> Any:
        (totals,) = over_the_wire(self._sample_stream.totals()).totals.tables
        read = wire.totals_from_proto(totals)
        self.trainer.counters.observe_inserted(read.inserted, self._boot)
        return read

    def _exchange_parameters(self) -> None:
        payload = self.trainer.parameters_payload()
        self.trace.add(payload)
        self._actor.load_parameters(unpack_parameters(payload), self.trainer.version)
        self._membership.version = self.trainer.version
        self._coordinator.progress = Progress(
            version=self.trainer.version,
            learner_updates=self.trainer.state.step,
            global_frames=self.trainer.counters.global_frames,
        )
        self._beat()

    def _beat(self) -> None:
        self._membership.beat(self._heartbeat)
        self._actor.epsilons = lane_epsilons(
            self.config.actor.exploration, self._membership.indices, self._membership.global_frames
        )

    def _heartbeat(
        self, request: coordinator_pb2.HeartbeatRequest, timeout: float | None = None
    ) -> coordinator_pb2.HeartbeatResponse:
        return over_the_wire(self._coordinator.heartbeat(over_the_wire(request)))

    # --- state ---

    def returns(self) -> dict[str, float]:
        """Mean returns of the lanes' last episodes."""
        return self._coordinator.returns()

    def checkpoint(self, *, with_replay: bool) -> Checkpoint:
        """The learner's state, and the replay table beside it if asked for."""
        self.trainer.counters.draw_requests = self._assembler.requests_made
        state = self.engine.table(self._spec.config.name).state() if with_replay else {}
        return Checkpoint(
            snapshot(self.trainer.state, self.trainer.epoch),
            run_id=self._run_id,
            config=to_plain(self.config),
            counters=self.trainer.counters.to_dict(),
            attachments={REPLAY_ATTACHMENT: save_arrays(state)} if with_replay else {},
        )

    def evaluate(self, episodes: int) -> list[float]:
        """Greedy returns of the present parameters, on lanes of their own."""
        env = make_vec(self.config.env, min(episodes, self.config.evaluator.lanes), evaluation=True)
        networks = self._algorithm.make_networks()
        networks.load_state_dict(unpack_parameters(self.trainer.parameters_payload()))
        try:
            reports = evaluate(
                config=self.config,
                env=env,
                algorithm=self._algorithm,
                networks=networks,
                version=self.trainer.version,
                episodes=episodes,
                epsilon=self.config.evaluator.epsilon,
                seed=integer_seed(self.config.seed, "evaluator"),
            )
        finally:
            env.close()
        return [report.episode_return for report in reports]

    # --- start ---

    def _make_trainer(self, checkpoint: Checkpoint | None, epoch: int) -> Trainer:
        device = torch.device("cpu")
        state = make_state(self.config, self._algorithm, device)
        counters = Counters(self.config.env.action_repeat)
        if checkpoint is not None:
            restore(state, checkpoint.snapshot)
            counters = Counters(**checkpoint.counters)
        return Trainer(
            config=self.config,
            algorithm=self._algorithm,
            state=state,
            device=device,
            epoch=epoch,
            counters=counters,
        )

    def _open_streams(self, epoch: int, checkpoint: Checkpoint | None) -> None:
        table = self._spec.config
        self._identity = LearnerIdentity(epoch, INCARNATION)
        self._session = InsertSession(
            table, max(self.config.actor.max_unacked_chunks, 2 * self.config.actor.lanes), incarnation=INCARNATION
        )
        opening = over_the_wire(self._session.open_request(self._handshake))
        self._insert_stream, inserted = self._endpoint.open_insert(opening)
        self._session.on_response(over_the_wire(inserted))
        if checkpoint is not None and REPLAY_ATTACHMENT in checkpoint.attachments:
            self.engine.table(table.name).load_state(load_arrays(checkpoint.attachments[REPLAY_ATTACHMENT]))
            # The table's counters go on, so to those who count by boots nothing was restarted.
            self.engine.boot_id = bytes.fromhex(checkpoint.counters["shard_boots"][0])
        slots = mirror_slots(table, 1, self.config.learner.batch_size, self.config.learner.mirror_bytes)
        open_request = replay_pb2.SampleRequest(
            open=replay_pb2.SampleOpen(
                handshake=self._handshake.to_proto(),
                learner=self._identity.to_proto(),
                tables=[replay_pb2.MirroredTable(table=wire.table_config_to_proto(table), mirror_slots=slots)],
                run_seed=self.config.seed,
            )
        )
        self._sample_stream, response = self._endpoint.open_sample(over_the_wire(open_request))
        opened = over_the_wire(response).opened
        (opened_table,) = opened.tables
        self._mirror_slots = opened_table.mirror_slots
        self._boot = opened.boot
        depth = PrefetchDepth(fixed=1)
        self._limiter = make_limiter(self.config, self._spec, depth)
        self._assembler = BatchAssembler(
            table,
            num_shards=1,
            batch_size=self.config.learner.batch_size,
            depth=depth,
            limiter=self._limiter,
            importance_sampling_exponent=self.trainer.importance_sampling_exponent,
            run_seed=self.config.seed,
            requests_made=self.trainer.counters.draw_requests,
        )
        totals = wire.totals_from_proto(opened_table.totals)
        self._assembler.open(0, OpenedTable(opened_table.num_pages, opened_table.mirror_slots, totals), self._boot)

    def _make_actor(self) -> None:
        lanes = self.config.actor.lanes
        self._membership = Membership(coordinator_pb2.ROLE_ACTOR, lanes, incarnation=INCARNATION)
        networks = self._algorithm.make_networks()
        self._actor = ActorLoop(
            config=self.config,
            env=make_vec(self.config.env, lanes, num_threads=1),
            algorithm=self._algorithm,
            networks=networks,
            seed=integer_seed(self.config.seed, "actor"),
            clock=self._clock,
        )
        self._exchange_parameters()


def run_serial(config: ExperimentConfig[Any], run: RunDirectory, shutdown: Shutdown) -> int:
    """``apex train --serial``: tick until the run ends or is stopped, saving at the end."""
    with CheckpointStore(run.checkpoints, config.learner.keep_checkpoints) as store, ExperimentLog(run.path) as log:
        epoch = run.epoch_file.take_next(INCARNATION)
        system = SerialSystem(config, run.run_id, checkpoint=store.load_newest(), epoch=epoch)
        last = time.monotonic()
        last_updates = system.trainer.state.step
        while not shutdown.requested and not system.trainer.finished():
            system.tick()
            now = time.monotonic()
            if now - last >= LINE_SECONDS:
                rate = (system.trainer.state.step - last_updates) / (now - last)
                last, last_updates = now, system.trainer.state.step
                _report(system, log, rate)
        store.save(system.checkpoint(with_replay=True))
        if not shutdown.requested:
            returns = system.evaluate(config.evaluator.episodes)
            log.evaluation(_position(system), returns, system.trainer.version, config.evaluator.epsilon)
            print(f"return {np.mean(returns):.2f} ± {np.std(returns):.2f} over {len(returns)} greedy episodes")
    draw_learning_curve(run.metrics_csv, run.learning_curve_png, config.name)
    print(f"trace {system.trace.digest()} after {system.ticks} ticks; run {run.path}")
    return 0


def _position(system: SerialSystem) -> Position:
    system.trainer.advance_clock()
    return Position(
        wall_seconds=system.trainer.counters.seconds,
        global_frames=system.trainer.counters.global_frames,
        learner_updates=system.trainer.state.step,
        epoch=system.trainer.epoch,
    )


def _report(system: SerialSystem, log: ExperimentLog, updates_per_second: float) -> None:
    position = _position(system)
    returns = system.returns()
    log.scalars(position, {**returns, "updates_per_second": updates_per_second})
    shown = ", ".join(f"{name} {value:.1f}" for name, value in returns.items())
    print(
        f"ticks {system.ticks:,} | frames {position.global_frames:,} | updates {position.learner_updates:,} "
        f"({updates_per_second:.1f}/s) | {shown or 'no episode yet'}",
        flush=True,
    )
