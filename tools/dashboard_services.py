"""The dashboards of the fleet (actors, evaluator, relays) and of replay shards."""

from __future__ import annotations

from dashboard_parts import Dashboard, R, calls, lines, mean, quantiles, spread

FLEET = Dashboard(
    "fleet",
    "apex / actors, evaluator, relays",
    "Who plays, with what exploration, on parameters how old.",
    (
        (
            "Actors",
            (
                lines(
                    "Frames/s of an actor",
                    "Slow ones share a core, or wait.",
                    "short",
                    *(
                        (f"quantile({q}, rate(apex_actor_env_frames_total{{}}{R}))", name)
                        for q, name in ((0.1, "p10"), (0.5, "median"), (0.9, "p90"))
                    ),
                ),
                lines(
                    "Steps and episodes",
                    "Of all actors.",
                    "short",
                    (f"sum(rate(apex_actor_env_steps_total{{}}{R}))", "steps/s"),
                    ("60 * sum(rate(apex_actor_episodes_total{}[10m]))", "episodes/min"),
                ),
                lines(
                    "Episode length",
                    "In steps, by exploration of the lane.",
                    "short",
                    (mean("apex_actor_episode_length_steps", "eps_band"), "{{eps_band}}"),
                ),
                lines(
                    "Epsilon",
                    "Mean of each actor's lanes, over actors.",
                    "short",
                    *(
                        (f"quantile({q}, apex_actor_epsilon{{}})", name)
                        for q, name in ((0.0, "least"), (0.5, "median"), (1.0, "most"))
                    ),
                ),
                lines(
                    "Leases",
                    "Exploration indices on loan, and actors by where theirs come from. Many by hash: they do not "
                    "reach the learner.",
                    "short",
                    ("max(apex_learner_actor_leases{})", "indices {{state}}"),
                    ("sum by (source) (apex_actor_lease_info{})", "actors by {{source}}"),
                ),
                lines(
                    "Items sent and given up",
                    "Given up: an actor that was stopped could not hand them over in time.",
                    "short",
                    (f"sum(rate(apex_actor_transitions_sent_total{{}}{R}))", "sent/s"),
                    (f"sum by (reason) (rate(apex_actor_transitions_dropped_total{{}}{R}))", "given up/s, {{reason}}"),
                ),
                lines(
                    "Items without acknowledgement",
                    "Of each actor.",
                    "short",
                    *spread("apex_actor_insert_queue_transitions"),
                ),
            ),
        ),
        (
            "Parameters",
            (
                lines("Age of parameters", "Since actors got theirs.", "s", *spread("apex_actor_params_age_seconds")),
                lines(
                    "Lag",
                    "Updates between actors' parameters and the newest, mean over actors.",
                    "short",
                    ("max(apex_learner_parameter_lag_updates{})", "updates"),
                ),
                lines("Time of a fetch", "Of new parameters.", "s", *quantiles("apex_actor_params_fetch_seconds")),
                lines(
                    "Waiting for a transfer",
                    "A server sends 16 at a time; a long queue asks for relays.",
                    "short",
                    ("max(apex_learner_params_waiting_transfers{})", "at the learner"),
                    ("max(apex_relay_params_waiting_transfers{})", "at a relay, most"),
                ),
                lines(
                    "Bytes to actors",
                    "Fetched by actors, and served by learner and relays.",
                    "Bps",
                    (f"sum(rate(apex_actor_params_fetch_bytes_total{{}}{R}))", "actors fetch"),
                    (f"sum(rate(apex_learner_params_served_bytes_total{{}}{R}))", "learner serves"),
                    (f"sum(rate(apex_relay_params_served_bytes_total{{}}{R}))", "relays serve"),
                    (f"sum(rate(apex_relay_params_fetch_bytes_total{{}}{R}))", "relays fetch"),
                ),
                lines(
                    "Publications and fruitless looks",
                    "A look that finds nothing newer costs one message.",
                    "short",
                    (f"sum(rate(apex_learner_params_publish_total{{}}{R}))", "learner publishes/s"),
                    (f"sum(rate(apex_relay_params_publish_total{{}}{R}))", "relays publish/s"),
                    (f"sum(rate(apex_learner_params_not_modified_total{{}}{R}))", "fruitless at learner/s"),
                    (f"sum(rate(apex_relay_params_not_modified_total{{}}{R}))", "fruitless at relays/s"),
                ),
                lines(
                    "Relays",
                    "1 while the upstream answers; and how many updates each is behind the learner.",
                    "short",
                    ("apex_relay_upstream_live{}", "{{pod}} live"),
                    ("scalar(max(apex_learner_params_version{})) - apex_relay_params_version{}", "{{pod}} behind"),
                ),
            ),
        ),
        (
            "Evaluator",
            (
                lines(
                    "Episodes", "Finished.", "short", ("60 * sum(rate(apex_eval_episodes_total{}[10m]))", "per minute")
                ),
                lines("Length", "In steps.", "short", (mean("apex_eval_episode_length_steps"), "mean")),
                lines(
                    "Behind the learner",
                    "Updates since the parameters under evaluation.",
                    "short",
                    ("max(apex_learner_params_version{}) - max(apex_eval_params_version{})", "updates"),
                    ("max(apex_eval_epsilon{})", "epsilon"),
                ),
            ),
        ),
    ),
)

