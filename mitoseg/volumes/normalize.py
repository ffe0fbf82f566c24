"""Zero mean and unit variance, measured on the training voxels and kept with the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, Volume

_SLAB_VOXELS = 2**24


@dataclass(frozen=True)
class Normalization:
    """The grey values' mean and standard deviation: ``(image - mean) / std``.

    Raises:
        UserError: They are not finite, or ``std`` is not above zero.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError("not a normalisation", (self.mean, self.std), "give a finite mean and a std above zero")

    def apply(self, image: Array) -> npt.NDArray[np.float32]:
        """Normalise an image of any shape and real dtype; returns float32."""
        if not np.can_cast(image.dtype, np.float32):  # keep the digits that float64 and long integers have
            precise = image.astype(np.float64) - self.mean
            return (precise / self.std).astype(np.float32)
        result = image.astype(np.float32)
        result -= np.float32(self.mean)
        result /= np.float32(self.std)
        return result


def check_image_values(
    image: Array, path: str, *, allow_constant: bool = True, start: tuple[int, ...] | None = None
) -> None:
    """Refuse grey values that no network can take.

    Args:
        image: Any part of an image.
        path: Its volume, for the message.
        start: (z, y, x) of the part's first voxel, for the message.
        allow_constant: Whether all voxels may be equal, as in a blank margin.

    Raises:
        UserError: Complex numbers, NaN, infinity, or one value alone.
    """
    if image.dtype.kind not in "buif":
        raise UserError(
            f"the image's voxels are {image.dtype}, no real numbers", path, "convert it to real grey values"
        )
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        kind = "NaN" if np.isnan(image).any() else "infinite values"
        where = ""
        if start is not None:
            first = tuple(int(n + a) for n, a in zip(np.argwhere(~finite)[0], start, strict=True))
            where = f" at (z, y, x) = {first}"
        raise UserError(f"the image holds {kind}{where}", path, "replace them, for example by the mean grey value")
    if not allow_constant and image.size and image.min() == image.max():
        raise UserError(
            f"the image is constant, every voxel is {image.flat[0]}", path, "check that it is the right file"
        )


def read_tissue(volume: Volume, box: Box) -> Array:
    """The grey values of a box that are not padding: all of them (z, y, x), or (1, 1, n) of those that are left.

    Raises:
        UserError: The file is damaged, or they are NaN, infinite or complex.
    """
    image_zyx = volume.read(box)
    padding_zyx = None if volume.padding is None else volume.padding.find(box)
    if padding_zyx is not None:
        image_zyx = np.where(padding_zyx, image_zyx.dtype.type(0), image_zyx)
    check_image_values(image_zyx, volume.path, start=box.start)
    return image_zyx if padding_zyx is None else image_zyx[~padding_zyx][None, None]


def measure_normalization(parts: Iterable[tuple[Volume, Box]]) -> Normalization:
    """Mean and standard deviation of the voxels of some boxes that are not padding, read slab by slab.

    Slabs are merged by the pairwise update of Chan, Golub and LeVeque (1983): with n voxels, mean m and sum of squared
    deviations S, ``S = S1 + S2 + (m2 - m1)^2 n1 n2 / n``.

    Args:
        parts: Volumes, and the box of each that counts.

    Raises:
        UserError: All voxels have one value, or some are NaN, infinite or complex.
    """
    n, mean, squares, low, high, path = 0, 0.0, 0.0, math.inf, -math.inf, None
    for volume, box in parts:
        path = volume.path
        depth = max(1, _SLAB_VOXELS // max(1, math.prod(box.shape[1:])))
        for slab in slabs(box, depth):
            image_zyx = read_tissue(volume, slab)
            if not image_zyx.size:
                continue
            m, s = _moments(image_zyx)
            low, high = min(low, float(image_zyx.min())), max(high, float(image_zyx.max()))
            total = n + image_zyx.size
            squares += s + (m - mean) ** 2 * n * image_zyx.size / total
            mean += (m - mean) * image_zyx.size / total
            n = total
    if n == 0:
        raise UserError("there are no voxels to normalise by", path, "give a box that is not empty or all padding")
    if low == high:
        raise UserError(f"the image is constant, every voxel is {low:g}", path, "check that it is the right file")
    return Normalization(mean, math.sqrt(squares / n))


def _moments(image_zyx: Array) -> tuple[float, float]:
    """Mean and sum of squared deviations, exact for 8 and 16 bit integers."""
    if image_zyx.dtype in (np.uint8, np.uint16):
        counts = np.zeros(np.iinfo(image_zyx.dtype).max + 1, np.int64)
        for image_yx in image_zyx:  # what one slice needs stays in the processor's cache
            counts += np.bincount(image_yx.ravel(), minlength=counts.size)
        values = np.arange(counts.size, dtype=float)
        mean = float(counts @ values) / image_zyx.size
        return mean, float(counts @ (values - mean) ** 2)
    mean = float(image_zyx.mean(dtype=np.float64))
    deviations = image_zyx.astype(np.float64).ravel() - mean
    return mean, float(deviations @ deviations)
