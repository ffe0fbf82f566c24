"""Folders of slices, one file per slice, in natural order of their names: PNG or single-page TIFF, else other images.

For indexed colours the index is the value (as in labels), unless all colours of the table are greys. If tables differ
between slices, or an index other than 0 is black, the indices were assigned in order of occurrence, and the colours
are used. Missing slices are detected by the numbers in the file names.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from mitoseg.errors import UserError
from mitoseg.volumes import stored
from mitoseg.volumes.base import Array
from mitoseg.volumes.tiff import check_bytes, flipped_bits, is_lossy, tiff_scale

logger = logging.getLogger(__name__)
POLYGONS = "polygons are not voxels: export masks, by labelme_json_to_dataset or as CVAT's Segmentation mask 1.1"
SUFFIXES = (".png", ".tif", ".tiff")
PICTURES = (".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_LOSSY = (".jpg", ".jpeg")
_PALETTE, _COLOUR_TYPES = 3, (2, 4, 6)  # of PNG; those with more than one channel: RGB, grey with alpha, RGBA
_ORIENTATION = 274  # of TIFF and EXIF
_SEVERAL = "the file holds several pictures"
# What to do with folders of other programs, by a file in them.
_OTHERS = {
    "header.wkw": "export the layer from webKnossos as OME-TIFF or Zarr",
    "datasource-properties.json": "name a layer of webKnossos and its resolution, such as FOLDER/segmentation/1",
    "info": "write Neuroglancer's precomputed volume as Zarr or N5, for example with tensorstore",
    "knossos.conf": "write KNOSSOS's cubes as TIFF or Zarr, for example with knossos_utils",
}
_MOST = 0.5  # fraction of equal steps needed for a number to count slices, if several might
_STAMP = 10**5  # irregular numbers from here on are timestamps, not slices


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that compares numbers by value.

    >>> sorted(["slice10.png", "slice2.png", "slice1.png"], key=natural_key)
    ['slice1.png', 'slice2.png', 'slice10.png']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def _list_slices(folder: Path) -> list[Path]:
    """The slices of a folder in natural order: PNG or TIFF, else other images."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
    suffixes = {p: p.suffix.lower() for p in files}
    found = [p for p in files if suffixes[p] in SUFFIXES] or [p for p in files if suffixes[p] in PICTURES]
    for file in found:
        stored.check_regular(str(file))
    if not found:
        marks = [mark for mark in _OTHERS if (folder / mark).is_file() or (folder.parent / mark).is_file()]
        others = POLYGONS if {".json", ".xml"} & set(suffixes.values()) else "give a folder of slices, or a file"
        remedy = _OTHERS[marks[0]] if marks else others
        raise UserError("the folder holds no png or tif slices", str(folder), remedy)
    if len({suffixes[p][:4] for p in found}) > 1:
        raise UserError("the folder holds both png and tif files", str(folder), "keep only the slices in it")
    left = [p.name for p in files if suffixes[p] in PICTURES and p not in found]
    if left:
        logger.warning("%s: %d other pictures are not slices, such as %s", folder, len(left), left[0])
    return sorted(found, key=lambda p: natural_key(p.name))


