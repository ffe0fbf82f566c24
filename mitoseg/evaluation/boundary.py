r"""Counts of the voxels near the border between foreground and background.

Annotators differ by a voxel or two where a membrane belongs, so a score is also given without the voxels near the
border of the truth. A band of width d leaves out, on both sides, the voxels whose Euclidean distance to the nearest
voxel of the other true class is at most d (centre to centre, in units of the smallest voxel spacing):

    truth             0  0  0  0 | 1  1  1  1
    distance          4  3  2  1 | 1  2  3  4
    left out, d = 2         x  x | x  x

In 3D a voxel is also left out when the other class lies above or below it; the in-plane variant asks its own slice
alone. Ignored voxels (255) are no class: they are not counted, and nothing is near them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import edt
import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box
from mitoseg.metrics import IGNORE, Counts

Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.uint8]

_THREADS = min(os.cpu_count() or 1, 8)
_ROUNDING = 1 + 1e-5  # distances are single precision; a tie belongs to the band


def relative_spacing(voxel_size: Sequence[float]) -> tuple[float, ...]:
    """Spacing along each axis in units of the smallest.

    >>> relative_spacing((50, 5, 5))
    (10.0, 1.0, 1.0)
    """
    return tuple(float(s) / float(min(voxel_size)) for s in voxel_size)


def halo(bands: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Voxels (z, y, x) beyond a box in which the other class can be near enough to matter.

    >>> halo([1, 5], (20, 5, 10))
    (1, 5, 2)
    """
    widest = max(bands, default=0.0) * _ROUNDING
    z, _, _ = relative_spacing(voxel_size)
    y, x = relative_spacing(voxel_size[1:])
    return int(widest / z), int(widest / y), int(widest / x)


def squared_distance(truth: Labels, spacing: Sequence[float]) -> npt.NDArray[np.float32]:
    """Squared distance from each voxel to the nearest one of the other class; very large where there is none.

    Args:
        truth: 2D or 3D, 0, 1 or 255; the value at ignored voxels is undefined.
        spacing: Along each axis.
    """

    def to_zero(mask: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = edt.edtsq(mask, anisotropy=tuple(spacing), parallel=_THREADS)
        return result

    truth = np.ascontiguousarray(truth)
    if (truth == IGNORE).any():
        return np.where(truth == 1, to_zero(truth != 0), to_zero(truth != 1))
    # Without ignored voxels one pass serves both classes: it measures to the nearest voxel of another label.
    return to_zero(truth + np.uint8(1))


def near_counts(
    prediction_zyx: Bools,
    truth_zyx: Labels,
    inner: Box,
    *,
    bands: Sequence[float],
    voxel_size: Sequence[float],
    dims: int,
) -> list[Counts]:
    """Counts of the voxels that each band leaves out.

    Args:
        prediction_zyx: Of the inner box.
        truth_zyx: Of the inner box and its `halo`, as far as the volume reaches; 0, 1 or 255.
        inner: The inner box, in coordinates of ``truth_zyx``.
        bands: Widths, ascending, in units of the smallest spacing (of the smallest in-plane one for ``dims=2``).
        voxel_size: (z, y, x), any unit.
        dims: 3, or 2 for distances within each slice.

    Returns:
        One `Counts` a band, each including the narrower ones.
    """
    if dims == 3:
        distance_zyx = squared_distance(truth_zyx, relative_spacing(voxel_size))[inner.slices]
    else:
        spacing = relative_spacing(voxel_size[1:])
        slices = truth_zyx[inner.slices[0]]
        distance_zyx = np.stack([squared_distance(slice_yx, spacing)[inner.slices[1:]] for slice_yx in slices])
    limits = np.square(np.asarray(bands, np.float64)) * _ROUNDING
    truth_inner_zyx = truth_zyx[inner.slices]
    # Few voxels are near a border, so only those are sorted into bands.
    near = (distance_zyx <= limits[-1]) & (truth_inner_zyx != IGNORE)
    band = np.searchsorted(limits, distance_zyx[near])
    code = 4 * band + 2 * prediction_zyx[near] + truth_inner_zyx[near]
    table = np.bincount(code, minlength=4 * len(bands)).reshape(len(bands), 4).cumsum(axis=0)
    return [Counts(tp=int(tp), fp=int(fp), fn=int(fn), tn=int(tn)) for tn, fn, fp, tp in table]
