"""The `apex` command as a user meets it: commands on a finished run, and what it says about bad input."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
CATCH = str(CONFIGS / "catch_apex_dqn.yaml")


def apex(*arguments: str, timeout: float = 100.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apex_cli", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short serial run."""
    directory = tmp_path_factory.mktemp("runs") / "catch"
    done = apex("train", CATCH, "--serial", "--run-dir", str(directory), "--learner.max-updates", "40")
    assert done.returncode == 0, done.stderr
    assert "return" in done.stdout
    return directory


def test_a_run_directory_holds_what_is_promised(run: Path) -> None:
    for name in ("config.yaml", "run.json", "metrics.csv", "learning_curve.png", "checkpoints", "tensorboard"):
        assert (run / name).exists(), name
    assert (run / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluate_prints_the_return_and_how_it_was_played(run: Path) -> None:
    done = apex("evaluate", str(run), "--episodes", "4", "--epsilon", "0.01")
    assert done.returncode == 0, done.stderr
    for part in ("apex/catch", "unclipped rewards", "epsilon 0.01", "±", "4 episodes"):
        assert part in done.stdout
    assert "no-op" not in done.stdout  # that is how Atari games begin


def test_record_writes_a_video_of_an_episode(run: Path, tmp_path: Path) -> None:
    gif = tmp_path / "episode.gif"
    done = apex("record", str(run), "--output", str(gif))
    assert done.returncode == 0, done.stderr
    assert len(imageio.mimread(gif)) == 9, "one picture per step of Catch"
    refused = apex("record", str(run), "--output", str(tmp_path / "episode.avi"))
    assert refused.returncode == 2
    assert "must end in .mp4 or .gif" in refused.stderr


def test_export_writes_a_policy_that_torch_alone_can_run(run: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.pt2"
    done = apex("export", str(run), "--output", str(policy))
    assert done.returncode == 0, done.stderr
    assert "observations float32 [B, 50]" in done.stdout
    assert "numbers of actions, from 0 to 2" in done.stdout
    program = (
        "import sys, torch\n"
        "actions = torch.export.load(sys.argv[1]).module()(torch.zeros(3, 50))\n"
        "assert 'apexrl' not in sys.modules\n"
        "print(actions.dtype, tuple(actions.shape))"
    )
    used = subprocess.run([sys.executable, "-c", program, str(policy)], capture_output=True, text=True, check=False)
    assert used.returncode == 0, used.stderr
    assert used.stdout.split("\n")[0] == "torch.int64 (3,)"
    refused = apex("export", str(run), "--output", str(tmp_path / "policy.onnx"))
    assert refused.returncode == 2
    assert "must end in .pt2" in refused.stderr


def test_inspect_shows_configuration_and_memory() -> None:
    shown = apex("inspect", "config", CATCH, "--learner.batch-size", "48")
    assert shown.returncode == 0, shown.stderr
    assert "batch_size: 48" in shown.stdout
    memory = apex("inspect", "memory", CATCH)
    assert memory.returncode == 0, memory.stderr
    assert "mirror" in memory.stdout
    assert "GiB" in memory.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fly"], "is not a command"),
        (["train", "nothing.yaml"], "there is no such file"),
        (["train", CATCH, "--learner.batch-sise", "3"], "--learner.batch-size"),
        (["train", CATCH, "--learner.batch-size", "0"], "learner.batch_size is 0, must be in [1, 65536]"),
        (["train", CATCH, "--env.id", "atari/pongg"], "pong"),
        (["train", CATCH, "--env.id", "nosuite/x"], "env.id"),
        (["evaluate", "no/such/run"], "there is no run"),
        (["inspect", "replay", "127.0.0.1:1", "--timeout-seconds", "0.5"], "127.0.0.1:1"),
    ],
)
def test_bad_input_gets_one_clear_message(arguments: list[str], says: str) -> None:
    done = apex(*arguments)
    assert done.returncode in (1, 2)
    output = done.stdout + done.stderr
    assert says in output
    assert "Traceback" not in output


def test_an_unknown_key_in_a_file_names_the_nearest_and_writes_nothing(tmp_path: Path) -> None:
    config = tmp_path / "typo.yaml"
    config.write_text(Path(CATCH).read_text().replace("samples_per_insert", "samples_per_insrt"))
    done = apex("train", str(config), "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "samples_per_insert" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_is_not_touched(run: Path) -> None:
    before = (run / "config.yaml").read_text()
    done = apex("train", CATCH, "--run-dir", str(run), "--algorithm.n-steps", "5")
    assert done.returncode == 2
    assert "algorithm.n_steps" in done.stderr
    assert (run / "config.yaml").read_text() == before


def test_a_checkpoint_of_another_architecture_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    text = (run / "config.yaml").read_text()
    other = tmp_path / "other"
    other.mkdir()
    for entry in run.iterdir():
        (other / entry.name).symlink_to(entry)
    (other / "config.yaml").unlink()
    (other / "config.yaml").write_text(text.replace("dueling: true", "dueling: false"))
    done = apex("evaluate", str(other))
    assert done.returncode == 2
    assert "another architecture" in done.stderr
    assert "head.value" in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "apex_learner", "--config", CATCH),
                *("--run-dir", str(tmp_path / "run"), "--learner.listen", address),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 2
    assert address in done.stderr
    assert "in use" in done.stderr
