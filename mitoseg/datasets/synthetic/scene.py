"""The tissue: bodies and neurites at random until their shares are reached, cut into cells, and painted.

Everything slow-varying is computed on a coarse grid and brought to the voxels by a cubic B-spline, axis by axis.
Sample ``k`` of the coarse grid lies at voxel ``(k - 1) * factor``, so a voxel finds its four supports at hand:

    coarse   0       1       2       3       4       5
    voxel   -f       0       f      2f      3f      4f
                     |-- the volume, n <= 3f --|

Only additions and products of neighbours are used (no BLAS, no FFT), so the bytes do not depend on the threads.

A body (mitochondrion, lysosome, multivesicular body) is a bent tube with round ends, or a ball where its straight
part is short. In its own frame, u along the axis:

    v' = v - bend * u^2
    d  = |(max(|u| - half_length, 0), v', w * flat)| - radius(u)
    radius(u) = radius * (1 + waist * cos(u / wave + phase)) + wobble
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.datasets.synthetic.presets import Greys, Preset
from mitoseg.geometry import Box

FloatArray = npt.NDArray[np.float32]
Positions = tuple[FloatArray, ...]  # (z, y, x) in nm: an open mesh, (n, 1, 1), (1, n, 1), (1, 1, n), or a full one
Vector = tuple[float, ...]
SUPPORT = 3  # coarse samples needed beyond the number of steps
CLEARANCE = 26.0  # nm from a body to the membrane of its cell, at least
SPACING = 20.0  # nm, of the coarse grid on which cells and placement are computed
REACH = 600.0  # nm that neurites are followed from their surface
InstanceArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume, (z, y, x), and a coarse grid with one sample every ``factors`` voxels."""

    shape: tuple[int, ...]
    voxel_nm: tuple[float, ...]
    factors: tuple[int, ...]

    @classmethod
    def spaced(cls, shape: Sequence[int], voxel_nm: Sequence[float], spacing_nm: float) -> Grid:
        """The grid whose coarse samples lie about ``spacing_nm`` apart (never closer than the voxels)."""
        return cls(tuple(shape), tuple(voxel_nm), tuple(max(1, round(spacing_nm / v)) for v in voxel_nm))

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """Number of coarse samples along each axis."""
        return tuple(-(-n // f) + SUPPORT for n, f in zip(self.shape, self.factors, strict=True))

    @property
    def steps_nm(self) -> tuple[float, ...]:
        """From one coarse sample to the next."""
        return tuple(f * v for f, v in zip(self.factors, self.voxel_nm, strict=True))

    @property
    def extent_nm(self) -> tuple[float, ...]:
        """Size of the volume."""
        return tuple(n * v for n, v in zip(self.shape, self.voxel_nm, strict=True))

    def voxel_positions(self, box: Box) -> Positions:
        """Open mesh of the positions of a box's voxels."""
        ends = zip(box.start, box.stop, self.voxel_nm, strict=True)
        return np.ix_(*(np.arange(a, b, dtype=np.float32) * np.float32(v) for a, b, v in ends))

    def coarse_positions(self) -> Positions:
        """Open mesh of the positions of the coarse samples."""
        axes = zip(self.coarse_shape, self.steps_nm, strict=True)
        return np.ix_(*(np.arange(-1, n - 1, dtype=np.float32) * np.float32(step) for n, step in axes))

    def coarse_around(self, centre_nm: Sequence[float], reach_nm: Sequence[float]) -> tuple[slice, ...]:
        """The coarse samples within a reach (z, y, x) of a point; at least one along each axis."""
        parts = []
        for c, r, step, n in zip(centre_nm, reach_nm, self.steps_nm, self.coarse_shape, strict=True):
            first = min(max(int((c - r) // step) + 1, 0), n - 1)
            parts.append(slice(first, max(min(int((c + r) // step) + 3, n), first + 1)))
        return tuple(parts)

    def box_around(self, centre_nm: Sequence[float], reach_nm: float) -> Box:
        """The voxels within ``reach_nm`` of a point along each axis, inside the volume (may be empty)."""
        start, stop = [], []
        for c, v, n in zip(centre_nm, self.voxel_nm, self.shape, strict=True):
            start.append(min(max(int((c - reach_nm) // v), 0), n))
            stop.append(max(min(int((c + reach_nm) // v) + 2, n), start[-1]))
        return Box(tuple(start), tuple(stop))


def upsample(coarse_zyx: FloatArray, factors: Sequence[int], shape: Sequence[int]) -> FloatArray:
    """Bring a coarse field to the voxels by a uniform cubic B-spline (approximating: it smooths a little).

    The field has ``ceil(n / factor) + 3`` samples along each axis, where ``n`` voxels are wanted.
    """
    field = np.asarray(coarse_zyx, np.float32)
    for axis in (2, 1, 0):  # z last: the largest step then writes whole planes
        steps, factor = field.shape[axis] - SUPPORT, factors[axis]
        out = np.empty((*field.shape[:axis], steps * factor, *field.shape[axis + 1 :]), np.float32)
        index: list[slice] = [slice(None)] * 3
        for phase in range(factor):
            total: FloatArray | None = None
            for k, weight in enumerate(_weights(phase / factor)):
                index[axis] = slice(k, k + steps)
                part = field[tuple(index)] * np.float32(weight / 6)
                total = part if total is None else np.add(total, part, out=total)
            index[axis] = slice(phase, None, factor)
            out[tuple(index)] = total
        index[axis] = slice(0, shape[axis])
        field = out[tuple(index)]
    return field


def _weights(t: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], ...]:
    """Six times the weights of the four supports of a cubic B-spline, a share ``t`` of the step behind the second."""
    t = np.asarray(t, np.float64)
    return (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3


def smooth_noise(grid: Grid, wavelength_nm: float, rng: np.random.Generator) -> FloatArray:
    """Smooth noise on the voxels: zero mean, unit variance, blobs about ``wavelength_nm`` apart."""
    own = Grid.spaced(grid.shape, grid.voxel_nm, wavelength_nm / 2)
    samples = rng.standard_normal(own.coarse_shape, dtype=np.float32)
    field = upsample(samples, own.factors, own.shape)
    phases = (np.stack(_weights(np.arange(f) / f)) / 6 for f in own.factors)
    kept = [float((weights**2).sum(axis=0).mean()) for weights in phases]  # of the variance, averaged over the phases
    field *= np.float32(1 / np.sqrt(np.prod(kept)))
    return field


def part_of(positions: Positions, part: tuple[slice, ...]) -> Positions:
    """Positions of a part of the grid, for open and for full meshes."""
    return tuple(p[tuple(slice(None) if n == 1 else s for n, s in zip(p.shape, part, strict=True))] for p in positions)


def offsets(positions: Positions, centre: Vector) -> Positions:
    """Positions as seen from a centre."""
    return tuple(p - np.float32(c) for p, c in zip(positions, centre, strict=True))


def along(axis: Vector, offsets: Positions) -> FloatArray:
    """Component of offsets along a unit vector."""
    z, y, x = (np.float32(a) * offset for a, offset in zip(axis, offsets, strict=True))
    total: FloatArray = z + y + x
    return total


@dataclass(frozen=True)
class Body:
    """A large organelle; lengths in nm, vectors in (z, y, x)."""

    kind: str  # mitochondrion, lysosome or multivesicular
    centre: Vector
    frame: tuple[Vector, ...]  # three unit vectors: the axis u, then v and w across
    radius: float
    half_length: float  # of the straight part
    flat: float  # radius over the radius along w
    bend: float  # curvature of the axis, 1/nm
    waist: float  # depth of the constrictions, as a share of the radius
    phase: Vector  # where the constrictions lie, and the phases of the uneven outline
    grey: float  # mean
    cristae_tilt: Vector = (1.0, 0.0, 0.0)  # direction across the cristae, in the body's frame
    cristae_period: float = 45.0  # from one crista to the next
    tubular: bool = False  # cristae are tubes, not lamellae

    @property
    def reach(self) -> float:
        """No part of the body lies farther from its centre than this, in nm."""
        return self.half_length + 1.5 * self.radius + abs(self.bend) * (self.half_length + self.radius) ** 2

    def local(self, positions: Positions) -> Positions:
        """Positions in the body's frame (u, v, w)."""
        seen = offsets(positions, self.centre)
        return tuple(along(axis, seen) for axis in self.frame)

    def distance(self, positions: Positions) -> FloatArray:
        """Signed distance to the surface in nm, negative inside (exact for a straight round tube)."""
        u, v, w = self.local(positions)
        wave = np.float32(2.2 * self.radius)
        p0, p1, p2 = (np.float32(p) for p in self.phase)
        radius = np.float32(self.radius) * (1 + np.float32(self.waist) * np.cos(u / wave + p0))
        radius += np.float32(0.06 * self.radius) * np.sin(v / (0.45 * wave) + p1 + u / wave)
        radius += np.float32(0.05 * self.radius) * np.sin(w / (0.4 * wave) + p2 - u / wave)
        beyond = np.maximum(np.abs(u) - np.float32(self.half_length), 0)
        across = v - np.float32(self.bend) * u * u
        distance: FloatArray = np.sqrt(beyond * beyond + across * across + (w * np.float32(self.flat)) ** 2) - radius
        return distance


@dataclass(frozen=True)
class Neurite:
    """A cell's process: a straight tube with round ends, bent by the tissue's warp. Lengths in nm."""

    centre: Vector
    axis: Vector
    radius: float
    half_length: float  # of the straight part
    grey: float  # mean of its cytoplasm when it is light
    grain: float  # how coarse its cytoplasm looks, about 1
    sheath: float  # thickness its myelin would have

    def distance(self, positions: Positions) -> FloatArray:
        """Signed distance to the tube, negative inside."""
        dz, dy, dx = offsets(positions, self.centre)
        ahead = along(self.axis, (dz, dy, dx))
        across2 = dz * dz + dy * dy + dx * dx
        across2 -= ahead * ahead
        beyond = np.maximum(np.abs(ahead) - np.float32(self.half_length), 0)
        across2 += beyond * beyond
        distance: FloatArray = np.sqrt(np.maximum(across2, 0, out=across2), out=across2)
        distance -= np.float32(self.radius)
        return distance

    def around(self, reach: float) -> Vector:
        """How far along z, y and x the places within ``reach`` of the tube lie from its centre."""
        return tuple(self.half_length * abs(a) + self.radius + reach for a in self.axis)


def random_axis(rng: np.random.Generator) -> Vector:
    """A direction uniform on the sphere."""
    while True:
        z, y, x = rng.uniform(-1, 1, 3).tolist()
        norm = (z * z + y * y + x * x) ** 0.5
        if 0.1 < norm < 1:
            return z / norm, y / norm, x / norm


def random_frame(rng: np.random.Generator) -> tuple[Vector, ...]:
    """Three orthogonal unit vectors, the first uniform on the sphere."""
    u, t = np.array(random_axis(rng)), np.array(random_axis(rng))
    while abs(float((u * t).sum())) > 0.95:
        t = np.array(random_axis(rng))
    v = np.cross(u, t)
    v /= np.sqrt((v * v).sum())
    return tuple(tuple(axis.tolist()) for axis in (u, v, np.cross(u, v)))


@dataclass(frozen=True)
class Cells:
    """The cells: 0 or 1 + the index of the neurite, depth below the membrane in nm, shares of the volume."""

    id_zyx: npt.NDArray[np.uint16]
    depth_zyx: FloatArray
    shares: npt.NDArray[np.float64]


def plan_scene(grid: Grid, preset: Preset, rng: np.random.Generator) -> tuple[list[Body], list[Neurite]]:
    """Draw the objects of a phantom: one neurite for each body, in order, then those that fill the rest."""
    greys = preset.greys
    bodies, owners = _place_bodies(grid, preset, rng), []
    for body in bodies:  # each lies in a process of a cell, along it
        free = CLEARANCE + float(rng.gamma(1.3, 70))
        shift = rng.uniform(-0.5, 0.5, 3) * free
        centre = tuple(float(c + s) for c, s in zip(body.centre, shift, strict=True))
        half_length = body.half_length + float(rng.uniform(100, 700))
        owners.append(_neurite(centre, body.frame[0], body.radius + free, half_length, greys, rng))
    return bodies, owners + _fill_with_neurites(grid, owners, preset, rng)


def _place_bodies(grid: Grid, preset: Preset, rng: np.random.Generator) -> list[Body]:
    """Bodies of each kind until they take their share of the volume, or no more fit."""
    bodies: list[Body] = []
    nearest, positions = np.full(grid.coarse_shape, REACH, np.float32), grid.coarse_positions()
    inner = np.zeros(grid.coarse_shape, bool)
    inner[1:-2, 1:-2, 1:-2] = True
    size = int(inner.sum())

    def place(body: Body, part: tuple[slice, ...], distance: FloatArray) -> None:
        np.minimum(nearest[part], distance, out=nearest[part])
        bodies.append(body)

    tissue = preset.tissue
    shares = {"mitochondrion": tissue.mitochondria, "lysosome": tissue.lysosomes}
    for kind, share in (*shares.items(), ("multivesicular", tissue.multivesicular)):
        filled, best = 0.0, None
        for _ in range(150 if share else 0):
            body = _random_body(kind, grid, preset.greys, rng)
            part = grid.coarse_around(body.centre, (body.reach + 3 * CLEARANCE,) * 3)
            distance = body.distance(part_of(positions, part))
            gain = float(((distance < 0) & inner[part]).sum()) / size
            if gain == 0 or bool(((distance < 2.5 * CLEARANCE) & (nearest[part] < 2.5 * CLEARANCE)).any()):
                continue
            if filled + gain > 1.12 * share:
                best = (gain, body, part, distance) if best is None or gain < best[0] else best
                continue
            filled += gain
            place(body, part, distance)
            best = None
            if filled > 0.95 * share:
                break
        if best is not None and filled < 0.5 * share:  # a small volume: one body is more than the share
            place(*best[1:])
    return bodies


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
    centre = tuple(float(rng.uniform(-margin, extent + margin)) for extent in grid.extent_nm)
    tilt = np.array([1.0, *rng.normal(0, 0.45, 2)]) if rng.random() < 0.75 else np.array(random_axis(rng))
    tilt /= np.sqrt((tilt * tilt).sum())
    phase = rng.uniform(0, 2 * np.pi, 3)
    return Body(
        kind=kind,
        centre=centre,
        frame=random_frame(rng),
        radius=radius,
        half_length=half_length,
        flat=float(rng.uniform(0.85, 1.25)),
        bend=bend,
        waist=waist,
        phase=tuple(phase.tolist()),
        grey=float(rng.normal(greys.dark, greys.spread)),
        cristae_tilt=tuple(tilt.tolist()),
        cristae_period=float(rng.uniform(38, 54)),
        tubular=bool(rng.random() < 0.15),
    )


def _neurite(
    centre: Vector, axis: Vector, radius: float, half_length: float, greys: Greys, rng: np.random.Generator
) -> Neurite:
    grey, grain = float(rng.normal(greys.cytoplasm, greys.spread)), float(rng.lognormal(0, 0.2))
    return Neurite(centre, axis, radius, half_length, grey, grain, sheath=float(rng.uniform(70, 150)))


def warped(grid: Grid, seed: np.random.SeedSequence) -> Positions:
    """The coarse positions, moved by smooth noise: straight neurites become winding ones."""
    rng = np.random.default_rng(seed)
    coarse = Grid(grid.coarse_shape, grid.steps_nm, (1, 1, 1))
    moved = []
    for position in grid.coarse_positions():
        bends = 90 * smooth_noise(coarse, 700, rng) + 18 * smooth_noise(coarse, 200, rng)
        moved.append((position + bends).astype(np.float32))
    return tuple(moved)


def _fill_with_neurites(grid: Grid, owners: list[Neurite], preset: Preset, rng: np.random.Generator) -> list[Neurite]:
    """Throw neurites into what is still free, large ones first, until little of it is."""
    positions = grid.coarse_positions()
    nearest = np.full(grid.coarse_shape, REACH, np.float32)

    def add(neurite: Neurite) -> None:
        part = grid.coarse_around(neurite.centre, neurite.around(REACH))
        np.minimum(nearest[part], neurite.distance(part_of(positions, part)), out=nearest[part])

    for neurite in owners:
        add(neurite)
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
            centre = tuple(
                float((k - 1) * f * v + j)
                for k, f, v, j in zip(where, grid.factors, grid.voxel_nm, jitter, strict=True)
            )
            half_length = radius * float(rng.choice([0.3, 2.0, 5.0])) * float(rng.uniform(0.7, 1.3))
            fillers.append(_neurite(centre, random_axis(rng), radius, half_length, preset.greys, rng))
            add(fillers[-1])
            if scale > 2 and len(fillers) > 0.25 * len(owners) + nearest.size / 60000:
                break
    return fillers


def partition(grid: Grid, bodies: list[Body], neurites: list[Neurite], positions: Positions) -> Cells:
    """Cut the volume into cells, each the place nearer to its neurite than to any other, with its bodies inside.

    With ``F_i`` the distance to neurite i, ``g = F_i - min_(j != i) F_j`` is negative in cell i; divided by its slope
    it is a distance to the border. Bodies push the border away: to ``g = S - clearance`` at distance ``S`` in
    their own cell and to ``clearance - S`` in others.
    """
    coarse = grid.coarse_shape
    # distances to the nearest and the next neurite (at most `REACH`), and which is the nearest (-1: none)
    first, second = np.full(coarse, REACH, np.float32), np.full(coarse, REACH, np.float32)
    nearest = np.full(coarse, -1, np.int32)
    for index, neurite in enumerate(neurites):
        # the warp moves places by at most a few hundred nm, which the reach leaves room for
        part = grid.coarse_around(neurite.centre, neurite.around(REACH))
        distance = neurite.distance(part_of(positions, part))
        nearest[part][distance < first[part]] = index
        np.minimum(second[part], np.maximum(first[part], distance), out=second[part])
        np.minimum(first[part], distance, out=first[part])
    # distance to the nearest body (at most `REACH`), and its index, which is that of its neurite (-1: none)
    body_distance, owner = np.full(coarse, REACH, np.float32), np.full(coarse, -1, np.int32)
    for index, body in enumerate(bodies):
        part = grid.coarse_around(body.centre, (body.reach + 4 * CLEARANCE,) * 3)
        distance = body.distance(part_of(grid.coarse_positions(), part))
        closer = distance < body_distance[part]
        owner[part][closer] = index
        body_distance[part][closer] = distance[closer]
    label = np.where(body_distance < CLEARANCE, owner, nearest)
    id_zyx, depth_zyx = np.zeros(grid.shape, np.uint16), np.zeros(grid.shape, np.float32)
    for index, found in enumerate(ndimage.find_objects(label + 1)):
        if found is None:
            continue
        start, stop = [], []  # the coarse steps that cover the cell, with one to spare
        for s, n in zip(found, grid.coarse_shape, strict=True):
            start.append(min(max(s.start - 3, 0), n - SUPPORT - 1))
            stop.append(max(min(s.stop + 1, n - SUPPORT), start[-1] + 1))
        part = tuple(slice(a, b + SUPPORT) for a, b in zip(start, stop, strict=True))
        own = neurites[index].distance(part_of(positions, part))
        border = own - np.where(nearest[part] == index, second[part], first[part])
        slopes = [np.gradient(border, step, axis=axis) for axis, step in enumerate(grid.steps_nm)]
        slope: FloatArray = np.sqrt(sum(p * p for p in slopes)).astype(np.float32)
        border /= np.maximum(slope, np.float32(0.5))  # per nm, kept away from zero where the field has a ridge
        pushed = body_distance[part] - np.float32(CLEARANCE)
        border = np.where(owner[part] == index, np.minimum(border, pushed), np.maximum(border, -pushed))
        ends = zip(start, stop, grid.factors, grid.shape, strict=True)
        voxels = tuple(slice(a * f, min(b * f, n)) for a, b, f, n in ends)
        depth = -upsample(border, grid.factors, [s.stop - s.start for s in voxels])
        inside = depth > depth_zyx[voxels]
        np.copyto(depth_zyx[voxels], depth, where=inside)
        np.copyto(id_zyx[voxels], np.uint16(index + 1), where=inside)
    shares = np.bincount(id_zyx.ravel(), minlength=len(neurites) + 1) / id_zyx.size
    return Cells(id_zyx, depth_zyx, shares)


def paint_bodies(
    image_zyx: FloatArray, bodies: list[Body], grid: Grid, greys: Greys, noise: tuple[FloatArray, FloatArray]
) -> InstanceArray:
    """Paint every body into the image, with fine and broad noise of unit variance.

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
        outer = _line(distance, -5, 5)
        if body.kind == "mitochondrion":
            number += 1
            instances_zyx[box.slices][inside] = number
            look = _mitochondrion(body, distance, outer, positions, broad, greys) + 2.5 * grain
        else:  # one membrane
            if body.kind == "lysosome":  # around dense, clotted contents
                look = np.float32(body.grey) + np.float32(0.55 * greys.granules) * grain + np.float32(7) * broad
            else:
                look = np.float32(body.grey) + 4 + _vesicles(body, positions)
                look += np.float32(0.3 * greys.granules) * grain
            look = look + (np.float32(greys.membrane + 12) - look) * outer
        np.copyto(image_zyx[box.slices], look.astype(np.float32), where=inside)
    return instances_zyx


def _line(distance: FloatArray, at: float, width: float) -> FloatArray:
    """A Gaussian ridge, 1 at ``distance == at``."""
    t = (distance - np.float32(at)) * np.float32(1 / width)
    line: FloatArray = np.exp(np.float32(-0.5) * t * t)
    return line


def _mitochondrion(
    body: Body, distance: FloatArray, outer: FloatArray, positions: Positions, broad: FloatArray, greys: Greys
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
    look += np.float32(22) * _line(distance, -15, 5)
    dark = np.float32(greys.membrane + 12)
    return np.asarray(look + (dark - look) * np.maximum(outer, np.float32(0.85) * _line(distance, -26, 5.5)))


def _vesicles(body: Body, positions: Positions) -> FloatArray:
    """Small vesicles on a jittered lattice (their centres follow from the body's phases)."""
    u, v, w = body.local(positions)
    pitch = np.float32(2 * np.pi / (58 + 4 * body.phase[0]))
    p0, p1, p2 = (np.float32(p) for p in body.phase)
    waves = (
        np.cos(pitch * u + p0 + np.sin(pitch * 0.31 * v))
        * np.cos(pitch * v + p1 + np.sin(pitch * 0.27 * w))
        * np.cos(pitch * w + p2 + np.sin(pitch * 0.29 * u))
    )
    shells: FloatArray = _line(waves, 0.35, 0.12) * np.float32(-26) + np.clip((waves - np.float32(0.5)) * 3, 0, 1) * 34
    return shells


def paint_small(image_zyx: FloatArray, cells: Cells, grid: Grid, preset: Preset, rng: np.random.Generator) -> None:
    """Paint cisterns, and synapses: a vesicle cluster on one side of a membrane, a density on the other."""
    cubic_um = float(np.prod(grid.extent_nm)) * 1e-9
    for _ in range(int(rng.poisson(preset.tissue.cisterns * cubic_um))):
        _paint_cistern(image_zyx, cells, grid, preset.greys, rng)
    # seen from a thin slab, synapses centred just outside count too
    slab_um = cubic_um * (1 + 300 / grid.extent_nm[0])
    for _ in range(int(rng.poisson(preset.tissue.vesicle_clusters * slab_um))):
        _paint_synapse(image_zyx, cells, grid, preset.greys, rng)


def _random_voxel(
    cells: Cells, grid: Grid, depth_nm: tuple[float, float], rng: np.random.Generator
) -> tuple[int, ...] | None:
    """A voxel at a depth in a cell between the two, or None when chance found none."""
    candidates = rng.integers(0, grid.shape, (64, 3))
    depth = cells.depth_zyx[tuple(candidates.T)]
    hits = np.flatnonzero((depth >= depth_nm[0]) & (depth <= depth_nm[1]))
    return tuple(candidates[hits[0]].tolist()) if hits.size else None


def _paint_cistern(image_zyx: FloatArray, cells: Cells, grid: Grid, greys: Greys, rng: np.random.Generator) -> None:
    """A flattened bent tube: a dark membrane around grey contents."""
    voxel = _random_voxel(cells, grid, (60, 1e9), rng)
    frame = random_frame(rng)
    radius, half_length = float(rng.uniform(14, 30)), float(rng.gamma(1.5, 45))
    bend, grey = float(rng.normal(0, 0.002)), float(rng.normal(greys.dark + 22, 8))
    if voxel is None:
        return
    centre = tuple(k * v for k, v in zip(voxel, grid.voxel_nm, strict=True))
    box = grid.box_around(centre, half_length + 2 * radius)
    seen = offsets(grid.voxel_positions(box), centre)
    u, v, w = (along(axis, seen) for axis in frame)
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
    radius = float(rng.uniform(50, 120))  # of the density: the other cells' side of the membrane is darker
    box = grid.box_around(centre.tolist(), 2 * radius)
    dz, dy, dx = offsets(grid.voxel_positions(box), tuple(centre))
    near = np.exp(-(((dz * dz + dy * dy + dx * dx) * np.float32(1 / radius**2)) ** 2))
    band = np.where(cells.id_zyx[box.slices] != cells.id_zyx[voxel], np.float32(32), np.float32(12))
    weight = near * np.exp(-((cells.depth_zyx[box.slices] / band) ** 4))
    part = image_zyx[box.slices]
    part += (np.float32(58) - part) * np.float32(0.85) * weight

    places = centre + rng.normal(0, 0.42 * reach, (count, 3))
    index = np.rint(places / grid.voxel_nm).astype(np.intp)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    own = np.zeros(count, bool)
    at = tuple(index[inside].T)
    own[inside] = (cells.id_zyx[at] == cells.id_zyx[voxel]) & (cells.depth_zyx[at] > 34)
    places = places[own]
    keep = np.zeros(len(places), bool)
    for i, place in enumerate(places):  # none nearer than 37 nm to one before it
        keep[i] = not (((places[:i][keep[:i]] - place) ** 2).sum(axis=1) < 37.0**2).any()
    for place in places[keep]:
        radius = float(rng.uniform(16, 21))
        box = grid.box_around(place.tolist(), radius + 4)
        if not box.size:
            continue
        dz, dy, dx = offsets(grid.voxel_positions(box), tuple(place))
        distance = np.sqrt(dz * dz + dy * dy + dx * dx) - np.float32(radius)
        rim = np.exp(np.float32(-0.5) * ((distance + 5) / 5.5) ** 2)
        look = np.float32(greys.cytoplasm - 18) + np.float32(greys.membrane - greys.cytoplasm + 28) * rim
        np.copyto(image_zyx[box.slices], look.astype(np.float32), where=distance < 0)
