"""The actor and evaluator processes: loops around :mod:`apex_actor.loop` that talk to the other services."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from apex_actor.evaluation import evaluate
from apex_actor.exploring import hashed_indices, lane_epsilons
from apex_actor.loop import ActorLoop
from apex_actor.membership import HeartbeatThread, Membership
from apexrl.algorithms import make_algorithm
from apexrl.config import ExperimentConfig, shared_json
from apexrl.envs import env_spec, make_vec
from apexrl.runtime.lifecycle import Shutdown
from apexrl.runtime.malloc import trim_heaps
from apexrl.runtime.parameter_payload import unpack_parameters
from apexrl.runtime.seeding import integer_seed
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.telemetry.logging import Waiting, get_logger
from apexrl.telemetry.metrics import ActorMetrics, EvaluatorMetrics
from apexrl.telemetry.probes import Probes
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport.coordinator_client import CoordinatorClient
from apexrl.transport.handshake import Handshake
from apexrl.transport.insert_fleet import InsertFleet
from apexrl.transport.parameter_client import ParameterClient
from apexrl.types import Chunk, Parameters, ParameterVersion

log = get_logger(__name__)

#: Parameters are looked for at the configured period, give or take this share, so that a fleet does not ask at once.
PERIOD_JITTER = 0.2
DRAIN_SECONDS = 10.0
#: A drain without an acknowledgement for this long has met a shard that takes nothing.
DRAIN_PATIENCE_SECONDS = 1.0
DRAIN_POLL_SECONDS = 0.2
#: Metrics and reports are brought up to date this often.
REPORT_SECONDS = 1.0


def parameter_addresses(config: ExperimentConfig[Any], role: pb.Role.ValueType, incarnation: bytes) -> tuple[str, ...]:
    """HOST:PORT of the parameter services of a process, its first choice first.

    Actors are spread over the relays by their ``incarnation``, 16 random bytes: it is known before any lease is. The
    few evaluators ask the learner, so that what they measure is not older than it must be.
    """
    relays = config.actor.parameter_addresses
    if not relays or role != pb.ROLE_ACTOR:
        return (config.learner.address,)
    first = int.from_bytes(incarnation, "little") % len(relays)
    return (*relays[first:], *relays[:first])


class _Peers:
    """What actor and evaluator have in common: their standing with the coordinator, and parameters."""

    def __init__(self, config: ExperimentConfig[Any], role: pb.Role.ValueType, lanes: int) -> None:
        self._shared_json = shared_json(config)
        self.membership = Membership(role, lanes)
        self._coordinator = CoordinatorClient(config.learner.address, self.handshake)
        self._heart = HeartbeatThread(self.membership, self._coordinator)
        self._heart.start()
        first, *others = parameter_addresses(config, role, self.membership.incarnation)
        self.parameters = ParameterClient(first, self.handshake, fallbacks=others)

    def handshake(self) -> Handshake:
        """This process's, with the run that the coordinator named last."""
        return Handshake(self.membership.run_id, self._shared_json)

    def wait_for_start(self, stop: Shutdown, probes: Probes) -> Parameters | None:
        """The first parameters, once coordinator and parameter service have answered; None if stopped before."""
        waiting = Waiting(log)
        while not stop.requested:
            probes.beat()
            newest = self.parameters.newest
            if newest is not None and self._heart.answered.is_set():
                waiting.done()
                return newest
            waiting.on(self.parameters.waiting() or self._coordinator.waiting() or "the coordinator's first answer")
            stop.wait(0.1)
        return None

    def close(self) -> None:
        self._heart.stop(timeout_seconds=1.0)
        self.parameters.close()
        self._coordinator.close()


