"""Parameters as bytes: exact in float32, half the size in float16, and nothing becomes infinite in silence."""

from __future__ import annotations

import pytest
import torch

from apexrl.runtime.parameter_payload import pack_parameters, unpack_parameters


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(64, 32, generator=generator),
        "transposed": torch.randn(8, 4, generator=generator).T,
        "count": torch.arange(5),
        "step": torch.tensor(3.0),
        "narrow": torch.randn(7, generator=generator).to(torch.bfloat16),
    }


@pytest.mark.parametrize("with_bfloat16", [False, True])
def test_single_precision_is_exact(with_bfloat16: bool) -> None:
    given = {name: tensor for name, tensor in tensors().items() if with_bfloat16 or tensor.dtype != torch.bfloat16}
    packed = pack_parameters(given, "float32")
    got = unpack_parameters(packed.payload)
    assert packed.kept == ()
    assert got.keys() == given.keys()
    for name, tensor in given.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def test_half_precision_rounds_floats_and_comes_back_as_float32() -> None:
    given = tensors()
    got = unpack_parameters(pack_parameters(given, "float16").payload)
    for name in ("weight", "transposed"):
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], given[name], rtol=2.0**-11, atol=6e-8)
    assert torch.equal(got["count"], given["count"])
    assert torch.equal(got["narrow"], given["narrow"])
    assert got["narrow"].dtype == torch.bfloat16


def test_a_tensor_beyond_half_precision_is_kept_and_named() -> None:
    given = {"large": torch.tensor([65520.0, 1.0 + 2.0**-20]), "small": torch.tensor([65504.0, -65519.0])}
    packed = pack_parameters(given, "float16")
    got = unpack_parameters(packed.payload)
    assert packed.kept == ("large",)
    assert torch.equal(got["large"], given["large"])
    assert got["small"].tolist() == [65504.0, -65504.0]


def test_what_was_infinite_stays_so_and_keeps_nothing_wide() -> None:
    packed = pack_parameters({"weight": torch.tensor([float("inf"), 2.0])}, "float16")
    assert packed.kept == ()
    assert unpack_parameters(packed.payload)["weight"].tolist() == [float("inf"), 2.0]
