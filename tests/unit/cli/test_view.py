"""What the live view shows."""

from __future__ import annotations

import pytest
from rich.console import Console

from apex_cli.view import LineView, PanelView, aligned, duration, shard_rows, status_line, status_rows
from apexrl.transport import coordinator_pb2 as pb
from apexrl.transport import parameters_pb2, replay_pb2
from apexrl.transport.sample_client import NO_LIMIT


def status(**fields: object) -> pb.GetStatusResponse:
    return pb.GetStatusResponse(
        version=parameters_pb2.ParameterVersion(epoch=2, step=345),
        learner_updates=345,
        global_frames=123_456,
        frames_per_second=2_000.4,
        updates_per_second=31.5,
        samples_per_insert=1.97,
        replay_items=7_000,
        min_replay_items=8_000,
        actors=1,
        lanes=16,
        parameter_lag_updates=12.0,
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (61, "1m01s"), (3599, "59m59s"), (3720, "1h02m"), (-5, "0s")]
)
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_holds_everything_the_run_is_asked_for() -> None:
    line = status_line(status(greedy_return=-3.25, seconds_left=61.0, waiting=["7000 of 8000 items"]))
    for part in (
        "frames 123,456 (2,000/s)",
        "replay 7,000/8,000 to start",
        "updates 345 (31.5/s)",
        "samples/insert 1.97",
        "params 2.345 lag 12",
        "greedy -3.2",
        "evaluator -",
        "left 1m01s",
        "[7000 of 8000 items]",
    ):
        assert part in line


def test_the_panel_shows_the_same_and_what_is_waited_for() -> None:
    view = PanelView("pong_small")
    console = Console(record=True, width=120)
    console.print(view._panel(status(evaluator_return=18.5, waiting=["replay shard x cannot be reached"]), "a note"))
    text = console.export_text()
    for part in ("pong_small", "123,456", "learning starts at 8,000", "18.5", "waits: replay shard x", "a note"):
        assert part in text
    assert "no end set" in text


def test_every_row_of_the_panel_has_a_name_and_a_value() -> None:
    rows = status_rows(status())
    assert len({name for name, _, _ in rows}) == len(rows)
    assert all(name and value for name, value, _ in rows)


def test_lines_come_every_ten_seconds_or_with_news(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("apex_cli.view.time.monotonic", lambda: clock[0])
    view = LineView()
    for moment, note in ((100.0, ""), (101.0, ""), (102.0, "saving"), (103.0, "saving"), (113.0, "saving")):
        clock[0] = moment
        view.show(None, note)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "saving" in lines[1]


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (NO_LIMIT, ("none", "")),
        (120, ("120 items", "20 more may come now")),
        (90, ("90 items", "it takes no more now")),
    ],
)
def test_a_shard_says_how_much_more_it_takes(limit: int, text: tuple[str, str]) -> None:
    table = replay_pb2.TableInfo(insert_limit=limit, totals=replay_pb2.TableTotals(table="replay", inserted=100))
    rows = {name: (value, remark) for name, value, remark in shard_rows(replay_pb2.GetInfoResponse(tables=[table]))}
    assert rows["insert limit"] == text
    assert rows["inserted"][0] == "100 items"


def test_columns_are_as_wide_as_what_stands_in_them() -> None:
    assert aligned([("a", "1,000", "x"), ("longer", "2", "")]) == ["  a       1,000  x", "  longer  2"]
    assert aligned([]) == []
