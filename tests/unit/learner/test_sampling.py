"""The learner's side of the replay, its streams replaced: what it sends back to shards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from apex_learner import sampling
from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import load_experiment
from apexrl.envs import env_spec
from apexrl.experience.batch import BatchBuffer
from apexrl.transport.handshake import Handshake
from apexrl.transport.sample_client import LearnerIdentity
from benchmarks.machine import ROOT


class Client:
    """Keeps what it is given for its shard."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.sent: list[tuple[list[int], list[float]]] = []

    def update_priorities(self, table: str, keys: Any, priorities: Any) -> None:
        self.sent.append((keys.tolist(), priorities.tolist()))


@pytest.mark.parametrize(("overrides", "read"), [([], True), (["--replay.selector", "uniform"], False)])
def test_new_priorities_go_to_the_shards_that_read_them(
    overrides: list[str], read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ["--replay.addresses", "127.0.0.1:1", "127.0.0.1:2"]
    config = load_experiment(
        ROOT / "configs" / "pendulum_apex_dpg.yaml", [*addresses, *overrides], algorithm_configs=CONFIGS
    )
    (table,) = make_algorithm(config, env_spec(config.env)).tables()
    released: list[BatchBuffer] = []
    monkeypatch.setattr(sampling, "SampleClient", Client)
    monkeypatch.setattr(sampling, "Prefetcher", lambda *arguments: SimpleNamespace(release=released.append))
    made = sampling.Sampling(
        config,
        table,
        Handshake("ab" * 16, "{}"),
        LearnerIdentity(1, b"i" * 16),
        discard_other_run=False,
        importance_sampling_exponent=lambda: 0.4,
        requests_made=0,
        device=torch.device("cpu"),
        on_totals=lambda shard, totals, boot: None,
        on_latency=lambda shard, seconds: None,
    )
    batch = BatchBuffer(table.config.signature, 4)
    batch.keys[:] = [10, 11, 12, 13]
    batch.shards[:] = [0, 1, 1, 0]
    made.learned(batch, np.array([1, 2, 3, 4], np.float32))
    made.learned(batch, None)
    assert released == [batch, batch]
    clients: Any = made._clients
    expected = [[([10, 13], [1.0, 4.0])], [([11, 12], [2.0, 3.0])]] if read else [[], []]
    assert [client.sent for client in clients] == expected
