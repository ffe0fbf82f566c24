"""Coarser levels of a volume: which axes are halved, how big the levels are, and what a coarser voxel is.

voxel (z, y, x) of serial sections         halved
level 0    50    5    5   nm
level 1    50   10   10                    y x        z waits until the others have caught up
level 2    50   20   20                    y x
level 3    50   40   40                    y x
level 4   100   80   80                    z y x

A voxel of level 1 covers voxels 0 and 1 of level 0, so its centre lies half a voxel of level 0 further: every level
has a scale and a translation, ``translation = (factor - 1) / 2 * voxel``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.volumes.base import Array

SMALLEST_SIDE = 256
"""A level whose sides are no longer than this needs no coarser one."""
_LABEL_KINDS = ("mask", "instances")

Sizes = tuple[int, int, int]
Lengths = tuple[float, float, float]


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes:
        shape: (z, y, x).
        factors: Voxels of level 0 along each axis of one of its voxels.
    """

    shape: Sizes
    factors: Sizes = (1, 1, 1)

    def scale(self, voxel: Lengths) -> Lengths:
        """Size of its voxels from that of level 0."""
        z, y, x = (size * factor for size, factor in zip(voxel, self.factors, strict=True))
        return z, y, x

    def translation(self, voxel: Lengths) -> Lengths:
        """Centre of its first voxel, from that of level 0's."""
        z, y, x = (size * (factor - 1) / 2 for size, factor in zip(voxel, self.factors, strict=True))
        return z, y, x


def levels(shape: Sizes, voxel: Lengths = (1.0, 1.0, 1.0), smallest: int = SMALLEST_SIDE) -> list[Level]:
    """The levels of a volume, from the finest to the first whose sides are at most ``smallest``.

    >>> [level.shape for level in levels((15, 1024, 1024), (50, 5, 5))]
    [(15, 1024, 1024), (15, 512, 512), (15, 256, 256)]
    """
    found = [Level(shape)]
    while max(found[-1].shape) > smallest:
        last = found[-1]
        steps = halved(last.shape, last.scale(voxel))
        sizes = [-(-n // step) for n, step in zip(last.shape, steps, strict=True)]
        factors = [factor * step for factor, step in zip(last.factors, steps, strict=True)]
        found.append(Level((sizes[0], sizes[1], sizes[2]), (factors[0], factors[1], factors[2])))
    return found


def halved(shape: Sizes, voxel: Lengths) -> Sizes:
    """By how much the next level is coarser along each axis, 1 or 2.

    An axis waits while its voxel is longer than the shortest one by more than the square root of two: halving would
    make it the odd one out. Axes of one voxel do not count.

    >>> halved((100, 100, 100), (50, 5, 5)), halved((100, 100, 100), (50, 40, 40))
    ((1, 2, 2), (2, 2, 2))
    """
    shortest = min(size for size, n in zip(voxel, shape, strict=True) if n > 1)
    z, y, x = (2 if n > 1 and size <= math.sqrt(2) * shortest else 1 for size, n in zip(voxel, shape, strict=True))
    return z, y, x


def holds_labels(dtype: np.dtype[Any], metadata: Mapping[str, Any]) -> bool:
    """Whether voxels are names, which cannot be averaged: masks, instances, and long integers of unknown kind."""
    kind = metadata.get("kind")
    return kind in _LABEL_KINDS or (kind is None and dtype.kind in "iu" and dtype.itemsize > 2)


def coarser(image_zyx: Array, steps: Sizes, *, labels: bool) -> Array:
    """Make one voxel of up to eight.

    At an odd end the last voxel counts twice, which for both rules is the same as leaving the missing one out.

    Args:
        image_zyx: A box that starts at a voxel of the coarser level.
        steps: 1 or 2 for each axis.
        labels: Whether the most frequent value is taken, of equally frequent ones foreground before background, then
            the first; otherwise the mean, rounded for integers.

    >>> coarser(np.array([[[1, 2], [3, 6]]], np.uint8), (1, 2, 2), labels=False).tolist()
    [[[3]]]
    >>> coarser(np.array([[[0, 7], [7, 9]]], np.uint8), (1, 2, 2), labels=True).tolist()
    [[[7]]]
    """
    margin = [(0, n % step) for n, step in zip(image_zyx.shape, steps, strict=True)]
    filled = np.pad(image_zyx, margin, mode="edge") if any(b for _, b in margin) else image_zyx
    starts = itertools.product(*(range(step) for step in steps))
    parts = [filled[tuple(slice(a, None, step) for a, step in zip(at, steps, strict=True))] for at in starts]
    return _majority(parts) if labels else _mean(parts)


def _mean(parts: list[Array]) -> Array:
    dtype = parts[0].dtype
    wide = np.float64 if dtype.itemsize > 2 and dtype != np.float32 else np.float32
    total: npt.NDArray[np.floating] = parts[0].astype(wide)
    for part in parts[1:]:
        total += part
    total /= len(parts)
    if dtype.kind in "iu":
        np.floor(total + 0.5, out=total)
    return total.astype(dtype)


def _majority(parts: list[Array]) -> Array:
    best, most = parts[0], np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = np.zeros(part.shape, np.uint8)
        for other in parts:
            count += part == other
        count = 2 * count + (part != 0)
        best, most = np.where(count > most, part, best), np.maximum(count, most)
    return best
