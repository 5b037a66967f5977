"""Shapes, the dueling combination and the scale of pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from apexrl.config import ConfigError
from apexrl.env_types import DiscreteActions, EnvSpec
from apexrl.networks.q_networks import NetworkConfig, QHead, combine_streams, make_q_network
from apexrl.networks.torsos import InputConv2d, space_to_depth

ATARI = EnvSpec((84, 84), "uint8", DiscreteActions(18), action_repeat=4)
MINATAR = EnvSpec((4, 10, 10), "uint8", DiscreteActions(6))
VECTOR = EnvSpec((4,), "float32", DiscreteActions(2))


def parameters(config: NetworkConfig, spec: EnvSpec, stack: int) -> int:
    return sum(p.numel() for p in make_q_network(config, spec, stack).parameters())


def test_dueling_reference() -> None:
    q = combine_streams(torch.tensor([[2.0]]), torch.tensor([[1.0, 0.0, -4.0]]))
    assert q.tolist() == [[4.0, 3.0, -1.0]]


def test_dueling_head_gives_each_stream_its_own_half_of_the_hidden_layer() -> None:
    torch.manual_seed(0)
    head = QHead(num_features=5, hidden_units=3, num_actions=4, dueling=True)
    features = torch.randn(2, 5)
    hidden = F.relu(features @ head.hidden.weight.T + head.hidden.bias)
    assert head.value is not None
    value, advantage = head.value(hidden[:, :3]), head.advantage(hidden[:, 3:])
    torch.testing.assert_close(head(features), value + advantage - advantage.mean(1, keepdim=True))


def test_nature_network_has_the_papers_size() -> None:
    convolutions = (4 * 64 * 32 + 32) + (32 * 16 * 64 + 64) + (64 * 9 * 64 + 64)
    plain = convolutions + (3136 * 512 + 512) + (512 * 18 + 18)
    assert parameters(NetworkConfig(dueling=False), ATARI, stack=4) == plain
    dueling = convolutions + 2 * (3136 * 512 + 512) + (512 * 18 + 18) + (512 + 1)
    assert parameters(NetworkConfig(), ATARI, stack=4) == dueling


def test_small_pong_network() -> None:
    config = NetworkConfig(conv_filters=(16, 32), hidden_units=(256,))
    network = make_q_network(config, ATARI, 4)
    assert network.torso.num_features == 32 * 9 * 9
    assert network(torch.zeros(3, 4, 84, 84, dtype=torch.uint8)).shape == (3, 18)


def test_minatar_and_vector_networks() -> None:
    minatar = make_q_network(NetworkConfig(), MINATAR, 1)
    assert minatar.torso.num_features == 16 * 8 * 8
    assert minatar(torch.ones(2, 4, 10, 10, dtype=torch.uint8)).shape == (2, 6)
    vector = make_q_network(NetworkConfig(hidden_units=(64, 32)), VECTOR, 2)
    assert vector(torch.zeros(3, 8)).shape == (3, 2)
    assert [p.shape[0] for p in vector.parameters() if p.ndim == 2] == [64, 64, 2, 1]


def test_pixels_are_scaled_once() -> None:
    network = make_q_network(NetworkConfig(dueling=False), ATARI, 4)
    first = network.torso.layers[0]
    assert isinstance(first, InputConv2d)
    pixels = torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8)
    expected = F.conv2d(pixels.float() / 255.0, first.weight, first.bias, 4)
    torch.testing.assert_close(first(first.prepare(pixels)), expected, rtol=1e-4, atol=1e-5)


def test_minatar_planes_are_not_scaled() -> None:
    network = make_q_network(NetworkConfig(), MINATAR, 1)
    first = network.torso.layers[0]
    assert isinstance(first, InputConv2d)
    assert first.input_scale == 1.0


def test_scale_in_the_weights_gives_the_gradients_of_scaled_pixels() -> None:
    torch.manual_seed(0)
    layer = InputConv2d(4, 16, 8, 4, 1 / 255)
    pixels = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    output = layer(layer.prepare(pixels))
    reference = F.conv2d(pixels.float() / 255, layer.weight, layer.bias, 4)
    torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn_like(output)
    gradients = [torch.autograd.grad((q * cotangent).sum(), [layer.weight, layer.bias]) for q in (output, reference)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(84, 84), (30, 45)])
def test_blocks_of_pixels_as_channels_give_the_same_convolution(height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = InputConv2d(4, 16, 8, 4, 1 / 255)
    images = torch.randint(0, 256, (3, 4, height, width), dtype=torch.uint8)
    blocks = space_to_depth(images, 4, torch.float32)
    assert blocks.shape == (3, 64, height // 4, width // 4)
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(blocks), layer(layer.prepare(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [ATARI, MINATAR])
def test_values_are_the_same_with_and_without_gradients(spec: EnvSpec) -> None:
    """Layouts differ, because only a gradient is worth a transposition of the images."""
    torch.manual_seed(0)
    stack = 4 if spec is ATARI else 1
    network = make_q_network(NetworkConfig(), spec, stack)
    images = torch.randint(0, 256 if spec is ATARI else 2, (7, *spec.network_input_shape(stack)), dtype=torch.uint8)
    with_gradients = network(images)
    assert with_gradients.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(network(images), with_gradients.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gradients", [True, False])
def test_features_come_channels_last(gradients: bool) -> None:
    layer = InputConv2d(4, 16, 8, 4, 1 / 255)
    with torch.set_grad_enabled(gradients):
        prepared = layer.prepare(torch.zeros(3, 4, 84, 84, dtype=torch.uint8))
        assert prepared.is_contiguous(memory_format=torch.channels_last) is gradients
        assert layer(prepared).is_contiguous(memory_format=torch.channels_last)


def test_parameters_are_contiguous_so_that_they_can_be_published() -> None:
    network = make_q_network(NetworkConfig(), ATARI, 4)
    assert all(value.is_contiguous() for value in network.state_dict().values())


def test_initialisation_follows_the_generator() -> None:
    def fresh(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(make_q_network(NetworkConfig(), VECTOR, 1).parameters())

    assert torch.equal(fresh(1), fresh(1))
    assert not torch.equal(fresh(1), fresh(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "resnet"}, r"algorithm\.network\.kind is 'resnet'"),
        ({"kind": "nature", "conv_filters": (1, 2, 3, 4)}, r"algorithm\.network\.conv_filters .* at most 3 layers"),
        ({"kind": "mlp", "conv_filters": (8,)}, r"algorithm\.network\.conv_filters .* \(\) for kind mlp"),
        ({"hidden_units": (0,)}, r"algorithm\.network\.hidden_units is \(0,\)"),
    ],
)
def test_impossible_networks_are_refused_by_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**change)  # type: ignore[arg-type]


def test_networks_that_do_not_fit_the_environment_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be mlp or auto for observations of shape \(4,\)"):
        make_q_network(NetworkConfig(kind="nature"), VECTOR, 1)
    with pytest.raises(ConfigError, match="too small"):
        make_q_network(NetworkConfig(kind="nature"), MINATAR, 1)
    with pytest.raises(ConfigError, match=r"algorithm\.network\.conv_filters"):
        make_q_network(NetworkConfig(conv_filters=(1, 2, 3, 4)), ATARI, 4)
    with pytest.raises(ConfigError, match=r"algorithm\.network\.conv_filters"):
        make_q_network(NetworkConfig(conv_filters=(8,)), VECTOR, 1)