def run_actor(
    config: ExperimentConfig[Any], stop: Shutdown, metrics: ActorMetrics, on_ready: Callable[[], None]
) -> None:
    """Act until ``stop`` is set, then hand over what is still open.

    ``on_ready`` is called when the first turn is done.
    """
    configure_torch(config.actor.inference_threads)
    algorithm = make_algorithm(config, env_spec(config.env))
    networks = algorithm.make_networks()
    env = make_vec(config.env, config.actor.lanes, num_threads=config.actor.env_threads)
    peers = _Peers(config, pb.ROLE_ACTOR, config.actor.lanes)
    try:
        first = peers.wait_for_start(stop, metrics.probes)
        if first is None:
            return
        index = peers.membership.indices[0] if peers.membership.indices else 0
        seed = integer_seed(config.seed, "actor", index, peers.membership.incarnation)
        loop = ActorLoop(config=config, env=env, algorithm=algorithm, networks=networks, seed=seed)
        insert = InsertFleet(
            config.replay.addresses,
            peers.handshake,
            algorithm.tables()[0].config,
            config.actor.max_unacked_chunks,
            first=index // config.actor.lanes,
        )
        _Acting(config, loop, peers, insert, metrics, stop).run(first, on_ready)
    finally:
        peers.close()
        env.close()


class _Acting:
    """The actor's main loop."""

    def __init__(
        self,
        config: ExperimentConfig[Any],
        loop: ActorLoop,
        peers: _Peers,
        insert: InsertFleet,
        metrics: ActorMetrics,
        stop: Shutdown,
    ) -> None:
        self._config = config
        self._loop = loop
        self._peers = peers
        self._insert = insert
        self._metrics = metrics
        self._stop = stop
        self._generator = np.random.default_rng()
        self._steps_until_refresh = 0
        self._reported = 0.0
        self._steps = 0
        self._run_id = ""
        self._loaded = 0.0

    def run(self, first: Parameters, on_ready: Callable[[], None]) -> None:
        self._load(first)
        self._refresh()
        while not self._stop.requested:
            self._metrics.probes.beat()
            if self._peers.membership.finished:
                self._report()
                self._stop.wait(0.2)
                continue
            turn = self._loop.step()
            self._steps += turn.env_steps
            for episode in turn.episodes:
                self._metrics.observe_episode(episode.episode_return, episode.length_steps, episode.epsilon)
            self._hand_over(turn.chunks)
            self._peers.membership.report(turn.episodes)
            self._steps_until_refresh -= 1
            if self._steps_until_refresh <= 0:
                self._refresh()
            if not self._metrics.probes.ready:
                self._metrics.probes.ready = True
                on_ready()
            self._report()
        self._drain()

    def _hand_over(self, chunks: list[Chunk]) -> None:
        """Give chunks to the insert client; waits while its window is full, but not beyond a stop."""
        rest = chunks
        while rest and not self._stop.requested:
            rest = rest[self._insert.put(rest, timeout=0.5) :]
            self._metrics.probes.beat()
            self._report()
        self._metrics.transitions_sent.inc(sum(chunk.num_items for chunk in chunks[: len(chunks) - len(rest)]))
        self._metrics.transitions_dropped.labels("stopped").inc(sum(chunk.num_items for chunk in rest))

    def _refresh(self) -> None:
        """Look for newer parameters and set epsilons; the next look is a period away, jittered."""
        newest = self._peers.parameters.newest
        if newest is not None and (newest.version > self._loop.version or newest.run_id != self._run_id):
            self._load(newest)
        self._peers.parameters.request()
        membership = self._peers.membership
        membership.version = self._loop.version
        indices = membership.indices or hashed_indices(membership.incarnation, self._loop.num_lanes)
        self._loop.epsilons = lane_epsilons(self._config.actor.exploration, indices, membership.global_frames)
        period = self._config.actor.parameter_update_period_frames / self._config.env.action_repeat
        jitter = 1.0 + PERIOD_JITTER * (2.0 * self._generator.random() - 1.0)
        self._steps_until_refresh = max(1, round(period * jitter))

    def _load(self, parameters: Parameters) -> None:
        self._loop.load_parameters(unpack_parameters(parameters.payload), parameters.version)
        self._metrics.params_fetch_seconds.observe(self._peers.parameters.last_fetch_seconds)
        self._run_id = parameters.run_id
        self._loaded = time.monotonic()

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported < REPORT_SECONDS:
            return
        self._reported = now
        metrics, loop, membership = self._metrics, self._loop, self._peers.membership
        metrics.follow(metrics.env_steps, self._steps)
        metrics.follow(metrics.env_frames, self._steps * self._config.env.action_repeat)
        metrics.epsilon.set(float(np.mean(loop.epsilons)))
        metrics.lease_info.labels("lease").set(1.0 if membership.indices else 0.0)
        metrics.lease_info.labels("hash").set(0.0 if membership.indices else 1.0)
        metrics.slot.set(min(membership.indices, default=0))
        metrics.params_epoch.set(loop.version.epoch)
        metrics.params_version.set(loop.version.step)
        metrics.params_age_seconds.set(now - self._loaded)
        metrics.insert_queue_transitions.set(self._insert.unacked * self._config.replay.chunk_starts)
        metrics.follow(metrics.params_fetch_bytes, self._peers.parameters.fetched_bytes)
        phases = loop.phase_seconds
        for name, seconds in (
            ("env", phases.env),
            ("infer", phases.infer),
            ("build", phases.build),
            ("insert_wait", self._insert.blocked_seconds),
        ):
            metrics.follow(metrics.phase_seconds, seconds, name)

    def _drain(self) -> None:
        """Close open windows as truncated and send what is left, within ten seconds.

        A shard at its insert limit takes nothing any more: what it has not taken by then is dropped and counted.
        """
        rest = self._loop.drain()
        deadline = time.monotonic() + DRAIN_SECONDS
        progress = (len(rest), self._insert.acked)
        moved = time.monotonic()
        while (rest or self._insert.unacked) and time.monotonic() < min(deadline, moved + DRAIN_PATIENCE_SECONDS):
            if rest:
                rest = rest[self._insert.put(rest, timeout=DRAIN_POLL_SECONDS) :]
            else:
                self._insert.flush(DRAIN_POLL_SECONDS)
            if (len(rest), self._insert.acked) != progress:
                progress = (len(rest), self._insert.acked)
                moved = time.monotonic()
        lost = sum(chunk.num_items for chunk in rest)
        self._metrics.transitions_dropped.labels("stopped").inc(lost)
        log.info("drained", items_lost=lost, chunks_unacknowledged=self._insert.unacked)
        self._insert.close()


