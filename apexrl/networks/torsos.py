"""From observations to features: convolutions for images, dense layers for vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class InputConv2d(nn.Conv2d):
    """The first convolution over images as they are stored: uint8 or floating, channels first.

    The pixels' scale is folded into the weights, which saves a pass over the images. On CUDA, blocks of stride x stride
    pixels become channels of one pixel and the convolution one of stride 1: the same sums, but over 64 channels for
    Atari's four frames and stride 4, where tensor cores pad four channels to eight and gain nothing.

    Features come channels last in memory, on every device: all layers behind inherit that faster layout.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, input_scale: float = 1.0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.input_scale = input_scale
        self._block = stride if kernel_size % stride == 0 else 1

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] as float32, or in autocast's type, which would be converted to next."""
        kind = images.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if kind == "cuda" and self._block > 1:
            return space_to_depth(images, self._block, dtype)
        if kind != "cpu":
            return images.to(dtype, memory_format=torch.channels_last)
        if not torch.is_grad_enabled():
            # To transpose few channels takes a CPU longer than to convolve them; only the weights' gradient, which
            # takes twice as long from channels that come first, is worth it.
            return images.to(dtype, memory_format=torch.contiguous_format)
        # One pass over bytes and one that converts: half of the time of both at once.
        return torch.stack(images.unbind(1), dim=-1).to(dtype).permute(0, 3, 1, 2)

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        """What :meth:`prepare` made -> features [B, C', H', W'] (no activation)."""
        weight = self.weight * self.input_scale if self.input_scale != 1.0 else self.weight
        if prepared.shape[1] == self.in_channels:
            features = F.conv2d(prepared, weight, self.bias, self.stride)
        else:
            features = F.conv2d(prepared, space_to_depth(weight, self._block, weight.dtype), self.bias)
        return features.contiguous(memory_format=torch.channels_last)


def space_to_depth(images: torch.Tensor, block: int, dtype: torch.dtype) -> torch.Tensor:
    """Blocks of ``block`` x ``block`` pixels as the channels of one: [B, C, H, W] -> [B, block^2 C, H', W'].

    H' = H // block; rows and columns beyond the last whole block are left out, which a convolution whose kernel is a
    multiple of its stride never reads. The result is of type ``dtype`` and channels last in memory.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // block, width // block
    blocks = images[:, :, : rows * block, : columns * block].view(batch, channels, rows, block, columns, block)
    flat = blocks.permute(0, 2, 4, 3, 5, 1).to(dtype, memory_format=torch.contiguous_format)
    return flat.reshape(batch, rows, columns, block * block * channels).permute(0, 3, 1, 2)


class ConvTorso(nn.Module):
    """Convolutions with ReLU, flattened: [B, C, H, W] -> [B, num_features].

    Features are ordered by row, column, channel, as they lie in memory, so that flattening copies nothing.

    Args:
        input_shape: (C, H, W) of the stacked observation.
        filters: output channels of each layer.
        kernels: kernel size and stride of each layer, as many as ``filters``.
        input_scale: factor on the pixels.

    Raises:
        ValueError: the image is smaller than a kernel.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        filters: tuple[int, ...],
        kernels: tuple[tuple[int, int], ...],
        input_scale: float = 1.0,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        layers: list[nn.Module] = []
        for out_channels, (kernel, stride) in zip(filters, kernels, strict=True):
            if min(height, width) < kernel:
                raise ValueError(
                    f"an image of {input_shape[1]} x {input_shape[2]} is too small for {len(filters)} convolutions "
                    f"with kernels and strides {kernels}"
                )
            layers.append(
                nn.Conv2d(channels, out_channels, kernel, stride)
                if layers
                else InputConv2d(channels, out_channels, kernel, stride, input_scale)
            )
            channels, height, width = out_channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.layers = nn.ModuleList(layers)
        self.num_features = channels * height * width

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images as the first layer reads them. Networks of one shape share the result."""
        first = self.layers[0]
        assert isinstance(first, InputConv2d)
        return first.prepare(images)

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        features = prepared
        for layer in self.layers:
            features = F.relu(layer(features), inplace=True)
        return features.permute(0, 2, 3, 1).flatten(1)


def linear(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """A large ``layer`` of inputs [B, F] -> [B, F'], on CPUs without gradients as W x^T.

    They are the same sums, a third faster for a few dozen inputs (MKL). Forward and backward together gain 8 to
    18 % for 32 inputs and nothing from 128 on, so layers that learn stay as they are.
    """
    if inputs.device.type != "cpu" or torch.is_grad_enabled():
        return layer(inputs)  # type: ignore[no-any-return]
    return torch.addmm(layer.bias[:, None], layer.weight, inputs.t()).t()


class DenseTorso(nn.Module):
    """Linear layers with ReLU over the flattened observation: [B, ...] -> [B, num_features].

    With no ``units`` the features are the observation itself.
    """

    def __init__(self, input_shape: tuple[int, ...], units: tuple[int, ...]) -> None:
        super().__init__()
        self.num_features = math.prod(input_shape)
        layers: list[nn.Module] = []
        for num_units in units:
            layers.append(nn.Linear(self.num_features, num_units))
            self.num_features = num_units
        self.layers = nn.ModuleList(layers)

    def prepare(self, observations: torch.Tensor) -> torch.Tensor:
        """Observations [B, ...] as float32 vectors [B, F]."""
        return observations.flatten(1).to(torch.float32)

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        features = prepared
        for layer in self.layers:
            features = F.relu(layer(features))
        return features
