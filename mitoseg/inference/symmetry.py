"""Test-time augmentation: the volume turned, predicted, turned back, and the log-odds averaged.

Flips and quarter turns about z are for any volume, since sections may be thicker than their pixels are wide. Where
voxels are cubic, the axes may change places as well, so that the volume is predicted along each of them. A turned
volume is predicted like any other, with its own grid and borders, so the result does not depend on the tiles either.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import Volume, VoxelSize
from mitoseg.volumes.base import Array

log = logging.getLogger(__name__)

CUBIC = 1.05
"""The longest side of a voxel over its shortest, up to which it is taken as cubic."""


@dataclass(frozen=True)
class Symmetry:
    """Axes that change places, then axes that are mirrored.

    Attributes:
        order: For each axis of the turned volume, the volume's axis that lies there; (0, 2, 1) swaps y and x.
        flips: Axes of the turned volume that are mirrored after that: 0 is its first, 1 its second, 2 its third.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Shape of the turned volume."""
        z, y, x = (shape[axis] for axis in self.order)
        return (z, y, x)

    def turn(self, box: Box, shape: Sequence[int]) -> Box:
        """Where a box of the volume of this shape lies in the turned one."""
        turned = Box(tuple(box.start[i] for i in self.order), tuple(box.stop[i] for i in self.order))
        return self._mirror(turned, self.shape(shape))

    def turn_back(self, box: Box, shape: Sequence[int]) -> Box:
        """Where a box of the turned volume lies in the volume of this shape."""
        mirrored = self._mirror(box, self.shape(shape))
        return Box(tuple(mirrored.start[i] for i in self._back), tuple(mirrored.stop[i] for i in self._back))

    def turn_array(self, image_zyx: Array) -> Array:
        """The voxels of a box as they lie in the turned volume."""
        turned = np.flip(image_zyx.transpose(self.order), self.flips)
        return turned.copy()  # torch takes no negative strides, which an axis of one voxel may keep otherwise

    def turn_tensor_back(self, map_zyx: Tensor) -> Tensor:
        """The voxels of a turned box as they lie in the volume."""
        flipped = map_zyx.flip(self.flips) if self.flips else map_zyx
        return flipped.permute(self._back)

    @property
    def _back(self) -> tuple[int, ...]:
        """For each axis of the volume, where it lies in the turned one."""
        return tuple(self.order.index(axis) for axis in range(3))

    def _mirror(self, box: Box, shape: Sequence[int]) -> Box:
        ends = [
            (n - b, n - a) if axis in self.flips else (a, b)
            for axis, (a, b, n) in enumerate(zip(box.start, box.stop, shape, strict=True))
        ]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


Order = tuple[int, int, int]
_UPRIGHT: Order = (0, 1, 2)
_IN_PLANE: tuple[Order, ...] = (_UPRIGHT, (0, 2, 1))
_ALONG_EACH: tuple[Order, ...] = (_UPRIGHT, (1, 2, 0), (2, 0, 1))
_ALL_ORDERS: tuple[Order, ...] = (*_ALONG_EACH, (0, 2, 1), (1, 0, 2), (2, 1, 0))


def _turned(orders: Sequence[Order], axes: Sequence[int]) -> tuple[Symmetry, ...]:
    """Each order of the axes, with each choice of axes to mirror."""
    flips = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    return tuple(Symmetry(order, chosen) for order in orders for chosen in flips)


SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {
    "none": (Symmetry(),),
    "flips": _turned((_UPRIGHT,), (1, 2)),
    "turns": _turned(_IN_PLANE, (1, 2)),
    "all": _turned(_IN_PLANE, (0, 1, 2)),
    "axes": _turned(_ALONG_EACH, ()),
    "cube": _turned(_ALL_ORDERS, (0, 1, 2)),
}
"""By name: nothing; 4 flips of y and x; 8 with quarter turns; 16 with flips of z; 3: along z, y and x; all 48.

Each is a group: turning the volume by one of them turns the result, and changes nothing else.
"""


def symmetries(name: str) -> tuple[Symmetry, ...]:
    """The symmetries of a name.

    Raises:
        UserError: No such name.
    """
    if name not in SYMMETRIES:
        raise UserError("no such test-time augmentation", name, f"choose one of {', '.join(SYMMETRIES)}")
    return SYMMETRIES[name]


def along_z(name: str) -> bool:
    """Whether all symmetries of a name leave z where it is."""
    return all(symmetry.order[0] == 0 for symmetry in symmetries(name))


def check_cubic(name: str, voxel_size: VoxelSize | None) -> None:
    """Refuse to let axes change places with z where voxels are not cubic; warn where nobody said.

    Args:
        name: A key of `SYMMETRIES`.
        voxel_size: (z, y, x), any unit, or None.

    Raises:
        UserError: The sides of a voxel differ by more than `CUBIC`.
    """
    if along_z(name):
        return
    if voxel_size is None:
        log.warning("tta=%s takes the voxels as cubic, since no voxel size is known", name)
    elif max(voxel_size) > CUBIC * min(voxel_size):
        what = f"tta={name} needs cubic voxels, (z, y, x) in nm"
        raise UserError(what, tuple(voxel_size), "use tta=turns or tta=all")


class TurnedVolume(Volume):
    """A volume as it looks turned; reads only what is asked for."""

    def __init__(self, volume: Volume, symmetry: Symmetry) -> None:
        super().__init__(replace(volume.info, shape=symmetry.shape(volume.shape), voxel_size=None))
        self._volume, self._symmetry = volume, symmetry

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self._volume.scratch_bytes(self._symmetry.turn_back(box, self._volume.shape))

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        part = self._symmetry.turn_back(self.check_box(box), self._volume.shape)
        return self._symmetry.turn_array(self._volume.read(part))
