r"""Lazy resampling of a volume to another voxel size: only what a box needs is read.

Both grids start at the same outer edge. Along an axis that becomes coarser, a new voxel is the mean of what it covers,
like binning in the microscope, which avoids aliasing; along one that becomes finer, it is interpolated linearly.
Weights depend only on the position in the volume, so results do not depend on the boxes that are read. Beyond the edge
the outermost voxel is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import Array, Bools, DerivedVolume, Volume, VoxelSize

MOST = 10.0  # the largest factor along an axis; more suggests a wrong unit
READ_BYTES = 2**27  # bytes of stored voxels read at once: many, so that chunks are not decoded repeatedly
PIECE = 2**21  # voxels read or made in one computation
# Memory for this: float32 voxels before and after an axis, and a copy with that axis in front (8 measured).
PIECE_BYTES = 12 * PIECE
_EQUAL = 1e-6
_Weights = tuple[int, sparse.csr_array]


def resampled(volume: Volume, voxel_size: Sequence[float], shape: tuple[int, int, int] | None = None) -> Volume:
    """A lazy float32 volume with another voxel size (z, y, x) in nm; the volume itself if they are equal.

    ``shape`` overrides the shape that covers the volume to within half a voxel, to restore a known grid.
    """
    size = check_voxel_size(voxel_size)
    if volume.voxel_size is None:
        raise UserError("the volume has no voxel size to resample by", volume.path, "give voxel_size=[z,y,x] in nm")
    ratios = [new / old for new, old in zip(size, volume.voxel_size, strict=True)]
    if max(max(ratios), 1 / min(ratios)) > MOST:
        what = f"resampling from voxels of {volume.voxel_size} to {size} nm is by more than {MOST:g} times"
        raise UserError(what, volume.path, "check voxel_size=, or give resample=none")
    z, y, x = shape or (resampled_length(n, ratio) for n, ratio in zip(volume.shape, ratios, strict=True))
    if (z, y, x) == volume.shape and all(abs(ratio - 1) < _EQUAL for ratio in ratios):
        return volume
    return _ResampledVolume(volume, size, (z, y, x))


def resampled_length(n: int, ratio: float) -> int:
    """Number of voxels along an axis of ``n`` if they become ``ratio`` times as long, rounded, at least 1."""
    return max(1, int(np.floor(n / ratio + 0.5 - _EQUAL)))


class _ResampledVolume(DerivedVolume):
    def __init__(self, volume: Volume, voxel_size: VoxelSize, shape: tuple[int, int, int]) -> None:
        assert volume.voxel_size is not None
        super().__init__(volume, shape=shape, dtype=np.dtype(np.float32), voxel_size=voxel_size)
        self.padding = volume.padding and _ResampledPadding(volume.padding, self)
        self._ratios = [new / old for new, old in zip(voxel_size, volume.voxel_size, strict=True)]

    def scratch_bytes(self, box: Box) -> int:
        """Memory for the voxels read for a box, and for computing a piece of it."""
        if not box.size:
            return 0
        whole = self.source(self.weights(box))
        part = self.source(self.weights(next(tiles(box, self._part(box, whole, self._most)))))
        pieces = PIECE_BYTES * min(1.0, max(part.size, box.size) / PIECE)
        return part.size * self.volume.dtype.itemsize + int(pieces) + self.volume.scratch_bytes(part)

    def _read(self, box: Box) -> Array:
        found_zyx = np.empty(box.shape, np.float32)
        if not box.size:
            return found_zyx
        for part in tiles(box, self._part(box, self.source(self.weights(box)), self._most)):
            self._read_part(part, found_zyx[part.inside(box).slices])
        return found_zyx

    @property
    def _most(self) -> int:
        """Number of stored voxels to hold at once."""
        return READ_BYTES // self.volume.dtype.itemsize

    def _read_part(self, box: Box, found_zyx: Array) -> None:
        whole = self.source(self.weights(box))
        stored_zyx = self.volume.read(whole)
        for part in tiles(box, self._part(box, whole, PIECE)):
            weights = self.weights(part)
            image_zyx = stored_zyx[self.source(weights).inside(whole).slices].astype(np.float32)
            for axis, (_, matrix) in enumerate(weights):
                image_zyx = _along(matrix, image_zyx, axis)
            found_zyx[part.inside(box).slices] = image_zyx

    def weights(self, box: Box) -> list[_Weights]:
        axes = zip(box.start, box.stop, self._ratios, self.volume.shape, strict=True)
        return [axis_weights(*axis) for axis in axes]

    def source(self, weights: Sequence[_Weights]) -> Box:
        start = tuple(first for first, _ in weights)
        return Box(start, tuple(first + matrix.shape[1] for first, matrix in weights))

    @staticmethod
    def _part(box: Box, source: Box, most: int) -> tuple[int, int, int]:
        """Shape (z, y, x) of a part of a box: as many slices, or rows of one, as need about ``most`` stored voxels."""
        z, y, x = box.shape
        room = most / (max(source.size, box.size) / box.size)
        return max(1, min(z, int(room / (y * x)))), max(1, min(y, int(room / x))), x


class _ResampledPadding(Volume):
    """The resampled voxels to which any padding contributes."""

    def __init__(self, padding: Volume, resampled: _ResampledVolume) -> None:
        super().__init__(replace(resampled.info, dtype=np.dtype(np.bool_)))
        self.volume, self._resampled = padding, resampled

    def find(self, box: Box) -> Bools | None:
        weights = self._resampled.weights(box)
        found = self.volume.find(self._resampled.source(weights))
        if found is None:
            return None
        share_zyx: Array = found.astype(np.float32)
        for axis, (_, matrix) in enumerate(weights):
            share_zyx = _along(matrix, share_zyx, axis)
        return share_zyx > 0

    def _read(self, box: Box) -> Bools:
        found = self.find(box)
        return np.zeros(box.shape, np.bool_) if found is None else found


def axis_weights(start: int, stop: int, ratio: float, n: int) -> tuple[int, sparse.csr_array]:
    """The first old voxel needed, and weights (new, old from there on) whose rows add up to 1.

    >>> axis_weights(0, 2, 1.5, 3)[1].toarray().astype(float).round(3).tolist()
    [[0.667, 0.333, 0.0], [0.0, 0.333, 0.667]]
    """
    new = np.arange(start, stop)
    if ratio > 1:  # a new voxel j covers old ones from j * ratio to (j + 1) * ratio
        low, high = new[:, None] * ratio, (new[:, None] + 1) * ratio
        columns = np.floor(low).astype(np.int64) + np.arange(int(np.ceil(ratio)) + 2)
        share = np.clip(np.minimum(high, columns + 1) - np.maximum(low, columns), 0, None)
        share[share < _EQUAL] = 0
        weights = (share / share.sum(1, keepdims=True)).astype(np.float32)
    else:  # its centre lies at (j + 1/2) * ratio - 1/2, between two old ones
        centre = (new + 0.5) * ratio - 0.5
        centre = np.where(np.abs(centre - np.rint(centre)) < _EQUAL, np.rint(centre), centre)
        left = np.floor(centre).astype(np.int64)
        right = (centre - left).astype(np.float32)
        columns, weights = np.stack([left, left + 1], 1), np.stack([1 - right, right], 1)
    columns, kept = np.clip(columns, 0, n - 1), weights > 0
    rows = np.broadcast_to(np.arange(len(new))[:, None], columns.shape)
    first, last = int(columns[kept].min()), int(columns[kept].max())
    shape = (len(new), last - first + 1)
    matrix = sparse.coo_array((weights[kept], (rows[kept], columns[kept] - first)), shape=shape).tocsr()
    return first, matrix


def _along(matrix: sparse.csr_array, image_zyx: Array, axis: int) -> Array:
    moved = np.moveaxis(image_zyx, axis, 0)
    flat: npt.NDArray[Any] = matrix @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
    return np.moveaxis(flat.reshape(matrix.shape[0], *moved.shape[1:]), 0, axis)
