"""A policy that is published in half precision acts as the learner's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.networks.q_networks import NetworkConfig, QNetwork, make_q_network
from apexrl.runtime.parameter_payload import pack_parameters, unpack_parameters

#: Actions differ only where two action values are closer than the rounding of the weights.
LEAST_AGREEMENT = 0.99

VECTOR = EnvSpec((8,), "float32", DiscreteActions(6))
MINATAR = EnvSpec((4, 10, 10), "uint8", DiscreteActions(6))
ATARI = EnvSpec((84, 84), "uint8", DiscreteActions(6), action_repeat=4)
PONG_SMALL = NetworkConfig(conv_filters=(16, 32), hidden_units=(128,))


def observations(spec: EnvSpec, stack: int, count: int) -> torch.Tensor:
    """Random ones [count, *network_input_shape(stack)] that differ in strength, so that greedy actions differ too."""
    generator = np.random.default_rng(1)
    shape = (count, *spec.network_input_shape(stack))
    if spec is VECTOR:
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))
    strength = generator.random((count, *[1] * (len(shape) - 1)))
    if spec is MINATAR:
        return torch.from_numpy((generator.random(shape) < strength).astype(np.uint8))
    # Blocks of 12 x 12 pixels: single random pixels average out in the first convolution.
    blocks = generator.random((*shape[:2], 7, 7)) * strength * 256
    return torch.from_numpy(np.kron(blocks, np.ones((12, 12))).astype(np.uint8))


def trained(networks: QNetwork, inputs: torch.Tensor) -> QNetwork:
    """``networks`` with some updates towards random action values, so that weights are not those of the start."""
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(networks.parameters(), 1e-3)
    for _ in range(5):
        loss = (networks(inputs[:32]) - torch.randn(32, networks.head.advantage.out_features, generator=generator)) ** 2
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return networks


@pytest.mark.parametrize(
    ("spec", "stack", "network"),
    [(VECTOR, 1, NetworkConfig()), (MINATAR, 1, NetworkConfig()), (ATARI, 4, PONG_SMALL)],
    ids=["mlp", "minatar", "nature"],
)
def test_greedy_actions_agree_and_half_the_bytes_are_sent(spec: EnvSpec, stack: int, network: NetworkConfig) -> None:
    torch.manual_seed(3)
    inputs = observations(spec, stack, 512 if spec is ATARI else 4096)
    own = trained(make_q_network(network, spec, stack), inputs)
    sent = pack_parameters(own.state_dict(), "float16")
    single = pack_parameters(own.state_dict(), "float32")
    actors = copy.deepcopy(own)
    actors.load_state_dict(unpack_parameters(sent.payload))
    with torch.no_grad():
        ours, theirs = own(inputs).argmax(1), actors(inputs).argmax(1)
    assert sent.kept == ()
    assert len(ours.unique()) >= 2, "one action for all observations would agree by itself"
    assert (ours == theirs).float().mean() >= LEAST_AGREEMENT
    assert len(sent.payload) == pytest.approx(len(single.payload) / 2, rel=0.02)
