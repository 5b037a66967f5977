"""From outcomes of seeds to a result, without training anything."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.learning import obtain, others, parse_seeds, write
from benchmarks.learning_run import Outcome, config_digest, load_config, load_outcome, seed_directory
from benchmarks.learning_summary import notes, summarize, table
from benchmarks.machine import ROOT, source_digest
from benchmarks.record import goals_met, read_record
from benchmarks.subjects import SUBJECTS

CARTPOLE = SUBJECTS["cartpole"]
PONG = SUBJECTS["pong"]


def outcome(seed: int = 1, score: float = 500.0, threshold_seconds: float | None = 60.0) -> Outcome:
    reached = threshold_seconds is not None
    return Outcome(
        seed=seed,
        commit={"hash": "0" * 40, "dirty": False},
        source_digest="source",
        config_digest="config",
        finished=True,
        wall_seconds=100.0,
        frames=99_600,
        env_steps=100_300,
        updates=12_000,
        frames_per_second=1000.0,
        updates_per_second=120.0,
        samples_per_insert=8.0,
        threshold_seconds=threshold_seconds,
        threshold_frames=50_000 if reached else None,
        threshold_updates=6_000 if reached else None,
        evaluation_epsilon=0.0,
        evaluation_returns=(score - 1.0, score + 1.0),
    )


def keep(one: Outcome, work: Path) -> None:
    directory = seed_directory(work, CARTPOLE, one.seed)
    directory.mkdir(parents=True)
    (directory / "outcome.json").write_text(json.dumps(asdict(one)))


def test_a_seeds_score_is_the_mean_of_its_greedy_episodes() -> None:
    metrics = summarize(CARTPOLE, [outcome(seed, 470.0 + 10 * seed) for seed in range(1, 6)])
    assert metrics["iqm"] == 500.0  # of 480, 490, 500, 510, 520 without the ends
    assert metrics["per_seed"][0]["return_mean"] == 480.0
    assert metrics["iqm_ci95_low"] < 500.0 < metrics["iqm_ci95_high"]
    assert goals_met(metrics, CARTPOLE.goals)


def test_too_few_seeds_or_too_much_play_do_not_meet_the_goals() -> None:
    outcomes = [outcome(seed) for seed in range(1, 6)]
    assert goals_met(summarize(CARTPOLE, outcomes), CARTPOLE.goals)
    assert not goals_met(summarize(CARTPOLE, outcomes[:4]), CARTPOLE.goals)
    longer = [*outcomes[:4], replace(outcomes[4], frames=100_001)]
    assert not goals_met(summarize(CARTPOLE, longer), CARTPOLE.goals)


def test_one_good_seed_among_bad_ones_does_not_meet_the_goals() -> None:
    scores = [500.0, 500.0, 500.0, 30.0, 30.0]
    metrics = summarize(CARTPOLE, [outcome(i, score) for i, score in enumerate(scores)])
    assert not goals_met(metrics, CARTPOLE.goals)


def test_a_control_meets_its_goals_where_it_fails_to_learn() -> None:
    control = SUBJECTS["pendulum_d4pg_narrow"]
    failed = [outcome(seed, -1100.0 - seed, None) for seed in range(1, 6)]
    assert goals_met(summarize(control, failed), control.goals)
    assert not goals_met(summarize(control, failed[:4]), control.goals)
    learned = [replace(one, evaluation_returns=(-150.0,)) for one in failed[:3]]
    assert not goals_met(summarize(control, learned + failed[3:]), control.goals)


def test_overrides_of_a_subject_are_part_of_its_configuration() -> None:
    narrow, whole = SUBJECTS["pendulum_d4pg_narrow"], SUBJECTS["pendulum_d4pg"]
    assert (narrow.config, whole.overrides) == (whole.config, ())
    critic = load_config(narrow).algorithm.critic
    assert (critic.v_min, critic.v_max) == (-1.0, 0.0)
    assert load_config(whole).algorithm.critic.v_min < -100.0
    assert config_digest(narrow) != config_digest(whole)


def test_a_seed_that_never_reached_the_threshold_has_no_time() -> None:
    both = [outcome(1, 20.0, 1800.0), outcome(2, 19.0, 2400.0)]
    metrics = summarize(PONG, both)
    assert (metrics["seconds_to_threshold_median"], metrics["seconds_to_threshold_max"]) == (2100.0, 2400.0)
    assert goals_met(metrics, PONG.goals)
    metrics = summarize(PONG, [both[0], outcome(2, 19.0, None)])
    assert metrics["seconds_to_threshold_median"] is None
    assert metrics["seconds_to_threshold_max"] is None
    assert metrics["num_seeds_reaching"] == 1
    assert not goals_met(metrics, PONG.goals)


def test_notes_say_what_is_unusual() -> None:
    assert "wall-clock limit" not in notes([outcome(1), outcome(2)])
    text = notes([outcome(1), replace(outcome(2), finished=False, source_digest="other")])
    assert "Stopped at the wall-clock limit: seeds 2." in text
    assert "different states of the source code" in text


def test_the_table_has_a_line_per_seed() -> None:
    outcomes = [outcome(1), outcome(2, 100.0, None)]
    lines = table(CARTPOLE, summarize(CARTPOLE, outcomes)).splitlines()
    assert len(lines) == 5
    assert lines[2].split()[:4] == ["1", "500.00", "±", "1.00"]
    assert lines[3].endswith("never")


def test_a_done_seed_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def run_seed(subject: object, seed: int, directory: Path) -> Outcome:
        ran.append(seed)
        return outcome(seed)

    monkeypatch.setattr(learning, "run_seed", run_seed)
    present = replace(outcome(1), source_digest=source_digest(), config_digest=config_digest(CARTPOLE))
    keep(present, tmp_path)
    keep(replace(present, seed=2, source_digest="older"), tmp_path)
    assert obtain(CARTPOLE, 1, tmp_path, force=False) == present
    assert ran == []
    obtain(CARTPOLE, 2, tmp_path, force=False)
    obtain(CARTPOLE, 3, tmp_path, force=False)
    obtain(CARTPOLE, 1, tmp_path, force=True)
    assert ran == [2, 3, 1]


def test_appending_takes_the_other_seeds_of_this_configuration(tmp_path: Path) -> None:
    digest = config_digest(CARTPOLE)
    keep(replace(outcome(1), config_digest=digest), tmp_path)
    keep(replace(outcome(2), config_digest=digest, source_digest="older"), tmp_path)
    keep(replace(outcome(3), config_digest="another"), tmp_path)
    assert [one.seed for one in others(CARTPOLE, {1}, tmp_path)] == [2]


def test_an_unreadable_outcome_is_none(tmp_path: Path) -> None:
    assert load_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_text('{"seed": 1}')
    assert load_outcome(tmp_path) is None


def test_what_is_written_is_a_valid_result(tmp_path: Path) -> None:
    outcomes = [outcome(seed) for seed in range(1, 6)]
    for one in outcomes:
        run = seed_directory(tmp_path, CARTPOLE, one.seed) / "run"
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text("wall_seconds,global_frames,evaluator_return\n1,10,3\n")
    results, images = tmp_path / "results", tmp_path / "images"
    metrics = summarize(CARTPOLE, outcomes)
    write(CARTPOLE, outcomes, metrics, tmp_path, results=results, images=images)
    record = read_record("cartpole_apex_dqn", results)
    assert record["seeds"] == [1, 2, 3, 4, 5]
    assert record["met"]
    assert (images / "cartpole_apex_dqn.png").exists()


@pytest.mark.parametrize("text", ["", "1,x", "1,1", "-1"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_seeds(text)
    assert parse_seeds("3,1") == [3, 1]


@pytest.mark.parametrize("key", sorted(SUBJECTS))
def test_subjects_agree_with_their_configurations(key: str) -> None:
    subject = SUBJECTS[key]
    assert (ROOT / subject.config).exists()
    learner = load_config(subject).learner
    if subject.frames_budget is None:
        assert 0 < learner.max_seconds <= subject.limit_seconds
    else:
        assert 0 < learner.max_frames < subject.frames_budget  # actors play on for a moment
    assert subject.random_return < subject.threshold