def run_evaluator(config: ExperimentConfig[Any], stop: Shutdown, metrics: EvaluatorMetrics) -> None:
    """Evaluate the newest parameters, again and again, until ``stop`` is set or the run is over."""
    configure_torch(config.actor.inference_threads)
    evaluator = config.evaluator
    algorithm = make_algorithm(config, env_spec(config.env))
    networks = algorithm.make_networks()
    lanes = min(evaluator.lanes, evaluator.episodes)
    env = make_vec(config.env, lanes, num_threads=config.actor.env_threads, evaluation=True)
    peers = _Peers(config, pb.ROLE_EVALUATOR, lanes)
    evaluated: tuple[str, ParameterVersion] | None = None
    try:
        first = peers.wait_for_start(stop, metrics.probes)
        metrics.probes.ready = first is not None
        metrics.epsilon.set(evaluator.epsilon)
        round_number = 0
        while first is not None and not stop.requested:
            started = time.monotonic()
            newest = peers.parameters.newest or first
            if (newest.run_id, newest.version) != evaluated:
                networks.load_state_dict(unpack_parameters(newest.payload))
                peers.membership.version = newest.version
                metrics.params_epoch.set(newest.version.epoch)
                metrics.params_version.set(newest.version.step)
                round_number += 1
                reports = evaluate(
                    config=config,
                    env=env,
                    algorithm=algorithm,
                    networks=networks,
                    version=newest.version,
                    episodes=evaluator.episodes,
                    epsilon=evaluator.epsilon,
                    seed=integer_seed(config.seed, "evaluator", round_number, peers.membership.incarnation),
                    on_step=metrics.probes.beat,
                    stop=lambda: stop.requested,
                )
                for report in reports:
                    metrics.observe_episode(report.episode_return, report.length_steps)
                if reports:
                    peers.membership.report(reports)
                    evaluated = (newest.run_id, newest.version)
                trim_heaps()
            peers.parameters.request()
            rest = evaluator.period_seconds - (time.monotonic() - started)
            again = time.monotonic() + (max(0.5, rest) if not peers.membership.finished else 0.5)
            while (left := again - time.monotonic()) > 0 and not stop.requested:
                metrics.probes.beat()
                stop.wait(min(left, 1.0))
    finally:
        peers.close()
        env.close()
