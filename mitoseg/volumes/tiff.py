"""TIFF stacks: mapped into memory where they lie in one piece, otherwise decoded strip by strip."""

from __future__ import annotations

import logging
import math
import os
import re
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


def open_tiff(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a TIFF stack; reads its header only.

    Raises:
        UserError: The file is damaged, cut short, holds pages of different sizes, or its axes are ambiguous.
    """
    with opening(path) as records, tifffile.TiffFile(path) as tif:
        stack = Stack(tif)
        _check_log(path, records)
        header = Header(stack.shape, stack.dtype, tiff_axes(stack.axes), tiff_voxel_size(tif), tiff_metadata(tif))
        byte_order: Literal["<", ">"] = "<" if tif.byteorder == "<" else ">"
    if stack.offset is None:
        return PagedTiff(path, header, axes=axes, voxel_size=voxel_size)
    return MappedTiff(path, header, stack.offset, byte_order, axes=axes, voxel_size=voxel_size)


def _check_log(path: str, records: Sequence[logging.LogRecord]) -> None:
    """Refuse a file of which tifffile logged an error before it went on with fewer slices.

    A tag that cannot be read is left alone: cameras write many of their own.
    """
    for record in records:
        if record.levelno >= logging.ERROR and "TiffTag" not in record.getMessage():
            reason = re.sub(r"<.*?> ", "", record.getMessage())[:120]
            raise UserError(f"the TIFF is damaged or cut short ({reason})", path, "copy it again, or save it anew")


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
