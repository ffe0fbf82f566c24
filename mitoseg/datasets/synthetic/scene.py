"""What stands where: bodies and neurites drawn at random until the tissue's shares are reached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mitoseg.datasets.synthetic.noise import FloatArray, Grid, smooth_noise
from mitoseg.datasets.synthetic.presets import Greys, Preset
from mitoseg.datasets.synthetic.shapes import Body, Neurite, Positions, Vector, part_of, random_axis, random_frame

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
    """Draw the objects of a phantom.

    Args:
        grid: Voxels, and the coarse grid to plan on.
        preset: Shares and sizes.
        rng: Where every parameter of every object comes from.
    """
    tissue = preset.tissue
    room = _Room(grid)
    shares = {
        "mitochondrion": tissue.mitochondria,
        "lysosome": tissue.lysosomes,
        "multivesicular": tissue.multivesicular,
    }
    for kind, share in shares.items():
        room.fill(kind, share, preset.greys, rng)
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
            part = self.grid.coarse_around(body.centre, (body.reach + 3 * CLEARANCE,) * 3)
            distance = body.distance(part_of(self.positions, part))
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

    def _place(self, body: Body) -> None:
        part = self.grid.coarse_around(body.centre, (body.reach + 3 * CLEARANCE,) * 3)
        np.minimum(self.nearest[part], body.distance(part_of(self.positions, part)), out=self.nearest[part])
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
