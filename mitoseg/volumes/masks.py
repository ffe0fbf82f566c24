"""The foreground of a volume, decided while it is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume, VolumeInfo


class MaskVolume(Volume):
    """What a rule makes of another volume, as a lazy mask.

    Args:
        volume: Probabilities, labels, instances.
        foreground: From stored values to booleans of the same shape.

    >>> from mitoseg.volumes import ArrayVolume
    >>> MaskVolume(ArrayVolume(np.full((1, 1, 2), 0.7)), lambda values: values >= 0.5).read().tolist()
    [[[True, True]]]
    """

    def __init__(self, volume: Volume, foreground: Callable[[Array], npt.NDArray[np.bool_]]) -> None:
        info = volume.info
        super().__init__(VolumeInfo(info.path, info.shape, np.dtype(np.bool_), info.voxel_size, {"kind": "mask"}))
        self._volume, self._foreground = volume, foreground

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self._volume.find_gaps()

    def read(self, box: Box | None = None) -> npt.NDArray[np.bool_]:
        """Read one box as ``mask_zyx``; see `Volume.read`."""
        return self._foreground(self._volume.read(box))
