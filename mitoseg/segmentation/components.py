"""Components of a mask: those that are too small or too unsure go, and holes are filled."""

from __future__ import annotations

import math

import cc3d
import fill_voids
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def remove_unsure(mask_zyx: Mask, probability_zyx: npt.NDArray[np.float32], least: float) -> Mask:
    """Take away the 2D components of each slice whose mean probability is below ``least``."""
    kept_zyx = np.empty_like(mask_zyx)
    for mask_yx, probability_yx, kept_yx in zip(mask_zyx, probability_zyx, kept_zyx, strict=True):
        label_yx = cc3d.connected_components(np.ascontiguousarray(mask_yx), connectivity=8)
        count = np.bincount(label_yx.ravel())
        total = np.bincount(label_yx.ravel(), weights=probability_yx.ravel())
        sure = total >= least * count
        sure[0] = False
        kept_yx[:] = sure[label_yx]
    return kept_zyx


def remove_small(mask_zyx: Mask, volume: float, voxel_volume: float) -> Mask:
    """Take away the 3D components (26 neighbours) below ``volume``, in the unit of ``voxel_volume``."""
    least = math.ceil(volume / voxel_volume - 1e-9)
    dusted = cc3d.dust(np.ascontiguousarray(mask_zyx), threshold=least, connectivity=26, in_place=False)
    return dusted.astype(bool)


def fill_holes(mask_zyx: Mask) -> Mask:
    """Fill what is enclosed on all sides in 3D; what is open to the volume's border is no hole."""
    filled: Mask = fill_voids.fill(np.ascontiguousarray(mask_zyx)).astype(bool)
    return filled


def fill_slices(mask_zyx: Mask) -> Mask:
    """Fill what is enclosed within its slice."""
    return np.stack([fill_voids.fill(np.ascontiguousarray(mask_yx)).astype(bool) for mask_yx in mask_zyx])
