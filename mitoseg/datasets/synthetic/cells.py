"""The partition of the tissue into cells: which cell a voxel lies in, and how deep below its membrane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.datasets.synthetic.noise import SUPPORT, FloatArray, Grid, upsample
from mitoseg.datasets.synthetic.scene import CLEARANCE, REACH, Scene
from mitoseg.datasets.synthetic.shapes import Positions, part_of
from mitoseg.geometry import Box

CellArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Cells:
    """The cells of a scene.

    Attributes:
        id_zyx: 0 outside all cells, else 1 + the index of the neurite.
        depth_zyx: nm from the voxel to the membrane's outer side, 0 outside.
        shares: Share of the volume of each id.
    """

    id_zyx: CellArray
    depth_zyx: FloatArray
    shares: npt.NDArray[np.float64]


def partition(scene: Scene, positions: Positions) -> Cells:
    """Cut the volume into cells, each the place nearer to its neurite than to any other, with its bodies inside.

    With ``F_i`` the distance to neurite i, ``g = F_i - min_(j != i) F_j`` is negative in cell i; divided by its slope
    it is a distance to the border. Bodies push the border away: to ``g = S - clearance`` at distance ``S`` in
    their own cell and to ``clearance - S`` in others.

    Args:
        scene: Neurites and bodies.
        positions: The coarse positions, warped, in nm.
    """
    grid = scene.grid
    first, second, nearest = _two_nearest(scene, positions)
    body_distance, owner = _body_distance(scene)
    owned = body_distance < CLEARANCE
    label = np.where(owned, owner, nearest)
    id_zyx = np.zeros(grid.shape, np.uint16)
    depth_zyx = np.zeros(grid.shape, np.float32)
    for index, found in enumerate(ndimage.find_objects(label + 1)):
        if found is None:
            continue
        box = _aligned(found, grid)
        part = tuple(slice(a, b + SUPPORT) for a, b in zip(box.start, box.stop, strict=True))
        own = scene.neurites[index].distance(part_of(positions, (part[0], part[1], part[2])))
        border = own - np.where(nearest[part] == index, second[part], first[part])
        border /= _slope(border, grid)
        pushed = body_distance[part] - np.float32(CLEARANCE)
        border = np.where(owner[part] == index, np.minimum(border, pushed), np.maximum(border, -pushed))
        _paint(index, border, box, grid, id_zyx, depth_zyx)
    shares = np.bincount(id_zyx.ravel(), minlength=len(scene.neurites) + 1) / id_zyx.size
    return Cells(id_zyx, depth_zyx, shares)


def _two_nearest(scene: Scene, positions: Positions) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int32]]:
    """Distances to the nearest and the next neurite (at most `REACH`), and which is the nearest (-1: none)."""
    shape = scene.grid.coarse_shape
    first, second = np.full(shape, REACH, np.float32), np.full(shape, REACH, np.float32)
    nearest = np.full(shape, -1, np.int32)
    for index, neurite in enumerate(scene.neurites):
        # the warp moves places by at most a few hundred nm, which the reach leaves room for
        part = scene.grid.coarse_around(neurite.centre, neurite.around(REACH))
        distance = neurite.distance(part_of(positions, part))
        nearest[part][distance < first[part]] = index
        np.minimum(second[part], np.maximum(first[part], distance), out=second[part])
        np.minimum(first[part], distance, out=first[part])
    return first, second, nearest


def _body_distance(scene: Scene) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Distance to the nearest body and that body's index, which is its neurite's too; far away `REACH` and -1."""
    grid = scene.grid
    nearest, owner = np.full(grid.coarse_shape, REACH, np.float32), np.full(grid.coarse_shape, -1, np.int32)
    for index, body in enumerate(scene.bodies):
        part = grid.coarse_around(body.centre, (body.reach + 4 * CLEARANCE,) * 3)
        distance = body.distance(part_of(grid.coarse_positions(), part))
        closer = distance < nearest[part]
        owner[part][closer] = index
        nearest[part][closer] = distance[closer]
    return nearest, owner


def _slope(border: FloatArray, grid: Grid) -> FloatArray:
    """|gradient| per nm, kept away from zero where the field has a ridge."""
    steps = [f * v for f, v in zip(grid.factors, grid.voxel_nm, strict=True)]
    parts = [np.gradient(border, step, axis=axis) for axis, step in enumerate(steps)]
    slope: FloatArray = np.sqrt(sum(p * p for p in parts)).astype(np.float32)
    return np.maximum(slope, np.float32(0.5))


def _aligned(found: tuple[slice, ...], grid: Grid) -> Box:
    """The coarse steps that cover a cell, with one to spare."""
    start, stop = [], []
    for s, n in zip(found, grid.coarse_shape, strict=True):
        steps = n - SUPPORT
        start.append(min(max(s.start - 3, 0), steps - 1))
        stop.append(max(min(s.stop + 1, steps), start[-1] + 1))
    return Box(tuple(start), tuple(stop))


def _paint(index: int, border: FloatArray, box: Box, grid: Grid, id_zyx: CellArray, depth_zyx: FloatArray) -> None:
    """Write one cell where its border field is negative."""
    starts = [a * f for a, f in zip(box.start, grid.factors, strict=True)]
    stops = [min(b * f, n) for b, f, n in zip(box.stop, grid.factors, grid.shape, strict=True)]
    voxels = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    depth = -upsample(border, grid.factors, [b - a for a, b in zip(starts, stops, strict=True)])
    inside = depth > depth_zyx[voxels]
    np.copyto(depth_zyx[voxels], depth, where=inside)
    np.copyto(id_zyx[voxels], np.uint16(index + 1), where=inside)
