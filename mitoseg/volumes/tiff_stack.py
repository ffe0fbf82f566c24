"""The one stack of images in a TIFF file, as tifffile's series show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array

_END_OF_JPEG = b"\xff\xd9"


class Rows(NamedTuple):
    """A rectangle of a page: rows and columns, half-open."""

    y0: int
    y1: int
    x0: int
    x1: int


def check_bytes(page: tifffile.TiffPage | tifffile.TiffFrame) -> None:
    """Refuse a page whose strips or tiles do not lie in its file, before memory is set aside for them.

    Raises:
        EOFError: They do not.
    """
    size = page.parent.filehandle.size
    if any(offset + count > size for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise EOFError("the file ends within its voxels")


class Stack:
    """The one stack of images in an open TIFF.

    Args:
        tif: The open file.

    Attributes:
        shape: All axes, those of length 1 too.
        axes: tifffile's letter for each.
        dtype: Of the stored voxels.
        offset: Where the voxels start if they lie in one piece and are not compressed, else None.
        pages: The pages.
        files: That hold them; more than one in a set of files.
        split: How many leading axes count pages; the others lie within a page.

    Raises:
        UserError: There is no image, or there are several that differ.
    """

    def __init__(self, tif: tifffile.TiffFile) -> None:
        path = str(tif.filehandle.path)
        everything = list(tif.series)
        series = [s for s in everything if not s.keyframe.is_reduced] or everything[:1]
        if not series:
            raise UserError("the TIFF holds no image", path, "check the file")
        kinds = {(s.shape, s.dtype, len(s.pages)) for s in series}
        if len(kinds) > 1 or (len(series) > 1 and len(series[0].pages) > 1):
            shapes = sorted({f"{s.shape} {s.dtype}" for s in series})
            what = f"the TIFF holds {len(series)} images that are not one stack: {', '.join(shapes[:4])}"
            raise UserError(what, path, "save one stack of equal slices")
        first = series[0]
        if first.dtype is None:
            raise UserError("the TIFF's voxels are of an unknown type", path, "save it again")
        self.keyframe = first.keyframe
        self.dtype: np.dtype[Any] = np.dtype(first.dtype)
        self.shape = tuple(int(n) for n in first.get_shape(False))
        self.axes = first.get_axes(False)
        self.offset = first.dataoffset
        self.pages: Sequence[tifffile.TiffPage | tifffile.TiffFrame | None] = first.pages
        if len(series) > 1:  # slices that were written one by one
            self.shape, self.axes, self.offset = (len(series), *self.shape), "Q" + self.axes, None
            self.pages = [s.pages[0] for s in series]
        self._several_files = any(s.is_multifile for s in series)
        pages = [page for s in series if self._several_files for page in s.pages if page is not None]
        self.files = sorted({path, *(str(page.parent.filehandle.path) for page in pages)})
        missing = sum(page is None for page in self.pages) if first.kind == "ome" else 0
        if missing:
            what = f"{missing} of the {len(self.pages)} slices that the OME-TIFF lists are not there"
            raise UserError(what, path, "put its other files beside it, or copy it again")
        self.split = 0 if self.offset is not None else self._split(path)

    def _split(self, path: str) -> int:
        inside = math.prod(self.keyframe.shape)
        for k in range(len(self.shape) + 1):
            if math.prod(self.shape[:k]) == len(self.pages) and math.prod(self.shape[k:]) == inside:
                return k
        what = f"the TIFF's {len(self.pages)} pages of {self.keyframe.shape} do not make a stack of {self.shape}"
        raise UserError(what, path, "it is cut short, or of a kind that is not supported: save it again")

    @property
    def grey(self) -> bool:
        """Whether a page is one grey image y, x in this file, whose strips or tiles can be decoded one by one."""
        if self._several_files:
            return False
        inside = zip(self.axes[self.split :], self.shape[self.split :], strict=True)
        return self.keyframe.shape == tuple(n for a, n in inside if a in "YX")

    def read_rows(self, number: int, rows: Rows) -> Array | None:
        """The rows of a grey page straight from the file, where they lie in one piece; else None."""
        page = self._page(number)
        if not page.is_final:
            return None
        offsets, counts = page.dataoffsets, page.databytecounts
        if any(a + n != b for a, n, b in zip(offsets[:-1], counts[:-1], offsets[1:], strict=True)):
            return None
        width = self.keyframe.shape[1]
        dtype = self.dtype.newbyteorder(page.parent.byteorder)
        file = page.parent.filehandle
        file.seek(offsets[0] + rows.y0 * width * dtype.itemsize)
        size = (rows.y1 - rows.y0) * width
        data = file.read(size * dtype.itemsize)
        if len(data) < size * dtype.itemsize:
            raise EOFError("the file ends within its voxels")
        return np.frombuffer(data, dtype).reshape(-1, width)[:, rows.x0 : rows.x1]

    def read_segment(self, number: int, index: int) -> tuple[bytes, Any] | None:
        """The bytes of one strip or tile of a page and its JPEG tables; None where the page leaves it out."""
        page = self._page(number)
        if not page.databytecounts[index]:
            return None
        if page.dataoffsets[index] + page.databytecounts[index] > page.parent.filehandle.size:
            raise EOFError("the file ends within its voxels")
        page.parent.filehandle.seek(page.dataoffsets[index])
        data = page.parent.filehandle.read(page.databytecounts[index])
        if len(data) < page.databytecounts[index]:
            raise EOFError("the file ends within its voxels")
        return data, page.jpegtables

    def decode_segment(self, found: tuple[bytes, Any] | None, index: int) -> Array:
        """What `read_segment` found, decoded: ``image_yx``."""
        if found is None:
            return np.full(self.keyframe.chunks[:2], self.keyframe.nodata, self.dtype)
        data, tables = found
        if self.keyframe.compression == tifffile.COMPRESSION.JPEG and _END_OF_JPEG not in data:
            raise EOFError("the JPEG ends within its voxels")  # its decoder would fill the rest with grey
        segment, _, shape = self.keyframe.decode(data, index, jpegtables=tables)
        return np.asarray(segment)[0, : shape[1], : shape[2], 0]

    def read_page(self, number: int) -> Array:
        """One whole page, colour or several planes."""
        page = self._page(number)
        file = page.parent.filehandle
        closed = file.closed  # another file of a set, which tifffile closed after it read the header
        if closed:
            file.open()
        try:
            check_bytes(page)
            return np.asarray(page.asarray())
        finally:
            if closed:
                file.close()

    def _page(self, number: int) -> tifffile.TiffPage | tifffile.TiffFrame:
        page = self.pages[number]
        if page is None:
            raise EOFError(f"page {number} is missing")
        return page
