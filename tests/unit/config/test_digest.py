"""The digest covers what gives stored data its meaning, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from apexrl.config import ExperimentConfig, config_digest, difference, shared, shared_fields, shared_json
from apexrl.config.digest import MAX_DIFFERENCES
from apexrl.config.fields import SHARED


@dataclass(frozen=True)
class Network:
    hidden: tuple[int, ...] = (512,)
    dueling: bool = True


@dataclass(frozen=True)
class Section:
    name: str = "some"
    num_steps: int = shared(3)
    learning_rate: float = 1e-4
    network: Network = field(default_factory=Network, metadata=SHARED)


def experiment(**changes: Any) -> ExperimentConfig[Section]:
    return ExperimentConfig(algorithm=Section(**changes))


def test_shared_fields_are_named_by_their_full_path() -> None:
    fields = shared_fields(experiment())
    assert fields["env.id"] == "atari/pong"
    assert fields["algorithm.num_steps"] == 3
    assert fields["algorithm.network.hidden"] == [512]
    assert fields["algorithm.network.dueling"] is True
    assert fields["algorithm.name"] == "some"
    assert fields["replay.chunk_starts"] == 32
    assert "algorithm.learning_rate" not in fields
    assert not [key for key in fields if key.startswith(("learner.", "actor.", "local."))]


def test_the_digest_follows_shared_fields_only() -> None:
    base = config_digest(experiment())
    assert len(base) == 64
    assert config_digest(experiment(learning_rate=1.0)) == base
    assert config_digest(dataclasses.replace(experiment(), seed=9)) == base
    assert config_digest(experiment(num_steps=4)) != base
    assert config_digest(experiment(name="other")) != base
    assert config_digest(experiment(network=Network(dueling=False))) != base


def test_the_json_is_canonical() -> None:
    text = shared_json(experiment())
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text


def test_a_difference_is_readable() -> None:
    ours = experiment()
    theirs = experiment(num_steps=5, network=Network(hidden=(256,)))
    assert difference(shared_json(ours), shared_json(theirs)) == [
        "algorithm.network.hidden: [512] here, [256] there",
        "algorithm.num_steps: 3 here, 5 there",
    ]
    assert difference(shared_json(ours), shared_json(ours)) == []
    assert difference('{"a":1}', "{}") == ["a: 1 here, absent there"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_peer_that_sends_nonsense_is_told_so(text: str) -> None:
    assert difference("{}", text) == ["the shared configuration of the peer is not a JSON object"]


def test_a_difference_is_never_long() -> None:
    theirs = json.dumps({f"key{i}": "x" * 1000 for i in range(1000)})
    lines = difference("{}", theirs)
    assert len(lines) == MAX_DIFFERENCES + 1
    assert lines[-1] == f"and {1000 - MAX_DIFFERENCES} more"
    assert max(map(len, lines)) < 200
