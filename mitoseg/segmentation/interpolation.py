"""Slices between slices, for voxels that are much longer along z than across."""

from __future__ import annotations

from collections.abc import Sequence

import edt
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

_EVEN = 2.0
"""Up to this ratio of voxel sizes nothing is interpolated."""
_MOST = 16
"""Slices that one slice becomes at most."""


def even_spacing(mask_zyx: Mask, voxel_size: Sequence[float]) -> tuple[Mask, tuple[float, float, float]]:
    """A mask on a grid that is about as fine along z as across, by shape-based interpolation.

    Between two slices the signed distances to their outlines are interpolated, and what is positive is inside (Raya
    and Udupa, IEEE TMI 9(1), 1990). The first and the last slice keep their thickness, so the box stays the same:

        slice     |---- 0 ----|---- 1 ----|           4 from 1
        becomes   |-a-|-a-|ab-|ab-|ba-|ba-|-b-|-b-|   a of slice 0, ab a mixture nearer to a

    Args:
        mask_zyx: One object.
        voxel_size: (z, y, x) in nm.

    Returns:
        The mask and its voxel size; both as they were unless slices are more than twice as thick as pixels are wide.
    """
    z, y, x = (float(v) for v in voxel_size)
    factor = min(round(z / min(y, x)), _MOST) if z / min(y, x) > _EVEN else 1
    if factor == 1:
        return mask_zyx, (z, y, x)
    distance_zyx = [_signed_distance(mask_yx, (y, x)) for mask_yx in mask_zyx]
    fine_zyx = np.empty((len(mask_zyx) * factor, *mask_zyx.shape[1:]), bool)
    for index in range(len(fine_zyx)):
        where = min(max((index + 0.5) / factor - 0.5, 0), len(mask_zyx) - 1)  # in slices, at their middles
        low = int(where)
        lower, upper = distance_zyx[low], distance_zyx[min(low + 1, len(mask_zyx) - 1)]
        if lower is None or upper is None:  # where the object pauses, the nearer slice decides
            fine_zyx[index] = mask_zyx[round(where)]
        else:
            fine_zyx[index] = (1 - (where - low)) * lower + (where - low) * upper > 0
    return fine_zyx, (z / factor, y, x)


def _signed_distance(mask_yx: Mask, size_yx: tuple[float, float]) -> npt.NDArray[np.float32] | None:
    """Distance to the outline in nm, positive inside; None of an empty slice."""
    if not mask_yx.any():
        return None
    padded_yx = np.pad(mask_yx, 1)
    inside = edt.edt(padded_yx, anisotropy=size_yx)
    outside = edt.edt(~padded_yx, anisotropy=size_yx)
    signed: npt.NDArray[np.float32] = (inside - outside)[1:-1, 1:-1]
    return signed
