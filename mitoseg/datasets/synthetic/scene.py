"""The tissue: bodies and neurites at random until their shares are reached, cut into cells, and painted.

Painted are mitochondria, what has their grey without being one, and small things: synaptic vesicles, post-synaptic
densities, endoplasmic reticulum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.datasets.synthetic.noise import SUPPORT, FloatArray, Grid, smooth_noise, upsample
from mitoseg.datasets.synthetic.presets import Greys, Preset
from mitoseg.datasets.synthetic.shapes import (
    Body,
    Neurite,
    Positions,
    Vector,
    along,
    part_of,
    random_axis,
    random_frame,
)
from mitoseg.geometry import Box

CLEARANCE = 26.0
"""From a body to the membrane of its cell, at least, in nm."""

SPACING = 20.0
"""Of the coarse grid on which cells and placement are computed, in nm."""

REACH = 600.0
"""Neurites are followed this far from their surface, in nm."""

TRIES = 150


@dataclass(frozen=True)
class Scene:
    """All objects of a phantom; the first neurites belong to the bodies, in order.

    Attributes:
        grid: Voxels, and the coarse grid of the cells.
        bodies: Mitochondria and the large organelles that look like them.
        neurites: One for each body, then those that fill the rest.
    """

    grid: Grid
    bodies: tuple[Body, ...]
    neurites: tuple[Neurite, ...]


def plan_scene(grid: Grid, preset: Preset, rng: np.random.Generator) -> Scene:
    """Draw the objects of a phantom."""
    tissue, room = preset.tissue, _Room(grid)
    room.fill("mitochondrion", tissue.mitochondria, preset.greys, rng)
    room.fill("lysosome", tissue.lysosomes, preset.greys, rng)
    room.fill("multivesicular", tissue.multivesicular, preset.greys, rng)
    owners = [_neurite_around(body, preset.greys, rng) for body in room.bodies]
    fillers = _fill_with_neurites(grid, owners, preset, rng)
    return Scene(grid, tuple(room.bodies), (*owners, *fillers))


class _Room:
    """The free space, on the coarse grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.bodies: list[Body] = []
        self.nearest = np.full(grid.coarse_shape, REACH, np.float32)
        self.positions = grid.coarse_positions()
        self.inner = np.zeros(grid.coarse_shape, bool)
        self.inner[1:-2, 1:-2, 1:-2] = True
        self.size = int(self.inner.sum())

    def fill(self, kind: str, share: float, greys: Greys, rng: np.random.Generator) -> None:
        """Place bodies until they take their share of the volume, or no more fit."""
        filled, best = 0.0, None
        for _ in range(TRIES if share else 0):
            body = _random_body(kind, self.grid, greys, rng)
            part, distance = self._distance(body)
            gain = float(((distance < 0) & self.inner[part]).sum()) / self.size
            if gain == 0 or bool(((distance < 2.5 * CLEARANCE) & (self.nearest[part] < 2.5 * CLEARANCE)).any()):
                continue
            if filled + gain > 1.12 * share:
                best = (gain, body) if best is None or gain < best[0] else best
                continue
            filled += gain
            self._place(body)
            best = None
            if filled > 0.95 * share:
                return
        if best is not None and filled < 0.5 * share:  # a small volume: one body is more than the share
            self._place(best[1])

    def _distance(self, body: Body) -> tuple[tuple[slice, slice, slice], FloatArray]:
        """The coarse samples around a body, and their distance to it."""
        part = self.grid.coarse_around(body.centre, (body.reach + 3 * CLEARANCE,) * 3)
        return part, body.distance(part_of(self.positions, part))

    def _place(self, body: Body) -> None:
        part, distance = self._distance(body)
        np.minimum(self.nearest[part], distance, out=self.nearest[part])
        self.bodies.append(body)


