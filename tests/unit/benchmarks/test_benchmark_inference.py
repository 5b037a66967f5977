"""The stand-ins that benchmarks/inference.py measures are the same networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.networks.q_networks import NetworkConfig, QNetwork, make_q_network
from benchmarks.inference import Bfloat16Network, PlainProgram, largest_difference


@pytest.mark.parametrize(("stand_in", "tolerance"), [(PlainProgram, 1e-5), (Bfloat16Network, 2e-2)])
def test_stand_ins_give_the_networks_values(stand_in: Callable[[QNetwork], nn.Module], tolerance: float) -> None:
    torch.manual_seed(0)
    spec = EnvSpec((84, 84), "uint8", DiscreteActions(6))
    network = make_q_network(NetworkConfig(conv_filters=(16, 32), hidden_units=(128,)), spec, 4)
    images = [torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8) for _ in range(2)]
    other = stand_in(network)
    assert other(images[0]).dtype == torch.float32
    assert largest_difference(network, other, images) < tolerance


def test_other_weights_are_a_difference() -> None:
    spec = EnvSpec((84, 84), "uint8", DiscreteActions(6))
    one, other = (make_q_network(NetworkConfig(), spec, 4) for _ in range(2))
    images = [torch.full((1, 4, 84, 84), 255, dtype=torch.uint8)]
    assert largest_difference(one, one, images) == 0.0
    assert largest_difference(one, other, images) > 1e-3
