"""Centre and axes of an object, from the first and second moments of its voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mitoseg.segmentation.smooth_shape import Mask


@dataclass(frozen=True)
class Moments:
    """In nm.

    Attributes:
        centroid: (z, y, x) of the voxels' centres, from the first sample of the crop.
        axes: Full lengths, the longest first, of the ellipsoid that has the same second moments.
    """

    centroid: tuple[float, ...]
    axes: tuple[float, ...]

    @property
    def sides(self) -> tuple[float, ...]:
        """Sides of the box that has the same second moments, the longest first: ``sqrt(12 eigenvalue)``."""
        return tuple(a * math.sqrt(12 / 20) for a in self.axes)


def moments(mask_zyx: Mask, voxel_size: Sequence[float]) -> Moments:
    """Centre and axes of one object.

    A solid ellipsoid with half axes a, b, c has variances a^2/5, b^2/5, c^2/5 along them, so a full axis is
    ``2 sqrt(5 eigenvalue)`` of the covariance. Each voxel is a box, not a point: its own variance, the square of the
    voxel size over 12, is added on each axis. (2 sqrt(5 l) is `skimage.measure.regionprops`'s length in 3D, which has
    no such term.)

    >>> [round(a, 2) for a in moments(np.ones((1, 1, 1), bool), (5, 5, 5)).axes]
    [6.45, 6.45, 6.45]
    """
    size = np.asarray(voxel_size, float)
    at = np.argwhere(mask_zyx) * size
    mean = at.mean(axis=0)
    away = at - mean
    covariance = away.T @ away / len(at) + np.diag(size**2 / 12)
    axes = 2 * np.sqrt(5 * np.linalg.eigvalsh(covariance))[::-1]
    return Moments(tuple(map(float, mean)), tuple(map(float, axes)))
