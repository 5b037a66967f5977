"""Updates per second of the algorithm alone: ``Algorithm.update`` again and again on one batch that lies ready.

    python benchmarks/learner_update.py configs/pong_small.yaml --learner.threads 2

This is the plain torch loop that the learner process is measured against (``learner_loop.py``): no replay, no network
of machines, no copy of a batch. Unknown arguments are overrides of the configuration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

# As the learner does, and before torch loads OpenMP; set the variable to see what longer or shorter spinning brings.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import numpy as np
import torch

from apex_learner.devices import pick_device
from apex_learner.process import make_state
from apexrl.algorithms import make_algorithm
from apexrl.config import ExperimentConfig
from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.envs import env_spec
from apexrl.experience.batch import BatchBuffer
from apexrl.runtime.malloc import keep_freed_memory
from apexrl.runtime.torch_cpu import configure_torch
from apexrl.types import RowKind, TableConfig
from benchmarks.aggregation import spread
from benchmarks.options import conclude, load, parser, run
from benchmarks.windows import Window, interleave, repeat


def synthetic_batch(table: TableConfig, spec: EnvSpec, batch_size: int, seed: int = 0) -> BatchBuffer:
    """A batch of full windows in the middle of an episode, with random observations, actions and rewards."""
    generator = np.random.default_rng(seed)
    signature = table.signature
    batch = BatchBuffer(signature, batch_size)
    columns = batch.as_window_batch().columns
    for name, tensor in columns.items():
        values = tensor.numpy()  # a view of the batch
        if name == "kind":
            values[...] = RowKind.MID
        elif name == "age":
            values[...] = signature.stack + np.arange(values.shape[1])
        elif name == "continuation":
            values[...] = 1
        elif name == "action":
            discrete = isinstance(spec.actions, DiscreteActions)
            values[...] = (
                generator.integers(0, spec.num_actions, values.shape)
                if discrete
                else generator.uniform(-1.0, 1.0, values.shape)
            )
        elif name == "reward":
            values[...] = generator.integers(-1, 2, values.shape)
        elif values.dtype == np.uint8:
            values[...] = generator.integers(0, 256, values.shape, np.uint8)
        else:
            values[...] = generator.standard_normal(values.shape)
    batch.lengths[:] = signature.geometry.tail
    batch.weights[:] = generator.uniform(0.1, 1.0, batch_size)
    return batch


def update_window(config: ExperimentConfig[Any]) -> Window:
    """Windows of updates per second on the learner's device, with the present number of torch threads."""
    spec = env_spec(config.env)
    algorithm = make_algorithm(config, spec)
    (table,) = algorithm.tables()
    device = pick_device(config.learner.device)
    state = make_state(config, algorithm, device)
    batch = synthetic_batch(table.config, spec, config.learner.batch_size).as_window_batch().to(device)

    def update() -> int:
        algorithm.update(state, batch)
        return 1

    return repeat(update, finish=torch.cuda.synchronize if device.type == "cuda" else lambda: None)


def use_threads(config: ExperimentConfig[Any]) -> int:
    """Take as many CPU threads as the learner would; returns how many."""
    configure_torch(config.learner.threads)
    return torch.get_num_threads()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    options, overrides = parser(__doc__, seconds=5.0, windows=5).parse_known_args(arguments)
    config = load(options.config, overrides)
    threads = use_threads(config)
    keep_freed_memory()  # as the learner does
    rates = interleave({"update": update_window(config)}, seconds=options.seconds, windows=options.windows)["update"]
    metrics = {
        "updates_per_second": spread(rates),
        "samples_per_second": spread([rate * config.learner.batch_size for rate in rates]),
        "batch_size": config.learner.batch_size,
        "threads": threads,
        "gomp_spincount": os.environ["GOMP_SPINCOUNT"],
        "device": pick_device(config.learner.device).type,
        "windows": [round(rate, 3) for rate in rates],
        "window_seconds": options.seconds,
    }
    return conclude(
        f"learner_update_{config.name}",
        metrics=metrics,
        goals={},
        seeds=[config.seed],
        notes="Algorithm.update on one resident synthetic batch; nothing else in the process.",
        write=options.write,
    )


if __name__ == "__main__":
    sys.exit(run(main))
