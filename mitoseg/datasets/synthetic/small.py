"""Small things in the cells: synaptic vesicles, post-synaptic densities, endoplasmic reticulum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mitoseg.datasets.synthetic.cells import Cells
from mitoseg.datasets.synthetic.noise import FloatArray, Grid
from mitoseg.datasets.synthetic.presets import Greys, Preset
from mitoseg.datasets.synthetic.scene import Scene
from mitoseg.datasets.synthetic.shapes import along, random_frame


def paint_small(image_zyx: FloatArray, cells: Cells, scene: Scene, preset: Preset, rng: np.random.Generator) -> None:
    """Paint cisterns, and synapses: a vesicle cluster on one side of a membrane, a density on the other.

    Args:
        image_zyx: Greys, changed in place.
        cells: Where the membranes are.
        scene: Gives the grid.
        preset: How many of each.
        rng: Where they stand.
    """
    grid = scene.grid
    cubic_um = float(np.prod(grid.extent_nm)) * 1e-9
    for _ in range(int(rng.poisson(preset.tissue.cisterns * cubic_um))):
        _paint_cistern(image_zyx, cells, grid, preset.greys, rng)
    # seen from a thin slab, synapses centred just outside count too
    slab_um = cubic_um * (1 + 300 / grid.extent_nm[0])
    for _ in range(int(rng.poisson(preset.tissue.vesicle_clusters * slab_um))):
        _paint_synapse(image_zyx, cells, grid, preset.greys, rng)


def _random_voxel(
    cells: Cells, grid: Grid, depth_nm: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """A voxel at a depth in a cell between the two, or None when chance found none."""
    candidates = rng.integers(0, grid.shape, (64, 3))
    depth = cells.depth_zyx[tuple(candidates.T)]
    hits = np.flatnonzero((depth >= depth_nm[0]) & (depth <= depth_nm[1]))
    if hits.size == 0:
        return None
    z, y, x = candidates[hits[0]].tolist()
    return z, y, x


def _paint_cistern(image_zyx: FloatArray, cells: Cells, grid: Grid, greys: Greys, rng: np.random.Generator) -> None:
    """A flattened bent tube: a dark membrane around grey contents."""
    voxel = _random_voxel(cells, grid, (60, 1e9), rng)
    frame = random_frame(rng)
    radius, half_length = float(rng.uniform(14, 30)), float(rng.gamma(1.5, 45))
    bend, grey = float(rng.normal(0, 0.002)), float(rng.normal(greys.dark + 22, 8))
    if voxel is None:
        return
    centre = [k * v for k, v in zip(voxel, grid.voxel_nm, strict=True)]
    box = grid.box_around(centre, half_length + 2 * radius)
    z, y, x = (p - np.float32(c) for p, c in zip(grid.voxel_positions(box), centre, strict=True))
    u, v, w = (along(axis, (z, y, x)) for axis in frame)
    v -= np.float32(bend) * u * u
    beyond = np.maximum(np.abs(u) - np.float32(half_length), 0)
    distance = np.sqrt(beyond * beyond + v * v + np.float32(0.4) * w * w) - np.float32(radius)
    allowed = (cells.id_zyx[box.slices] == cells.id_zyx[voxel]) & (cells.depth_zyx[box.slices] > 22)
    rim = np.exp(np.float32(-0.5) * ((distance + 5) / 5) ** 2)
    look = np.float32(grey) + (np.float32(greys.membrane + 15) - np.float32(grey)) * rim
    np.copyto(image_zyx[box.slices], look.astype(np.float32), where=allowed & (distance < 0))


def _paint_synapse(image_zyx: FloatArray, cells: Cells, grid: Grid, greys: Greys, rng: np.random.Generator) -> None:
    voxel = _random_voxel(cells, grid, (14, 45), rng)
    reach, count = float(rng.uniform(150, 320)), int(rng.integers(250, 700))
    if voxel is None:
        return
    centre = np.array([k * v for k, v in zip(voxel, grid.voxel_nm, strict=True)])
    _paint_density(image_zyx, cells, grid, voxel, centre, float(rng.uniform(50, 120)))
    places = centre + rng.normal(0, 0.42 * reach, (count, 3))
    index = np.rint(places / grid.voxel_nm).astype(np.intp)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    own = np.zeros(count, bool)
    at = tuple(index[inside].T)
    own[inside] = (cells.id_zyx[at] == cells.id_zyx[voxel]) & (cells.depth_zyx[at] > 34)
    kept = places[own]
    for place in kept[_apart(kept, 37.0)]:
        _paint_vesicle(image_zyx, grid, place, float(rng.uniform(16, 21)), greys)


def _apart(places: npt.NDArray[np.float64], distance: float) -> npt.NDArray[np.bool_]:
    """Which places to keep so that none lies nearer than ``distance`` to one before it."""
    keep = np.zeros(len(places), bool)
    for i, place in enumerate(places):
        offsets = places[:i][keep[:i]] - place
        keep[i] = not bool(((offsets * offsets).sum(axis=1) < distance**2).any())
    return keep


def _paint_vesicle(
    image_zyx: FloatArray, grid: Grid, place: npt.NDArray[np.float64], radius: float, greys: Greys
) -> None:
    box = grid.box_around(place.tolist(), radius + 4)
    if not box.size:
        return
    dz, dy, dx = (p - np.float32(c) for p, c in zip(grid.voxel_positions(box), place, strict=True))
    distance = np.sqrt(dz * dz + dy * dy + dx * dx) - np.float32(radius)
    rim = np.exp(np.float32(-0.5) * ((distance + 5) / 5.5) ** 2)
    look = np.float32(greys.cytoplasm - 18) + np.float32(greys.membrane - greys.cytoplasm + 28) * rim
    np.copyto(image_zyx[box.slices], look.astype(np.float32), where=distance < 0)


def _paint_density(
    image_zyx: FloatArray,
    cells: Cells,
    grid: Grid,
    voxel: tuple[int, int, int],
    centre: npt.NDArray[np.float64],
    radius: float,
) -> None:
    """Darken the other cells' side of the membrane near a synapse."""
    box = grid.box_around(centre.tolist(), 2 * radius)
    dz, dy, dx = (p - np.float32(c) for p, c in zip(grid.voxel_positions(box), centre, strict=True))
    near = np.exp(-(((dz * dz + dy * dy + dx * dx) * np.float32(1 / radius**2)) ** 2))
    depth, ids = cells.depth_zyx[box.slices], cells.id_zyx[box.slices]
    band = np.where(ids != cells.id_zyx[voxel], np.float32(32), np.float32(12))
    weight = near * np.exp(-((depth / band) ** 4))
    part = image_zyx[box.slices]
    part += (np.float32(58) - part) * np.float32(0.85) * weight
