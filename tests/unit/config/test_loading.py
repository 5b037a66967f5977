"""Files and arguments become the configuration that was meant, or an error that says what to change."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from apexrl.config import (
    ConfigError,
    ExperimentConfig,
    ReplayConfig,
    dump_yaml,
    load_experiment,
    load_sections,
    shared,
)


@dataclass(frozen=True)
class NetworkSection:
    torso: Literal["conv", "mlp"] = "conv"
    """What reads the observation."""
    hidden: tuple[int, ...] = (512,)


@dataclass(frozen=True)
class FirstSection:
    """Section of a first algorithm."""

    name: str = "first"
    num_steps: int = shared(3)
    """n of the n-step return, in steps."""
    learning_rate: float = 1e-4
    clip: float | None = None
    network: NetworkSection = field(default_factory=NetworkSection)


@dataclass(frozen=True)
class SecondSection:
    name: str = "second"
    temperature: float = 1.0


CONFIGS: dict[str, type] = {"first": FirstSection, "second": SecondSection}


def load(tmp_path: Path, text: str, *overrides: str) -> ExperimentConfig[Any]:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return load_experiment(path, overrides, algorithm_configs=CONFIGS)


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path) -> None:
    config = load(tmp_path, "algorithm: {name: first}\nseed: 7\nlearner:\n  batch_size: 64\nenv:\n")
    assert config == ExperimentConfig(
        algorithm=FirstSection(), seed=7, learner=dataclasses.replace(ExperimentConfig(None).learner, batch_size=64)
    )


def test_the_name_chooses_the_section(tmp_path: Path) -> None:
    assert load(tmp_path, "algorithm: {name: second, temperature: 2}").algorithm == SecondSection(temperature=2.0)
    assert load(tmp_path, "algorithm: {name: first}", "--algorithm.name", "second").algorithm == SecondSection()


def test_lists_become_tuples_and_numbers_are_read_as_meant(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "algorithm: {name: first, learning_rate: 1e-4, clip: 40, network: {hidden: [256, 128]}}\n"
        "replay: {addresses: ['h:1'], budget_bytes: 2_000_000}",
    )
    assert config.algorithm.learning_rate == 1e-4
    assert config.algorithm.clip == 40.0
    assert isinstance(config.algorithm.clip, float)
    assert config.algorithm.network.hidden == (256, 128)
    assert config.replay.addresses == ("h:1",)
    assert config.replay.budget_bytes == 2_000_000


def test_the_dump_loads_back_equal(tmp_path: Path) -> None:
    config = load(tmp_path, "algorithm: {name: first, learning_rate: 6.25e-5, network: {hidden: []}}\nname: 'on'")
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(config))
    assert load_experiment(path, algorithm_configs=CONFIGS) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("algorithm: {name: first}\nreplay: {capcity_items: 3}", ["replay.capcity_items", "replay.capacity_items"]),
        ("algorithm: {name: first}\nreplya: {}", ["replya", "is replay"]),
        ("algorithm: {name: first}\nbatch_size: 3", ["batch_size is not", "learner.batch_size"]),
        ("algorithm: {name: first, network: {hiden: [1]}}", ["algorithm.network.hiden", "algorithm.network.hidden"]),
        ("algorithm: {name: frist}", ["algorithm.name is 'frist'", "first, second", "nearest is first"]),
        ("seed: 1", ["algorithm.name is missing", "first, second"]),
        ("algorithm: first", ["algorithm is 'first'", "section"]),
        ("algorithm: {name: first}\nseed: one", ["seed is 'one' (str)", "whole number"]),
        ("algorithm: {name: first}\nseed: 1.5", ["seed is 1.5 (float)", "whole number"]),
        ("algorithm: {name: first}\nseed: true", ["seed is True (bool)", "whole number"]),
        ("algorithm: {name: first}\nseed:", ["seed is None (null)", "whole number"]),
        ("algorithm: {name: first}\nenv: {life_loss_ends: 1}", ["env.life_loss_ends is 1 (int)", "true or false"]),
        ("algorithm: {name: first}\nenv: {reward_scale: .inf}", ["env.reward_scale is inf", "finite"]),
        ("algorithm: {name: first}\nenv: [1]", ["env is [1] (list)", "section"]),
        ("algorithm: {name: first}\nreplay: {addresses: 'h:1'}", ["replay.addresses is 'h:1' (str)", "list"]),
        ("algorithm: {name: first}\nreplay: {addresses: [5]}", ["replay.addresses[0] is 5 (int)", "string"]),
        ("algorithm: {name: first}\nlearner: {device: tpu}", ["learner.device is 'tpu'", "'auto', 'cpu', 'cuda'"]),
        ("algorithm: {name: first, clip: x}", ["algorithm.clip is 'x' (str)", "number"]),
        ("algorithm: {name: first}\nlearner: {batch_size: 0}", ["learner.batch_size is 0", "[1, 65536]"]),
        ("algorithm: {name: first}\nseed: 1\nseed: 2", ["not valid YAML", "'seed' is given twice"]),
        ("algorithm: {name: first}\n? [1]\n: 2", ["not valid YAML", "is not a string"]),
        ("algorithm: {name: first\n", ["not valid YAML"]),
        ("algorithm: !!python/object/apply:os.getcwd []", ["not valid YAML"]),
        ("- 1", ["holds a list", "mapping"]),
        ("", ["file is empty"]),
        ("# nothing\n", ["file is empty"]),
    ],
)
def test_an_error_names_the_file_the_field_and_what_is_allowed(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for part in [str(tmp_path / "experiment.yaml"), *parts]:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such file"):
        load_experiment(tmp_path / "nowhere.yaml", algorithm_configs=CONFIGS)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path, algorithm_configs=CONFIGS)


def test_arguments_override_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "algorithm: {name: first}\nlearner: {batch_size: 64, threads: 2}",
        "--learner.batch-size",
        "32",
        "--learner.compile",
        "--env.no-life-loss-ends",
        "--algorithm.network.hidden",
        "8",
        "9",
        "--algorithm.clip=1.5",
        "--replay.min_items",
        "100",
    )
    assert (config.learner.batch_size, config.learner.threads, config.learner.compile) == (32, 2, True)
    assert not config.env.life_loss_ends
    assert config.algorithm.network.hidden == (8, 9)
    assert config.algorithm.clip == 1.5
    assert config.replay.min_items == 100


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["--learner.btch-size", "3"], ["--learner.btch-size", "--learner.batch-size"]),
        (["--learner.batch-size", "x"], ["--learner.batch-size", "'x'"]),
        (["--learner.batch-size", "0"], ["learner.batch_size is 0", "[1, 65536]"]),
        (["--learner.device", "tpu"], ["'tpu'", "--learner.device", "cuda"]),
        (["--algorithm.name", "third"], ["algorithm.name is 'third'", "first, second"]),
        (["--env.reward-scale", "inf"], ["env.reward_scale is inf", "finite"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "algorithm: {name: first}", *overrides)
    for part in ["command line: ", *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "╭" not in str(caught.value)


def test_help_lists_the_fields_with_their_documentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(tmp_path, "algorithm: {name: first, num_steps: 5}", "--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--algorithm.num-steps" in text
    assert "n of the n-step return, in steps. (default: 5)" in text
    assert "--learner.publish-period-seconds" in text


def test_a_section_is_loaded_without_knowing_the_algorithm(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "algorithm: {name: unheard_of, whatever: 1}\nlearner: {nonsense: 2}\nreplay: {capacity_items: 60000}"
    )
    (section,) = load_sections(path, ["replay"], ["--replay.listen", "0.0.0.0:7"])
    assert section == ReplayConfig(capacity_items=60_000, listen="0.0.0.0:7")
    path.write_text("algorithm: {name: unheard_of}")
    assert load_sections(path, ["replay"]) == (ReplayConfig(),)
    path.write_text("replay: {capacity: 5}")
    with pytest.raises(ConfigError, match=r"replay\.capacity is not a known key.*replay\.capacity_items"):
        load_sections(path, ["replay"])
    path.write_text("learnr: {}")
    with pytest.raises(ConfigError, match=r"learnr is not a known key.*is learner$"):
        load_sections(path, ["replay"])


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ("remover: lifo", ["replay.remover is 'lifo'", "fifo", "prioritized"]),
        ("remover_exponent: 0.4", ["replay.remover_exponent is 0.4", "in [-4, 0]"]),
        ("remover_exponent: -4.5", ["replay.remover_exponent is -4.5", "in [-4, 0]"]),
        (
            "remover: prioritized, journal_directory: journal",
            ["replay.remover is 'prioritized'", "must be fifo with replay.journal_directory = 'journal'"],
        ),
    ],
)
def test_what_no_remover_can_do_is_refused(tmp_path: Path, fields: str, parts: list[str]) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"replay: {{{fields}}}")
    with pytest.raises(ConfigError) as caught:
        load_sections(path, ["replay"])
    for part in parts:
        assert part in str(caught.value)


def test_several_sections_are_loaded_together(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("algorithm: {name: unheard_of}\nlearner: {address: 'a:1'}\nrelay: {listen: 'b:2'}")
    relay, learner = load_sections(path, ["relay", "learner"], ["--relay.upstream", "c:3", "--learner.address", "d:4"])
    assert (relay.upstream, relay.listen, learner.address) == ("c:3", "b:2", "d:4")
    with pytest.raises(ConfigError, match=r"relay\.upstream is 'b:2', must be another address than relay\.listen"):
        load_sections(path, ["relay"], ["--relay.upstream", "b:2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relay: {upstream: nowhere}", r"relay\.upstream is 'nowhere', must be HOST:PORT"),
        ("relay: {poll_period_seconds: 0}", r"relay\.poll_period_seconds is 0\.0, must be above 0"),
        ("actor: {parameter_addresses: [a:1, a]}", r"actor\.parameter_addresses\[1\] is 'a', must be HOST:PORT"),
        ("actor: {parameter_addresses: [a:1, a:1]}", r"actor\.parameter_addresses .* must be each relay once"),
        ("learner: {publish_dtype: int8}", r"learner\.publish_dtype is 'int8'.*'float32', 'float16'"),
    ],
)
def test_what_relays_and_their_actors_cannot_work_with_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_sections(path, [text.partition(":")[0]])


def test_loading_a_section_imports_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"replay": {"capacity_items": 60_000}}))
    code = (
        "import sys; from apexrl.config import load_sections;"
        f"load_sections({str(path)!r}, ['replay'], ['--replay.listen', 'h:1']); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
