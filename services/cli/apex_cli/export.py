"""``apex export``: the greedy policy of a checkpoint as one file that torch alone can run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from apex_cli.play import Player, Which, load_player
from apexrl.config import ConfigError
from apexrl.env_types import ContinuousActions, EnvSpec
from apexrl.envs import env_spec

#: Name of the description inside the file, under "extra files".
CARD = "policy.json"

#: Observations that the exported program is traced with; it takes any number. 1 would be taken for a constant.
TRACED_BATCH = 2


@dataclass(frozen=True)
class ExportArguments:
    """Write the greedy policy of a checkpoint as a torch program, which needs neither this package nor a run.

    In Python: torch.export.load("policy.pt2").module()(observations) gives the actions.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    output: Path | None = None
    """The file, .pt2; RUN/policy.pt2 by default."""
    checkpoint: Which = "newest"
    """newest, or best by the evaluator during training."""


def export_run(arguments: ExportArguments) -> int:
    """``apex export``."""
    output = arguments.output or arguments.run / "policy.pt2"
    if output.suffix != ".pt2":
        raise ConfigError(f"--output is {str(output)!r}, must end in .pt2")
    if not output.parent.is_dir():
        raise ConfigError(f"--output is {str(output)!r}, but there is no directory {str(output.parent)!r}")
    player = load_player(arguments.run, arguments.checkpoint)
    spec = env_spec(player.config.env)
    card = describe(player, spec)
    policy = player.algorithm.greedy_policy(player.networks)
    save_program(policy, example_observations(spec, player.config.env.stack), card, output)
    print(f"{output}: greedy policy of parameters {player.version} after {player.frames:,} frames")
    for name in ("observations", "actions"):
        sizes = ", ".join(map(str, ["B", *card[name]["shape"]]))
        print(f"{name:12} {card[name]['dtype']} [{sizes}]: {card[name]['meaning']}")
    return 0


def describe(player: Player, spec: EnvSpec) -> dict[str, Any]:
    """What somebody with nothing but the file must know to use it."""
    env = player.config.env
    continuous = isinstance(spec.actions, ContinuousActions)
    return {
        "environment": env.id,
        "algorithm": player.config.algorithm.name,
        "parameters": str(player.version),
        "frames": player.frames,
        "observations": {
            "dtype": spec.observation_dtype,
            "shape": list(spec.network_input_shape(env.stack)),
            "frame_shape": list(spec.observation_shape),
            "stack": env.stack,
            "meaning": "stacked frames, the oldest first; images have their channels first",
            "before_the_first_frame": spec.padding.name.lower(),
        },
        "actions": {
            "dtype": "float32" if continuous else "int64",
            "shape": list(spec.actions.shape),
            "meaning": (
                "-1 is the lower bound of the environment's own actions, 1 the upper"
                if continuous
                else f"numbers of actions, from 0 to {spec.num_actions - 1}"
            ),
        },
        "action_repeat": spec.action_repeat,
    }


def example_observations(spec: EnvSpec, stack: int) -> torch.Tensor:
    """Zeros of the shape and type that the policy is given."""
    return torch.zeros(TRACED_BATCH, *spec.network_input_shape(stack), dtype=getattr(torch, spec.observation_dtype))


def save_program(policy: nn.Module, example: torch.Tensor, card: dict[str, Any], output: Path) -> None:
    """Write ``policy`` as a program for any number of observations, with ``card`` beside it.

    Under a temporary name first, so that no half of a file is left.
    """
    policy.requires_grad_(False).eval()
    with torch.no_grad():  # networks have a faster way where no gradient is asked for
        program = torch.export.export(policy, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    temporary = output.with_name(f".{output.stem}-writing{output.suffix}")
    try:
        torch.export.save(program, temporary, extra_files={CARD: json.dumps(card, indent=2)})
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
