"""Large slices and volumes made small while they are read, strip by strip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, Volume

STRIP_VOXELS = 2**24
"""Read at once."""

Floats = npt.NDArray[np.float32]


def picture_shape(shape_yx: Sequence[int], pixels: int) -> tuple[int, int]:
    """Size of a slice whose longer side has at most so many pixels.

    >>> picture_shape((768, 1024), 768), picture_shape((30, 20), 768)
    ((576, 768), (30, 20))
    """
    scale = max(1.0, max(shape_yx) / pixels)
    height, width = (max(1, round(n / scale)) for n in shape_yx)
    return height, width


def small_image(volume: Volume, z: int, crop: Box, shape_yx: tuple[int, int]) -> Floats:
    """A slice of an image, averaged down to ``shape_yx``."""
    factor = max(1, min(n // m for n, m in zip(crop.shape[1:], shape_yx, strict=True)))
    strips = [_mean(read.astype(np.float32), factor) for _, read in _strips(volume, z, crop, factor)]
    mean_yx = np.concatenate(strips)
    if mean_yx.shape == shape_yx:
        return mean_yx
    small = Image.fromarray(mean_yx).resize(shape_yx[::-1], Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def small_labels(volume: Volume, z: int, crop: Box, shape_yx: tuple[int, int]) -> Array:
    """A slice of labels: at each pixel of ``shape_yx`` the label at its centre."""
    rows, columns = (((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(crop.shape[1:], shape_yx, strict=True))
    parts = []
    for first, strip_yx in _strips(volume, z, crop, 1):
        here = rows[(rows >= first) & (rows < first + len(strip_yx))] - first
        parts.append(strip_yx[np.ix_(here, columns)])
    return np.concatenate(parts)


def _strips(volume: Volume, z: int, crop: Box, factor: int) -> Iterator[tuple[int, Array]]:
    """Runs of rows of a slice, each a multiple of ``factor`` but the last, with their first row within the crop."""
    (y0, x0), (y1, x1) = crop.start[1:], crop.stop[1:]
    rows = max(factor, STRIP_VOXELS // max(x1 - x0, 1) // factor * factor)
    for y in range(y0, y1, rows):
        yield y - y0, volume.read(Box((z, y, x0), (z + 1, min(y + rows, y1), x1)))[0]


def _mean(image_yx: Floats, factor: int) -> Floats:
    """Means of squares; those at the far ends may be smaller."""
    if factor == 1:
        return image_yx
    sums, counts = image_yx, np.ones(1)
    for axis, length in enumerate(image_yx.shape):
        starts = np.arange(0, length, factor)
        sums = np.add.reduceat(sums, starts, axis=axis)
        counts = np.multiply.outer(counts, np.diff(np.append(starts, length)))
    result: Floats = (sums / counts[0]).astype(np.float32)
    return result


def cell_factors(voxel_size: Sequence[float], cell: float) -> tuple[int, int, int]:
    """Voxels (z, y, x) that make a cell of about ``cell``, in the unit of the voxel size.

    >>> cell_factors((50, 5, 5), 20)
    (1, 4, 4)
    """
    z, y, x = (max(1, round(cell / size)) for size in voxel_size)
    return z, y, x


def coarse_labels(
    instances: Volume, crop: Box, factors: tuple[int, int, int]
) -> tuple[Floats, npt.NDArray[np.uint32]]:
    """A volume of ids in cells.

    Args:
        instances: Ids, 0 for background.
        crop: The part that is read.
        factors: (z, y, x) voxels of a cell; those at the far ends may be smaller.

    Returns:
        The share of each cell that is foreground, and its id: the largest of those in it.
    """
    shares, labels = [], []
    for z in range(crop.start[0], crop.stop[0], factors[0]):
        stop = min(z + factors[0], crop.stop[0])
        rows = max(1, STRIP_VOXELS // max((stop - z) * crop.shape[2], 1) // factors[1]) * factors[1]
        layer = []
        for y in range(crop.start[1], crop.stop[1], rows):
            box = Box((z, y, crop.start[2]), (stop, min(y + rows, crop.stop[1]), crop.stop[2]))
            layer.append(pool(instances.read(box), factors))
        shares.append(np.concatenate([share for share, _ in layer], axis=1))
        labels.append(np.concatenate([label for _, label in layer], axis=1))
    return np.concatenate(shares), np.concatenate(labels)


def pool(
    label_zyx: Array, factors: tuple[int, int, int], share_zyx: Floats | None = None
) -> tuple[Floats, npt.NDArray[np.uint32]]:
    """Cells of an array of ids, or of cells of it with their ``share_zyx``; see `coarse_labels`."""
    share = (label_zyx != 0).astype(np.float32) if share_zyx is None else share_zyx
    label = label_zyx.astype(np.uint32, copy=False)
    for axis, (length, factor) in enumerate(zip(label_zyx.shape, factors, strict=True)):
        if factor == 1:
            continue
        starts = np.arange(0, length, factor)
        size = np.diff(np.append(starts, length)).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(size)
        share = np.add.reduceat(share, starts, axis=axis) / size.reshape(shape)
        label = np.maximum.reduceat(label, starts, axis=axis)
    return share, label


def cell_for(shape: Sequence[int], voxel_size: Sequence[float], cells: int) -> float:
    """The edge of a cell, at least the smallest voxel, so that a volume has about as many."""
    volume = math.prod(float(n * size) for n, size in zip(shape, voxel_size, strict=True))
    return max(float(min(voxel_size)), math.cbrt(volume / cells))


def read_where(volume: Volume, box: Box, rule: Callable[[Array], npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Where a rule holds, of a box whose stored values would take too much memory at once."""
    found_zyx = np.empty(box.shape, bool)
    for slab in slabs(box, max(1, STRIP_VOXELS // (4 * box.shape[1] * box.shape[2]))):
        found_zyx[slab.inside(box).slices] = rule(volume.read(slab))
    return found_zyx