REPLAY = Dashboard(
    "replay",
    "apex / replay shards",
    "What each shard holds, takes in and gives out.",
    (
        (
            "Contents",
            (
                lines(
                    "Items",
                    "Held, and the soft capacity.",
                    "short",
                    ("sum by (pod) (apex_replay_size_transitions{})", "{{pod}}"),
                    ("max(apex_replay_capacity_transitions{})", "capacity of each"),
                ),
                lines(
                    "Memory",
                    "Encoded experience, the slabs around it, and the process.",
                    "bytes",
                    ("sum by (pod, kind) (apex_replay_bytes{})", "{{pod}} {{kind}}"),
                    (
                        'process_resident_memory_bytes{} and on (namespace, pod) apex_build_info{+service="replay"}',
                        "{{pod}} process",
                    ),
                ),
                lines(
                    "Priorities",
                    "Sum of the selector's weights, by which draws are divided among shards, and the highest priority.",
                    "short",
                    ("sum by (pod) (apex_replay_priority_sum{})", "{{pod}} sum"),
                    ("max(apex_replay_priority_max{})", "highest"),
                ),
            ),
        ),
        (
            "Flow",
            (
                lines(
                    "Inserts",
                    "Items per second.",
                    "short",
                    (f"sum by (pod) (rate(apex_replay_inserts_total{{}}{R}))", "{{pod}}"),
                ),
                lines(
                    "Draws",
                    "Items per second.",
                    "short",
                    (f"sum by (pod) (rate(apex_replay_samples_total{{}}{R}))", "{{pod}}"),
                ),
                lines(
                    "Removals",
                    "Items per second, the oldest first.",
                    "short",
                    (f"sum by (pod) (rate(apex_replay_evictions_total{{}}{R}))", "{{pod}}"),
                ),
                lines(
                    "Priority updates",
                    "Stale: the item had left before its priority came.",
                    "short",
                    (f"sum by (result) (rate(apex_replay_priority_updates_total{{}}{R}))", "{{result}}/s"),
                ),
                lines(
                    "Duplicates and refusals",
                    "Chunks that came twice and were stored once; messages refused.",
                    "short",
                    (f"sum(rate(apex_replay_duplicates_total{{}}{R}))", "duplicates/s"),
                    (f"sum by (reason) (rate(apex_replay_rejected_total{{}}{R}))", "refused/s, {{reason}}"),
                ),
                lines(
                    "Engine's queue",
                    "Commands that wait for the shard's one engine thread. Long: the shard is at its limit.",
                    "short",
                    ("max by (pod) (apex_replay_engine_queue_commands{})", "{{pod}}"),
                ),
            ),
        ),
        (
            "Peers and journal",
            (
                lines(
                    "Streams",
                    "Open ones, of actors and of learners.",
                    "short",
                    ("sum by (pod) (apex_replay_insert_streams{})", "{{pod}} actors"),
                    ("sum by (pod) (apex_replay_sample_streams{})", "{{pod}} learners"),
                ),
                lines(
                    "Learner's epoch",
                    "That each shard obeys.",
                    "none",
                    ("max by (pod) (apex_replay_learner_epoch{})", "{{pod}}"),
                ),
                lines(
                    "Journal",
                    "Bytes written; chunks that were not, because the disk was full or too slow; 1 while it fails.",
                    "short",
                    (f"sum by (pod) (rate(apex_replay_journal_bytes_total{{}}{R}))", "{{pod}} bytes/s"),
                    (f"sum by (pod) (rate(apex_replay_journal_dropped_total{{}}{R}))", "{{pod}} chunks not written/s"),
                    ("max by (pod) (apex_replay_journal_failing{})", "{{pod}} failing"),
                ),
            ),
        ),
        ("Calls", calls("Replay")),
    ),
)
