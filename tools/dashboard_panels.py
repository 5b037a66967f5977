"""What the Grafana dashboards show; ``dashboards.py`` turns it into Grafana's JSON."""

from __future__ import annotations

from dashboard_parts import Dashboard, R, calls, lines, mean, phases, quantiles, stat
from dashboard_services import FLEET, REPLAY

#: Metrics of the declaration that no panel shows, and why.
NOT_SHOWN = {
    "apex_actor_slot": "one number for each actor that says nothing in sum; for a look at a single actor",
    "apex_actor_params_version": "the lag behind the learner is shown instead",
    "apex_actor_params_epoch": "changes with the learner's, which is shown",
    "apex_eval_params_epoch": "changes with the learner's, which is shown",
    "apex_relay_params_epoch": "changes with the learner's, which is shown",
    "apex_learner_checkpoint_interval_seconds": "a constant; the alert on old checkpoints compares with it",
}

OVERVIEW = Dashboard(
    "overview",
    "apex / overview",
    "Does it learn, is it fast, is it whole? Details are on the dashboards of the components.",
    (
        (
            "Now",
            (
                stat("Frames", "Environment frames of the whole run.", "short", "max(apex_learner_global_frames{})"),
                stat("Frames/s", "Of all actors.", "short", f"sum(rate(apex_actor_env_frames_total{{}}{R}))"),
                stat("Updates/s", "Of the learner.", "short", f"sum(rate(apex_learner_steps_total{{}}{R}))"),
                stat("Actors", "That can be scraped.", "short", "count(apex_actor_epsilon{})"),
                stat("Items", "Held by all shards.", "short", "sum(apex_replay_size_transitions{})"),
                stat("Epoch", "Grows with every start of a learner.", "none", "max(apex_learner_epoch{})"),
            ),
        ),
        (
            "Does it learn?",
            (
                lines(
                    "Returns",
                    "Unclipped. The evaluator's is the curve to trust; actors' returns contain their exploration.",
                    "short",
                    (mean("apex_eval_episode_return"), "evaluator"),
                    (mean("apex_actor_episode_return", "eps_band"), "actors, {{eps_band}}"),
                    width=16,
                ),
                lines("Loss", "Of the last reported update.", "short", ("max(apex_learner_loss{})", "loss")),
                lines(
                    "Action values",
                    "Means that grow without returns growing: the network believes what it made up.",
                    "short",
                    ("max(apex_learner_q_mean{})", "mean"),
                    ("max(apex_learner_q_max{})", "highest"),
                ),
                lines(
                    "TD error and gradient",
                    "Mean |TD error| of a batch, and the gradient's norm before clipping.",
                    "short",
                    ("max(apex_learner_td_error_abs_mean{})", "|TD error|"),
                    ("max(apex_learner_grad_norm{})", "gradient norm"),
                ),
                lines(
                    "Updates skipped",
                    "For a loss or gradient that was not finite. Ten in a row end the learner.",
                    "short",
                    (f"sum(increase(apex_learner_nonfinite_total{{}}{R}))", "skipped"),
                ),
            ),
        ),
        (
            "Is it fast?",
            (
                lines(
                    "Frames and items",
                    "What actors play, what shards store, what the learner uses.",
                    "short",
                    (f"sum(rate(apex_actor_env_frames_total{{}}{R}))", "frames played/s"),
                    (f"sum(rate(apex_replay_inserts_total{{}}{R}))", "items inserted/s"),
                    (f"sum(rate(apex_learner_transitions_total{{}}{R}))", "items learned from/s"),
                ),
                phases("Learner's time", "batch_wait: it waits for data.", "apex_learner_phase_seconds_total"),
                phases("Actors' time", "insert_wait: shards take no more.", "apex_actor_phase_seconds_total"),
            ),
        ),
        (
            "Is it whole?",
            (
                lines(
                    "Shards",
                    "In the configuration, and with an open stream to the learner.",
                    "short",
                    ("max(apex_learner_replay_shards_expected{})", "expected"),
                    ("max(apex_learner_replay_shards_live{})", "live"),
                ),
                lines(
                    "Learners",
                    "More than one for longer than a restart takes: look at the runbook.",
                    "short",
                    ("sum(apex_learner_active{})", "active"),
                    ("max(apex_learner_finished{})", "1: the run is over"),
                ),
                lines(
                    "Age of the newest checkpoint",
                    "So much is lost with the learner's process, at most.",
                    "s",
                    ("time() - (max(apex_learner_checkpoint_last_success_timestamp_seconds{}) > 0)", "age"),
                ),
                lines(
                    "Versions",
                    "Processes by version of the software. Two only during a rollout.",
                    "short",
                    ("count by (service, version) (apex_build_info{})", "{{service}} {{version}}"),
                ),
                lines(
                    "Memory",
                    "Resident memory of the main processes.",
                    "bytes",
                    ("max by (component) (process_resident_memory_bytes{})", "{{component}}, largest"),
                ),
                lines(
                    "Cores in use",
                    "Of the main processes.",
                    "short",
                    (f"sum by (component) (rate(process_cpu_seconds_total{{}}{R}))", "{{component}}"),
                ),
            ),
        ),
    ),
)

