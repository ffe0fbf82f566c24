"""Grey values of one volume as those of another: histogram matching by quantiles.

quantile      0 %   25 %   50 %   75 %   100 %
this volume    10     60     90    120     200
training        0     80    128    170     255      a voxel of 90 becomes 128, one of 105 becomes 149
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.normalize import check_image_values

COUNT = 257
"""Quantiles that are kept, from the smallest grey value to the largest."""
_SLICES, _STEP = 64, 4  # that are looked at in each volume, and every n-th voxel of them in y and x


def grey_quantiles(parts: Iterable[tuple[Volume, Box]]) -> npt.NDArray[np.float64]:
    """`COUNT` quantiles of the grey values of some boxes, evenly spaced, from some slices of each, without padding.

    Raises:
        UserError: Some values are NaN, infinite or complex, or there are none.
    """
    found: list[Array] = []
    for volume, box in parts:
        step = max(1, box.shape[0] // _SLICES)
        found += [_some_of(volume, slab) for slab in list(slabs(box, 1))[::step]]
    if not sum(map(len, found)):
        what = "there are no voxels to match grey values by"
        raise UserError(what, None, "give a box that is not empty or all padding")
    quantiles: npt.NDArray[np.float64] = np.quantile(
        np.concatenate(found).astype(np.float64), np.linspace(0, 1, COUNT)
    )
    return quantiles


def _some_of(volume: Volume, slab: Box) -> Array:
    """Grey values of some voxels of one slice that are not padding."""
    image_zyx = volume.read(slab)[:, ::_STEP, ::_STEP]
    padding_zyx = None if volume.padding is None else volume.padding.find(slab)
    found: Array = image_zyx.ravel() if padding_zyx is None else image_zyx[~padding_zyx[:, ::_STEP, ::_STEP]]
    check_image_values(found, volume.path)
    return found


class MatchedVolume(Volume):
    """A volume whose grey values are spread as those of another; float32.

    Args:
        volume: What is read.
        quantiles: Of the other one, see `grey_quantiles`.

    Raises:
        UserError: All voxels of the volume have one value.
    """

    def __init__(self, volume: Volume, quantiles: Sequence[float]) -> None:
        super().__init__(replace(volume.info, dtype=np.dtype(np.float32)))
        self.volume, self.padding = volume, volume.padding
        own = grey_quantiles([(volume, volume.box)])
        if own[0] == own[-1]:
            raise UserError(f"the image is constant, every voxel is {own[0]:g}", volume.path, "check the file")
        wanted = np.interp(np.linspace(0, 1, COUNT), np.linspace(0, 1, len(quantiles)), quantiles)
        self._own, first = np.unique(own, return_index=True)
        last = COUNT - 1 - np.unique(own[::-1], return_index=True)[1]
        self._wanted = (wanted[first] + wanted[last]) / 2  # a value that fills several quantiles gets their middle

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.volume.find_gaps()

    def scratch_bytes(self, box: Box) -> int:
        """What is read, and its values as float64; see `Volume.scratch_bytes`."""
        each = self.volume.dtype.itemsize + (0 if self.volume.dtype in (np.uint8, np.uint16) else 8)
        return box.size * each + self.volume.scratch_bytes(box)

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        grey_zyx = self.volume.read(box)
        if grey_zyx.dtype in (np.uint8, np.uint16):
            values = np.arange(np.iinfo(grey_zyx.dtype).max + 1)
            return np.interp(values, self._own, self._wanted).astype(np.float32)[grey_zyx]
        return np.interp(grey_zyx, self._own, self._wanted).astype(np.float32)
