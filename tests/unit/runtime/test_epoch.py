"""Epochs only grow, and a learner that was replaced notices."""

from __future__ import annotations

from pathlib import Path

import pytest

from apexrl.runtime.epoch import EpochFile
from apexrl.runtime.errors import CheckpointError, Fenced


def test_every_start_takes_a_higher_epoch(tmp_path: Path) -> None:
    path = tmp_path / "run" / "epoch.json"
    assert EpochFile(path).read() == (0, b"")
    assert EpochFile(path).take_next(b"\x01") == 1
    assert EpochFile(path).take_next(b"\x02") == 2
    assert EpochFile(path).take_next(b"\x03", at_least=36) == 37
    assert EpochFile(path).take_next(b"\x04", at_least=5) == 38
    assert EpochFile(path).read() == (38, b"\x04")


def test_a_replaced_learner_is_fenced(tmp_path: Path) -> None:
    epochs = EpochFile(tmp_path / "epoch.json")
    mine = epochs.take_next(b"\x0a")
    epochs.check(mine, b"\x0a")
    with pytest.raises(Fenced, match=r"epoch 1 \(0b\).* holds epoch 1 \(0a\)"):
        epochs.check(mine, b"\x0b")
    epochs.take_next(b"\x0b")
    with pytest.raises(Fenced, match="holds epoch 2"):
        epochs.check(mine, b"\x0a")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"epoch": -1, "instance": ""}', '{"epoch": "x", "instance": ""}'])
def test_a_damaged_file_is_not_guessed_around(tmp_path: Path, text: str) -> None:
    path = tmp_path / "epoch.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"epoch\.json"):
        EpochFile(path).take_next(b"")
    assert path.read_text() == text


def test_epochs_end_where_versions_can_hold_no_more(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="out of range"):
        EpochFile(tmp_path / "epoch.json").take_next(b"", at_least=(1 << 24) - 1)
