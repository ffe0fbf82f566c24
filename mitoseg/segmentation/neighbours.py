"""How far it is from one mitochondrion to the nearest other, surface to surface, tile by tile.

    surface_voxels         block -> points      voxels with another label behind one of their six faces
    nearest_neighbours     points -> table      for the instances with a point in the tile
    merge_distances        tables -> table      an instance that crosses tiles has the least distance of its parts

A tile is read with a halo of the reach, in pieces, and only points on surfaces are kept of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.smooth_shape import Floats
from mitoseg.volumes import Array, Volume

TILE = (128, 512, 512)
PIECE = (32, 512, 512)
DISTANCE = "neighbour_distance_nm"
_FEW = 8  # one in so many points is looked at first, for a bound


def surface_voxels(labels_zyx: Array, inner: Box, start: Sequence[int]) -> tuple[npt.NDArray[np.int64], Array]:
    """Voxels of instances that have another label, or background, behind a face.

    Args:
        labels_zyx: A block, with one voxel round ``inner`` where the volume has one.
        inner: The part whose voxels are given, in the block's own voxels.
        start: Of the block in the volume.

    Returns:
        ``(points, ids)``: (n, 3) in voxels of the volume, and the (n,) labels.
    """
    surface = np.zeros(labels_zyx.shape, bool)
    for axis in range(3):
        low, high = (tuple(s if a == axis else slice(None) for a in range(3)) for s in (slice(-1), slice(1, None)))
        differs = labels_zyx[low] != labels_zyx[high]
        surface[low] |= differs
        surface[high] |= differs
    surface &= labels_zyx != 0
    at = np.argwhere(surface[inner.slices]) + inner.start
    return at + np.asarray(start), labels_zyx[tuple(at.T)]


def nearest_neighbours(
    points: npt.NDArray[np.integer],
    ids: Array,
    inside: npt.NDArray[np.bool_],
    voxel_size: Sequence[float],
    reach: float,
) -> pd.DataFrame:
    """Distance to the nearest other instance, for each instance with a point in the tile.

    Args:
        points: (n, 3), voxels on surfaces in the tile and its halo.
        ids: (n,), their instances.
        inside: (n,), whether a point lies in the tile itself.
        voxel_size: (z, y, x) in nm.
        reach: In nm; what is farther away is not looked for.

    Returns:
        Columns ``instance`` and `DISTANCE`: the gap between the nearest two voxels (their centres' distance less a
        voxel on each axis), 0 where they touch, NaN where there is nothing within reach.
    """
    size = np.asarray(voxel_size, float)
    order = np.argsort(ids, kind="stable")
    keys, starts = np.unique(ids[order], return_index=True)
    places = [p * size for p in np.split(points[order], starts[1:])]
    chosen = np.split(inside[order], starts[1:])
    lows, highs = (np.array([getattr(p, f)(axis=0) for p in places]).reshape(-1, 3) for f in ("min", "max"))
    rows = []
    for i, own_inside in enumerate(chosen):
        if own_inside.any():
            own = places[i][own_inside]
            gap = np.maximum(np.maximum(own.min(axis=0) - highs, lows - own.max(axis=0)), 0)
            away = np.linalg.norm(gap, axis=1)
            away[i] = math.inf
            others = [places[j] for j in np.argsort(away) if away[j] <= reach + size.max()]
            rows.append((keys[i], _gap(own, others, size, reach)))
    table = pd.DataFrame(rows, columns=["instance", DISTANCE])
    return table.astype({"instance": np.uint64, DISTANCE: float})


def _gap(own: Floats, others: Sequence[Floats], size: Floats, reach: float) -> float:
    """Least gap from one object's points to the others', which come in order of their boxes' distance."""
    tree, best = cKDTree(own), reach + float(np.linalg.norm(size))
    nearest = None
    low, high = own.min(axis=0), own.max(axis=0)
    for other, every in itertools.product(others, (_FEW, 1)):
        near = other[::every]
        near = near[((near >= low - best) & (near <= high + best)).all(axis=1)]
        if not len(near):
            continue
        distance, at = tree.query(near, distance_upper_bound=best * (1 + 1e-9))
        first = int(distance.argmin())
        if distance[first] <= best:
            best, nearest = float(distance[first]), np.abs(near[first] - own[at[first]])
    if nearest is None:
        return math.nan
    gap = float(np.linalg.norm(np.maximum(nearest - size, 0)))
    return gap if gap <= reach else math.nan


def tile_distances(labels: Volume, tile: Box, voxel_size: Sequence[float], reach: float) -> pd.DataFrame:
    """`nearest_neighbours` of one tile of a volume, which is read piece by piece with its halo."""
    halo = tile.grow([math.ceil(reach / v) + 2 for v in voxel_size]).clip(labels.box)
    points, ids = [], []
    for piece in tiles(halo, PIECE):
        block = piece.grow(1).clip(labels.box)
        found, of = surface_voxels(labels.read(block), piece.inside(block), block.start)
        points.append(found)
        ids.append(of)
    at = np.concatenate(points)
    inside = np.asarray(((at >= tile.start) & (at < tile.stop)).all(axis=1))
    return nearest_neighbours(at, np.concatenate(ids), inside, voxel_size, reach)


def merge_distances(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One row for each instance: the least distance of its parts."""
    joined = pd.concat([pd.DataFrame({"instance": np.array([], np.uint64), DISTANCE: np.array([])}), *tables])
    return joined.groupby("instance", sort=True)[[DISTANCE]].min().reset_index()
