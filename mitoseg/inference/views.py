r"""The volume as the symmetries of test-time augmentation show it, what a network sees of it, and one output of many.

Where voxels are cubic, axes may change places with z, so that the volume is predicted along each of them. A turned
volume is predicted like any other, with its own grid and borders, so the result does not depend on the tiles either.

y and x, and z for networks on volumes, are reflected at the volume's border; a missing neighbour slice among the
channels of a network on slices is the slice itself:

    volume            |a b c d e|
    box           [c b a b c d e d c]
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.geometry import Box, reflect
from mitoseg.inference.methods import Method, make_method
from mitoseg.inference.prepare import Prediction
from mitoseg.metrics import Calibration
from mitoseg.volumes import Normalization, Volume, VoxelSize, channel_slices, check_image_values
from mitoseg.volumes.base import Array, DerivedVolume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """A turned volume and the method made for it; ``shape`` is (z, y, x) of the volume as it is."""

    symmetry: Symmetry
    volume: Volume
    method: Method
    shape: tuple[int, int, int]

    def turn(self, box: Box) -> Box:
        """Where a box of the volume lies in the turned one."""
        return self.symmetry.turn(box, self.shape)


def make_views(prediction: Prediction, volume: Volume) -> list[View]:
    """A view for each symmetry; those of one shape share their method."""
    check_cubic(prediction.tta, volume.voxel_size or prediction.voxel_size)
    methods: dict[Sequence[int], Method] = {}
    views = []
    for symmetry in symmetries(prediction.tta):
        turned = TurnedVolume(volume, symmetry) if symmetry != Symmetry() else volume
        if turned.shape not in methods:
            methods[turned.shape] = make_method(prediction.network, turned.shape, prediction)
        views.append(View(symmetry, turned, methods[turned.shape], volume.shape))
    return views


@dataclass(frozen=True)
class Symmetry:
    """Axes that change places, then axes of the turned volume that are mirrored.

    ``order`` is, for each axis of the turned volume, the volume's axis that lies there; (0, 2, 1) swaps y and x.
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


def _turned(orders: Sequence[tuple[int, int, int]], *axes: int) -> tuple[Symmetry, ...]:
    """Each order of the axes, with each choice of axes to mirror."""
    flips = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    return tuple(Symmetry(order, chosen) for order in orders for chosen in flips)


_CYCLIC = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {
    "none": (Symmetry(),),
    "flips": _turned([(0, 1, 2)], 1, 2),
    "turns": _turned([(0, 1, 2), (0, 2, 1)], 1, 2),
    "all": _turned([(0, 1, 2), (0, 2, 1)], 0, 1, 2),
    "axes": _turned(_CYCLIC),
    "cube": _turned([*_CYCLIC, (0, 2, 1), (1, 0, 2), (2, 1, 0)], 0, 1, 2),
}
"""By name: nothing; 4 flips of y and x; 8 with quarter turns; 16 with flips of z; 3: along z, y and x; all 48.

Each is a group: turning the volume by one of them turns the result, and changes nothing else.
"""


def symmetries(name: str) -> tuple[Symmetry, ...]:
    """The symmetries of a name."""
    if not isinstance(name, str) or name not in SYMMETRIES:
        raise UserError("no such test-time augmentation", name, f"choose one of {', '.join(SYMMETRIES)}")
    return SYMMETRIES[name]


def along_z(name: str) -> bool:
    """Whether all symmetries of a name leave z where it is."""
    return all(symmetry.order[0] == 0 for symmetry in symmetries(name))


def check_cubic(name: str, voxel_size: VoxelSize | None) -> None:
    """Refuse to let axes change places with z where sides of a voxel differ by over 5 %; warn where none is known."""
    if along_z(name):
        return
    if voxel_size is None:
        log.warning("tta=%s assumes cubic voxels, since no voxel size is known", name)
    elif max(voxel_size) > 1.05 * min(voxel_size):
        what = f"tta={name} needs cubic voxels, (z, y, x) in nm"
        raise UserError(what, tuple(voxel_size), "use tta=turns or tta=all")


class TurnedVolume(DerivedVolume):
    """A volume as it looks turned; reads only what is asked for."""

    def __init__(self, volume: Volume, symmetry: Symmetry) -> None:
        super().__init__(volume, shape=symmetry.shape(volume.shape), voxel_size=None)
        self.padding, self._symmetry = None, symmetry  # which lies as the volume does

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self.volume.scratch_bytes(self._symmetry.turn_back(box, self.volume.shape))

    def _read(self, box: Box) -> Array:
        part = self._symmetry.turn_back(box, self.volume.shape)
        return self._symmetry.turn_array(self.volume.read(part))


