r"""Coarse grids, noise made of them, and the shapes of bodies and neurites.

Everything slow-varying is computed on a coarse grid and brought to the voxels by a cubic B-spline, axis by axis.
Sample ``k`` of the coarse grid lies at voxel ``(k - 1) * factor``, so a voxel finds its four supports at hand:

    coarse   0       1       2       3       4       5
    voxel   -f       0       f      2f      3f      4f
                     |-- the volume, n <= 3f --|

Only additions and products of neighbours are used (no BLAS, no FFT), so the bytes do not depend on the threads.

A body (mitochondrion, lysosome, multivesicular body) is a bent tube with round ends, or a ball where its straight
part is short. In its own frame, u along the axis:

         ___________________
       /                     \        v' = v - bend * u^2
      |  <---- half_length ---> |     d  = |(max(|u| - half_length, 0), v', w * flat)| - radius(u)
       \ ___________________ /        radius(u) = radius * (1 + waist * cos(u / wave + phase)) + wobble
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box

FloatArray = npt.NDArray[np.float32]
Positions = tuple[FloatArray, ...]  # (z, y, x) in nm: an open mesh, (n, 1, 1), (1, n, 1), (1, 1, n), or a full one
Vector = tuple[float, ...]
SUPPORT = 3  # coarse samples needed beyond the number of steps


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
