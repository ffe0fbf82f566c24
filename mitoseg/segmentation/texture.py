"""How strongly cristae stand out in the grey values of one mitochondrion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import edt
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from mitoseg.segmentation.smooth_shape import Mask

FINE, COARSE = 6.0, 18.0
"""Standard deviations in nm of the two Gaussians: structures of about 15 to 40 nm remain, as cristae are."""
MEMBRANE = 20.0
"""Depth in nm of what is left out at the surface: the two outer membranes."""


@dataclass(frozen=True)
class Texture:
    """Of the inside of one object, without its outer membranes; NaN where nothing is left of it.

    Attributes:
        grey: Standard deviation of the difference of Gaussians, in grey values.
        share: Its variance over the variance of the grey values themselves: does not change with contrast.
    """

    grey: float
    share: float


def cristae_texture(image_zyx: npt.NDArray[np.generic], mask_zyx: Mask, voxel_size: Sequence[float]) -> Texture:
    """Standard deviation of a difference of Gaussians within the eroded object.

    The filter looks the same from all sides, so turning an object changes nothing. Along an axis whose voxels are
    coarser than the Gaussian there is next to no smoothing, and what remains is texture within the section.

    Args:
        image_zyx: Grey values of the object's crop, best with `margin` voxels round it.
        mask_zyx: The object in it.
        voxel_size: (z, y, x) in nm.
    """
    depth = edt.edt(np.ascontiguousarray(mask_zyx), anisotropy=tuple(voxel_size), black_border=False, parallel=1)
    inner = depth > MEMBRANE
    if not inner.any():
        return Texture(np.nan, np.nan)
    image = image_zyx.astype(np.float32)
    fine, coarse = (gaussian_filter(image, [s / v for v in voxel_size], truncate=3) for s in (FINE, COARSE))
    band, plain = float((fine - coarse)[inner].std()), float(image[inner].std())
    return Texture(band, (band / plain) ** 2 if plain > 0 else np.nan)


def margin(voxel_size: Sequence[float]) -> tuple[int, ...]:
    """Voxels round an object that the filter reaches to."""
    return tuple(int(3 * COARSE / v + 0.5) for v in voxel_size)
