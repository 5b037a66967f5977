"""From observations to features: convolutions for images, dense layers for vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class InputConv2d(nn.Conv2d):
    """A convolution over images as they are stored: uint8 or floating, channels first, scaled by ``input_scale``.

    The scale is folded into the weights, which saves a pass over the images. On a CPU, a uint8 image whose stride of 4
    divides kernel, height and width is regrouped into 4 x 4 patches (moving 4 bytes at a time) and convolved with
    stride 1: the same sums, but over 16 times the channels, which vector units like better than 4 channels. Measured
    for the small Pong network in docs/algorithms/apex_dqn.md.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, input_scale: float = 1.0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.input_scale = input_scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] -> features [B, C', H', W'] (no activation)."""
        weight = self.weight * self.input_scale if self.input_scale != 1.0 else self.weight
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = images.shape[2:]
        patches = (
            images.device.type == "cpu"
            and images.dtype == torch.uint8
            and stride == 4
            and kernel % 4 == height % 4 == width % 4 == 0
        )
        if not patches:
            return F.conv2d(images.to(self.weight.dtype), weight, self.bias, self.stride)
        out_channels, channels = weight.shape[:2]
        taps = kernel // 4
        weight = weight.view(out_channels, channels, taps, 4, taps, 4).permute(0, 1, 3, 5, 2, 4)
        weight = weight.reshape(out_channels, channels * 16, taps, taps).contiguous(memory_format=torch.channels_last)
        return F.conv2d(to_patches(images).to(self.weight.dtype), weight, self.bias)


def to_patches(images: torch.Tensor) -> torch.Tensor:
    """Regroup uint8 images [B, C, H, W] into 4 x 4 patches [B, 16 C, H / 4, W / 4], channels last in memory.

    Channel 16 c + 4 y + x of the result is the pixel (y, x) of each patch of channel c.
    """
    batch, channels, height, width = images.shape
    quads = images.contiguous().view(torch.int32).view(batch, channels, height // 4, 4, width // 4)
    patches = quads.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8)
    return patches.view(batch, height // 4, width // 4, channels * 16).permute(0, 3, 1, 2)


class ConvTorso(nn.Module):
    """Convolutions with ReLU, flattened: [B, C, H, W] -> [B, num_features].

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

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images
        for layer in self.layers:
            features = F.relu(layer(features))
        return features.flatten(1)


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

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        features = observations.flatten(1).to(torch.float32)
        for layer in self.layers:
            features = F.relu(layer(features))
        return features
