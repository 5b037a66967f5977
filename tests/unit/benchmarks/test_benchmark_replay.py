"""The comparisons of the replay's data path, without a peer: arithmetic, options, and bytes on the wire."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from apexrl.algorithms import CONFIGS, make_algorithm
from apexrl.config import load_experiment
from apexrl.envs import env_spec
from benchmarks import replay_comparison, replay_scene
from benchmarks.machine import ROOT
from benchmarks.recordings import Recording, played_chunks
from benchmarks.replay_scene import Measured, System
from benchmarks.sample import copying
from benchmarks.wire_bytes import Exchange, naive_bytes, wire_bytes


class Client:
    """Answers as a worker does."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.asked: list[Mapping[str, Any]] = []

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        return {"pid": 7, "units": self.units, "seconds": 2.0} if "seconds" in request else {"pid": 7}


def system_with(name: str, cpu: list[float], rates: list[float]) -> System:
    measured = [Measured({"insert": rate}, {"insert": of - 1.0}, 1.0) for of, rate in zip(cpu, rates, strict=True)]
    return System(name, 1, {}, measured)


def test_the_peer_is_told_what_rows_look_like() -> None:
    forms = {}
    for name in ("pong_paper", "pendulum_apex_dpg"):
        config = load_experiment(ROOT / "configs" / f"{name}.yaml", algorithm_configs=CONFIGS)
        (table,) = make_algorithm(config, env_spec(config.env)).tables()
        forms[name] = json.loads(replay_scene.reverb_form(table.config))
    assert forms["pong_paper"] == {
        **{"stack": 4, "n_steps": 3, "frame": [84, 84], "frame_dtype": "uint8"},
        **{"action": [], "action_dtype": "int32"},
    }
    assert forms["pendulum_apex_dpg"] == {
        **{"stack": 1, "n_steps": 5, "frame": [3], "frame_dtype": "float32"},
        **{"action": [1], "action_dtype": "float32"},
    }


def test_a_window_counts_rates_and_cpu_time_of_clients_and_server(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {1: itertools.count(0.0, 3.0), 7: itertools.count(5.0, 0.5)}
    monkeypatch.setattr(replay_scene, "cpu_seconds", lambda pid: next(clock[pid]))
    client = Client(1000)
    system = System("x", 1, {"sample": client, "insert": Client(250)})  # type: ignore[dict-item]
    assert system.window(2.0, ["sample"], feeding=False) == 500.0
    (one,) = system.measured
    assert one.rates == {"sample": 500.0}
    assert one.client_cpu["sample"] == pytest.approx(500.0)
    assert one.server_cpu == pytest.approx(3000.0)
    assert one.cpu == pytest.approx(3500.0)
    # The first run only settles.
    assert [asked["seconds"] for asked in client.asked if asked] == [replay_scene.SETTLE_SECONDS, 2.0]
    assert system.fed == 0
    system.window(2.0, ["sample"], feeding=True)
    assert system.fed >= 250
    assert system.sampled == 4000


def test_a_window_without_transitions_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without a single transition"):
        replay_scene.per_million(1.0, 0)


def test_ratios_are_to_the_best_peer_of_each_figure() -> None:
    own = system_with("apex", [2.0, 3.0, 4.0], [90.0, 80.0, 70.0])
    thrifty = system_with("a", [20.0, 30.0, 40.0], [1.0, 1.0, 1.0])
    fast = system_with("b", [50.0, 50.0, 50.0], [9.0, 8.0, 7.0])
    assert replay_comparison.best_cpu([fast, thrifty]) is thrifty
    assert replay_comparison.cpu_ratio(own, [fast, thrifty]) == pytest.approx(0.1)
    assert replay_comparison.rate_ratio(own, [fast, thrifty], "insert") == pytest.approx(10.0)
    shown = replay_comparison.by_system([own])["apex"]
    assert shown["insert_transitions_per_second"] == 80.0
    assert shown["insert_client_cpu_s_per_million"] == 2.0
    assert "samples_per_insert" not in shown


def test_windows_of_the_warm_up_do_not_count() -> None:
    def window(seconds: float, roles: list[str], feeding: bool) -> float:
        system.measured.append(Measured({"insert": seconds}, {"insert": 1.0}, 1.0))
        return seconds

    system = System("x", 1, {})
    system.window = window  # type: ignore[method-assign, assignment]
    options = replay_comparison.replay_parser("", seconds=4.0, items=1).parse_args(["c.yaml", "--windows", "2"])
    rates = replay_comparison.compare([system], options, ["insert"], beside={"copy": lambda seconds: 9.0})
    assert rates == {"x": [4.0, 4.0], "copy": [9.0, 9.0]}
    assert [one.rates["insert"] for one in system.measured] == [4.0, 4.0]


@pytest.fixture(scope="module")
def catch():  # type: ignore[no-untyped-def]
    config = load_experiment(
        ROOT / "configs" / "catch_apex_dqn.yaml", ["--learner.batch-size", "16"], algorithm_configs=CONFIGS
    )
    algorithm = make_algorithm(config, env_spec(config.env))
    (table,) = algorithm.tables()
    played = played_chunks(config, algorithm, algorithm.make_networks(), 2, 1.0)
    return config, table, list(itertools.islice(itertools.chain.from_iterable(played), 4))


def test_bytes_on_the_wire_are_those_of_all_messages(catch) -> None:  # type: ignore[no-untyped-def]
    config, table, chunks = catch
    found = wire_bytes(config, table, chunks, samples_per_insert=8.0, items=2_000)
    exchange = Exchange(config, table)
    sizes = [exchange.insert(chunk) for chunk in itertools.islice(itertools.cycle(chunks), 200)]
    # Messages close by size: most chunks wait for others, and some message has gone.
    assert 0 < np.count_nonzero(sizes) < len(sizes)
    assert found.insert == pytest.approx(sum(sizes) / exchange.inserted, rel=0.1)
    # key, probability, slot, start row, prefix and length of an item are 22 bytes; chunks and totals come on top.
    assert found.sample > 22
    # A key and a priority.
    assert found.priority > 12
    few = wire_bytes(config, table, chunks, samples_per_insert=1.0, items=2_000)
    assert few.sample > found.sample, "chunks that are drawn from less often weigh more on each sample"


def test_a_naive_transition_has_two_stacks() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 2, 84, 84), dtype=np.uint8)
    noise = Recording({"kind": np.zeros((20, 2)), "observation": frames}, {}, ("a", "a"))
    # Noise does not compress.
    assert naive_bytes(noise, stack=4, n_steps=3, items=8) == pytest.approx(2 * 4 * 84 * 84, rel=0.01)
    blank = Recording({"kind": np.zeros((20, 2)), "observation": np.zeros_like(frames)}, {}, ("a", "a"))
    assert naive_bytes(blank, stack=4, n_steps=3, items=8) < 500


def test_the_copy_limit_copies_whole_batches(catch) -> None:  # type: ignore[no-untyped-def]
    _, table, _ = catch
    assert copying(table.config.signature, 8)() == 8
