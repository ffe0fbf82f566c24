"""Instance numbers of 64 bits, and whole numbers that a program has stored as floats."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Volume

_SLAB_VOXELS = 2**24
_LARGEST = 2**32 - 1


class IntegerVolume(Volume):
    """Instance numbers of a volume of floats or integers, checked while they are read.

    Args:
        volume: The numbers.
        background: A value that is read as 0 besides 0, or None.

    >>> from mitoseg.volumes import ArrayVolume
    >>> IntegerVolume(ArrayVolume(np.array([[[0.0, 7.0]]]))).read().tolist()
    [[[0, 7]]]
    """

    def __init__(self, volume: Volume, background: int | None = None) -> None:
        super().__init__(replace(volume.info, dtype=np.dtype(np.uint64)))
        self._volume, self._background = volume, background

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self._volume.find_gaps()

    def read(self, box: Box | None = None) -> npt.NDArray[np.uint64]:
        """Read one box as ``id_zyx``; see `Volume.read`.

        Raises:
            UserError: Besides, a voxel is no whole number from 0 on.
        """
        values = self._volume.read(box)
        if self._background is not None:
            values = np.where(values == self._background, 0, values)
        if values.size and not (
            np.isfinite(values).all() and values.min() >= 0 and (values == np.floor(values)).all()
        ):
            raise UserError("instances are whole numbers from 0 on", self.path, "say kind=probability or kind=mask")
        return values.astype(np.uint64)


class CompactIds(Volume):
    """Instance numbers of any size as 1, 2, ... in their order; 0 stays 0.

    Args:
        volume: The numbers.
        ids: (n,) all of them but 0, in ascending order, of the volume's type.
    """

    def __init__(self, volume: Volume, ids: npt.NDArray[np.integer]) -> None:
        super().__init__(replace(volume.info, dtype=np.dtype(np.uint32)))
        self._volume, self._ids = volume, ids

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self._volume.find_gaps()

    def read(self, box: Box | None = None) -> npt.NDArray[np.uint32]:
        """Read one box as ``id_zyx``; see `Volume.read`."""
        stored = self._volume.read(box)
        ranks = np.searchsorted(self._ids, stored) + 1
        return np.where(stored == 0, 0, ranks).astype(np.uint32)


def compact_ids(volume: Volume) -> Volume:
    """Instance numbers that fit 32 bits: the volume itself where they do, else numbered anew from 1 on.

    Floats and integers of 64 bits are read once, slab by slab; the memory taken is that of a slab and of the ids.

    Args:
        volume: Instance numbers.

    Raises:
        UserError: Some are negative or no whole numbers, or the file is damaged.
    """
    if volume.dtype.itemsize < 8 and volume.dtype.kind != "f":
        return volume
    volume = IntegerVolume(volume) if volume.dtype.kind == "f" else volume
    depth = max(1, _SLAB_VOXELS // max(1, math.prod(volume.shape[1:])))
    ids = np.zeros(0, volume.dtype)
    for slab in slabs(volume.box, depth):
        ids = np.union1d(ids, pd.unique(volume.read(slab).ravel()))
    if ids.size and ids[0] < 0:
        raise UserError(f"instance numbers are negative, down to {ids[0]}", volume.path, "write 0 for background")
    return CompactIds(volume, ids[ids != 0]) if ids.size and ids[-1] > _LARGEST else volume
