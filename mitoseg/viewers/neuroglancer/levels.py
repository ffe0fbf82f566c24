"""Boxes of a volume at any halving, read from the coarser levels that an OME-Zarr image has.

factors (z, y, x)     read from                        then
(1, 1, 1)             the volume
(2, 2, 2)             level 1, where it has these      nothing
(4, 4, 4)             level 1                          halved once: the mean, of labels every second voxel
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mitoseg.geometry import Box
from mitoseg.volumes import Array, Volume, open_volume
from mitoseg.volumes.cropped import CroppedVolume
from mitoseg.volumes.ome_image import find_levels
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.pyramid import Sizes, coarser
from mitoseg.volumes.reading import opening


@dataclass(frozen=True)
class Level:
    """One level of a volume.

    Attributes:
        factors: Voxels of the finest level along each axis (z, y, x) of one of its voxels.
        volume: Its voxels.
    """

    factors: Sizes
    volume: Volume


class Levels:
    """A volume at any halving.

    Args:
        levels: The finest first.
        labels: Whether voxels are names, which have no mean.
    """

    def __init__(self, levels: Sequence[Level], *, labels: bool) -> None:
        self._levels, self._labels = list(levels), labels

    @property
    def finest(self) -> Volume:
        """The volume itself."""
        return self._levels[0].volume

    @property
    def coarsest(self) -> Sizes:
        """Factors of the coarsest level that is stored."""
        return self._levels[-1].factors

    def read(self, box: Box, factors: Sizes = (1, 1, 1)) -> Array:
        """Read a box of the volume whose voxels are ``factors`` as long; it may end at a voxel that is cut.

        Args:
            box: In the coarser voxels (z, y, x); coarse voxel i covers fine voxels [i f, (i + 1) f).
            factors: Powers of two.

        Raises:
            ValueError: The box leaves the volume or a factor is no power of two.
            UserError: The file is damaged.
        """
        whole = Box.of_shape([-(-n // f) for n, f in zip(self.finest.shape, factors, strict=True)])
        if any(f < 1 or f & (f - 1) for f in factors) or box.clip(whole) != box:
            raise ValueError(f"no box {box} of a volume of {whole} at {factors}")
        level = max(
            (one for one in self._levels if _divides(one.factors, factors)), key=lambda one: math.prod(one.factors)
        )
        rest = [f // own for f, own in zip(factors, level.factors, strict=True)]
        start = tuple(a * step for a, step in zip(box.start, rest, strict=True))
        stop = tuple(b * step for b, step in zip(box.stop, rest, strict=True))
        stored = Box(start, stop).clip(level.volume.box)
        return self._halved(level.volume.read(stored), rest)

    def _halved(self, values_zyx: Array, steps: Sequence[int]) -> Array:
        if self._labels:
            return values_zyx[tuple(slice(None, None, step) for step in steps)]
        while max(steps) > 1:
            z, y, x = (2 if step > 1 else 1 for step in steps)
            values_zyx = coarser(values_zyx, (z, y, x), labels=False)
            steps = [max(1, step // 2) for step in steps]
        return values_zyx


def _divides(small: Sizes, large: Sizes) -> bool:
    return all(b % a == 0 for a, b in zip(small, large, strict=True))


def open_levels(volume: Volume, axes: str | None = None) -> list[Level]:
    """A volume that was opened by its path, and the coarser levels of the OME-Zarr image that it is of.

    Levels that are no halvings of the finest one are left out.

    Args:
        volume: As `open_volume` opened it.
        axes: What that was told of the axes.

    Raises:
        UserError: A level is damaged.
    """
    found = [Level((1, 1, 1), volume)]
    if isinstance(volume, CroppedVolume):  # whose levels begin elsewhere
        return found
    folder = stored_in(volume.path)
    with opening(volume.path):
        names = find_levels(str(folder))[1:]
    for name in names:
        level = open_volume(str(folder / name), axes=axes)
        z, y, x = (1 << max(0, round(math.log2(n / m))) for n, m in zip(volume.shape, level.shape, strict=True))
        covers = [-(-n // f) for n, f in zip(volume.shape, (z, y, x), strict=True)]
        if tuple(covers) == level.shape and max(z, y, x) > 1 and level.dtype == volume.dtype:
            found.append(Level((z, y, x), level))
    return found
