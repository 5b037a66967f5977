"""Replay without a network: tables that hold experience, and one thread that owns them.

The pieces, from the inside out: :mod:`sum_tree` (weights), :mod:`selectors` (how items are drawn), :mod:`block_store`
(where encoded chunks rest), :mod:`table` (pages, keys, priorities), :mod:`engine` (tables by name, exactly-once
inserts, which learner is served) and :mod:`engine_thread`. The learner's side is :mod:`limiter`.
Nothing here imports torch or grpc.
"""
