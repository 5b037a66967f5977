"""The learner's side of the replay, its streams replaced: which priorities go back."""

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


@pytest.mark.parametrize(("overrides", "read"), [([], True), (["--replay.selector", "uniform"], False)])
def test_new_priorities_go_back_where_something_reads_them(
    overrides: list[str], read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_experiment(ROOT / "configs" / "pendulum_apex_dpg.yaml", overrides, algorithm_configs=CONFIGS)
    (table,) = make_algorithm(config, env_spec(config.env)).tables()
    learned: list[tuple[Any, Any]] = []
    prefetcher = SimpleNamespace(learned=lambda *batch: learned.append(batch))
    monkeypatch.setattr(sampling, "SampleClient", lambda *arguments, **named: None)
    monkeypatch.setattr(sampling, "Prefetcher", lambda *arguments: prefetcher)
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
    priorities = np.array([1, 2, 3, 4], np.float32)
    made.learned(batch, priorities)
    made.learned(batch, None)
    assert [one for one, _ in learned] == [batch, batch]
    assert learned[0][1] is (priorities if read else None)
    assert learned[1][1] is None
