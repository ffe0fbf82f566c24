"""A binary object as a smooth field on a nearly isotropic grid, from which its surface and skeleton are taken.

A mask's own surface is a staircase, 8 to 9 % too large on cubic voxels and 20 to 26 % on voxels six times as deep as
wide, however fine they are. So the mask is blurred by a Gaussian of the same width in nm on all axes; resampled to a
step of about that width, by cubic interpolation (Keys 1981) where the voxels are coarser, and every n-th sample where
they are finer; and cut at the level that leaves as much volume inside as the mask has, which takes back most of the
shrinking of what is convex. The voxels on surfaces (`SurfacePoints`) are kept in a file for each piece of the volume.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse
from skimage.measure import marching_cubes

from mitoseg.engines import one_at_a_time
from mitoseg.geometry import Box, meeting
from mitoseg.volumes import Array, Volume
from mitoseg.volumes.staging import explained, wait_for

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Cut = Sequence[tuple[bool, bool]]
"""For each axis, whether the object is cut off by the volume's border at its low and high end."""
WHOLE: Cut = ((False, False),) * 3
BLUR_FINE = 1.2  # standard deviation of the blur, in voxels of the smallest spacing, at least
BLUR_COARSE = 0.45  # the same in voxels of the largest spacing
_TRUNCATE = 3.5  # standard deviations


@dataclass(frozen=True)
class SmoothShape:
    """A field that is large inside an object, and the level of its surface."""

    field_zyx: npt.NDArray[np.float32]  # from 0 to 1
    level: float
    step: tuple[float, ...]  # (z, y, x) between samples, in nm
    low: tuple[float, ...]  # (z, y, x) of the low corner of the object's crop, in nm from the first sample
    high: tuple[float, ...]  # of the high corner
    cut: Cut  # where the volume's border cuts the object off; the field goes on there unchanged
    volume: float  # of the mask, in nm3
    mask_zyx: Mask  # the mask itself on the field's grid: what is too thin for the field is still there
    uncut: tuple[slice, ...]  # the part of the grid that does not lie beyond the volume's border

    @property
    def inside_zyx(self) -> Mask:
        """Samples inside the object, on the field's grid."""
        result: Mask = self.field_zyx >= self.level
        return result


def smooth_shape(mask_zyx: Mask, voxel_size: Sequence[float], cut: Cut = WHOLE) -> SmoothShape:
    """Blur and resample the mask of one object, cropped to its bounding box or larger; see the module.

    At sides of the crop where the volume's border cuts the object it is taken to go on as it is there.
    """
    sigma = blur(voxel_size)
    field, mask, steps, lows = mask_zyx.astype(np.float32), mask_zyx, [], []
    for axis, (size, ends) in enumerate(zip(voxel_size, cut, strict=True)):
        stride = max(1, math.floor(sigma / size + 1e-9))
        finer = 1 if size <= 1.01 * min(voxel_size) else math.ceil(size / sigma - 1e-9)
        pad = stride * math.ceil(math.ceil(_TRUNCATE * sigma / size) / stride) + stride
        matrix = _blur_and_resample(mask_zyx.shape[axis], sigma / size, pad, stride / finer, ends)
        first = np.ascontiguousarray(np.moveaxis(field, axis, 0))
        blurred = (matrix @ first.reshape(len(first), -1)).reshape(-1, *first.shape[1:])
        field = np.ascontiguousarray(np.moveaxis(blurred, 0, axis))
        n, count = mask.shape[axis], field.shape[axis]  # on the grid of samples: any of the voxels that one stands for
        lowest = np.floor(np.arange(count) * (stride / finer) + 0.5).astype(int) - pad - stride // 2
        found = np.zeros([count if a == axis else m for a, m in enumerate(mask.shape)], bool)
        for voxel in (lowest + k for k in range(stride)):
            known = ((voxel >= 0) | ends[0]) & ((voxel < n) | ends[1])
            known_zyx = known.reshape([-1 if a == axis else 1 for a in range(3)])
            found |= np.take(mask, voxel.clip(0, n - 1), axis=axis) & known_zyx
        mask = found
        steps.append(size * stride / finer)
        lows.append((pad - 0.5) * size)
    step, low = tuple(steps), tuple(lows)
    high = tuple(a + n * s for a, n, s in zip(low, mask_zyx.shape, voxel_size, strict=True))
    volume = float(np.count_nonzero(mask_zyx) * math.prod(voxel_size))
    uncut = []
    for n, interval, a, b, ends in zip(field.shape, step, low, high, cut, strict=True):
        start = math.ceil(a / interval - 1e-6) if ends[0] else 0
        stop = math.floor(b / interval + 1e-6) + 1 if ends[1] else n
        uncut.append(slice(start, max(stop, start + 1)))
    flat = field[tuple(uncut)].ravel()
    k = max(round(volume / math.prod(step)), 1)  # as many samples lie above the level
    level = float(flat.min()) / 2
    if k < flat.size:
        ordered = np.partition(flat, [flat.size - k - 1, flat.size - k])
        level = float(ordered[flat.size - k - 1] + ordered[flat.size - k]) / 2
    return SmoothShape(field, level, step, low, high, cut, volume, mask, tuple(uncut))


def blur(voxel_size: Sequence[float]) -> float:
    """Standard deviation of the Gaussian, in nm."""
    return max(BLUR_FINE * min(voxel_size), BLUR_COARSE * max(voxel_size))


