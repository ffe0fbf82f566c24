"""What the voxels of each supervoxel have in common: counts, sums and histograms by number, without a loop over them.

Statistics are sums over blocks: a supervoxel lies in one block, whose numbers start at an offset.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Regions = npt.NDArray[np.int32]

BINS = 12
"""Of a histogram of grey values, from the first to the last percentile of the training image."""


def means(region: Regions, values: FloatArray, count: int) -> FloatArray:
    """Mean of each row of values in each region.

    Args:
        region: (V,) numbers 0 ... count - 1.
        values: (F, V).
        count: Of regions, none of them empty.

    Returns:
        (count, F) float32.
    """
    size = np.bincount(region, minlength=count)
    sums = [np.bincount(region, weights=row, minlength=count) for row in values]
    return (np.stack(sums, 1) / size[:, None]).astype(np.float32)


def histograms(region: Regions, unit: FloatArray, count: int, bins: int = BINS) -> FloatArray:
    """Share of each region's voxels in each bin of 0 ... 1.

    Returns:
        (count, bins) float32; rows sum to 1.
    """
    code = np.minimum((unit * bins).astype(np.int64), bins - 1)
    table = np.bincount(region.astype(np.int64) * bins + code, minlength=count * bins).reshape(count, bins)
    shares: FloatArray = (table / table.sum(1, keepdims=True)).astype(np.float32)
    return shares


def centres(region_zyx: Regions, count: int) -> FloatArray:
    """Centre of gravity (count, 3) of each region, in voxels of the block."""
    flat = region_zyx.ravel()
    grid = np.indices(region_zyx.shape, np.float32).reshape(3, -1)
    return means(flat, grid, count)


def spreads(region_zyx: Regions, count: int, voxel_size: Sequence[float]) -> FloatArray:
    """Standard deviations (count, 3) of the voxels' places along the region's own axes in nm, the smallest first."""
    flat = region_zyx.ravel()
    centre = centres(region_zyx, count)
    grid = np.indices(region_zyx.shape, np.float32).reshape(3, -1)
    away = [(g - c[flat]) * np.float32(v) for g, c, v in zip(grid, centre.T, voxel_size, strict=True)]
    products = np.stack([away[i] * away[j] for i in range(3) for j in range(i, 3)])
    covariance = means(flat, products, count)[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(count, 3, 3)
    deviations: FloatArray = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0)).astype(np.float32)
    return deviations


def label_counts(
    region: Regions, label: npt.NDArray[np.generic], count: int, ignored: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Foreground voxels and labelled voxels of each region.

    Args:
        region: (V,).
        label: (V,) 0 background, ``ignored`` neither, all else foreground.
        count: Of regions.
        ignored: The label that counts neither way.
    """
    known = label != ignored
    fg = np.bincount(region[known & (label != 0)], minlength=count)
    return fg, np.bincount(region[known], minlength=count)
