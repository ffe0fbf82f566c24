"""How an image is cut into blocks, and what its grey values are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box, tiles
from mitoseg.volumes import Volume

BLOCK = 6_000_000
"""Voxels of a block: what bounds the memory of its features."""


def even_blocks(shape: Sequence[int], voxels: int = BLOCK) -> list[Box]:
    """Cut a volume into blocks of about equal shape, as near to cubes as the volume allows.

    Args:
        shape: (z, y, x).
        voxels: The most that a block may have, give or take the rounding.

    >>> [str(b) for b in even_blocks((4, 10, 4), 64)]
    ['[0:4,0:4,0:4]', '[0:4,4:8,0:4]', '[0:4,8:10,0:4]']
    """
    even = [1, 1, 1]
    room = float(voxels)
    for axes_left, axis in zip((3, 2, 1), np.argsort(shape, kind="stable").tolist(), strict=True):
        edge = max(1.0, room ** (1 / axes_left) + 1e-6)
        even[axis] = math.ceil(shape[axis] / math.ceil(shape[axis] / edge))
        room /= even[axis]
    return list(tiles(Box.of_shape(shape), even))


def grey_range(volume: Volume, seed: int, voxels: int = 2_000_000) -> tuple[float, float]:
    """Grey values below and above which lies one percent of the voxels, from a sample of slices.

    Returns:
        (low, high), high above low.
    """
    z, y, x = volume.shape
    count = min(z, max(1, voxels // (y * x)))
    chosen = np.sort(np.random.default_rng(seed).permutation(z)[:count]).tolist()
    sample = np.concatenate([volume.read(Box((k, 0, 0), (k + 1, y, x))).ravel() for k in chosen])
    low, high = (float(v) for v in np.percentile(sample, (1.0, 99.0)))
    return low, high if high > low else low + 1.0


def scaled(image_zyx: npt.NDArray[np.generic], grey: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Grey values as shares of their range, cut to 0 ... 1."""
    unit = (image_zyx.astype(np.float32) - np.float32(grey[0])) / np.float32(grey[1] - grey[0])
    return np.clip(unit, 0, 1, out=unit)
