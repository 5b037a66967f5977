"""From observations to features: convolutions for images, dense layers for vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class InputConv2d(nn.Conv2d):
    """The first convolution over images as they are stored: uint8 or floating, channels first.

    The pixels' scale is folded into the weights, which saves a pass over the images.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, input_scale: float = 1.0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.input_scale = input_scale

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] as float32, channels last in memory: all layers behind inherit that faster layout."""
        return images.to(torch.float32, memory_format=torch.channels_last)

    def forward(self, prepared: torch.Tensor) -> torch.Tensor:
        """What :meth:`prepare` made -> features [B, C', H', W'] (no activation)."""
        weight = self.weight * self.input_scale if self.input_scale != 1.0 else self.weight
        return F.conv2d(prepared, weight, self.bias, self.stride)


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
