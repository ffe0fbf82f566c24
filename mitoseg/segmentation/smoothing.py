"""Smoothing of probabilities and masks, in nm, so that thick sections are treated as what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, uniform_filter1d
from scipy.special import expit, logit

Probability = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TRUNCATE = 3.0
"""Standard deviations at which a Gaussian filter ends."""
_SURE = 1e-4  # probabilities closer to 0 and 1 have the log-odds of this one


def filter_radius(sigma: float, voxel_size: float) -> int:
    """Voxels on each side that the Gaussian filters of this module weigh.

    >>> filter_radius(20, 5)
    12
    """
    return int(TRUNCATE * sigma / voxel_size + 0.5)


def smooth_probability(probability_zyx: Probability, sigma: float, voxel_size: Sequence[float]) -> Probability:
    """Gaussian filter with a standard deviation of ``sigma`` nm."""
    result: Probability = gaussian_filter(
        probability_zyx, [sigma / v for v in voxel_size], mode="nearest", truncate=TRUNCATE
    )
    return result


def mean_field(
    probability_zyx: Probability, weight: float, sigma: float, voxel_size: Sequence[float], iterations: int
) -> Probability:
    r"""Conditional random field whose voxels agree with their neighbours, by mean-field iterations.

    The energy is the sum of the unary terms -log p and, over pairs of voxels, of ``weight * k(d)`` where the labels
    differ, with a Gaussian kernel k of their distance, normalised to a sum of 1. The mean field of this fully
    connected model (Krähenbühl and Koltun, NIPS 2011, with the smoothness kernel alone) is

        logit q  <-  logit p + 2 weight (k * (q - 1/2)),

    which costs one Gaussian filter an iteration, however large the kernel. A graph cut would find the minimum of the
    same energy between nearest neighbours; it needs a GPL library, and memory for an edge of every pair.

    Args:
        probability_zyx: Of mitochondrion.
        weight: Of the pairs; 0 changes nothing.
        sigma: Of the kernel, in nm.
        voxel_size: (z, y, x) in nm.
        iterations: As many as it takes; 5 are enough.
    """
    unary = logit(np.clip(probability_zyx, _SURE, 1 - _SURE))
    q = probability_zyx
    for _ in range(iterations):
        q = expit(unary + 2 * weight * (smooth_probability(q, sigma, voxel_size) - np.float32(0.5)))
    return q


def z_median(mask_zyx: Mask, depth: int) -> Mask:
    """Median along z over ``depth`` slices, the middle one in question; beyond the ends the last slice is repeated."""
    votes = uniform_filter1d(mask_zyx.astype(np.float32), depth, axis=0, mode="nearest")
    result: Mask = votes > 0.5
    return result


def opening(mask_zyx: Mask, radius: float, voxel_size: Sequence[float]) -> Mask:
    """Opening with a ball of ``radius`` nm: what no such ball inside the mask covers is taken away.

    Both steps are thresholds of an exact Euclidean distance. Beyond the volume's border the mask is taken to go on.
    """
    spacing: dict[str, Any] = {"anisotropy": tuple(voxel_size), "black_border": False, "parallel": 0}
    core_zyx = edt.edt(np.ascontiguousarray(mask_zyx), **spacing) > radius
    if not core_zyx.any():
        return np.zeros_like(mask_zyx)
    near: Mask = edt.edt(~core_zyx, **spacing) <= radius
    return near & mask_zyx
