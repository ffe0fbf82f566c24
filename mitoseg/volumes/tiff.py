"""TIFF stacks: mapped into memory where they lie in one piece, otherwise decoded strip by strip."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence

import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes.mapped import MappedVolume
from mitoseg.volumes.reading import opening
from mitoseg.volumes.stored import Header, StoredVolume
from mitoseg.volumes.tiff_header import check_companion, flipped_bits, tiff_axes, tiff_metadata, tiff_voxel_size
from mitoseg.volumes.tiff_pages import PagedTiff
from mitoseg.volumes.tiff_stack import Stack

SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")


def open_tiff(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a TIFF stack; reads its header only.

    Raises:
        UserError: The file is damaged, cut short, holds pages of different sizes, or its axes are ambiguous.
    """
    with opening(path) as records, tifffile.TiffFile(path) as tif:
        check_companion(path, tif)
        stack = Stack(tif)
        _check_log(path, records)
        dtype = stack.dtype.newbyteorder("<" if tif.byteorder == "<" else ">")
        flat = all(n == 1 for a, n in zip(stack.axes, stack.shape, strict=True) if a not in "YXS")
        size = tiff_voxel_size(tif, flat=flat) if voxel_size is None else None
        flipped = flipped_bits(path, tif, stack.keyframe)
        part = 0 if stack.offset is not None else math.prod(stack.keyframe.chunks) * dtype.itemsize
        header = Header(stack.shape, dtype, tiff_axes(tif, stack.axes), size, tiff_metadata(tif), flipped, part)
    if stack.offset is None:
        return PagedTiff(path, header, stack.files, axes=axes, voxel_size=voxel_size)
    return MappedVolume(path, header, stack.offset, "TIFF", axes=axes, voxel_size=voxel_size)


def _check_log(path: str, records: Sequence[logging.LogRecord]) -> None:
    """Refuse a file of which tifffile logged an error before it went on with fewer slices.

    A tag that cannot be read is left alone: cameras write many of their own.
    """
    for record in records:
        if record.levelno >= logging.ERROR and "TiffTag" not in record.getMessage():
            reason = re.sub(r"<.*?> ", "", record.getMessage())[:120]
            raise UserError(f"the TIFF is damaged or cut short ({reason})", path, "copy it again, or save it anew")