def _blur_and_resample(n: int, sigma: float, pad: int, step: float, ends: tuple[bool, bool]) -> sparse.csr_array:
    """Matrix from ``n`` voxels to samples every ``step`` voxels, the first at voxel ``-pad``.

    Beyond the ends of the voxels there is background, or, where the object is cut off, the last voxel again.
    """
    padded = n + 2 * pad
    count = math.floor((padded - 1) / step + 1e-9) + 1
    taps = math.ceil(_TRUNCATE * sigma)
    kernel = np.exp(-0.5 * (np.arange(-taps, taps + 1) / sigma) ** 2)
    blur = sparse.diags_array(kernel / kernel.sum(), offsets=np.arange(-taps, taps + 1), shape=(padded, padded))
    position = np.arange(count) * step
    source = np.floor(position + 1e-9).astype(int)[:, None] + np.arange(-1, 3)
    # cubic convolution with a = -1/2, which has third-order accuracy (Keys, IEEE TASSP 29(6), 1981)
    d = np.abs(position[:, None] - source)
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weight = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    row = np.repeat(np.arange(count), 4)
    cubic = sparse.csr_array((weight.ravel(), (row, source.clip(0, padded - 1).ravel())), shape=(count, padded))
    voxel = np.arange(padded) - pad
    known = ((voxel >= 0) | ends[0]) & ((voxel < n) | ends[1])
    pick = sparse.csr_array(
        (np.ones(known.sum()), (np.flatnonzero(known), voxel[known].clip(0, n - 1))), shape=(padded, n)
    )
    return sparse.csr_array((cubic @ blur @ pick).astype(np.float32))


def mesh_area(shape: SmoothShape, vertices: Floats, faces: npt.NDArray[np.integer]) -> float:
    """Area of a shape's mesh in nm2, less what lies beyond the volume's border.

    No body has less surface than a ball of its volume; where the mesh of a whole object of a few voxels does, the
    ball's is given.
    """
    corners = vertices[faces]
    sides = corners[:, 1:] - corners[:, :1]
    area: Floats = 0.5 * np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    for axis, (at_low, at_high) in enumerate(shape.cut):
        if at_low:
            area = area * _share_above_zero(corners[:, :, axis] - shape.low[axis])
        if at_high:
            area = area * _share_above_zero(shape.high[axis] - corners[:, :, axis])
    total = float(area.sum())
    return total if any(map(any, shape.cut)) else max(total, ball_area(shape.volume))


def shape_mesh(shape: SmoothShape) -> tuple[Floats, npt.NDArray[np.integer]]:
    """Vertices (n, 3) in nm from the field's first sample, and triangles (m, 3) of their numbers.

    Where the volume's border cuts the object, the mesh is open and reaches a few voxels beyond the border.
    """
    if shape.field_zyx.min() >= shape.level:  # cut off on all sides
        return np.zeros((0, 3)), np.zeros((0, 3), int)
    vertices, faces, *_ = marching_cubes(shape.field_zyx, shape.level, spacing=shape.step)  # type: ignore[no-untyped-call]
    return vertices, faces


def ball_area(volume: float) -> float:
    """Surface of a ball of a volume."""
    return float(math.pi ** (1 / 3) * (6 * volume) ** (2 / 3))


def _share_above_zero(distance: Floats) -> Floats:
    """Share of a triangle's area on the positive side of a plane, from its corners' signed distances (n, 3)."""
    far, middle, near = np.sort(distance.astype(np.float64), axis=1).T[::-1]
    tip = _divide(far**2, (far - middle) * (far - near))
    lost = _divide(near**2, (near - far) * (near - middle))
    share = np.where(middle >= 0, 1 - lost, tip)
    return np.where(near >= 0, 1.0, np.where(far <= 0, 0.0, share))


def _divide(a: Floats, b: Floats) -> Floats:
    """Quotient; zero where the denominator is."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


PIECE = (32, 512, 512)
VoxelPoints = npt.NDArray[np.integer]


@dataclass(frozen=True)
class SurfacePoints:
    """Voxels on the surfaces of instances, in a folder that all processes see, a file for each piece (z, y, x)."""

    labels: Volume
    folder: Path
    piece: tuple[int, int, int] = PIECE

    def store(self, piece: Box) -> None:
        """Find and keep the points of one piece of the grid."""
        block = piece.grow(1).clip(self.labels.box)
        labels_zyx = self.labels.read(block)
        with one_at_a_time():
            points, ids = surface_voxels(labels_zyx, piece.inside(block), block.start)
        file = self._file(piece)
        partial = file.with_suffix(f".{os.getpid()}")
        with explained(self.folder):
            with partial.open("wb") as stream:
                np.savez(stream, points=(points - piece.start).astype(np.uint16), ids=ids)
            partial.replace(file)  # as a worker may be killed while it writes

    def read(self, box: Box) -> tuple[VoxelPoints, Array]:
        """The points of a box, when all pieces are stored; see `surface_voxels`."""
        points: list[VoxelPoints] = [np.zeros((0, 3), np.int32)]
        ids = [np.zeros(0, self.labels.dtype)]
        for piece in meeting(self.labels.box, self.piece, box):
            wait_for(self._file(piece))
            with np.load(self._file(piece)) as stored:
                at, of = stored["points"] + np.array(piece.start, np.int32), stored["ids"]
            inside = ((at >= box.start) & (at < box.stop)).all(axis=1)
            points.append(at[inside])
            ids.append(of[inside])
        return np.concatenate(points), np.concatenate(ids)

    def _file(self, piece: Box) -> Path:
        return self.folder.absolute() / ("_".join(map(str, piece.start)) + ".npz")


def surface_voxels(labels_zyx: Array, inner: Box, start: Sequence[int]) -> tuple[VoxelPoints, Array]:
    """Voxels (n, 3) of the volume with another label, or background, behind a face, and their labels (n,).

    The block of labels begins at ``start`` in the volume. It has one voxel round ``inner``, the part whose voxels are
    given, in its own voxels, where the volume has one.
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
