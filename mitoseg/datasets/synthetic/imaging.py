"""What the microscope makes of the tissue: blur, shading, streaks, charging, shifts and noise."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mitoseg.datasets.synthetic.noise import FloatArray, Grid, smooth_noise
from mitoseg.datasets.synthetic.presets import Microscope

Scalar = TypeVar("Scalar", bound=np.generic)
ByteArray = npt.NDArray[np.uint8]


def expose(grey_zyx: FloatArray, grid: Grid, microscope: Microscope, rng: np.random.Generator) -> ByteArray:
    """Take the picture."""
    image = ndimage.gaussian_filter(grey_zyx, microscope.blur, mode="nearest", truncate=3.0)
    if microscope.charging:
        image += _charging(image, microscope.charging, rng)
    depth, _, width = image.shape
    image *= 1 + np.float32(microscope.shading) * smooth_noise(grid, 3000, rng)
    image += rng.normal(0, microscope.jitter, (depth, 1, 1)).astype(np.float32)
    if microscope.curtains:
        streaks = rng.standard_normal((depth + 8, 1, width)).astype(np.float32)
        streaks = ndimage.gaussian_filter(streaks, (3.0, 0, 1.0))[4:-4]
        image += np.float32(microscope.curtains) * streaks / streaks.std()
    # the sum of both noises has variance shot^2 * signal / 128 + detector^2
    variance = image * np.float32(microscope.shot**2 / 128) + np.float32(microscope.detector**2)
    np.sqrt(np.maximum(variance, 1, out=variance), out=variance)
    variance *= rng.standard_normal(image.shape, dtype=np.float32)
    image += variance
    image_zyx: ByteArray = np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8)
    return image_zyx


def _charging(image: FloatArray, strength: float, rng: np.random.Generator) -> FloatArray:
    """A glow that trails bright places along the scan line, on some sections more than on others."""
    bright = np.maximum(image - np.float32(165), 0) * np.float32(1 / 20)
    glow = ndimage.gaussian_filter(bright, (0, 2.0, 2.0), truncate=2.5)
    trail = ndimage.uniform_filter1d(glow, 96, axis=2, origin=40, mode="nearest")
    per_slice = rng.gamma(0.8, strength / 3, (image.shape[0], 1, 1)).astype(np.float32)
    return np.asarray(np.minimum(per_slice, np.float32(strength)) * (trail - trail.mean()))


def section_offsets(depth: int, largest: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Where each section lies, (depth, 2) voxels in y and x from 0 to ``2 * largest``: a walk that is held back."""
    offsets = np.full((depth, 2), largest, np.intp)
    place = np.zeros(2)
    for z in range(depth):
        place = 0.8 * place + rng.normal(0, 0.45 * largest, 2)
        offsets[z] += np.clip(np.rint(place), -largest, largest).astype(np.intp)
    return offsets


def shift_sections(array_zyx: npt.NDArray[Scalar], offsets: npt.NDArray[np.intp], largest: int) -> npt.NDArray[Scalar]:
    """Cut the sections out of a volume that is ``2 * largest`` wider in y and x, each at its own place."""
    depth, height, width = array_zyx.shape
    out = np.empty((depth, height - 2 * largest, width - 2 * largest), array_zyx.dtype)
    for z, (y, x) in enumerate(offsets):
        out[z] = array_zyx[z, y : y + out.shape[1], x : x + out.shape[2]]
    return out
