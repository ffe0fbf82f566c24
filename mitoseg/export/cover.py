"""The picture of a package: a slice, and the same slice with its mitochondria."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion

SIDE = 384
"""Pixels of each half."""
ORANGE = (255, 140, 0)


def draw_cover(grey_yx: npt.NDArray[np.floating], prob_yx: npt.NDArray[np.floating], threshold: float) -> Image.Image:
    """Twice as wide as high; mitochondria are orange, the more so the surer.

    Args:
        grey_yx: Grey values.
        prob_yx: Probabilities.
        threshold: Where the outline runs.
    """
    low, high = np.percentile(grey_yx, (0.5, 99.5))
    level = np.clip((grey_yx - low) / max(high - low, 1e-6), 0, 1)
    plain = np.repeat(level[..., None], 3, 2)
    weight = (0.5 * prob_yx)[..., None]
    mixed = plain * (1 - weight) + np.array(ORANGE) / 255 * weight
    inside = prob_yx >= threshold
    mixed[inside & ~binary_erosion(inside, border_value=1)] = np.array(ORANGE) / 255
    halves = [Image.fromarray((255 * half).astype(np.uint8)) for half in (plain, mixed)]
    cover = Image.new("RGB", (2 * SIDE, SIDE))
    for i, half in enumerate(halves):
        side = min(half.size)
        square = half.crop((0, 0, side, side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        cover.paste(square, (i * SIDE, 0))
    return cover
