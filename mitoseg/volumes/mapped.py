"""Voxels that lie in one piece in a file, not compressed: mapped into memory for each read."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array
from mitoseg.volumes.stored import Header, StoredVolume


class MappedVolume(StoredVolume):
    """A file of plain voxels.

    Args:
        path: As the user wrote it.
        header: What the file says; its dtype has the file's byte order.
        offset: Where the voxels start, in bytes.
        kind: What the file is called in messages, such as "TIFF".
        axes: What the user says of the axes, or None.
        voxel_size: What the user says, (z, y, x) in nm.

    Raises:
        UserError: As `StoredVolume`, or the file ends before its voxels do.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        offset: int,
        kind: str,
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._file = os.path.abspath(path)
        self._dtype, self._stored_shape, self._offset = header.dtype, header.shape, offset
        needed, size = offset + math.prod(header.shape) * header.dtype.itemsize, os.path.getsize(path)
        if needed > size:
            what = f"the {kind} is cut short, {size} of {needed} bytes are there"
            raise UserError(what, path, "copy it again")

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        mapped = np.memmap(self._file, self._dtype, "r", self._offset, self._stored_shape)
        return np.array(mapped[index])
