"""Voxels of one object gathered into cells, and the graph of neighbouring cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mitoseg.segmentation.smooth_shape import Floats

MOST_CELLS = 1500
"""About as many cells an object has at most; paths through more take longer and are hardly more exact."""
_FORWARD = [o for o in itertools.product((-1, 0, 1), repeat=3) if o > (0, 0, 0)]


@dataclass(frozen=True)
class Nodes:
    """One node for each cell.

    Attributes:
        position: (n, 3), z, y, x in nm from the first voxel: of the cell's voxel that is deepest inside the object.
        radius: (n,), of the ball that fits there, in nm.
        graph: (n, n), symmetric: distances in nm between nodes of neighbouring cells.
        cell: Width of a cell in nm, the mean over the axes.
    """

    position: Floats
    radius: Floats
    graph: sparse.csr_array
    cell: float


def gather_cells(radius_zyx: npt.NDArray[np.float32], step: Sequence[float]) -> Nodes:
    """Gather the voxels of an object into cells of as many voxels as it takes; a cell has at least one voxel.

    Args:
        radius_zyx: About that of the ball that fits at each voxel, in nm; negative outside the object. Without a
            voxel inside, one of the largest value is taken.
        step: (z, y, x) between voxels, in nm.
    """
    voxel = np.argwhere(radius_zyx >= 0)
    if not len(voxel):
        voxel = np.array([np.unravel_index(radius_zyx.argmax(), radius_zyx.shape)])
    radius = np.maximum(radius_zyx[tuple(voxel.T)], 0).astype(np.float64)
    width = _cell_width(len(voxel), step)
    shape = tuple(-(-n // w) + 2 for n, w in zip(radius_zyx.shape, width, strict=True))
    cell = np.ravel_multi_index(tuple((voxel // width + 1).T), shape)
    order = np.lexsort((-radius, cell))
    keys, first = np.unique(cell[order], return_index=True)
    chosen = order[first]
    position = voxel[chosen] * np.asarray(step, float)
    return Nodes(position, radius[chosen], _link(keys, position, shape), float(np.mean(width * np.asarray(step))))


def _cell_width(voxels: int, step: Sequence[float]) -> npt.NDArray[np.integer]:
    """Voxels of a cell along each axis, about equal in nm."""
    nm = np.asarray(step, float)
    edge = (max(voxels / MOST_CELLS, 1) * nm.prod()) ** (1 / 3)
    width: npt.NDArray[np.integer] = np.maximum(np.round(edge / nm), 1).astype(int)
    return width


def _link(keys: npt.NDArray[np.integer], position: Floats, shape: Sequence[int]) -> sparse.csr_array:
    """Distances of the nodes whose cells are among the 26 neighbours; ``keys`` are flat indices, ascending."""
    rows, columns = [], []
    for offset in _FORWARD:
        other = keys + (offset[0] * shape[1] + offset[1]) * shape[2] + offset[2]
        at = np.searchsorted(keys, other).clip(0, len(keys) - 1)
        there = keys[at] == other
        rows.append(np.flatnonzero(there))
        columns.append(at[there])
    row, column = np.concatenate(rows), np.concatenate(columns)
    distance = np.linalg.norm(position[row] - position[column], axis=1)
    data, index = np.tile(distance, 2), (np.concatenate([row, column]), np.concatenate([column, row]))
    return sparse.csr_array((data, index), shape=(len(keys), len(keys)))
