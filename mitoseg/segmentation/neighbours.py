"""How far it is from one mitochondrion to the nearest other, surface to surface, tile by tile.

    surface_points         block -> points      voxels with another label behind one of their six faces
    nearest_neighbours     points -> table      for the instances with a point in the tile
    merge_distances        tables -> table      an instance that crosses tiles has the least distance of its parts

Voxels are looked at once, and only points on surfaces are kept of them; a tile takes those within reach of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from mitoseg.engines import one_at_a_time
from mitoseg.geometry import Box
from mitoseg.segmentation.smooth_shape import Floats
from mitoseg.segmentation.surface_points import Points, SurfacePoints
from mitoseg.volumes import Array

TILE = (128, 512, 512)
DISTANCE = "neighbour_distance_nm"
_FEW = 8  # one in so many points is looked at first, for a bound


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
    places = np.split(points[order], starts)[1:]  # in nm only where they are looked at, which takes less memory
    chosen = np.split(inside[order], starts)[1:]
    lows, highs = (np.array([getattr(p, f)(axis=0) for p in places]).reshape(-1, 3) * size for f in ("min", "max"))
    rows = []
    for i, own_inside in enumerate(chosen):
        if own_inside.any():
            own = places[i][own_inside] * size
            gap = np.maximum(np.maximum(own.min(axis=0) - highs, lows - own.max(axis=0)), 0)
            away = np.linalg.norm(gap, axis=1)
            away[i] = math.inf
            others = [(float(away[j]), places[j]) for j in np.argsort(away) if away[j] <= reach + size.max()]
            rows.append((keys[i], _gap(own, others, size, reach)))
    table = pd.DataFrame(rows, columns=["instance", DISTANCE])
    return table.astype({"instance": np.uint64, DISTANCE: float})


def _gap(own: Floats, others: Sequence[tuple[float, Points]], size: Floats, reach: float) -> float:
    """Least gap in nm from own points to the others', in voxels, that come with their boxes' distances, in order."""
    tree, best = cKDTree(own), reach + float(np.linalg.norm(size))
    nearest = None
    low, high = own.min(axis=0), own.max(axis=0)
    for (away, other), every in itertools.product(others, (_FEW, 1)):
        if away > best * (1 + 1e-9):
            break
        near = other[::every] * size
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


def tile_distances(surfaces: SurfacePoints, tile: Box, *, voxel_size: Sequence[float], reach: float) -> pd.DataFrame:
    """`nearest_neighbours` of one tile of a volume, from the points in it and its halo."""
    halo = tile.grow([math.ceil(reach / v) + 2 for v in voxel_size]).clip(surfaces.labels.box)
    points, ids = surfaces.read(halo)
    inside = np.asarray(((points >= tile.start) & (points < tile.stop)).all(axis=1))
    with one_at_a_time():
        return nearest_neighbours(points, ids, inside, voxel_size, reach)


def merge_distances(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One row for each instance: the least distance of its parts."""
    joined = pd.concat([pd.DataFrame({"instance": np.array([], np.uint64), DISTANCE: np.array([])}), *tables])
    return joined.groupby("instance", sort=True)[[DISTANCE]].min().reset_index()
