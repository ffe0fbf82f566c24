"""What is known of numbered objects without their voxels: size, bounding box, first voxel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

Ints = npt.NDArray[np.int64]
NOWHERE = np.iinfo(np.int64).max
"""First voxel of an object that has none."""


@dataclass(frozen=True)
class Objects:
    """A table of objects; row ``i`` belongs to label ``i + 1``.

    Attributes:
        voxels: (n,) how many.
        start: (n, 3) first corner of the bounding box, (z, y, x) of the volume.
        stop: (n, 3) its end, exclusive.
        first: (n,) the first voxel in raster order, ``(z * Y + y) * X + x`` in a volume of shape (Z, Y, X).
    """

    voxels: Ints
    start: Ints
    stop: Ints
    first: Ints

    def __len__(self) -> int:
        return len(self.voxels)

    def take(self, rows: npt.NDArray[np.integer]) -> Objects:
        """Some rows, in their order."""
        return Objects(self.voxels[rows], self.start[rows], self.stop[rows], self.first[rows])

    def touches_border(self, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which objects the border of a volume of this shape cuts: the bounding box reaches a face."""
        at_border: npt.NDArray[np.bool_] = ((self.start == 0) | (self.stop == np.asarray(shape))).any(axis=1)
        return at_border


def measure_objects(
    label_zyx: npt.NDArray[np.integer], count: int, origin: Sequence[int], shape: Sequence[int]
) -> Objects:
    """Measure labels 1 to ``count`` of a part of a volume.

    Args:
        label_zyx: 0 is background; a label may be absent.
        count: The largest label.
        origin: Of the part in the volume (z, y, x).
        shape: Of the volume.

    >>> found = measure_objects(np.array([[[0, 2, 2]]]), 2, (0, 0, 0), (1, 1, 3))
    >>> found.voxels.tolist(), found.stop.tolist()
    ([0, 2], [[0, 0, 0], [1, 1, 3]])
    """
    voxels = np.bincount(label_zyx.ravel(), minlength=count + 1)[1:].astype(np.int64)
    start, stop = np.full((count, 3), NOWHERE), np.zeros((count, 3), np.int64)
    for i, part in enumerate(find_objects(label_zyx, count)):
        if part is not None:
            start[i] = [s.start + o for s, o in zip(part, origin, strict=True)]
            stop[i] = [s.stop + o for s, o in zip(part, origin, strict=True)]
    flat = np.flatnonzero(label_zyx)
    first = np.full(count, -1)
    first[label_zyx.ravel()[flat[::-1]] - 1] = flat[::-1]  # of voxels of one label the last written, the first, stays
    z, y, x = (axis + o for axis, o in zip(np.unravel_index(first.clip(0), label_zyx.shape), origin, strict=True))
    place = np.where(first < 0, NOWHERE, (z * shape[1] + y) * shape[2] + x)
    return Objects(voxels, start, stop, place)


def join_objects(objects: Sequence[Objects]) -> Objects:
    """The rows of several tables, one after the other."""
    none = (np.zeros(0, np.int64), np.zeros((0, 3), np.int64))
    return Objects(
        np.concatenate([none[0], *(o.voxels for o in objects)]),
        np.concatenate([none[1], *(o.start for o in objects)]),
        np.concatenate([none[1], *(o.stop for o in objects)]),
        np.concatenate([none[0], *(o.first for o in objects)]),
    )


def unite_objects(objects: Objects, group: npt.NDArray[np.integer], count: int) -> Objects:
    """One row for each of ``count`` groups of rows that belong together."""
    voxels, first = np.zeros(count, np.int64), np.full(count, NOWHERE)
    start, stop = np.full((count, 3), NOWHERE), np.zeros((count, 3), np.int64)
    np.add.at(voxels, group, objects.voxels)
    np.minimum.at(first, group, objects.first)
    np.minimum.at(start, group, objects.start)
    np.maximum.at(stop, group, objects.stop)
    return Objects(voxels, start, stop, first)


def least_voxels(volume: float, voxel_size: Sequence[float]) -> int:
    """Voxels that an object of ``volume`` nm3 has at least; rounding errors of the division do not count."""
    return math.ceil(volume / math.prod(voxel_size) - 1e-9)
