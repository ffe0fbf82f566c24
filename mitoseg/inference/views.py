r"""The volume as each symmetry shows it, with the method that predicts it there.

Test-time augmentation: the volume turned, predicted, turned back, and the log-odds averaged.

Flips and quarter turns about z are for any volume, since sections may be thicker than their pixels are wide. Where
voxels are cubic, the axes may change places as well, so that the volume is predicted along each of them. A turned
volume is predicted like any other, with its own grid and borders, so the result does not depend on the tiles either.

From a box that may leave the volume to what the network sees.

y and x, and z for networks on volumes, are reflected at the volume's border; a missing neighbour slice among the
channels of a network on slices is the slice itself:

    volume            |a b c d e|
    box           [c b a b c d e d c]

From several answers for the same voxels, of views and members, to one number for each voxel.

    mean         of the log-odds
    median       of the log-odds
    deviation    of the calibrated probabilities, with n in the denominator: how far the answers differ

The mask of the median of an odd number of answers is the majority of their masks, whatever the threshold.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mitoseg.errors import UserError
from mitoseg.geometry import Box, reflect
from mitoseg.inference.methods import Method, make_method
from mitoseg.inference.prediction import Prediction
from mitoseg.metrics import Calibration
from mitoseg.volumes import Normalization, Volume, VoxelSize, channel_slices, check_image_values
from mitoseg.volumes.base import Array, DerivedVolume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """A turned volume and the method on it.

    Attributes:
        symmetry: How it is turned.
        volume: As it looks turned.
        method: Made for its shape.
        shape: (z, y, x) of the volume as it is.
    """

    symmetry: Symmetry
    volume: Volume
    method: Method
    shape: tuple[int, int, int]

    def turn(self, box: Box) -> Box:
        """Where a box of the volume lies in the turned one."""
        return self.symmetry.turn(box, self.shape)


def make_views(prediction: Prediction, volume: Volume) -> list[View]:
    """A view for each symmetry; those of one shape share their method.

    Raises:
        UserError: The method does not fit the network, the network the volume, or the symmetries its voxels.
    """
    check_cubic(prediction.tta, volume.voxel_size or prediction.voxel_size)
    methods: dict[Sequence[int], Method] = {}
    views = []
    for symmetry in symmetries(prediction.tta):
        turned = TurnedVolume(volume, symmetry) if symmetry != Symmetry() else volume
        if turned.shape not in methods:
            methods[turned.shape] = make_method(
                prediction.method, prediction.network, turned.shape, prediction.options
            )
        views.append(View(symmetry, turned, methods[turned.shape], volume.shape))
    return views


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


class TurnedVolume(DerivedVolume):
    """A volume as it looks turned; reads only what is asked for."""

    def __init__(self, volume: Volume, symmetry: Symmetry) -> None:
        super().__init__(volume, shape=symmetry.shape(volume.shape), voxel_size=None)
        self.padding, self._symmetry = None, symmetry  # which lies as the volume does

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self.volume.scratch_bytes(self._symmetry.turn_back(box, self.volume.shape))

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        part = self._symmetry.turn_back(self.check_box(box), self.volume.shape)
        return self._symmetry.turn_array(self.volume.read(part))


@dataclass(frozen=True)
class Grey:
    """Voxels as they are stored, each once, and which of them make an image.

    Attributes:
        voxels_zyx: Stored grey values.
        index: For each axis the positions in ``voxels_zyx``; that of z has one row for each slice and one column for
            each channel.
    """

    voxels_zyx: npt.NDArray[Any]
    index: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer], npt.NDArray[np.integer]]


def read_grey(volume: Volume, box: Box, channels: str, ndim: int) -> Grey:
    """Read the voxels that a box needs.

    Args:
        volume: Where from.
        box: In voxels; it may leave the volume. Slices of their own that lie outside are filled with the nearest.
        channels: How slices become input channels.
        ndim: 2 for networks on slices, 3 for networks on volumes.

    Raises:
        UserError: The file is damaged, or holds NaN or infinity.
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
    """The network's input on its device.

    Returns:
        float32 (z, C, Y, X), or (1, C, Z, Y, X) where ``ndim`` is 3; channels last in memory.
    """
    rows, y, x = grey.index
    image_zyx = to_device(grey.voxels_zyx, normalization, device)
    image = _select(_select(image_zyx, y, 1), x, 2)[torch.from_numpy(rows).to(device)]  # z, C, y, x
    if ndim == 2:
        return image.contiguous(memory_format=torch.channels_last)
    return image.transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)