@dataclass(frozen=True)
class Grey:
    """Voxels as they are stored, each once, and for each axis the positions that make an image.

    The index of z has one row for each slice and one column for each channel.
    """

    voxels_zyx: npt.NDArray[Any]
    index: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], npt.NDArray[np.integer]]


def read_grey(volume: Volume, box: Box, channels: str, ndim: int) -> Grey:
    """Read the voxels that a box, which may leave the volume, needs for a network on ``ndim`` axes.

    For networks on slices, slices outside the volume are filled with the nearest.
    """
    y, x = (reflect(np.arange(a, b), n) for a, b, n in zip(box.start[1:], box.stop[1:], volume.shape[1:], strict=True))
    slices: npt.NDArray[np.integer] = np.arange(box.start[0], box.stop[0])
    z = np.clip(slices, 0, volume.shape[0] - 1) if ndim == 2 else reflect(slices, volume.shape[0])
    rows = np.array([channel_slices(int(k), volume.shape[0], channels) for k in z])
    index = (rows, y, x)
    part = Box(tuple(int(i.min()) for i in index), tuple(int(i.max()) + 1 for i in index))
    voxels_zyx = volume.read(part)
    check_image_values(voxels_zyx, volume.path, start=part.start)
    return Grey(voxels_zyx, (rows - part.start[0], y - part.start[1], x - part.start[2]))


def assemble(grey: Grey, normalization: Normalization, device: torch.device, ndim: int) -> Tensor:
    """The network's input on its device: float32 (z, C, Y, X) or, on three axes, (1, C, Z, Y, X); channels last."""
    rows, y, x = grey.index
    if np.can_cast(grey.voxels_zyx.dtype, np.float32):  # normalised on the device: fewer bytes travel there
        raw = torch.tensor(grey.voxels_zyx).to(device, non_blocking=True)
        limit = normalization.limit
        image_zyx = raw.float().sub_(normalization.mean).div_(normalization.std).clamp_(-limit, limit)
    else:
        image_zyx = torch.from_numpy(normalization.apply(grey.voxels_zyx)).to(device)
    image = _select(_select(image_zyx, y, 1), x, 2)[torch.from_numpy(rows).to(device)]  # z, C, y, x
    if ndim == 2:
        return image.contiguous(memory_format=torch.channels_last)
    return image.transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)


def _select(image: Tensor, index: npt.NDArray[np.integer], axis: int) -> Tensor:
    """`index_select`, left out where it would copy everything."""
    if np.array_equal(index, np.arange(image.shape[axis])):
        return image
    return image.index_select(axis, torch.from_numpy(np.ascontiguousarray(index)).to(image.device))


CONSENSUS = ("mean", "median")
"""How several outputs may be combined."""


def gather(answers: Iterator[Tensor], save: str, consensus: str, calibration: Calibration) -> Tensor:
    """One number for each voxel from maps of log-odds (z, y, x): their mean or median, or the deviation.

    The mask of the median of an odd number of maps is the majority of their masks, whatever the threshold; of an
    even number it is the mean of the middle two, which `torch.median` does not take.
    """
    if save == "uncertainty":
        return _deviation(answers, calibration)
    if consensus == "median":
        ordered = (torch.stack(maps_yx).sort(0).values for maps_yx in zip(*answers, strict=True))
        return torch.stack([(maps[(len(maps) - 1) // 2] + maps[len(maps) // 2]) / 2 for maps in ordered])
    total, count = next(answers), 1
    for odds_zyx in answers:
        total, count = total + odds_zyx, count + 1
    return total / count


def _deviation(answers: Iterator[Tensor], calibration: Calibration) -> Tensor:
    """The standard deviation of calibrated probabilities, over n (Welford, 1962, Technometrics 4(3))."""
    mean = torch.sigmoid(calibration.apply(next(answers)))
    squares, count = torch.zeros_like(mean), 1
    for odds_zyx in answers:
        probability = torch.sigmoid(calibration.apply(odds_zyx))
        count += 1
        step = probability - mean
        mean = mean + step / count
        squares = squares + step * (probability - mean)
    return (squares / count).sqrt()


def gather_bytes(save: str, consensus: str, count: int) -> int:
    """Memory for each voxel while outputs are gathered, besides that of one."""
    if save == "uncertainty":
        return 20
    return 4 * count if consensus == "median" else 4


def check_answers(save: str, consensus: str, count: int) -> None:
    """Refuse an unknown consensus, and the deviation of a single output."""
    if consensus not in CONSENSUS:
        raise UserError("no such consensus", consensus, f"choose one of {', '.join(CONSENSUS)}")
    if save == "uncertainty" and count < 2:
        what = "uncertainty needs several predictions, here there is"
        raise UserError(what, count, "give tta=flips or an ensemble")
