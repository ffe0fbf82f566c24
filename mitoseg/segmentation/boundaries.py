"""Boundaries that follow the edges of the image: a watershed between what is surely inside and surely outside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, binary_erosion, binary_opening, label
from skimage.feature import canny
from skimage.filters import sobel
from skimage.morphology import disk
from skimage.segmentation import watershed

Mask = npt.NDArray[np.bool_]


def refine_boundaries(
    mask_zyx: Mask,
    relief_zyx: npt.NDArray[np.generic],
    *,
    radius: int,
    is_image: bool,
) -> Mask:
    """Move the boundary of each slice to the nearest ridge, by at most ``radius`` pixels.

    Surely inside is the opened mask, eroded (all of a component that is thinner); surely outside is the background of
    the opened mask, dilated. Between them a watershed is flooded from both.

    Args:
        mask_zyx: What is refined.
        relief_zyx: The EM image, whose Canny edges are the ridges; or the probability, whose gradient is.
        radius: Of opening, erosion and dilation, in pixels.
        is_image: Which of the two it is.
    """
    pairs, ball = zip(mask_zyx, relief_zyx, strict=True), disk(radius)  # type: ignore[no-untyped-call]
    return np.stack([_refine(m, r.astype(np.float32), ball, is_image) if m.any() else m for m, r in pairs])


def _refine(mask_yx: Mask, relief_yx: npt.NDArray[np.float32], ball: npt.NDArray[np.generic], is_image: bool) -> Mask:
    opened_yx = binary_opening(mask_yx, ball)
    inside_yx = binary_erosion(opened_yx, ball, border_value=1)
    component_yx, count = label(opened_yx)
    survives = np.zeros(count + 1, bool)
    survives[np.unique(component_yx[inside_yx])] = True
    inside_yx |= opened_yx & ~survives[component_yx]
    marker_yx = np.where(inside_yx, 2, np.where(binary_dilation(opened_yx, ball), 0, 1))
    ridges_yx = _edges(relief_yx) if is_image else sobel(relief_yx)  # type: ignore[no-untyped-call]
    flooded: Mask = watershed(ridges_yx, marker_yx) == 2  # type: ignore[no-untyped-call]
    return flooded


def _edges(image_yx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Canny's edges, 0 or 1; its thresholds are shares of the range of grey values."""
    low, high = float(image_yx.min()), float(image_yx.max())
    unit_yx = (image_yx - low) / (high - low) if high > low else np.zeros_like(image_yx)
    edges: Mask = canny(unit_yx, sigma=2)  # type: ignore[no-untyped-call]
    return edges.astype(np.float32)