LEARNER = Dashboard(
    "learner",
    "apex / learner",
    "Where the learner's time goes, and what it gets from the shards.",
    (
        (
            "Updates",
            (
                lines(
                    "Time of an update",
                    "From a batch in hand to new parameters.",
                    "s",
                    *quantiles("apex_learner_step_seconds"),
                ),
                lines(
                    "Batches ready",
                    "0 all the time: the learner waits for data.",
                    "short",
                    ("max(apex_learner_prefetch_batches{})", "ready"),
                ),
                lines(
                    "Importance weights",
                    "Smallest of the last reported batch; the largest is 1.",
                    "short",
                    ("min(apex_learner_is_weight_min{})", "smallest"),
                ),
                lines(
                    "Samples per insert",
                    "Of the whole run, and at present.",
                    "short",
                    ("max(apex_learner_samples_per_insert{})", "whole run"),
                    (
                        f"sum(rate(apex_learner_transitions_total{{}}{R}))"
                        f" / (sum(rate(apex_replay_inserts_total{{}}{R})) > 0)",
                        "at present",
                    ),
                ),
                lines(
                    "Replay",
                    "Items held, and at how many learning starts.",
                    "short",
                    ("sum(apex_replay_size_transitions{})", "held"),
                    ("max(apex_learner_min_replay_transitions{})", "needed"),
                ),
            ),
        ),
        (
            "Draws",
            (
                lines(
                    "From request to reply",
                    "By shard.",
                    "s",
                    *quantiles("apex_learner_sample_latency_seconds", "shard"),
                ),
                lines(
                    "Chunks that the mirror lacked",
                    "With a mirror of the whole replay each comes once: as many as are inserted.",
                    "short",
                    (f"sum(rate(apex_learner_mirror_chunks_total{{}}{R}))", "chunks/s"),
                    (f"sum(rate(apex_learner_drawn_items_total{{}}{R}))", "items drawn/s"),
                ),
                lines(
                    "Bytes from shards",
                    "Encoded.",
                    "Bps",
                    (f"sum(rate(apex_learner_mirror_bytes_total{{}}{R}))", "bytes/s"),
                ),
                lines(
                    "Decoding",
                    "Share of one core.",
                    "percentunit",
                    (f"sum(rate(apex_learner_mirror_decode_seconds_total{{}}{R}))", "share"),
                ),
                lines(
                    "Parts drawn again",
                    "From other shards, because one did not answer.",
                    "short",
                    (f"sum(increase(apex_learner_redraws_total{{}}{R}))", "parts"),
                ),
            ),
        ),
        (
            "Checkpoints",
            (
                lines("Size", "Of the newest.", "bytes", ("max(apex_learner_checkpoint_bytes{})", "bytes")),
                lines(
                    "Failures",
                    "Checkpoints that could not be written.",
                    "short",
                    (f"sum(increase(apex_learner_checkpoint_failures_total{{}}{R}))", "failures"),
                ),
            ),
        ),
        ("Calls to the learner and to relays", calls("Coordinator|Parameters")),
    ),
)

DASHBOARDS = (OVERVIEW, FLEET, REPLAY, LEARNER)
