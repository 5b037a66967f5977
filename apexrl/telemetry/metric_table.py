"""The one list of Prometheus metrics: names, types, labels, help, buckets.

Base units (seconds, bytes); counters end in ``_total``; no label has more values than a fixed list or the number of
shards and tables. Dashboards, alerts and documentation are tested against this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus metric types in use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


@dataclass(frozen=True)
class Metric:
    """One metric. ``buckets`` are upper bounds of a histogram."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_FETCH_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_CALL_SECONDS = (0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LATENCY_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

_C, _G, _H, _S = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM, Kind.SUMMARY

METRICS: tuple[Metric, ...] = (
    Metric("apex_build_info", _G, "1; version of the software and name of the service.", ("version", "service")),
    # --- gRPC servers: replay shards, the learner, relays ---
    Metric("apex_grpc_server_handled_total", _C, "Calls that ended, by gRPC status.", ("method", "code")),
    Metric(
        "apex_grpc_server_handling_seconds",
        _H,
        "Time of a call from its start; without those in which both sides stream, which last.",
        ("method",),
        _CALL_SECONDS,
    ),
    Metric("apex_grpc_server_in_flight", _G, "Calls under way; of streams: open ones.", ("method",)),
    # --- actor ---
    Metric("apex_actor_env_frames_total", _C, "Environment frames (steps times action repeat)."),
    Metric("apex_actor_env_steps_total", _C, "Environment steps, all lanes together."),
    Metric("apex_actor_episodes_total", _C, "Finished episodes."),
    Metric("apex_actor_episode_return", _S, "Unclipped returns, by exploration of the lane.", ("eps_band",)),
    Metric("apex_actor_episode_length_steps", _S, "Steps per episode, by exploration of the lane.", ("eps_band",)),
    Metric("apex_actor_epsilon", _G, "Mean epsilon of the lanes."),
    Metric("apex_actor_slot", _G, "Lowest exploration index held."),
    Metric("apex_actor_lease_info", _G, "1; where the exploration indices come from: lease or hash.", ("source",)),
    Metric("apex_actor_params_age_seconds", _G, "Seconds since the parameters in use were fetched."),
    Metric("apex_actor_params_epoch", _G, "Epoch of the parameters in use."),
    Metric("apex_actor_params_version", _G, "Learner step of the parameters in use."),
    Metric("apex_actor_params_fetch_seconds", _H, "Time of a fetch that brought new parameters.", (), _FETCH_SECONDS),
    Metric("apex_actor_params_fetch_bytes_total", _C, "Bytes of parameters fetched."),
    Metric("apex_actor_transitions_sent_total", _C, "Items handed to the sender."),
    Metric("apex_actor_transitions_dropped_total", _C, "Items given up, by reason: stopped.", ("reason",)),
    Metric("apex_actor_insert_queue_transitions", _G, "Items in chunks not yet acknowledged."),
    Metric("apex_actor_phase_seconds_total", _C, "Time by phase: env, infer, build (chunks), insert_wait.", ("phase",)),
    # --- replay ---
    Metric("apex_replay_size_transitions", _G, "Items in the table.", ("table",)),
    Metric("apex_replay_capacity_transitions", _G, "Soft capacity of the table in items.", ("table",)),
    Metric("apex_replay_bytes", _G, "Encoded bytes held (blocks) and of the slabs around them.", ("table", "kind")),
    Metric("apex_replay_inserts_total", _C, "Items inserted.", ("table",)),
    Metric("apex_replay_samples_total", _C, "Items drawn.", ("table",)),
    Metric("apex_replay_evictions_total", _C, "Items evicted.", ("table",)),
    Metric(
        "apex_replay_priority_updates_total",
        _C,
        "Priority updates: applied, or stale because the item had left.",
        ("table", "result"),
    ),
    Metric("apex_replay_duplicates_total", _C, "Chunks received again and dropped.", ("table",)),
    Metric(
        "apex_replay_rejected_total",
        _C,
        "Messages refused, by reason: malformed, too_large, handshake, epoch.",
        ("reason",),
    ),
    Metric("apex_replay_priority_sum", _G, "Sum of the selector's weights of all items.", ("table",)),
    Metric("apex_replay_priority_max", _G, "Highest raw priority seen by the table.", ("table",)),
    Metric("apex_replay_learner_epoch", _G, "Epoch of the learner the shard obeys."),
    Metric("apex_replay_insert_streams", _G, "Open streams of actors."),
    Metric("apex_replay_sample_streams", _G, "Open streams of learners."),
    Metric("apex_replay_engine_queue_commands", _G, "Commands waiting for the engine."),
    Metric("apex_replay_journal_bytes_total", _C, "Bytes written to the journal."),
    Metric("apex_replay_journal_dropped_total", _C, "Chunks not journaled: the disk was full, or too slow."),
    Metric("apex_replay_journal_failing", _G, "1 while the journal cannot be written."),
    # --- learner ---
    Metric("apex_learner_steps_total", _C, "Updates done by this process."),
    Metric("apex_learner_transitions_total", _C, "Items learned from by this process."),
    Metric("apex_learner_step_seconds", _H, "Time of one update.", (), _STEP_SECONDS),
    Metric(
        "apex_learner_phase_seconds_total",
        _C,
        "Time of the trainer by phase: batch_wait, update, publish, checkpoint (copying the state).",
        ("phase",),
    ),
    Metric("apex_learner_prefetch_batches", _G, "Batches ready for the trainer."),
    Metric("apex_learner_drawn_items_total", _C, "Items that shards drew for this process."),
    Metric("apex_learner_mirror_chunks_total", _C, "Chunks sent because the mirror lacked them (its misses)."),
    Metric("apex_learner_mirror_bytes_total", _C, "Encoded bytes of those chunks."),
    Metric("apex_learner_mirror_decode_seconds_total", _C, "Time to decode them and copy them to their slots."),
    Metric("apex_learner_redraws_total", _C, "Times that parts of batches were asked of another shard."),
    Metric("apex_learner_sample_latency_seconds", _H, "Draw request to reply.", ("shard",), _LATENCY_SECONDS),
    Metric("apex_learner_loss", _G, "Loss of the last reported update."),
    Metric("apex_learner_td_error_abs_mean", _G, "Mean |TD error| of the last reported batch."),
    Metric("apex_learner_q_mean", _G, "Mean Q of the actions in the last reported batch."),
    Metric("apex_learner_q_max", _G, "Highest Q in the last reported batch."),
    Metric("apex_learner_grad_norm", _G, "Gradient norm before clipping."),
    Metric("apex_learner_is_weight_min", _G, "Smallest importance weight of the last reported batch."),
    Metric("apex_learner_nonfinite_total", _C, "Updates skipped for a loss or gradient that was not finite."),
    Metric("apex_learner_params_version", _G, "Learner step of the newest published parameters."),
    Metric("apex_learner_params_publish_total", _C, "Publications of parameters."),
    Metric("apex_learner_params_served_bytes_total", _C, "Bytes of parameters served."),
    Metric("apex_learner_params_not_modified_total", _C, "Fetches answered with not modified."),
    Metric("apex_learner_params_waiting_transfers", _G, "Callers that wait for their turn to be sent parameters."),
    Metric("apex_learner_active", _G, "1 while this process is the learner that shards obey."),
    Metric("apex_learner_finished", _G, "1 once the run is over: nothing more is played or learned."),
    Metric("apex_learner_epoch", _G, "Epoch of this learner."),
    Metric("apex_learner_global_frames", _G, "Environment frames of the whole run."),
    Metric("apex_learner_samples_per_insert", _G, "Items drawn per item inserted, of the whole run."),
    Metric("apex_learner_min_replay_transitions", _G, "Items needed before learning starts."),
    Metric("apex_learner_replay_shards_expected", _G, "Shards in the configuration."),
    Metric("apex_learner_replay_shards_live", _G, "Shards with an open stream."),
    Metric("apex_learner_actor_leases", _G, "Exploration indices, by state: held.", ("state",)),
    Metric("apex_learner_parameter_lag_updates", _G, "Updates between actors' parameters and the newest, mean."),
    Metric("apex_learner_checkpoint_interval_seconds", _G, "Configured period of checkpoints."),
    Metric("apex_learner_checkpoint_last_success_timestamp_seconds", _G, "Unix time of the newest checkpoint."),
    Metric("apex_learner_checkpoint_bytes", _G, "Size of the newest checkpoint."),
    Metric("apex_learner_checkpoint_failures_total", _C, "Checkpoints that could not be written."),
    # --- relay ---
    Metric("apex_relay_params_epoch", _G, "Epoch of the parameters handed on."),
    Metric("apex_relay_params_version", _G, "Learner step of the parameters handed on."),
    Metric("apex_relay_params_publish_total", _C, "Versions of parameters handed on."),
    Metric("apex_relay_params_fetch_bytes_total", _C, "Bytes of parameters fetched."),
    Metric("apex_relay_params_served_bytes_total", _C, "Bytes of parameters served."),
    Metric("apex_relay_params_not_modified_total", _C, "Fetches answered with not modified."),
    Metric("apex_relay_params_waiting_transfers", _G, "Callers that wait for their turn to be sent parameters."),
    Metric("apex_relay_upstream_live", _G, "1 while the upstream answers."),
    # --- evaluator ---
    Metric("apex_eval_episodes_total", _C, "Finished evaluation episodes."),
    Metric("apex_eval_episode_return", _S, "Unclipped returns of evaluation episodes."),
    Metric("apex_eval_episode_length_steps", _S, "Steps per evaluation episode."),
    Metric("apex_eval_epsilon", _G, "Epsilon of the evaluation."),
    Metric("apex_eval_params_epoch", _G, "Epoch of the parameters under evaluation."),
    Metric("apex_eval_params_version", _G, "Learner step of the parameters under evaluation."),
)