def _random_body(kind: str, grid: Grid, greys: Greys, rng: np.random.Generator) -> Body:
    if kind == "mitochondrion":
        radius = float(np.clip(rng.lognormal(np.log(122), 0.25), 85, 220))
        half_length = radius * float(rng.choice([0.15, 0.8, 1.9], p=[0.3, 0.35, 0.35]) + rng.uniform(0, 0.8))
        bend, waist = float(rng.uniform(0, 0.7)) / (half_length + 2 * radius), float(rng.uniform(0, 0.13))
    else:
        radius = float(rng.uniform(90, 190))
        half_length = radius * float(rng.uniform(0, 1.6 if kind == "lysosome" else 0.5))
        bend, waist = float(rng.uniform(0, 0.3)) / (half_length + 2 * radius), float(rng.uniform(0, 0.2))
    margin = 0.6 * radius
    z, y, x = (float(rng.uniform(-margin, extent + margin)) for extent in grid.extent_nm)
    tilt = np.array([1.0, *rng.normal(0, 0.45, 2)]) if rng.random() < 0.75 else np.array(random_axis(rng))
    tilt /= np.sqrt((tilt * tilt).sum())
    phase = rng.uniform(0, 2 * np.pi, 3)
    return Body(
        kind=kind,
        centre=(z, y, x),
        frame=random_frame(rng),
        radius=radius,
        half_length=half_length,
        flat=float(rng.uniform(0.85, 1.25)),
        bend=bend,
        waist=waist,
        phase=(float(phase[0]), float(phase[1]), float(phase[2])),
        grey=float(rng.normal(greys.dark, greys.spread)),
        cristae_tilt=(float(tilt[0]), float(tilt[1]), float(tilt[2])),
        cristae_period=float(rng.uniform(38, 54)),
        tubular=bool(rng.random() < 0.15),
    )


def _neurite_around(body: Body, greys: Greys, rng: np.random.Generator) -> Neurite:
    """The cell's process that a body lies in, along the body."""
    room = CLEARANCE + float(rng.gamma(1.3, 70))
    shift = rng.uniform(-0.5, 0.5, 3) * room
    z, y, x = (float(c + s) for c, s in zip(body.centre, shift, strict=True))
    reach = body.half_length + float(rng.uniform(100, 700))
    return _neurite((z, y, x), body.frame[0], body.radius + room, reach, greys, rng)


def _neurite(
    centre: Vector, axis: Vector, radius: float, half_length: float, greys: Greys, rng: np.random.Generator
) -> Neurite:
    grey = float(rng.normal(greys.cytoplasm, greys.spread))
    return Neurite(
        centre, axis, radius, half_length, grey, float(rng.lognormal(0, 0.2)), sheath=float(rng.uniform(70, 150))
    )


def warped(grid: Grid, seed: np.random.SeedSequence) -> Positions:
    """The coarse positions, moved by smooth noise: straight neurites become winding ones."""
    rng = np.random.default_rng(seed)
    z, y, x = (f * v for f, v in zip(grid.factors, grid.voxel_nm, strict=True))
    coarse = Grid(grid.coarse_shape, (z, y, x), (1, 1, 1))
    moved = []
    for position in grid.coarse_positions():
        bends = 90 * smooth_noise(coarse, 700, rng) + 18 * smooth_noise(coarse, 200, rng)
        moved.append((position + bends).astype(np.float32))
    return moved[0], moved[1], moved[2]


