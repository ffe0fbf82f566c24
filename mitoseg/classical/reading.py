"""Images and labels block by block: arrays in memory and volumes on disk alike.

    |<- halo ->|<---- block ---->|<- halo ->|     what leaves the volume repeats its border voxels
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes import Array, ArrayVolume, Volume

IGNORED = 255
"""Label of voxels that count neither way."""
BLOCK = 6_000_000
"""Voxels of a block: what bounds the memory of its features."""


def as_volume(image_zyx: Array | Volume) -> Volume:
    """An array as a volume; a volume as it is.

    Raises:
        UserError: The array has not three axes, or one of them is empty.
    """
    if isinstance(image_zyx, Volume):
        return image_zyx
    image_zyx = np.asarray(image_zyx)
    if image_zyx.ndim != 3 or not image_zyx.size:
        raise UserError("not a (z, y, x) image", image_zyx.shape, "give three axes, none of them empty")
    return ArrayVolume(image_zyx)


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


def read_padded(volume: Volume, box: Box, halo: Sequence[int]) -> Array:
    """One box with its halo; border voxels are repeated beyond the volume."""
    wanted = box.grow(list(halo))
    there = wanted.clip(volume.box)
    width = [(a - w, v - b) for w, a, b, v in zip(wanted.start, there.start, there.stop, wanted.stop, strict=True)]
    return np.pad(volume.read(there), width, mode="edge")


def check_labels(image: Volume, label: Volume) -> None:
    """Refuse labels that do not belong to an image.

    Raises:
        UserError: Their shapes differ.
    """
    if image.shape != label.shape:
        raise UserError(f"image {image.shape} and labels differ in shape", label.shape, "give the labels of that image")


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
