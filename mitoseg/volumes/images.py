"""Folders of slices: png or single-page TIFF files, one a slice, in natural order of their names."""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes.axes import grey
from mitoseg.volumes.base import Array
from mitoseg.volumes.reading import PageCache, check_regular, opening, reading
from mitoseg.volumes.slice_numbers import find_gap
from mitoseg.volumes.stored import Header, StoredVolume
from mitoseg.volumes.tiff_header import flipped_bits
from mitoseg.volumes.tiff_stack import check_bytes

logger = logging.getLogger(__name__)
SUFFIXES = (".png", ".tif", ".tiff")
_COLOUR_TYPES = (2, 3, 4, 6)
"""PNG's colour types with more than one channel: RGB, palette, grey with alpha, RGBA."""


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that takes numbers as numbers.

    >>> sorted(["slice10.png", "slice2.png", "slice1.png"], key=natural_key)
    ['slice1.png', 'slice2.png', 'slice10.png']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def list_slices(folder: Path) -> list[Path]:
    """The slices of a folder in natural order; hidden files and other suffixes are left out.

    Raises:
        UserError: There are none, or of more than one kind.
    """
    found = [
        p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir()
    ]
    for file in found:
        check_regular(str(file))
    if not found:
        raise UserError("the folder holds no png or tif slices", str(folder), "give a folder of slices, or a file")
    if len({p.suffix.lower()[:4] for p in found}) > 1:
        raise UserError("the folder holds both png and tif files", str(folder), "keep only the slices in it")
    return sorted(found, key=lambda p: natural_key(p.name))


def open_folder(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a folder of slices; reads their headers only.

    Raises:
        UserError: There are no slices, or they differ in size or type, or one is damaged.
    """
    if axes not in (None, "zyx"):
        raise UserError("a folder of slices is always z, y, x, colour or not", axes, "leave axes= away")
    with opening(path):
        files = list_slices(Path(path))
    first: tuple[tuple[int, int], np.dtype[Any]] | None = None
    colours = 0
    for file in files:
        with opening(str(file)):
            shape, dtype, colour = _header(file)
        first = first or (shape, dtype)
        colours += colour
        if (shape, dtype) != first:
            what = f"slices differ: {files[0].name} is {_say(*first)}, {file.name} is {_say(shape, dtype)}"
            raise UserError(what, path, "give slices of one size and type")
    assert first is not None
    if colours:
        text = "%s: %d of %d slices are in colour and reduced to grey, the largest of red, green and blue"
        logger.info(text, path, colours, len(files))
    part = math.prod(first[0]) * first[1].itemsize
    header = Header((len(files), *first[0]), first[1], "zyx", part_bytes=part)
    return SliceFolder(path, files, header, voxel_size=voxel_size)


def _say(shape: tuple[int, int], dtype: np.dtype[Any]) -> str:
    return f"{shape[0]} x {shape[1]} {dtype}"


class SliceFolder(StoredVolume):
    """A folder of slices, decoded one by one with a small cache."""

    def __init__(
        self, path: str, files: Sequence[Path], header: Header, *, voxel_size: Sequence[float] | None = None
    ) -> None:
        super().__init__(path, header, voxel_size=voxel_size)
        self._files = [os.path.abspath(file) for file in files]
        self._cache = PageCache()

    def find_gaps(self) -> UserError | None:
        """Slices that are missing, or there twice, by their numbers; see `Volume.find_gaps`."""
        what = find_gap([os.path.basename(file) for file in self._files])
        remedy = "mend the folder, or give missing_slices=ignore if the slices do follow one another"
        return None if what is None else UserError(what, self.path, remedy)

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        z, y, x = index
        return np.stack([self._cache.get(i, partial(self._decode, i))[y, x] for i in range(z.start, z.stop)])

    def _decode(self, number: int) -> Array:
        """One slice as grey ``image_yx``."""
        file = self._files[number]
        with reading(file):
            image = _decode(Path(file))
        if image.shape != self.shape[1:]:
            raise UserError(f"the slice has changed its size to {image.shape}", file, "open the folder again")
        return image


def _header(file: Path) -> tuple[tuple[int, int], np.dtype[Any], bool]:
    """(y, x), dtype and whether in colour, from the first bytes of a slice."""
    if file.suffix.lower() == ".png":
        with file.open("rb") as stream:
            head = stream.read(26)
        if head[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError("not a PNG")
        width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
        return (height, width), np.dtype(np.uint16 if bits == 16 else np.uint8), colour in _COLOUR_TYPES
    with tifffile.TiffFile(file) as tif:
        page = tif.pages.first
        if len(tif.pages) > 1:
            raise UserError("the slice holds several images", str(file), "give the stack itself, not its folder")
        if page.dtype is None:
            raise ValueError("unknown type of pixels")
        if not (isinstance(page.imagelength, int) and isinstance(page.imagewidth, int)):
            raise ValueError("no single number for the width or length")
        flipped_bits(str(file), tif, page)
        return (page.imagelength, page.imagewidth), np.dtype(page.dtype), page.samplesperpixel > 2


def _decode(file: Path) -> Array:
    """One slice as grey ``image_yx``."""
    if file.suffix.lower() == ".png":
        image = np.asarray(imagecodecs.png_decode(file.read_bytes()))
        return image if image.ndim == 2 else grey(image)
    with tifffile.TiffFile(file) as tif:
        page = tif.pages.first
        check_bytes(page)
        flipped = flipped_bits(str(file), tif, page)
        image = page.asarray(squeeze=False)[:, 0]
        image = image ^ image.dtype.type(flipped) if flipped else image
    image = np.moveaxis(image, 0, -2).reshape(image.shape[1], image.shape[2], -1)
    return grey(image)