def _fill_with_neurites(grid: Grid, owners: list[Neurite], preset: Preset, rng: np.random.Generator) -> list[Neurite]:
    """Throw neurites into what is still free, large ones first, until little of it is."""
    positions = grid.coarse_positions()
    nearest = np.full(grid.coarse_shape, REACH, np.float32)
    for neurite in owners:
        _add(neurite, grid, positions, nearest)
    fillers: list[Neurite] = []
    median = preset.tissue.neurite_radius
    for scale in (2.2, 1.5, 1.0, 0.7, 0.5):
        for _ in range(400):
            radius = median * scale * float(rng.uniform(0.8, 1.25))
            free = np.flatnonzero(nearest > 0.55 * radius)
            if free.size == 0 or free.size < 0.002 * nearest.size:
                break
            where = np.unravel_index(int(free[int(rng.integers(free.size))]), grid.coarse_shape)
            jitter = rng.uniform(-0.5, 0.5, 3) * SPACING
            z, y, x = (
                float((k - 1) * f * v + j)
                for k, f, v, j in zip(where, grid.factors, grid.voxel_nm, jitter, strict=True)
            )
            half_length = radius * float(rng.choice([0.3, 2.0, 5.0])) * float(rng.uniform(0.7, 1.3))
            neurite = _neurite((z, y, x), random_axis(rng), radius, half_length, preset.greys, rng)
            _add(neurite, grid, positions, nearest)
            fillers.append(neurite)
            if scale > 2 and len(fillers) > 0.25 * len(owners) + nearest.size / 60000:
                break
    return fillers


