"""Whole numbers that a program has stored as floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Volume


class IntegerVolume(Volume):
    """Instance numbers of a volume of floats, checked while they are read.

    >>> from mitoseg.volumes import ArrayVolume
    >>> IntegerVolume(ArrayVolume(np.array([[[0.0, 7.0]]]))).read().tolist()
    [[[0, 7]]]
    """

    def __init__(self, volume: Volume) -> None:
        super().__init__(replace(volume.info, dtype=np.dtype(np.uint64)))
        self._volume = volume

    def check_complete(self) -> None:
        """See `Volume.check_complete`."""
        self._volume.check_complete()

    def read(self, box: Box | None = None) -> npt.NDArray[np.uint64]:
        """Read one box as ``id_zyx``; see `Volume.read`.

        Raises:
            UserError: Besides, a voxel is no whole number from 0 on.
        """
        values = self._volume.read(box)
        if values.size and not (
            np.isfinite(values).all() and values.min() >= 0 and (values == np.floor(values)).all()
        ):
            raise UserError("instances are whole numbers from 0 on", self.path, "say kind=probability or kind=mask")
        return values.astype(np.uint64)
