"""A box of a volume as a volume of its own."""

from __future__ import annotations

from dataclasses import replace

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume


class CroppedVolume(Volume):
    """The part of a lazy volume that lies in a box; its first voxel is the box's.

    Args:
        volume: What is read.
        box: Inside it.

    Raises:
        UserError: The box leaves the volume.

    >>> import numpy as np
    >>> from mitoseg.volumes import ArrayVolume
    >>> CroppedVolume(ArrayVolume(np.arange(8).reshape(2, 2, 2)), Box((1, 0, 0), (2, 2, 1))).read().tolist()
    [[[4], [6]]]
    """

    def __init__(self, volume: Volume, box: Box) -> None:
        z, y, x = volume.check_box(box).shape
        super().__init__(replace(volume.info, shape=(z, y, x)))
        self.volume, self._corner = volume, box.start

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.volume.find_gaps()

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self.volume.scratch_bytes(box.shift(self._corner))

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        return self.volume.read(self.check_box(box).shift(self._corner))