def open_slices(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open a folder of slices, or a single image as one slice; reads headers only."""
    single = os.path.isfile(path)
    if options.axes not in ((None, "zyx", "yx", "yxc") if single else (None, "zyx")):
        what = "a picture is always y, x" if single else "a folder of slices is always z, y, x"
        raise UserError(f"{what}, colour or not", options.axes, "leave out axes=")
    with stored.opening(path):
        files = [Path(path)] if single else _list_slices(Path(path))
    found: list[_Slice] = []
    for file in files:
        with stored.opening(str(file)):
            found.append(_header(file, quiet=bool(found)))
        if found[-1][:2] != found[0][:2]:
            pairs = ((files[0], found[0]), (file, found[-1]))
            says = ", ".join(f"{n.name} is {s.shape[0]} x {s.shape[1]} {s.dtype}" for n, s in pairs)
            raise UserError(f"slices differ: {says}", path, "give slices of one size and type")
    if len({s.scale for s in found}) > 1:
        raise UserError("the slices are calibrated in different ways", path, "save them as one stack")
    first, coloured = found[0], [s.palette is not None and not _is_grey(s.palette) for s in found]
    indexed = any(coloured) and _is_one_table([s.palette for s in found])
    colours = sum(s.colour or (one and not indexed) for s, one in zip(found, coloured, strict=True))
    if colours:
        text = "%s: %d of %d slices are in colour and reduced to grey, the largest of red, green and blue"
        logger.info(text, path, colours, len(files))
    rows = [re.findall(r"\d+", file.stem) for file in files]
    counts = [len(set(column)) for column in zip(*rows, strict=False)]
    if max(counts, default=0) < len(files) == math.prod(counts):  # in every combination
        text = "%s: the names count two things, such as %s; if these are tiles or channels, they do not form one stack"
        logger.warning(text, path, files[-1].name)
    if indexed:
        logger.info("%s: indexed colours; the index is the value, not the grey of its colour", path)
    elif any(coloured):
        logger.info("%s: the colour tables differ, or black is not index 0; the colours are read", path)
    part = math.prod(first.shape) * first.dtype.itemsize
    header = stored.Header((len(files), *first.shape), first.dtype, "zyx", part_bytes=part, scale=first.scale)
    volume = SliceFolder(path, files, header, stored.ReadOptions(voxel_size=options.voxel_size), indexed=indexed)
    volume._colour, volume.lossy = bool(colours), any(s.lossy for s in found)
    return volume


class SliceFolder(stored.StoredVolume):
    """A folder of slices, decoded one at a time with a small cache."""

    def __init__(
        self, path: str, files: Sequence[Path], header: stored.Header, options: stored.ReadOptions, *, indexed: bool
    ) -> None:
        super().__init__(path, header, options)
        self._slices, self._indexed = [os.path.abspath(file) for file in files], indexed
        self._cache = stored.PageCache()

    def _files(self) -> list[Path]:
        return [Path(file) for file in self._slices]

    def find_gaps(self) -> UserError | None:
        """Missing or duplicate slices, by their numbers; see `Volume.find_gaps`."""
        what = find_gap([os.path.basename(file) for file in self._slices])
        remedy = "correct the folder, or give missing_slices=ignore if the slices are consecutive"
        return None if what is None else UserError(what, self.path, remedy)

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        z, y, x = index
        pages = ((i, partial(self._decode, self._slices[i])) for i in range(z.start, z.stop))
        return np.stack([self._cache.get((i, self._reduce), decode)[y, x] for i, decode in pages])

    def _decode(self, file: str) -> Array:
        with stored.reading(file):
            image = _decode(Path(file), indexed=self._indexed)
            image = image if image.ndim == 2 else self._reduce(image)
        if image.shape != self.shape[1:]:
            raise UserError(f"the slice has changed its size to {image.shape}", file, "open the folder again")
        return image


class _Slice(NamedTuple):
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    colour: bool
    palette: Array | None = None
    lossy: bool = False
    scale: tuple[float, float] = (1.0, 0.0)


def _header(file: Path, *, quiet: bool) -> _Slice:
    suffix = file.suffix.lower()
    if suffix == ".png":
        with file.open("rb") as stream:
            head = stream.read(4096)
        if head[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError("not a PNG")
        if b"acTL" in head.split(b"IDAT")[0]:  # an animation
            raise UserError(_SEVERAL, str(file), "save them as a TIFF stack")
        width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
        palette = _palette(PngImagePlugin.PngImageFile(file)) if colour == _PALETTE else None
        dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
        return _Slice((height, width), dtype, colour in _COLOUR_TYPES, palette)
    if suffix in PICTURES:
        with Image.open(file) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(_SEVERAL, str(file), "save them as a TIFF stack")
            if not quiet and image.getexif().get(_ORIENTATION, 1) != 1:
                logger.warning("%s: rotated for display only; rows and columns are read as stored", file)
            shape, colour = (image.height, image.width), image.mode not in ("1", "L", "P")
            lossy = suffix in _LOSSY or (suffix == ".webp" and not stored.lossless(file.read_bytes()[:64]))
            return _Slice(shape, np.dtype(np.uint8), colour, _palette(image), lossy)
    with tifffile.TiffFile(file) as tif:
        page = tif.pages.first
        if len(tif.pages) > 1:
            raise UserError("the slice holds several images", str(file), "give the stack itself, not its folder")
        if page.dtype is None:
            raise ValueError("unknown type of pixels")
        if not (isinstance(page.imagelength, int) and isinstance(page.imagewidth, int)):
            raise ValueError("no single number for the width or length")
        flipped_bits(str(file), tif, page, quiet=quiet)
        shape = (page.imagelength, page.imagewidth)
        palette, scale = _tiff_palette(tif, page), tiff_scale(str(file), tif, quiet=quiet)
        return _Slice(shape, np.dtype(page.dtype), page.samplesperpixel > 2, palette, is_lossy(page), scale)


def _palette(image: Image.Image) -> Array | None:
    with image:
        return np.reshape(image.getpalette() or [0, 0, 0], (-1, 3)) if image.mode == "P" else None


def _tiff_palette(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> Array | None:
    """The table of indexed colours (n, 3), or None; ImageJ's tables are for display and carry no meaning."""
    if page.photometric != tifffile.PHOTOMETRIC.PALETTE or page.colormap is None or tif.is_imagej:
        return None
    return np.asarray(page.colormap.T >> 8, np.uint8)


def _is_grey(palette: Array) -> bool:
    """Whether a colour table contains several greys and nothing else."""
    return bool((palette == palette[:, :1]).all() and (palette != palette[0]).any())


def _is_one_table(palettes: Sequence[Array | None]) -> bool:
    """Whether all slices use the same colour table, in which only 0 is black, apart from unused entries at the end."""
    tables = [palette for palette in palettes if palette is not None]
    longest = max(tables, key=len)
    black: Array = np.asarray(~longest.any(axis=1))
    end = len(black) - int(np.argmin(black[::-1])) if not black.all() else 1
    end += end == len(black) - 1  # a single black entry at the end is used, several are filler
    same = len(tables) == len(palettes) and all((table == longest[: len(table)]).all() for table in tables)
    return same and (bool(black[0]) or not black[: max(end, 2)].any())


def _decode(file: Path, *, indexed: bool) -> Array:
    """One slice, as ``image_yx`` or ``image_yxc``; for indexed colours the indices if ``indexed``."""
    suffix = file.suffix.lower()
    if suffix == ".png" and not (indexed and _header(file, quiet=True).palette is not None):
        return np.asarray(imagecodecs.png_decode(file.read_bytes()))
    if suffix == ".png" or suffix in PICTURES:
        with PngImagePlugin.PngImageFile(file) if suffix == ".png" else Image.open(file) as picture:
            if picture.mode == "P" and indexed:
                return np.asarray(picture)
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGBA"))
    with tifffile.TiffFile(file) as tif:
        page = tif.pages.first
        check_bytes(page)
        flipped, palette = flipped_bits(str(file), tif, page, quiet=True), _tiff_palette(tif, page)
        image = page.asarray(squeeze=False)[:, 0]
        image = image ^ image.dtype.type(flipped) if flipped else image
        if palette is not None and not indexed and not _is_grey(palette):
            image = palette[image[..., 0]]
    return np.moveaxis(image, 0, -2).reshape(image.shape[1], image.shape[2], -1)


def find_gap(names: Sequence[str]) -> str | None:
    """Describe missing or duplicate slices, judged by the numbers in their sorted file names.

    >>> find_gap(["s_001.tif", "s_002.tif", "s_004.tif"])
    '1 slice is missing by the numbers of the files, between s_002.tif and s_004.tif'
    """
    numbers = slice_numbers(names)
    if numbers is None:
        return None
    pairs = list(pairwise(sorted(range(len(names)), key=lambda i: numbers[i])))
    twice = [(a, b) for a, b in pairs if numbers[a] == numbers[b]]
    if twice:
        more = f", and {len(twice) - 1} more" if len(twice) > 1 else ""
        a, b = sorted(names[i] for i in twice[0])
        return f"slice {numbers[twice[0][0]]} is there twice by the numbers of the files, as {a} and {b}{more}"
    steps = [numbers[b] - numbers[a] for a, b in pairs]
    step = min(steps, default=1)
    jumps = [i for i, one in enumerate(steps) if one != step]
    if not jumps:
        return None
    where = f"between {names[pairs[jumps[0]][0]]} and {names[pairs[jumps[0]][1]]}"
    if any(one % step for one in steps):
        return f"the numbers of the slices jump {len(jumps)} times, first {where}".replace(" 1 times, first", " once,")
    missing = sum(one // step - 1 for one in steps)
    slices = "1 slice is missing" if missing == 1 else f"{missing} slices are missing"
    return f"{slices} by the numbers of the files, {'first ' if len(jumps) > 1 else ''}{where}"


def slice_numbers(names: Sequence[str]) -> list[int] | None:
    """The slice number in each file name; None if it is unclear which number that is."""
    stems = [PurePath(name).stem.lower() for name in names]
    kinds = [re.sub(r"\d+", "#", stem) for stem in stems]
    found = [tuple(int(number) for number in re.findall(r"\d+", stem)) for stem in stems]
    kind, count = max(Counter(kinds).items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    main = [row for row, one in zip(found, kinds, strict=True) if one == kind]
    if 2 * count < len(names) or not main or not main[0]:
        return None
    column = _counting(list(zip(*main, strict=True)))
    if column is None or any(len(row) <= column for row in found):
        return None
    return [row[column] for row in found]


def _counting(columns: Sequence[tuple[int, ...]]) -> int | None:
    """Which of the numbers in similar file names counts the slices."""
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) < 2:
        column = columns[varying[0]] if varying else ()
        stamps = len(column) > 1 and max(column) >= _STAMP and _regular(column) <= _MOST
        return None if stamps else next(iter(varying), 0)
    regular = [(_regular(columns[i]), -i) for i in varying if len(set(columns[i])) == len(columns[i])]
    share, place = max(regular, default=(0.0, 0))
    return -place if share > _MOST else None


def _regular(column: Sequence[int]) -> float:
    """The fraction of equal steps between consecutive numbers."""
    steps = Counter(b - a for a, b in pairwise(sorted(column)))
    return max(steps.values()) / (len(column) - 1)


FORMAT = stored.Format("a picture", (".png", *PICTURES), open_slices, pictures=True)
