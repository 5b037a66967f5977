"""The learner process: connects the trainer to the shards, the serving child and the disk."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from apex_learner.coordinator import Progress
from apex_learner.devices import pick_device, pick_mirror_device, require_compiler
from apex_learner.publisher import Publisher
from apex_learner.rates import Rates
from apex_learner.sampling import Sampling
from apex_learner.trainer import Counters, NonfiniteLossError, Trainer
from apexrl.algorithms import make_algorithm
from apexrl.algorithms.base import Algorithm, LearnerState
from apexrl.config import ConfigError, ExperimentConfig, shared_json, to_plain
from apexrl.env_types import EnvSpec
from apexrl.envs import env_spec
from apexrl.experience.batch import BatchBuffer
from apexrl.runtime.checkpoint import Checkpoint, CheckpointStore
from apexrl.runtime.checkpoint_writer import CheckpointWriter, Written
from apexrl.runtime.learner_snapshot import restore, snapshot
from apexrl.runtime.lifecycle import Shutdown
from apexrl.runtime.run_directory import RunDirectory
from apexrl.runtime.seeding import integer_seed
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.telemetry.logging import Waiting, get_logger
from apexrl.telemetry.metrics import LearnerMetrics, TotalCounter
from apexrl.transport.errors import ListenError
from apexrl.transport.handshake import Handshake
from apexrl.transport.info_client import UnreachableError, fetch_info
from apexrl.transport.sample_client import LearnerIdentity
from apexrl.types import TableTotals

log = get_logger(__name__)

#: Any pure-Python thread may hold the interpreter for this long; the default 5 ms is several updates of a fast learner.
SWITCH_INTERVAL_SECONDS = 0.0001
#: A shard that has not answered within this time has no say in the epoch.
EPOCH_QUESTION_SECONDS = 1.0
STATUS_SECONDS = 0.5
LOG_SECONDS = 10.0


def make_state(config: ExperimentConfig[Any], algorithm: Algorithm, device: torch.device) -> LearnerState:
    """A fresh learner state on ``device``, a function of the run's seed alone."""
    torch.manual_seed(integer_seed(config.seed, "networks"))
    networks = algorithm.make_networks().to(device)
    return algorithm.init(networks, integer_seed(config.seed, "learner"))