def _add(neurite: Neurite, grid: Grid, positions: Positions, nearest: FloatArray) -> None:
    """Lower the distance to the nearest neurite around one more."""
    part = grid.coarse_around(neurite.centre, neurite.around(REACH))
    np.minimum(nearest[part], neurite.distance(part_of(positions, part)), out=nearest[part])


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
    """
    grid = scene.grid
    first, second, nearest = _two_nearest(scene, positions)
    body_distance, owner = _body_distance(scene)
    owned = body_distance < CLEARANCE
    label = np.where(owned, owner, nearest)
    id_zyx = np.zeros(grid.shape, np.uint16)
    depth_zyx = np.zeros(grid.shape, np.float32)
    steps = [f * v for f, v in zip(grid.factors, grid.voxel_nm, strict=True)]
    for index, found in enumerate(ndimage.find_objects(label + 1)):
        if found is None:
            continue
        box = _aligned(found, grid)
        part = tuple(slice(a, b + SUPPORT) for a, b in zip(box.start, box.stop, strict=True))
        own = scene.neurites[index].distance(part_of(positions, (part[0], part[1], part[2])))
        border = own - np.where(nearest[part] == index, second[part], first[part])
        slopes = [np.gradient(border, step, axis=axis) for axis, step in enumerate(steps)]
        slope: FloatArray = np.sqrt(sum(p * p for p in slopes)).astype(np.float32)
        border /= np.maximum(slope, np.float32(0.5))  # per nm, kept away from zero where the field has a ridge
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


InstanceArray = npt.NDArray[np.uint16]


def paint_bodies(
    image_zyx: FloatArray,
    bodies: tuple[Body, ...],
    grid: Grid,
    greys: Greys,
    noise: tuple[FloatArray, FloatArray],
) -> InstanceArray:
    """Paint every body into the image and number the mitochondria.

    Args:
        image_zyx: Greys, changed in place.
        bodies: What to paint.
        grid: The voxels.
        greys: Grey levels.
        noise: Fine and broad noise on the voxels, unit variance.

    Returns:
        ``instances_zyx``: 0, or the mitochondrion's number from 1, in the order of the bodies.
    """
    instances_zyx = np.zeros(grid.shape, np.uint16)
    number = 0
    for body in bodies:
        box = grid.box_around(body.centre, body.reach)
        positions = grid.voxel_positions(box)
        distance = body.distance(positions)
        inside = distance <= 0
        if not inside.any():  # or the box is empty
            continue
        grain, broad = noise[0][box.slices], noise[1][box.slices]
        if body.kind == "mitochondrion":
            number += 1
            instances_zyx[box.slices][inside] = number
            look = _mitochondrion(body, distance, positions, broad, greys) + 2.5 * grain
        elif body.kind == "lysosome":
            look = _lysosome(body, distance, grain, broad, greys)
        else:
            look = _multivesicular(body, distance, grid, box, grain, greys)
        np.copyto(image_zyx[box.slices], look.astype(np.float32), where=inside)
    return instances_zyx


def _line(distance: FloatArray, at: float, width: float) -> FloatArray:
    """A Gaussian ridge, 1 at ``distance == at``."""
    t = (distance - np.float32(at)) * np.float32(1 / width)
    line: FloatArray = np.exp(np.float32(-0.5) * t * t)
    return line


def _mitochondrion(
    body: Body,
    distance: FloatArray,
    positions: tuple[FloatArray, FloatArray, FloatArray],
    broad: FloatArray,
    greys: Greys,
) -> FloatArray:
    """Two membranes with a light gap, a dark matrix, and cristae across or along it."""
    u, v, w = body.local(positions)
    across = v - np.float32(body.bend) * u * u
    turn = np.float32(2 * np.pi / body.cristae_period)
    if body.tubular:
        waves = np.sin(turn * u + 1.6 * broad) + np.sin(turn * across - 1.3 * broad) + np.sin(turn * w + broad)
        cristae = np.clip(waves, -1.6, 1.6) * np.float32(0.75)
    else:
        a, b, c = (np.float32(t) for t in body.cristae_tilt)
        cristae = np.cos(turn * (a * u + b * across + c * w) + np.float32(1.3) * broad)
        # branches between the lamellae: seen where the lamellae lie in the plane of the section
        cristae += np.float32(0.45) * np.cos(turn * (a * across - b * u) - 2 * broad)
        cristae += np.float32(0.45) * np.cos(turn * (a * w - c * u) + 2 * broad)
    # lamellae end inside the matrix here and there
    present = np.clip(np.float32(0.85) + np.float32(0.25) * broad, 0.5, 1.0)
    deep = np.clip((-distance - 20) * np.float32(1 / 15), 0, 1)
    look = np.float32(body.grey) + np.float32(greys.cristae) * cristae * present * deep
    outer, inner = _line(distance, -5, 5), _line(distance, -26, 5.5)
    gap = _line(distance, -15, 5)
    look += np.float32(22) * gap
    dark = np.float32(greys.membrane + 12)
    return np.asarray(look + (dark - look) * np.maximum(outer, np.float32(0.85) * inner))


def _lysosome(body: Body, distance: FloatArray, grain: FloatArray, broad: FloatArray, greys: Greys) -> FloatArray:
    """One membrane around dense, clotted contents."""
    look = np.float32(body.grey) + np.float32(0.55 * greys.granules) * grain + np.float32(7) * broad
    return np.asarray(look + (np.float32(greys.membrane + 12) - look) * _line(distance, -5, 5))


def _multivesicular(
    body: Body, distance: FloatArray, grid: Grid, box: Box, grain: FloatArray, greys: Greys
) -> FloatArray:
    """One membrane around small vesicles on a jittered lattice (their centres follow from the body's phases)."""
    u, v, w = body.local(grid.voxel_positions(box))
    pitch = np.float32(2 * np.pi / (58 + 4 * body.phase[0]))
    p0, p1, p2 = (np.float32(p) for p in body.phase)
    waves = (
        np.cos(pitch * u + p0 + np.sin(pitch * 0.31 * v))
        * np.cos(pitch * v + p1 + np.sin(pitch * 0.27 * w))
        * np.cos(pitch * w + p2 + np.sin(pitch * 0.29 * u))
    )
    shells = _line(waves, 0.35, 0.12) * np.float32(-26) + np.clip((waves - np.float32(0.5)) * 3, 0, 1) * 34
    look = np.float32(body.grey) + 4 + shells + np.float32(0.3 * greys.granules) * grain
    return np.asarray(look + (np.float32(greys.membrane + 12) - look) * _line(distance, -5, 5))


def paint_small(image_zyx: FloatArray, cells: Cells, scene: Scene, preset: Preset, rng: np.random.Generator) -> None:
    """Paint cisterns, and synapses: a vesicle cluster on one side of a membrane, a density on the other."""
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
