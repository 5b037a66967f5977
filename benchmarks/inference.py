"""What an actor on one core would gain by evaluating its network otherwise than with torch in single precision.

    python benchmarks/inference.py configs/pong_small.yaml --actor.lanes 16

Two questions. How fast is the network alone on a turn's observations: with torch as actors have it, with torch in
bfloat16 (weights cast once), and with onnxruntime. And what of that remains in the actor's whole loop, the measure that
decides (docs/adr/0014-actors-evaluate-with-torch.md). All programs take turns in one process, on one core.

onnxruntime and what exports to it are installed into an environment of their own (.venv-peers), which is appended to
this process's path. Unknown arguments are overrides.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from apexrl.algorithms import make_algorithm
from apexrl.config import ConfigError, ExperimentConfig
from apexrl.envs import env_spec
from apexrl.networks.q_networks import QNetwork
from apexrl.networks.torsos import ConvTorso
from apexrl.runtime.malloc import keep_freed_memory
from apexrl.runtime.torch_cpu import configure_torch
from benchmarks.actor_loop import make_loop, one_core, phase_shares
from benchmarks.aggregation import spread
from benchmarks.options import conclude, load, parser, run
from benchmarks.peers.environment import PeerError, peer_python
from benchmarks.windows import interleave, ratios, repeat

PEER = "onnxruntime"
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"

#: Batches that are evaluated in turn, so that none stays in the nearest cache.
BATCHES = 8
#: Sessions made for the median of what a publication would cost.
SESSIONS = 9


class PlainProgram(nn.Module):
    """A Q-network as one would write it for onnxruntime, which arranges images and weights by itself."""

    def __init__(self, network: QNetwork) -> None:
        super().__init__()
        self._network = network

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self._network.values(observations.to(torch.float32))


class OnnxNetwork(nn.Module):
    """A Q-network that onnxruntime evaluates, in an actor's place of the network itself."""

    def __init__(self, network: QNetwork, example: torch.Tensor) -> None:
        super().__init__()
        import onnxruntime  # type: ignore[import-not-found]

        program = PlainProgram(network).requires_grad_(False)
        started = time.perf_counter()
        exported = torch.onnx.export(
            program, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False
        )
        self.export_seconds = time.perf_counter() - started
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        assert exported is not None
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "network.onnx"
            exported.save(path)
            seconds = []
            for _ in range(SESSIONS):
                started = time.perf_counter()
                self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                seconds.append(time.perf_counter() - started)
        self.session_milliseconds = 1e3 * float(np.median(seconds))
        self._input = self._session.get_inputs()[0].name

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._session.run(None, {self._input: observations.numpy()})[0])


class Bfloat16Network(nn.Module):
    """A Q-network whose weights were cast to bfloat16 once; its values are float32 again."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = copy.deepcopy(network).to(torch.bfloat16)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self._network(observations).float()  # type: ignore[no-any-return]


def use_peer() -> None:
    """Make what is installed for the peer importable, behind everything that is importable already."""
    python = peer_python(PEER)
    sys.path.append(subprocess.run([python, "-c", SITE], check=True, capture_output=True, text=True).stdout.strip())


def evaluations(network: nn.Module, batches: Sequence[torch.Tensor]) -> Callable[[], int]:
    """One evaluation of all lanes, to the values in NumPy, as ``Algorithm.act`` has it."""
    turn = 0

    def evaluate() -> int:
        nonlocal turn
        turn += 1
        with torch.inference_mode():
            network(batches[turn % len(batches)]).numpy()
        return 1

    return evaluate


def largest_difference(one: nn.Module, other: nn.Module, batches: Sequence[torch.Tensor]) -> float:
    """Between the values of two networks, absolute."""
    with torch.inference_mode():
        return max(float((one(batch) - other(batch)).abs().max()) for batch in batches)


def measure(config: ExperimentConfig[Any], *, seconds: float, windows: int) -> dict[str, Any]:
    """Metrics of one configuration."""
    spec = env_spec(config.env)
    lanes = config.actor.lanes
    generator = np.random.default_rng(config.seed)
    shape = (lanes, *spec.network_input_shape(config.env.stack))
    batches = [torch.from_numpy(generator.integers(0, 256, shape, np.uint8)) for _ in range(BATCHES)]
    network = make_algorithm(config, spec).make_networks()
    if not isinstance(network, QNetwork) or not isinstance(network.torso, ConvTorso):
        raise ConfigError(
            f"algorithm.name is {config.algorithm.name!r} and env.id {config.env.id!r}, must be such that a Q-network "
            "with convolutions plays"
        )
    onnx = OnnxNetwork(copy.deepcopy(network), batches[0])
    bfloat16 = Bfloat16Network(network)
    networks = {"torch": network, "torch_bfloat16": bfloat16, PEER: onnx}
    alone = interleave(
        {name: repeat(evaluations(one, batches)) for name, one in networks.items()}, seconds=seconds, windows=windows
    )
    loops = {name: make_loop(config, lanes, networks[name]) for name in ("torch", PEER)}
    whole = interleave(
        {name: repeat(lambda loop=loop: loop.step().env_steps) for name, loop in loops.items()},  # type: ignore[misc]
        seconds=seconds,
        windows=windows,
    )
    return {
        "loop_ratio_of_onnxruntime": round(float(np.median(ratios(whole[PEER], whole["torch"]))), 3),
        "evaluation_ratio_of_onnxruntime": round(float(np.median(ratios(alone[PEER], alone["torch"]))), 3),
        "evaluation_ratio_of_bfloat16": round(float(np.median(ratios(alone["torch_bfloat16"], alone["torch"]))), 3),
        "milliseconds_per_evaluation": {n: spread([1e3 / rate for rate in rates]) for n, rates in alone.items()},
        "agent_steps_per_second": {name: spread(rates) for name, rates in whole.items()},
        "phase_shares": {name: phase_shares(loop) for name, loop in loops.items()},
        "largest_difference_onnxruntime": largest_difference(network, onnx, batches),
        "largest_difference_bfloat16": largest_difference(network, bfloat16, batches),
        "export_seconds": round(onnx.export_seconds, 2),
        "session_milliseconds": round(onnx.session_milliseconds, 1),
        "lanes": lanes,
        "cores": 1,
        "window_seconds": seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options, overrides = parser(__doc__, seconds=3.0, windows=11, fixed_goals=True).parse_known_args(arguments)
    config = load(options.config, overrides)
    try:
        use_peer()
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    configure_torch(1)
    keep_freed_memory(few_heaps=True)  # as the actor's process does
    with one_core():
        metrics = measure(config, seconds=options.seconds, windows=options.windows)
    return conclude(
        f"inference_{config.name}",
        metrics=metrics,
        goals={},
        seeds=[config.seed],
        notes=(
            "One process on one core; evaluations of random images, untrained network. Ratios above 1 mean that the "
            "other way is faster than torch in single precision; medians over pairs of windows."
        ),
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
