"""TIFF stacks: mapped into memory where they lie in one piece, otherwise decoded strip by strip."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array
from mitoseg.volumes.reading import opening
from mitoseg.volumes.stored import Header, StoredVolume
from mitoseg.volumes.tiff_header import tiff_axes, tiff_metadata, tiff_voxel_size
from mitoseg.volumes.tiff_pages import PagedTiff
from mitoseg.volumes.tiff_stack import Stack

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")
_BROKEN = ("corrupted tag list", "invalid offset to page", "invalid page offset")
"""What tifffile logs of a broken chain of pages before it goes on with fewer slices."""


def open_tiff(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a TIFF stack; reads its header only.

    Raises:
        UserError: The file is damaged, cut short, holds pages of different sizes, or its axes are ambiguous.
    """
    with opening(path) as messages, tifffile.TiffFile(path) as tif:
        stack = Stack(tif)
        if any(sign in message for message in messages for sign in _BROKEN):
            raise UserError("the TIFF is damaged or cut short", path, "copy it again")
        header = Header(stack.shape, stack.dtype, tiff_axes(stack.axes), tiff_voxel_size(tif), tiff_metadata(tif))
        byte_order: Literal["<", ">"] = "<" if tif.byteorder == "<" else ">"
    if stack.offset is None:
        return PagedTiff(path, header, axes=axes, voxel_size=voxel_size)
    return MappedTiff(path, header, stack.offset, byte_order, axes=axes, voxel_size=voxel_size)


class MappedTiff(StoredVolume):
    """An uncompressed TIFF in one piece, mapped into memory for each read."""

    def __init__(
        self,
        path: str,
        header: Header,
        offset: int,
        byte_order: Literal["<", ">"],
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._file = os.path.abspath(path)
        self._dtype = header.dtype.newbyteorder(byte_order)
        self._stored_shape, self._offset = header.shape, offset
        if offset + math.prod(header.shape) * self._dtype.itemsize > os.path.getsize(path):
            raise UserError("the TIFF is cut short", path, "copy it again")

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        mapped = np.memmap(self._file, self._dtype, "r", self._offset, self._stored_shape)
        return np.array(mapped[index])
