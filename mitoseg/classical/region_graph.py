"""Which supervoxels touch, over what area, and what lies between them.

faces between voxels          [ 3 | 3 | 7 ]      a shifted array beside itself: (3, 7) is a pair, with the
along z, y and x               ------+---        face's area and the map's values on both sides
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RegionGraph:
    """Pairs of supervoxels that share a face.

    Attributes:
        pairs: (E, 2) int64, the smaller number first, in order, each pair once.
        area: (E,) float32, nm2.
        boundary: (E,) mean of the boundary map over the faces, 0 ... 255.
        crest: (E,) its largest value there.
    """

    pairs: npt.NDArray[np.int64]
    area: FloatArray
    boundary: FloatArray
    crest: FloatArray

    def neighbour_means(self, values: FloatArray) -> FloatArray:
        """Mean of each column of values over a supervoxel's neighbours, weighted by the area they share.

        Args:
            values: (N, F).

        Returns:
            (N, F); a supervoxel without neighbours keeps its own values.
        """
        i, j = self.pairs.T
        ends = (np.concatenate([i, j]), np.concatenate([j, i]))
        weights = csr_array((np.concatenate([self.area, self.area]), ends), shape=(len(values),) * 2)
        total = weights.sum(1)
        mean = (weights @ values) / np.maximum(total, 1e-9)[:, None]
        return np.where((total > 0)[:, None], mean, values).astype(np.float32)


def region_graph(
    region_zyx: npt.NDArray[np.int32],
    boundary_zyx: npt.NDArray[np.uint8],
    voxel_size: Sequence[float],
    depth: int = 16,
) -> RegionGraph:
    """The graph of a volume, gathered by slabs of ``depth`` slices.

    Args:
        region_zyx: Numbers of supervoxels from 0.
        boundary_zyx: A map that says where boundaries are, 0 ... 255.
        voxel_size: (z, y, x) in nm.
        depth: What bounds the memory.
    """
    count = np.int64(region_zyx.max()) + 1
    faces = [float(np.prod(voxel_size) / v) for v in voxel_size]
    tables = []
    for z in range(0, len(region_zyx), depth):
        for axis in range(3):
            stop = z + depth + (axis == 0)
            tables.append(_faces(region_zyx[z:stop], boundary_zyx[z:stop], axis, count, faces[axis]))
    key, area, weighted, crest = _merged([np.concatenate(column) for column in zip(*tables, strict=True)])
    pairs = np.stack([key // count, key % count], 1)
    return RegionGraph(pairs, area.astype(np.float32), (weighted / area).astype(np.float32), crest.astype(np.float32))


Columns = list[npt.NDArray[Any]]


def _faces(
    region_zyx: npt.NDArray[np.int32], boundary_zyx: npt.NDArray[np.uint8], axis: int, count: np.int64, area: float
) -> Columns:
    """Keys, areas, area times boundary, and crests of the pairs of one slab along one axis."""
    low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    differ = region_zyx[low] != region_zyx[high]
    a, b = region_zyx[low][differ].astype(np.int64), region_zyx[high][differ].astype(np.int64)
    value = np.maximum(boundary_zyx[low][differ], boundary_zyx[high][differ]).astype(np.float64)
    return _merged([np.minimum(a, b) * count + np.maximum(a, b), np.full(len(a), area), value * area, value])


def _merged(columns: Columns) -> Columns:
    """Rows of the same key as one: areas and weighted values are added, of the crests the largest stays."""
    key, area, weighted, crest = columns
    if not len(key):
        return columns
    order = np.argsort(key, kind="stable")
    key = key[order]
    start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return [
        key[start],
        np.add.reduceat(area[order], start),
        np.add.reduceat(weighted[order], start),
        np.maximum.reduceat(crest[order], start),
    ]
