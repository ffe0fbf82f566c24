r"""Coarse grids, their smooth interpolation, and noise made of them.

Everything slow-varying is computed on a coarse grid and brought to the voxels by a cubic B-spline, axis by axis.
Sample ``k`` of the coarse grid lies at voxel ``(k - 1) * factor``, so a voxel finds its four supports at hand:

    coarse   0       1       2       3       4       5
    voxel   -f       0       f      2f      3f      4f
                     |-- the volume, n <= 3f --|

Only additions and products of neighbours are used (no BLAS, no FFT), so the bytes do not depend on the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box

FloatArray = npt.NDArray[np.float32]
SUPPORT = 3
"""Coarse samples needed beyond the number of steps."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume and a coarse grid over them.

    Attributes:
        shape: (z, y, x) in voxels.
        voxel_nm: (z, y, x) in nm.
        factors: Voxels from one coarse sample to the next, along each axis.
    """

    shape: tuple[int, int, int]
    voxel_nm: tuple[float, float, float]
    factors: tuple[int, int, int]

    @classmethod
    def spaced(cls, shape: Sequence[int], voxel_nm: Sequence[float], spacing_nm: float) -> Grid:
        """The grid whose coarse samples lie about ``spacing_nm`` apart (never closer than the voxels)."""
        z, y, x = (max(1, round(spacing_nm / v)) for v in voxel_nm)
        return cls((shape[0], shape[1], shape[2]), (voxel_nm[0], voxel_nm[1], voxel_nm[2]), (z, y, x))

    @property
    def coarse_shape(self) -> tuple[int, int, int]:
        """Number of coarse samples along each axis."""
        z, y, x = (-(-n // f) + SUPPORT for n, f in zip(self.shape, self.factors, strict=True))
        return z, y, x

    @property
    def extent_nm(self) -> tuple[float, float, float]:
        """Size of the volume in nm."""
        z, y, x = (n * v for n, v in zip(self.shape, self.voxel_nm, strict=True))
        return z, y, x

    def voxel_positions(self, box: Box) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Open mesh (shapes (n,1,1), (1,n,1), (1,1,n)) of the positions of a box's voxels, in nm."""
        axes = [np.arange(a, b, dtype=np.float32) for a, b in zip(box.start, box.stop, strict=True)]
        z, y, x = (axis * np.float32(v) for axis, v in zip(axes, self.voxel_nm, strict=True))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def coarse_positions(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Open mesh of the positions of the coarse samples, in nm."""
        axes = [np.arange(-1, n - 1, dtype=np.float32) for n in self.coarse_shape]
        steps = [np.float32(f * v) for f, v in zip(self.factors, self.voxel_nm, strict=True)]
        z, y, x = (axis * step for axis, step in zip(axes, steps, strict=True))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def coarse_around(self, centre_nm: Sequence[float], reach_nm: Sequence[float]) -> tuple[slice, slice, slice]:
        """The coarse samples within a reach (z, y, x) of a point; at least one along each axis."""
        parts = []
        for c, r, v, f, n in zip(centre_nm, reach_nm, self.voxel_nm, self.factors, self.coarse_shape, strict=True):
            first = min(max(int((c - r) // (f * v)) + 1, 0), n - 1)
            parts.append(slice(first, max(min(int((c + r) // (f * v)) + 3, n), first + 1)))
        return parts[0], parts[1], parts[2]

    def box_around(self, centre_nm: Sequence[float], reach_nm: float) -> Box:
        """The voxels within ``reach_nm`` of a point along each axis, inside the volume (may be empty)."""
        start, stop = [], []
        for c, v, n in zip(centre_nm, self.voxel_nm, self.shape, strict=True):
            start.append(min(max(int((c - reach_nm) // v), 0), n))
            stop.append(max(min(int((c + reach_nm) // v) + 2, n), start[-1]))
        return Box(tuple(start), tuple(stop))


def upsample(coarse_zyx: FloatArray, factors: Sequence[int], shape: Sequence[int]) -> FloatArray:
    """Bring a coarse field to the voxels by a uniform cubic B-spline (approximating: it smooths a little).

    Args:
        coarse_zyx: Field of shape ``ceil(n / factor) + 3`` along each axis.
        factors: Voxels per coarse step.
        shape: Voxels wanted, (z, y, x).

    >>> upsample(np.full((4, 4, 4), 7, np.float32), (2, 2, 2), (1, 2, 2)).round(3).tolist()
    [[[7.0, 7.0], [7.0, 7.0]]]
    """
    field = np.asarray(coarse_zyx, np.float32)
    for axis in (2, 1, 0):  # z last: the largest step then writes whole planes
        field = _upsample_axis(field, axis, factors[axis], shape[axis])
    return field


def _upsample_axis(field: FloatArray, axis: int, factor: int, size: int) -> FloatArray:
    steps = field.shape[axis] - SUPPORT
    shape = list(field.shape)
    shape[axis] = steps * factor
    out = np.empty(shape, np.float32)
    index: list[slice] = [slice(None)] * 3
    for phase in range(factor):
        t = phase / factor
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        index[axis] = slice(0, steps)
        total = field[tuple(index)] * np.float32(weights[0] / 6)
        for k in (1, 2, 3):
            index[axis] = slice(k, k + steps)
            total += field[tuple(index)] * np.float32(weights[k] / 6)
        index[axis] = slice(phase, None, factor)
        out[tuple(index)] = total
    index[axis] = slice(0, size)
    return out[tuple(index)]


def smooth_noise(grid: Grid, wavelength_nm: float, rng: np.random.Generator) -> FloatArray:
    """Smooth noise on the voxels: zero mean, unit variance, blobs about ``wavelength_nm`` apart."""
    own = Grid.spaced(grid.shape, grid.voxel_nm, wavelength_nm / 2)
    samples = rng.standard_normal(own.coarse_shape, dtype=np.float32)
    field = upsample(samples, own.factors, own.shape)
    field *= np.float32(1 / np.sqrt(np.prod([_variance_kept(f) for f in own.factors])))
    return field


def _variance_kept(factor: int) -> float:
    """Variance of a B-spline of unit white noise, averaged over the phases of one axis."""
    t = np.arange(factor) / factor
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return float((weights**2).sum(axis=0).mean())
