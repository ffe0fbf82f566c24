"""Test-time augmentation: the volume turned, predicted, turned back, and the log-odds averaged.

Turns are about z alone, since sections may be thicker than their pixels are wide. A turned volume is predicted like
any other, with its own grid and borders, so the result does not depend on the tiles either.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import Volume
from mitoseg.volumes.base import Array


@dataclass(frozen=True)
class Symmetry:
    """y and x swapped, then axes mirrored.

    Attributes:
        swap: Whether y and x change places.
        flips: Axes mirrored after that: 0 is z, 1 is y, 2 is x.
    """

    swap: bool = False
    flips: tuple[int, ...] = ()

    def shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Shape of the turned volume."""
        z, y, x = shape
        return (z, x, y) if self.swap else (z, y, x)

    def turn(self, box: Box, shape: Sequence[int]) -> Box:
        """Where a box of the volume of this shape lies in the turned one."""
        order = (0, 2, 1) if self.swap else (0, 1, 2)
        turned = Box(tuple(box.start[i] for i in order), tuple(box.stop[i] for i in order))
        return self._mirror(turned, self.shape(shape))

    def turn_back(self, box: Box, shape: Sequence[int]) -> Box:
        """Where a box of the turned volume lies in the volume of this shape."""
        mirrored = self._mirror(box, self.shape(shape))
        order = (0, 2, 1) if self.swap else (0, 1, 2)
        return Box(tuple(mirrored.start[i] for i in order), tuple(mirrored.stop[i] for i in order))

    def turn_array(self, image_zyx: Array) -> Array:
        """The voxels of a box as they lie in the turned volume."""
        turned = np.flip(image_zyx.swapaxes(1, 2) if self.swap else image_zyx, self.flips)
        return turned.copy()  # torch takes no negative strides, which an axis of one voxel may keep otherwise

    def turn_tensor_back(self, map_zyx: Tensor) -> Tensor:
        """The voxels of a turned box as they lie in the volume."""
        flipped = map_zyx.flip(self.flips) if self.flips else map_zyx
        return flipped.transpose(1, 2) if self.swap else flipped

    def _mirror(self, box: Box, shape: Sequence[int]) -> Box:
        ends = [
            (n - b, n - a) if axis in self.flips else (a, b)
            for axis, (a, b, n) in enumerate(zip(box.start, box.stop, shape, strict=True))
        ]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


def _all_flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {
    "none": (Symmetry(),),
    "flips": tuple(Symmetry(flips=flips) for flips in _all_flips((1, 2))),
    "turns": tuple(Symmetry(swap, flips) for swap in (False, True) for flips in _all_flips((1, 2))),
    "all": tuple(Symmetry(swap, flips) for swap in (False, True) for flips in _all_flips((0, 1, 2))),
}
"""By name: nothing; 4 flips of y and x; 8 with quarter turns; 16 with flips of z."""


def symmetries(name: str) -> tuple[Symmetry, ...]:
    """The symmetries of a name.

    Raises:
        UserError: No such name.
    """
    if name not in SYMMETRIES:
        raise UserError("no such test-time augmentation", name, f"choose one of {', '.join(SYMMETRIES)}")
    return SYMMETRIES[name]


class TurnedVolume(Volume):
    """A volume as it looks turned; reads only what is asked for."""

    def __init__(self, volume: Volume, symmetry: Symmetry) -> None:
        super().__init__(replace(volume.info, shape=symmetry.shape(volume.shape), voxel_size=None))
        self._volume, self._symmetry = volume, symmetry

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        part = self._symmetry.turn_back(self.check_box(box), self._volume.shape)
        return self._symmetry.turn_array(self._volume.read(part))
