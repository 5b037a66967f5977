"""Recorded rows: they become the chunks that the actor made, and files that peers can read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import ConfigError, load_experiment
from apexrl.envs import env_spec
from benchmarks import recordings
from benchmarks.machine import ROOT
from benchmarks.recordings import Recording

LANES = 3


@pytest.fixture(scope="module")
def catch():  # type: ignore[no-untyped-def]
    config = load_experiment(ROOT / "configs" / "catch_apex_dqn.yaml", algorithm_configs=CONFIGS)
    algorithm = make_algorithm(config, env_spec(config.env))
    networks = algorithm.make_networks()
    return config, algorithm, networks


def test_rows_that_were_recorded_become_the_chunks_that_were_played(catch) -> None:  # type: ignore[no-untyped-def]
    config, algorithm, networks = catch
    (table,) = algorithm.tables()
    starts = table.config.signature.geometry.starts
    rows, scratch = recordings.record(config, algorithm, networks, lanes=LANES, steps=2 * starts, epsilon=1.0)
    recording = Recording(rows, scratch, ("catch, random",) * LANES)
    assert recording.num_steps == 2 * starts
    assert recording.play == f"catch, random: {LANES} lanes of {2 * starts} steps"

    played = itertools.chain.from_iterable(recordings.played_chunks(config, algorithm, networks, LANES, 1.0))
    built = recordings.build_chunks(recording, table, algorithm)
    # The tail of the last turn lies behind the recording's end.
    assert len(built) == LANES
    version = table.config.signature.columns.index(table.config.signature.column("parameter_version"))
    for ours, theirs in zip(built, played, strict=False):
        assert ours.rows == theirs.rows
        assert ours.lengths.tolist() == theirs.lengths.tolist()
        assert ours.priorities.tolist() == theirs.priorities.tolist()
        assert [b for i, b in enumerate(ours.blocks) if i != version] == [
            b for i, b in enumerate(theirs.blocks) if i != version
        ]


def test_every_row_has_a_priority(catch) -> None:  # type: ignore[no-untyped-def]
    config, algorithm, networks = catch
    (table,) = algorithm.tables()
    starts = table.config.signature.geometry.starts
    recording = Recording(
        *recordings.record(config, algorithm, networks, lanes=LANES, steps=2 * starts, epsilon=1.0), ("a",) * LANES
    )
    chunks = recordings.build_chunks(recording, table, algorithm)
    priorities = recordings.item_priorities(recording, chunks)
    assert priorities.shape == (2 * starts, LANES)
    assert (priorities > 0).all()
    items = chunks[1].priorities > 0
    assert priorities[:starts, 1][items].tolist() == chunks[1].priorities[items].tolist()
    assert np.unique(priorities[starts:]).size == 1


def test_a_saved_recording_is_read_back(tmp_path: Path) -> None:
    rows = {"kind": np.arange(6, dtype=np.uint8).reshape(3, 2), "observation": np.ones((3, 2, 4), np.uint8)}
    recording = Recording(rows, {"q": np.ones((3, 2), np.float32)}, ("a", "b"))
    recordings.save(recording, tmp_path / "there", np.full((3, 2), 0.5, np.float32))
    again = recordings.load(tmp_path / "there")
    assert again.plays == ("a", "b")
    assert again.rows["kind"].tolist() == rows["kind"].tolist()
    assert again.scratch["q"].dtype == np.float32
    assert np.load(tmp_path / "there" / "priority.npy").tolist() == [[0.5, 0.5]] * 3


def test_plays_are_joined_lane_by_lane_at_the_shortest() -> None:
    def part(steps: int, value: int):  # type: ignore[no-untyped-def]
        return {"kind": np.full((steps, 2), value, np.uint8)}, {"q": np.full((steps, 2), value, np.float32)}

    joined = recordings.join([part(4, 1), part(3, 2)], ["pong, random", "qbert, random"], lanes=2)
    assert joined.rows["kind"].tolist() == [[1, 1, 2, 2]] * 3
    assert joined.plays == ("pong, random",) * 2 + ("qbert, random",) * 2
    other = ({"kind": np.zeros((3, 2), np.int64)}, {"q": np.zeros((3, 2), np.float32)})
    with pytest.raises(ConfigError, match="'other'"):
        recordings.join([part(3, 1), other], ["first", "other"], lanes=2)


def test_lanes_that_cannot_be_told_apart_are_refused(catch) -> None:  # type: ignore[no-untyped-def]
    config, algorithm, networks = catch
    (table,) = algorithm.tables()
    made = itertools.chain.from_iterable(recordings.played_chunks(config, algorithm, networks, LANES, 1.0))
    chunks = list(itertools.islice(made, LANES))
    with pytest.raises(ValueError, match="2 chunks of 3 lanes"):
        recordings.rows_of(table.config.signature, chunks[:-1], LANES)


def test_an_environment_of_vectors_is_played_at_random() -> None:
    config = load_experiment(ROOT / "configs" / "pendulum_apex_dpg.yaml", algorithm_configs=CONFIGS)
    recording = recordings.record_own(config, lanes=4, steps=16)
    assert recording.play == "gymnasium/Pendulum-v1, random: 4 lanes of 16 steps"
    assert recording.rows["observation"].shape == (16, 4, 3)
    assert recording.rows["action"].std() > 0.5
    algorithm = make_algorithm(config, env_spec(config.env))
    (table,) = algorithm.tables()
    assert len(recordings.build_chunks(recording, table, algorithm)) == 4


def test_only_atari_games_are_recorded(catch) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"env\.id is"):
        recordings.record_games(catch[0], lanes=1, steps=32)