def to_device(voxels: npt.NDArray[Any], normalization: Normalization, device: torch.device) -> Tensor:
    """Normalised float32 voxels on a device; few bytes travel there."""
    if not np.can_cast(voxels.dtype, np.float32):
        return torch.from_numpy(normalization.apply(voxels)).to(device)
    raw = torch.tensor(voxels).to(device, non_blocking=True)
    limit = normalization.limit
    return raw.float().sub_(normalization.mean).div_(normalization.std).clamp_(-limit, limit)


def _select(image: Tensor, index: npt.NDArray[np.integer], axis: int) -> Tensor:
    """`index_select`, left out where it would copy everything."""
    if _is_all(index, image.shape[axis]):
        return image
    return image.index_select(axis, torch.from_numpy(np.ascontiguousarray(index)).to(image.device))


def _is_all(index: Sequence[int] | npt.NDArray[np.integer], length: int) -> bool:
    return len(index) == length and bool(np.array_equal(index, np.arange(length)))


CONSENSUS = ("mean", "median")
"""What may be made of several answers."""


class Gather(Protocol):
    """Takes answers one by one."""

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""

    def result(self) -> Tensor:
        """What they make together, float32 of the same shape."""
        ...


class Mean:
    """The mean of the log-odds."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""
        self._total = odds_zyx if self._total is None else self._total + odds_zyx
        self._count += 1

    def result(self) -> Tensor:
        """The mean."""
        assert self._total is not None
        return self._total / self._count


class Median:
    """The median of the log-odds; of an even number, the mean of the middle two."""

    def __init__(self) -> None:
        self._found: list[Tensor] = []

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""
        self._found.append(odds_zyx)

    def result(self) -> Tensor:
        """The median."""
        return torch.stack([self._of(slices) for slices in zip(*self._found, strict=True)])

    @staticmethod
    def _of(maps_yx: Sequence[Tensor]) -> Tensor:
        ordered = torch.stack(list(maps_yx)).sort(0).values
        return (ordered[(len(maps_yx) - 1) // 2] + ordered[len(maps_yx) // 2]) / 2


class Deviation:
    """The standard deviation of the calibrated probabilities, updated by each (Welford, 1962, Technometrics 4(3))."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._count = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, odds_zyx: Tensor) -> None:
        """Take one map of log-odds."""
        probability = torch.sigmoid(self._calibration.apply(odds_zyx))
        self._count += 1
        if self._count == 1:
            self._mean, self._squares = probability, torch.zeros_like(probability)
            return
        step = probability - self._mean
        self._mean = self._mean + step / self._count
        self._squares = self._squares + step * (probability - self._mean)

    def result(self) -> Tensor:
        """The deviation, from 0 to 0.5."""
        return (self._squares / self._count).sqrt()


def gather_bytes(save: str, consensus: str, count: int) -> int:
    """Memory for each voxel while answers are gathered, besides that of one answer."""
    if save == "uncertainty":
        return 20
    return 4 * count if consensus == "median" else 4


def make_gather(save: str, consensus: str, calibration: Calibration) -> Gather:
    """What takes the answers of one tile."""
    if save == "uncertainty":
        return Deviation(calibration)
    return Median() if consensus == "median" else Mean()


def check_answers(save: str, consensus: str, count: int) -> None:
    """Refuse what a number of answers cannot give.

    Raises:
        UserError: No such consensus, or the deviation of a single answer is asked for.
    """
    if consensus not in CONSENSUS:
        raise UserError("no such consensus", consensus, f"choose one of {', '.join(CONSENSUS)}")
    if save == "uncertainty" and count < 2:
        raise UserError(
            "uncertainty is how far several answers differ, here there is", count, "give tta=flips or an ensemble"
        )
