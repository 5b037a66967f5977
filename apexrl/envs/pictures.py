"""Pictures of observations, for environments without a renderer of their own."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

from apexrl.types import Array

#: Observations are enlarged by whole factors until the shorter side has at least this many pixels.
MIN_SIDE_PIXELS = 160


def picture(observation: Array) -> npt.NDArray[np.uint8]:
    """An RGB picture [H, W, 3] of one unstacked observation.

    [H, W] is shown in grey, [3, H, W] uint8 as RGB, other [C, H, W] with one colour per channel (the last set one
    is on top), and a vector as grey stripes between its least and its greatest value.
    """
    if observation.ndim == 1:
        rgb = _grey(np.repeat(observation[None], max(1, observation.size // 4), axis=0))
    elif observation.ndim == 2:
        rgb = _grey(observation)
    elif observation.shape[0] == 1:
        rgb = _grey(observation[0])
    elif observation.shape[0] == 3 and observation.dtype == np.uint8:
        rgb = np.ascontiguousarray(observation.transpose(1, 2, 0)).astype(np.uint8)
    else:
        rgb = _planes(observation)
    factor = -(-MIN_SIDE_PIXELS // min(rgb.shape[:2]))
    factor += factor % 2  # even sides: common video codecs refuse odd ones
    return rgb.repeat(factor, axis=0).repeat(factor, axis=1) if min(rgb.shape[:2]) < MIN_SIDE_PIXELS else rgb


def _grey(plane: Array) -> npt.NDArray[np.uint8]:
    if plane.dtype != np.uint8:
        values = plane.astype(np.float64)
        low, high = float(values.min()), float(values.max())
        plane = ((values - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)
    return np.stack([plane.astype(np.uint8)] * 3, axis=-1)


def _planes(planes: Array) -> npt.NDArray[np.uint8]:
    channels = planes.shape[0]
    palette = np.zeros((channels + 1, 3), np.uint8)
    for i in range(channels):
        palette[i + 1] = [round(255 * x) for x in colorsys.hsv_to_rgb(i / channels, 0.75, 1.0)]
    top = ((planes != 0) * np.arange(1, channels + 1)[:, None, None]).max(axis=0)
    rgb: npt.NDArray[np.uint8] = palette[top]
    return rgb
