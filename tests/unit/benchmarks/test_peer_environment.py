"""Environments of peers: made once per text of requirements, and never taken for whole when they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import environment
from benchmarks.peers.environment import PeerError, peer_python


class Calls:
    """Stands for venv and pip; fails at the command that contains ``fails_at``."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails_at = ""

    def __call__(self, name: str, command: list[str]) -> None:
        self.commands.append(command)
        if self.fails_at and self.fails_at in command:
            raise PeerError(f"environment of peer {name!r}")
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(environment, "_call", made)
    return made


def test_an_environment_is_made_once_and_anew_when_its_pins_change(tmp_path: Path, calls: Calls) -> None:
    (tmp_path / "some.txt").write_text("package==1\n")
    python = peer_python("some", environments=tmp_path / "made", requirements=tmp_path)
    assert python == tmp_path / "made" / "some" / "bin" / "python"
    assert [command[1:3] for command in calls.commands] == [["-m", "venv"], ["-m", "pip"]]
    assert str(tmp_path / "some.txt") in calls.commands[1]

    peer_python("some", environments=tmp_path / "made", requirements=tmp_path)
    assert len(calls.commands) == 2

    (tmp_path / "some.txt").write_text("package==2\n")
    peer_python("some", environments=tmp_path / "made", requirements=tmp_path)
    assert len(calls.commands) == 4


def test_an_installation_that_failed_is_made_anew(tmp_path: Path, calls: Calls) -> None:
    (tmp_path / "some.txt").write_text("package==1\n")
    calls.fails_at = "pip"
    with pytest.raises(PeerError, match="'some'"):
        peer_python("some", environments=tmp_path / "made", requirements=tmp_path)
    calls.fails_at = ""
    peer_python("some", environments=tmp_path / "made", requirements=tmp_path)
    assert len(calls.commands) == 4


def test_an_unknown_peer_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "some.txt").touch()
    with pytest.raises(PeerError, match=r"peer is 'other', must be one with a file in .*: some"):
        peer_python("other", environments=tmp_path / "made", requirements=tmp_path)


def test_what_a_failing_step_said_is_in_the_error() -> None:
    with pytest.raises(PeerError, match=r"(?s)peer 'some': .* ended with 3:\nno such package"):
        environment._call("some", ["sh", "-c", "echo no such package; exit 3"])
    environment._call("some", ["true"])


def test_requirements_are_pinned_and_name_no_place() -> None:
    for path in environment.REQUIREMENTS.glob("*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                assert "==" in line, f"{path.name}: {line}"
                assert "://" not in line, f"{path.name}: {line}"