class LearnerProcess:
    """One learner from start to stop.

    Args:
        config: the experiment.
        run: the run's directory, with its run id.
        metrics: of this process.
        discard_other_run: tell shards to drop another run's experience.
    """

    def __init__(
        self,
        config: ExperimentConfig[Any],
        run: RunDirectory,
        metrics: LearnerMetrics,
        *,
        discard_other_run: bool,
    ) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        configure_torch(config.learner.threads)
        self._config = config
        self._run = run
        self._metrics = metrics
        self._spec: EnvSpec = env_spec(config.env)
        self._algorithm = make_algorithm(config, self._spec)
        (self._table,) = self._algorithm.tables()
        device = pick_device(config.learner.device)
        mirror_device = pick_mirror_device(config.learner.mirror_device, device)
        if config.learner.compile:
            require_compiler(device)
        self._store = CheckpointStore(run.checkpoints, config.learner.keep_checkpoints)
        try:
            self._instance = os.urandom(16)
            self._epoch = run.epoch_file.take_next(self._instance, self._shards_epoch())
            self._store.fence = lambda: run.epoch_file.check(self._epoch, self._instance)
            self._trainer = self._make_trainer(device)
            self._publisher = self._make_publisher()
        except BaseException:
            self._store.close()
            raise
        self._writer = CheckpointWriter(
            self._store, on_written=self._checkpoint_written, on_failed=metrics.checkpoint_failures.inc
        )
        self._sampling = Sampling(
            config,
            self._table,
            Handshake(run.run_id, shared_json(config)),
            LearnerIdentity(self._epoch, self._instance),
            discard_other_run=discard_other_run,
            importance_sampling_exponent=self._trainer.importance_sampling_exponent,
            requests_made=self._trainer.counters.draw_requests,
            device=mirror_device,
            on_totals=self._take_totals,
            on_latency=lambda shard, seconds: metrics.sample_latency_seconds.labels(str(shard)).observe(seconds),
        )
        self._rates = Rates()
        self._waiting = Waiting(log)
        self._published = self._saved = self._logged = self._reported = 0.0
        self._finished = False
        for counter, total in self._totals_of_the_run():
            metrics.follow_from(counter, total)
        metrics.epoch.set(self._epoch)
        metrics.active.set(1)
        metrics.min_replay_transitions.set(config.replay.min_items)
        metrics.replay_shards_expected.set(len(config.replay.addresses))
        metrics.checkpoint_interval_seconds.set(config.learner.checkpoint_period_seconds)

    @property
    def address(self) -> str:
        """HOST:PORT of the parameter service and the coordinator."""
        return self._publisher.address

    def run(self, shutdown: Shutdown) -> None:
        """Train until a stop is requested. A run that reaches its end is saved, and stays to be seen and asked.

        Raises:
            Fenced: a learner of a higher epoch has taken over.
            NonfiniteLossError: the updates are broken; nothing more was saved.
        """
        log.info(
            "learner starts",
            run_id=self._run.run_id,
            epoch=self._epoch,
            step=self._trainer.state.step,
            device=str(self._trainer.device),
            address=self.address,
        )
        self._publish()
        self._saved = time.monotonic()
        try:
            while not shutdown.requested:
                if self._finished:
                    shutdown.wait(STATUS_SECONDS)
                else:
                    self._turn()
                self._housekeeping()
            self._settle()
            self._save()
            self._writer.wait()
        except NonfiniteLossError:
            self._store.set_aside_newest()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Stop threads and the child, release the directory. Saves nothing."""
        self._sampling.close()
        self._publisher.close()
        self._writer.close()
        self._store.close()

    # --- the loop ---

    def _turn(self) -> None:
        """Wait for a batch and learn from it."""
        started = time.perf_counter()
        batch = self._sampling.next(timeout_seconds=0.25)
        got = time.perf_counter()
        self._rates.waited(got - started)
        if batch is None:
            self._waiting.on(self._sampling.waiting() or "the replay shards' answers to draws")
            return
        self._waiting.done()
        self._learn(batch)
        seconds = time.perf_counter() - got
        self._sampling.depth.observe(seconds)
        self._rates.updated(seconds)
        if self._trainer.finished():
            self._finish()

    def _learn(self, batch: BatchBuffer) -> None:
        for learned in self._trainer.update(batch):
            self._sampling.learned(*learned)

    def _settle(self) -> None:
        """Wait for the device: what is saved or said to be the end is known to be whole."""
        for learned in self._trainer.settle():
            self._sampling.learned(*learned)

    def _finish(self) -> None:
        self._finished = True
        self._settle()
        log.info("the run is over", step=self._trainer.state.step, frames=self._trainer.counters.global_frames)
        self._publish()
        self._save()

    def _housekeeping(self) -> None:
        now = time.monotonic()
        self._metrics.probes.beat()
        learner = self._config.learner
        if now - self._published >= learner.publish_period_seconds and not self._finished:
            self._publish()
        if now - self._saved >= learner.checkpoint_period_seconds and not self._finished:
            self._save()
        if now - self._reported >= STATUS_SECONDS:
            self._reported = now
            self._report()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self._publisher.log_scalars(self._scalars())

    def _publish(self) -> None:
        started = time.perf_counter()
        if self._trainer.trustworthy:
            self._publisher.publish(self._trainer.version, self._trainer.parameters_payload())
            self._metrics.params_publish.inc()
            self._metrics.params_version.set(self._trainer.state.step)
            self._metrics.probes.ready = True
        self._metrics.phase_seconds.labels("publish").inc(time.perf_counter() - started)
        self._published = time.monotonic()

    def _save(self) -> None:
        self._saved = time.monotonic()
        if not self._trainer.trustworthy:
            return
        started = time.perf_counter()
        self._trainer.advance_clock()
        self._trainer.counters.draw_requests = self._sampling.requests_made
        self._writer.submit(
            Checkpoint(
                snapshot(self._trainer.state, self._epoch),
                run_id=self._run.run_id,
                config=to_plain(self._config),
                counters=self._trainer.counters.to_dict(),
            )
        )
        self._metrics.phase_seconds.labels("checkpoint").inc(time.perf_counter() - started)

    def _report(self) -> None:
        for evaluation in self._publisher.evaluations():
            log.info("evaluation", version=str(evaluation.version), mean_return=round(evaluation.mean_return, 2))
            self._store.mark_best(evaluation.version, evaluation.mean_return)
        self._writer.check()
        self._publisher.report(self._progress())
        self._export()

    def _progress(self) -> Progress:
        trainer = self._trainer
        frames = trainer.counters.global_frames
        self._rates.observe(trainer.state.step, frames)
        waiting = self._waiting.reason
        return Progress(
            version=trainer.version,
            wall_seconds=trainer.counters.seconds,
            learner_updates=trainer.state.step,
            global_frames=frames,
            updates_per_second=self._rates.updates_per_second,
            frames_per_second=self._rates.frames_per_second,
            samples_per_insert=self._sampling.samples_per_insert,
            replay_items=self._sampling.num_items,
            min_replay_items=self._config.replay.min_items,
            loss=self._metric("loss"),
            batch_wait_ratio=self._rates.wait_ratio,
            seconds_left=trainer.seconds_left(self._rates.updates_per_second, self._rates.frames_per_second),
            finished=self._finished,
            waiting=[waiting] if waiting and not self._finished else [],
        )

    def _metric(self, name: str) -> float:
        output = self._trainer.last_output
        return float(output.metrics[name]) if output is not None and name in output.metrics else 0.0

    def _scalars(self) -> dict[str, float]:
        """One row of the experiment log, besides what the coordinator knows."""
        output = self._trainer.last_output
        learned = {name: float(value) for name, value in output.metrics.items()} if output is not None else {}
        learned.pop("nonfinite", None)
        return {
            **learned,
            "updates_per_second": self._rates.updates_per_second,
            "frames_per_second": self._rates.frames_per_second,
            "samples_per_insert": self._sampling.samples_per_insert,
            "replay_items": self._sampling.num_items,
            "batch_wait_ratio": self._rates.wait_ratio,
            "nonfinite_updates": self._trainer.counters.nonfinite_updates,
        }

    def _totals_of_the_run(self) -> tuple[tuple[TotalCounter, int], ...]:
        """What the learners of this run have done, of which metrics count this one's part."""
        metrics, trainer = self._metrics, self._trainer
        return (
            (metrics.steps, trainer.state.step),
            (metrics.transitions, trainer.state.step * self._config.learner.batch_size),
            (metrics.nonfinite, trainer.counters.nonfinite_updates),
        )

    def _export(self) -> None:
        metrics, trainer = self._metrics, self._trainer
        for counter, total in self._totals_of_the_run():
            metrics.follow(counter, total)
        for seconds in self._rates.take_durations():
            metrics.step_seconds.observe(seconds)
        metrics.follow(metrics.phase_seconds, self._rates.total_wait_seconds, "batch_wait")
        metrics.follow(metrics.phase_seconds, self._rates.total_update_seconds, "update")
        metrics.prefetch_batches.set(self._sampling.num_ready)
        metrics.finished.set(self._finished)
        metrics.global_frames.set(trainer.counters.global_frames)
        metrics.samples_per_insert.set(self._sampling.samples_per_insert)
        metrics.replay_shards_live.set(self._sampling.num_shards_live)
        counts = self._sampling.counts
        metrics.follow(metrics.drawn_items, counts.items)
        metrics.follow(metrics.mirror_chunks, counts.chunks)
        metrics.follow(metrics.mirror_bytes, counts.chunk_bytes)
        metrics.follow(metrics.mirror_decode_seconds, counts.decode_seconds)
        metrics.follow(metrics.redraws, counts.redraws)
        metrics.calls = self._publisher.calls
        fleet = self._publisher.fleet
        metrics.follow(metrics.params_served_bytes, fleet.get("served_bytes", 0.0))
        metrics.follow(metrics.params_not_modified, fleet.get("not_modified", 0.0))
        metrics.params_waiting_transfers.set(fleet.get("waiting_transfers", 0.0))
        metrics.actor_leases.labels("held").set(fleet.get("leases", 0.0))
        metrics.parameter_lag_updates.set(fleet.get("parameter_lag_updates", 0.0))
        for name, gauge in (
            ("loss", metrics.loss),
            ("td_error_abs_mean", metrics.td_error_abs_mean),
            ("q_mean", metrics.q_mean),
            ("q_max", metrics.q_max),
            ("grad_norm", metrics.grad_norm),
            ("weight_min", metrics.is_weight_min),
        ):
            gauge.set(self._metric(name))

    # --- start ---

    def _shards_epoch(self) -> int:
        """The highest epoch that a reachable shard has accepted."""

        def epoch_of(address: str) -> int:
            try:
                return int(fetch_info(address, timeout_seconds=EPOCH_QUESTION_SECONDS).learner_epoch)
            except UnreachableError:
                return 0

        with ThreadPoolExecutor(len(self._config.replay.addresses)) as pool:
            return max(pool.map(epoch_of, self._config.replay.addresses))

    def _make_trainer(self, device: torch.device) -> Trainer:
        config = self._config
        state = make_state(config, self._algorithm, device)
        counters = Counters(config.env.action_repeat)
        saved = self._store.load_newest()
        if saved is not None:
            restore(state, saved.snapshot)
            counters = Counters(**saved.counters)
            log.info("resumed", version=str(saved.version), frames=counters.global_frames)
        return Trainer(
            config=config,
            algorithm=self._algorithm,
            state=state,
            device=device,
            epoch=self._epoch,
            counters=counters,
        )

    def _make_publisher(self) -> Publisher:
        try:
            return Publisher(
                run_id=self._run.run_id,
                epoch=self._epoch,
                shared_config_json=shared_json(self._config),
                listen=self._config.learner.listen,
                log_directory=Path(self._run.path),
                resumed=self._trainer.state.step > 0,
                security=self._config.security,
            )
        except ListenError as error:
            raise ConfigError(f"learner.listen: {error}") from error

    def _take_totals(self, shard: int, totals: TableTotals, boot: bytes) -> None:
        self._trainer.counters.observe_inserted(totals.inserted, boot, shard)

    def _checkpoint_written(self, written: Written) -> None:
        self._metrics.checkpoint_last_success.set_to_current_time()
        self._metrics.checkpoint_bytes.set(written.num_bytes)
