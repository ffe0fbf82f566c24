r"""From a box that may leave the volume to what the network sees.

y and x, and z for networks on volumes, are reflected at the volume's border; a missing neighbour slice among the
channels of a network on slices is the slice itself:

    volume            |a b c d e|
    box           [c b a b c d e d c]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mitoseg.geometry import Box, reflect
from mitoseg.volumes import Normalization, Volume, channel_slices, check_image_values


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
    return raw.float().sub_(normalization.mean).div_(normalization.std)


def _select(image: Tensor, index: npt.NDArray[np.integer], axis: int) -> Tensor:
    """`index_select`, left out where it would copy everything."""
    if _is_all(index, image.shape[axis]):
        return image
    return image.index_select(axis, torch.from_numpy(np.ascontiguousarray(index)).to(image.device))


def _is_all(index: Sequence[int] | npt.NDArray[np.integer], length: int) -> bool:
    return len(index) == length and bool(np.array_equal(index, np.arange(length)))
