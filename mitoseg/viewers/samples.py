"""What a few voxels tell of a volume that is too large to be read before it is shown."""

from __future__ import annotations

import numpy as np

from mitoseg.geometry import Box
from mitoseg.volumes import Array, Volume


def sample(volume: Volume, *, slices: int = 5, side: int = 512) -> Array:
    """The middles of some slices, as ``values_zyx``.

    Args:
        volume: What is looked at.
        slices: How many, evenly spaced; all of a volume with fewer.
        side: Of the part of a slice that is read, in voxels.

    Raises:
        UserError: The file is damaged.
    """
    places = np.unique(np.linspace(0, volume.shape[0] - 1, slices + 2).round().astype(int)[1:-1])
    (y0, y1), (x0, x1) = ((max(0, (n - side) // 2), min(n, (n + side) // 2)) for n in volume.shape[1:])
    return np.concatenate([volume.read(Box((z, y0, x0), (z + 1, y1, x1))) for z in places.tolist()])


def percentiles(values: Array, low: float, high: float) -> tuple[float, float]:
    """Two percentiles of the finite values, the second above the first also where all are equal.

    Args:
        values: Of any shape and real type.
        low: From 0 to 100.
        high: The same.

    >>> percentiles(np.arange(101), 1, 99), percentiles(np.full(3, 7), 1, 99), percentiles(np.array([np.nan]), 1, 99)
    ((1.0, 99.0), (7.0, 8.0), (0.0, 1.0))
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0
    a, b = (float(value) for value in np.percentile(finite, (low, high)))
    return (a, b) if b > a else (a, a + 1.0)
