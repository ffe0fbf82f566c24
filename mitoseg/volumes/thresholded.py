"""A probability as the voxels that are saved: with a threshold a mask, in bytes, or as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume


class EncodedVolume(Volume):
    """A lazy volume of float32 values with a factor, saved as another type.

    Args:
        volume: Values times ``scale``.
        dtype: Of what is read.
        metadata: What it says of itself; ``kind`` "mask" asks for 0 and 1 by ``threshold``.
        scale: Factor of the volume's values.
    """

    def __init__(self, volume: Volume, dtype: np.dtype[Any], metadata: Mapping[str, Any], scale: float = 1.0) -> None:
        super().__init__(replace(volume.info, dtype=dtype, metadata=dict(metadata)))
        self.volume, self.scale = volume, scale

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.volume.find_gaps()

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        values_zyx = self.volume.read(box)
        metadata = self.info.metadata
        if metadata.get("kind") == "mask":
            mask_zyx: Array = values_zyx >= metadata["threshold"] * self.scale
            return mask_zyx.astype(self.dtype)
        if self.dtype.kind in "iu":
            values_zyx = np.rint(values_zyx)
        return values_zyx.astype(self.dtype, copy=False)
