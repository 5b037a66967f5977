"""Published parameters as bytes: safetensors, in single or half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

PublishDtype = Literal["float32", "float16"]


class Packed(NamedTuple):
    """Parameters as bytes, and the tensors that float16 could not hold and that were left as they are."""

    payload: bytes
    kept: tuple[str, ...]


def pack_parameters(tensors: Mapping[str, torch.Tensor], dtype: PublishDtype) -> Packed:
    """Tensors of any device as safetensors bytes.

    With float16, floating tensors of more than two bytes per element are rounded to it: to 11 significant bits down to
    6e-5, to multiples of 6e-8 below. A tensor with a finite value that would become infinite (beyond 65504) keeps its
    type and is named in the result: clipped weights would act differently without anybody's notice, and to publish
    nothing would leave actors with old ones. Values that are not finite stay what they are.
    """
    packed: dict[str, torch.Tensor] = {}
    kept = []
    for name, tensor in tensors.items():
        packed[name] = tensor.detach().to("cpu").contiguous()
        if dtype == "float16" and tensor.is_floating_point() and tensor.element_size() > 2:
            half = packed[name].to(torch.float16)
            if bool((half.isinf() & packed[name].isfinite()).any()):
                kept.append(name)
            else:
                packed[name] = half
    return Packed(_save(packed), tuple(kept))


def unpack_parameters(payload: bytes) -> dict[str, torch.Tensor]:
    """Tensors by name, on the CPU; what came as float16 is float32 again."""
    tensors = safetensors_torch.load(payload)
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}


def _save(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Contiguous tensors of the CPU as safetensors bytes."""
    # The trainer waits for this. By way of numpy, which has no bfloat16, it takes a small network a sixth of the time.
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):
        return safetensors_torch.save(dict(tensors))
    return safetensors_numpy.save({name: tensor.numpy() for name, tensor in tensors.items()})
