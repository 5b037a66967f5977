"""A copy of everything a learner's update reads and changes, and putting it back exactly.

A snapshot is tensors by name, which are saved as safetensors, and a structure of plain values, which is saved as JSON
and refers to the tensors by name. Nothing is pickled. Random generators of an algorithm must be in
``LearnerState.generators``; torch's global generator is not part of a snapshot.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from apexrl.algorithms.base import LearnerState
from apexrl.runtime.errors import ArchitectureError, CheckpointError
from apexrl.types import ParameterVersion

MAX_DIFFERENCES = 10


@dataclass(frozen=True)
class Snapshot:
    """A learner's state on the CPU. It shares no memory with the state it was taken from."""

    version: ParameterVersion
    tensors: dict[str, torch.Tensor]
    """``modules/<module>/<parameter>``, ``optimizers/<optimizer>/...``, ``generators/<generator>``."""
    structure: dict[str, Any]
    """JSON: ``{"modules": [names], "optimizers": {name: state}, "generators": [names]}``."""

    def architecture(self) -> dict[str, str]:
        """Module tensor -> its type and shape, for example ``float32[512, 3136]``."""
        return {name: _describe(t) for name, t in self.tensors.items() if name.startswith("modules/")}

    def architecture_digest(self) -> str:
        """SHA-256 (hex) of :meth:`architecture`."""
        return hashlib.sha256(json.dumps(self.architecture(), sort_keys=True).encode()).hexdigest()


def snapshot(state: LearnerState, epoch: int) -> Snapshot:
    """Copy ``state`` to the CPU. On CUDA this waits for the updates in flight."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in state.modules.items():
        for key, value in module.state_dict().items():
            if not isinstance(value, torch.Tensor):
                raise CheckpointError(f"modules/{name}/{key} is a {type(value).__name__}, must be a tensor")
            tensors[f"modules/{name}/{key}"] = _copy(value)
    structure = {
        "modules": sorted(state.modules),
        "optimizers": {
            name: _encode(optimizer.state_dict(), f"optimizers/{name}", tensors)
            for name, optimizer in state.optimizers.items()
        },
        "generators": sorted(state.generators),
    }
    for name, generator in state.generators.items():
        tensors[f"generators/{name}"] = _copy(generator.get_state())
    return Snapshot(ParameterVersion(epoch, state.step), tensors, structure)


def restore(state: LearnerState, saved: Snapshot) -> None:
    """Make ``state`` equal to what ``saved`` was taken from, in place: modules, optimizers, generators, step.

    Everything is compared first; on an error nothing was changed.

    Raises:
        ArchitectureError: the state has other modules, tensors, shapes, optimizers or generators.
    """
    current = snapshot(state, saved.version.epoch)
    _compare(current, saved)
    optimizers = {
        name: _decode(saved.structure["optimizers"][name], saved.tensors, f"optimizers/{name}")
        for name in state.optimizers
    }
    for name, optimizer in state.optimizers.items():
        _compare_optimizer(name, optimizer, optimizers[name])
    for name, module in state.modules.items():
        load_module(module, saved, name)
    for name, optimizer in state.optimizers.items():
        _load_optimizer(optimizer, optimizers[name])
    for name, generator in state.generators.items():
        generator.set_state(saved.tensors[f"generators/{name}"].clone())
    state.step = saved.version.step


def load_module(module: nn.Module, saved: Snapshot, name: str) -> None:
    """Load one module of a snapshot (``online``) into a module of the same architecture, for playing.

    Raises:
        ArchitectureError: the module has other tensors or shapes; nothing was changed.
    """
    prefix = f"modules/{name}/"
    ours = {f"{prefix}{key}": _describe(value) for key, value in module.state_dict().items()}
    theirs = {key: kind for key, kind in saved.architecture().items() if key.startswith(prefix)}
    _refuse(saved.version, _differing_tensors(ours, theirs))
    module.load_state_dict({k.removeprefix(prefix): t for k, t in saved.tensors.items() if k.startswith(prefix)})


def _compare(current: Snapshot, saved: Snapshot) -> None:
    lines = _differing_tensors(current.architecture(), saved.architecture())
    for kind in ("modules", "optimizers", "generators"):
        here, there = sorted(current.structure[kind]), sorted(saved.structure[kind])
        if here != there:
            lines.append(f"{kind} are {here} here and {there} in the checkpoint")
    _refuse(saved.version, lines)


def _differing_tensors(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    return [
        f"{name.removeprefix('modules/')} is {ours.get(name, 'absent')} here and {theirs.get(name, 'absent')} in the "
        "checkpoint"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _refuse(version: ParameterVersion, lines: list[str]) -> None:
    if lines:
        more = f"; and {len(lines) - MAX_DIFFERENCES} more" if len(lines) > MAX_DIFFERENCES else ""
        raise ArchitectureError(
            f"checkpoint {version} is of another architecture: " + "; ".join(lines[:MAX_DIFFERENCES]) + more
        )


def _compare_optimizer(name: str, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    ours = [len(group["params"]) for group in optimizer.param_groups]
    theirs = [len(group["params"]) for group in saved["param_groups"]]
    if ours != theirs:
        raise ArchitectureError(
            f"optimizer {name!r} has parameter groups of {ours} tensors here and of {theirs} in the checkpoint"
        )
    keys = [sorted(set(group) - {"params"}) for group in optimizer.param_groups]
    saved_keys = [sorted(set(group) - {"params"}) for group in saved["param_groups"]]
    if keys != saved_keys:
        raise ArchitectureError(
            f"optimizer {name!r} has the settings {keys} here and {saved_keys} in the checkpoint: it is of another kind"
        )


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load moments and step counts. Settings stay those of the configuration: a learning rate may be changed."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)
    # load_state_dict casts state to the parameter's type (a float32 moment of a bfloat16 parameter would lose bits).
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in saved["state"].items():
        state = optimizer.state[parameters[index]]
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and state[key].dtype != value.dtype:
                state[key] = value.to(state[key].device)


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON that :func:`_decode` reads back equal; tensors move to ``tensors`` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = _copy(value)
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[_key(k, path), _encode(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"{path} is a {type(value).__name__}, which a checkpoint cannot hold")


def _decode(node: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        if content not in tensors:
            raise CheckpointError(f"{path}: the tensor {content} is missing")
        return tensors[content].clone()
    if kind == "items":
        return {k: _decode(v, tensors, f"{path}/{k}") for k, v in content}
    values = [_decode(v, tensors, f"{path}/{i}") for i, v in enumerate(content)]
    return tuple(values) if kind == "tuple" else values


def _key(key: Any, path: str) -> Any:
    if type(key) not in (int, str):
        raise CheckpointError(f"{path} has the key {key!r}, must be a string or a whole number")
    return key


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
