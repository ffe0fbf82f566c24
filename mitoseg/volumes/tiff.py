"""TIFF stacks: memory-mapped if contiguous, otherwise decoded strip by strip (or tile by tile).

Outputs are ImageJ TIFFs with mitoseg's metadata in Info; from 4 GB, BigTIFFs with OME-XML and an annotation.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import re
import weakref
import xml.etree.ElementTree as ElementTree
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from mitoseg.control_groups import usable_cores
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import stored
from mitoseg.volumes.axes import voxel_size_nm
from mitoseg.volumes.base import Array, VolumeInfo, VoxelSize

logger = logging.getLogger(__name__)
SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")
CLASSIC_BYTES = 2**32 - 2**25  # the largest stack for a classic TIFF, with room left for the page headers
_BY_TIFFFILE = "1.11a"  # the ImageJ version stated by tifffile in its files
_GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
# Compressions by JPEG, JPEG XR, JPEG 2000, LERC, WebP and JPEG XL.
_LOSSY = (6, 7, 22610, 33003, 33004, 33005, 34712, 34887, 34892, 34927, 34934, 50001, 50002, 52546)
_PICTURES = (*_LOSSY, tifffile.COMPRESSION.PNG)
_NO_CALIBRATION = 20
_FULL = 65535  # full intensity in a colour table
_END_OF_JPEG = b"\xff\xd9"
_THREADS = min(4, usable_cores())
_CUT_SHORT = "the file ends within its voxels"


def open_tiff(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open a TIFF stack; reads its header only."""
    with stored.opening(path) as records, tifffile.TiffFile(path) as tif:
        if tif.ome_metadata and "BinaryOnly" in tif.ome_metadata:
            other = ElementTree.fromstring(tif.ome_metadata).find(".//{*}BinaryOnly")
            if other is not None:
                what = f"the OME-TIFF is described in another file ({other.get('MetadataFile')}), which is not read"
                raise UserError(what, path, "save the image as one OME-TIFF or OME-Zarr, for example with bfconvert")
        stack = Stack(tif)
        for record in records:  # tifffile logs an error and continues with fewer slices
            if record.levelno >= logging.ERROR and "TiffTag" not in record.getMessage():
                reason = re.sub(r"<.*?> ", "", record.getMessage())[:120]
                raise UserError(f"the TIFF is damaged or cut short ({reason})", path, "copy it again, or save it anew")
        if len(tif.series) > 1 and tif.series[0].kind == "ome" and stack.shape[0] == len(tif.series):
            text = "%s: the OME-TIFF lists %d images of one plane; they are taken as the slices of one stack"
            logger.warning(text, path, len(tif.series))
        dtype = stack.dtype.newbyteorder("<" if tif.byteorder == "<" else ">")
        flat = all(n == 1 for a, n in zip(stack.axes, stack.shape, strict=True) if a not in "YXS")
        size = _voxel_size(tif, flat) if options.voxel_size is None else None
        flipped = flipped_bits(path, tif, stack.keyframe)
        part = 0 if stack.offset is not None else math.prod(stack.keyframe.chunks) * dtype.itemsize
        axes, scale = _axes(tif, stack.axes), tiff_scale(path, tif)
        note = (tif.imagej_metadata or {}).get("Info")
        if note is None and "mitoseg" in (tif.ome_metadata or ""):  # an annotation of OME-XML
            note = ElementTree.fromstring(tif.ome_metadata or "").findtext(".//{*}M[@K='mitoseg']")
        metadata = stored.load_metadata(note)
        header = stored.Header(stack.shape, dtype, axes, size, metadata, flipped, part, scale)
        lossy = is_lossy(stack.keyframe)
    if stack.offset is not None:
        return stored.MappedVolume(path, header, options, stack.offset, "TIFF")
    volume = _PagedTiff(path, header, stack.files, options)
    volume.lossy = lossy
    return volume


def _axes(tif: tifffile.TiffFile, axes: str) -> str:
    """Tifffile's axes for `resolve_axes`; its own files may label slices as channels, so these count as unknown."""
    version = (tif.imagej_metadata or {}).get("ImageJ")
    channels = version != _BY_TIFFFILE and 'Creator="tifffile' not in (tif.ome_metadata or "")
    return "".join(a if a in "TZCYXS" and (a != "C" or channels) else "?" for a in axes)


def flipped_bits(path: str, tif: tifffile.TiffFile, page: tifffile.TiffPage, *, quiet: bool = False) -> int:
    """Check a page's samples and colours, and return the bits that it stores inverted: all, where 0 is white.

    None of ImageJ's are, which measures them as stored. Refused are pixels with several values that are neither grey
    nor colour, and tables that map stored values to other greys; indices of colours are labels and are kept.
    """
    samples, extra = page.samplesperpixel, tuple(page.extrasamples or ())
    packed = page.compression != tifffile.COMPRESSION.NONE
    colour = page.photometric == PHOTOMETRIC.RGB or (page.photometric == PHOTOMETRIC.YCBCR and packed)
    alone = samples == 1 or (samples == 2 and extra[:1] in [(alpha,) for alpha in _ALPHA])
    single = alone and page.photometric in (*_GREY, PHOTOMETRIC.PALETTE)
    if not single and not (colour and samples in (3, 4)) and "PhotometricInterpretation" in page.tags:
        kind = getattr(page.photometric, "name", page.photometric)
        raise UserError(f"a pixel of the TIFF holds {samples} values ({kind})", path, "save one grey channel")
    orientation = page.tags.valueof("Orientation")
    if isinstance(orientation, int) and 1 < orientation <= 8 and not quiet:
        text = "%s: the TIFF states orientation %d; rows and columns are read in the order in which they are stored"
        logger.warning(text, path, orientation)
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None and not tif.is_imagej:
        table = np.asarray(page.colormap).astype(int)
        used = table[:, : 1 + max(np.flatnonzero(table.any(axis=0)), default=0)]
        steps = np.arange(used.shape[1]) * _FULL / (table.shape[1] - 1)
        if (used == used[0]).all() and abs(used[0] - steps).max() > _FULL / 255:
            raise UserError("the TIFF's colour table maps its values to other greys", path, "save it as a grey image")
        if not (used == used[0]).all() and not quiet:
            logger.warning("%s: the TIFF has indexed colours; the indices are read, as labels need", path)
    if page.photometric != PHOTOMETRIC.MINISWHITE or "PhotometricInterpretation" not in page.tags:
        return 0
    if tif.is_imagej:
        text = "%s: ImageJ shows the TIFF inverted; its values are read as ImageJ measures them, not as it shows them"
        if not quiet:
            logger.warning(text, path)
        return 0
    if np.dtype(page.dtype).kind not in "bu":
        what = f"the TIFF states that its smallest value is white, but {page.dtype} cannot be inverted"
        raise UserError(what, path, "save it with 0 as black")
    return (1 << page.bitspersample) - 1


def is_lossy(page: tifffile.TiffPage) -> bool:
    """Whether a page's compression has changed its values, as JPEG does, or may have."""
    if page.compression not in _LOSSY:
        return False
    offset, count = (next((n for n in numbers if n), 0) for numbers in (page.dataoffsets, page.databytecounts))
    page.parent.filehandle.seek(offset)
    return not stored.lossless(page.parent.filehandle.read(min(count, 4096)))


def _voxel_size(tif: tifffile.TiffFile, flat: bool) -> VoxelSize | None:
    """(z, y, x) in nm from ImageJ's or OME's metadata; the resolution of other TIFFs is for printing and not used."""
    if tif.ome_metadata:
        pixels = None
        with contextlib.suppress(ElementTree.ParseError):
            pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        if pixels is None:
            return None
        names = [f"PhysicalSize{a}" for a in "ZYX"]
        units = [pixels.get(f"{n}Unit", "\u00b5m") for n in names]
        return voxel_size_nm([pixels.get(n) for n in names], units, flat=flat)
    imagej = tif.imagej_metadata
    if not imagej:
        return None
    unit, spacing, tags = imagej.get("unit", ""), imagej.get("spacing"), tif.pages.first.tags
    spacing = abs(spacing) if isinstance(spacing, int | float) else spacing  # negative if z runs downwards
    sizes: list[object] = [spacing]
    for resolution in (tags.valueof(f"{a}Resolution") for a in "YX"):  # pixels per unit, as a fraction
        known = isinstance(resolution, tuple) and len(resolution) == 2 and resolution[0]
        sizes.append(resolution[1] / resolution[0] if known else None)
    return voxel_size_nm(sizes, [imagej.get(key, unit) for key in ("zunit", "yunit", "unit")], flat=flat)


def tiff_scale(path: str, tif: tifffile.TiffFile, *, quiet: bool = False) -> tuple[float, float]:
    """Slope and intercept of ImageJ's calibration, by which it shows and measures; signed 16 bits have one."""
    imagej = tif.imagej_metadata or {}
    function, slope, intercept = (imagej.get(key) for key in ("cf", "c1", "c0"))
    if function == 0 and isinstance(slope, int | float) and isinstance(intercept, int | float) and slope:
        return float(slope), float(intercept)
    if function is not None and function not in (0, _NO_CALIBRATION) and not quiet:
        logger.warning("%s: ImageJ's calibration of the TIFF is not linear; its values are read as stored", path)
    return 1.0, 0.0


class _PagedTiff(stored.StoredVolume):
    """A compressed or non-contiguous TIFF, with a cache so that neighbouring slabs do not decode a page twice."""

    def __init__(self, path: str, header: stored.Header, files: Sequence[str], options: stored.ReadOptions) -> None:
        super().__init__(path, header, options)
        self._file, self._set = os.path.abspath(path), [Path(file).absolute() for file in files]
        self._cache = stored.PageCache()

    def _files(self) -> list[Path]:
        return self._set

    def _open(self) -> Stack:
        tif = tifffile.TiffFile(self._file)
        weakref.finalize(self, tif.close)
        return Stack(tif)

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        stack: Stack = self._handle()
        k = stack.split
        counted = np.ix_(*(np.arange(s.start, s.stop) for s in index[:k]))
        numbers = np.ravel_multi_index(counted, stack.shape[:k]) if k else np.zeros((), int)
        inside = tuple(s.stop - s.start for s in index[k:])
        result = np.empty((numbers.size, *inside), stack.dtype)
        if stack.grey:
            of = dict(zip(stack.axes[k:], index[k:], strict=True))
            part = Box((of["Y"].start, of["X"].start), (of["Y"].stop, of["X"].stop))
            self._read_grey(stack, numbers.ravel().tolist(), part, result.reshape(numbers.size, *part.shape))
        else:
            for image, number in zip(result, numbers.ravel().tolist(), strict=True):
                with stack.lock:
                    page = self._cache.get(number, partial(stack.read_page, number))
                image[...] = page.reshape(stack.shape[k:])[index[k:]]
        return result.reshape(*numbers.shape, *inside)

    def _read_grey(self, stack: Stack, numbers: Sequence[int], part: Box, planes: Array) -> None:
        segments: list[tuple[Array, int, int, int]] = []
        sizes = stack.keyframe.chunks[:2]
        for plane, number in zip(planes, numbers, strict=True):
            with stack.lock:
                found = stack.read_rows(number, part)
            if found is not None:
                plane[...] = found
                continue
            places = [range(a // n, -(-b // n)) for a, b, n in zip(part.start, part.stop, sizes, strict=True)]
            segments += [(plane, number, j, i) for j, i in itertools.product(*places)]
        fill = partial(self._fill, stack, part)
        if sum((number, j, i) not in self._cache for _, number, j, i in segments) < 4 or _THREADS == 1:
            deque(map(fill, segments), 0)
            return
        with ThreadPoolExecutor(_THREADS) as threads:
            deque(threads.map(fill, segments), 0)  # re-raises exceptions of the threads

    def _fill(self, stack: Stack, part: Box, segment: tuple[Array, int, int, int]) -> None:
        """Decode the strip or tile (j, i) of a page and copy the overlap with the part into the page's plane."""
        plane, number, j, i = segment
        decode = partial(stack.segment, number, j * stack.keyframe.chunked[1] + i)
        image_yx = self._cache.get((number, j, i), decode)
        height, width = stack.keyframe.chunks[:2]
        (y0, x0), (y1, x1) = part.start, part.stop
        y, x = max(y0, j * height), max(x0, i * width)
        found = image_yx[y - j * height : y1 - j * height, x - i * width : x1 - i * width]
        plane[y - y0 :, x - x0 :][: found.shape[0], : found.shape[1]] = found


def check_bytes(page: tifffile.TiffPage | tifffile.TiffFrame) -> None:
    """Refuse a page whose strips or tiles are not inside its file, before memory is allocated for them."""
    size = page.parent.filehandle.size
    if any(offset + count > size for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise EOFError(_CUT_SHORT)


class Stack:
    """The single stack of images in an open TIFF, as listed by tifffile's series; ``axes`` are tifffile's letters.

    ``offset``: the start of the voxels if they are contiguous and uncompressed, else None; the first ``split`` axes
    count pages, the others are within a page; ``lock`` serialises access to the file position.
    """

    def __init__(self, tif: tifffile.TiffFile) -> None:
        path, self.lock = str(tif.filehandle.path), RLock()
        everything = list(tif.series)
        series = [s for s in everything if not s.keyframe.is_reduced] or everything[:1]
        if not series:
            raise UserError("the TIFF holds no image", path, "check the file")
        kinds = {(s.shape, s.dtype, len(s.pages)) for s in series}
        if len(kinds) > 1 or (len(series) > 1 and len(series[0].pages) > 1):
            shapes = sorted({f"{s.shape} {s.dtype}" for s in series})
            what = f"the TIFF holds {len(series)} images that are not one stack: {', '.join(shapes[:4])}"
            raise UserError(what, path, "save one stack of equal slices")
        if len({s.keyframe.hash for s in series}) > 1:
            what = "the TIFF's slices are stored in different ways (compression, predictor, which value is black)"
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
        if len(series) > 1:  # slices written one at a time
            self.shape, self.axes, self.offset = (len(series), *self.shape), "Q" + self.axes, None
            self.pages = [s.pages[0] for s in series]
        self._several_files = any(s.is_multifile for s in series)
        pages = [page for s in series if self._several_files for page in s.pages if page is not None]
        self.files = sorted({path, *(str(page.parent.filehandle.path) for page in pages)})
        missing = sum(page is None for page in self.pages) if first.kind == "ome" else 0
        if missing:
            what = f"{missing} of the {len(self.pages)} slices that the OME-TIFF lists are not there"
            raise UserError(what, path, "put its other files beside it, or copy it again")
        places, inside = range(len(self.shape) + 1), math.prod(self.keyframe.shape)
        sizes = [(math.prod(self.shape[:k]), math.prod(self.shape[k:])) for k in places]
        if self.offset is None and (len(self.pages), inside) not in sizes:
            what = f"the TIFF's {len(self.pages)} pages of {self.keyframe.shape} do not make a stack of {self.shape}"
            raise UserError(what, path, "it is cut short, or of a kind that is not supported: save it again")
        self.split = 0 if self.offset is not None else sizes.index((len(self.pages), inside))

    @property
    def grey(self) -> bool:
        """Whether pages are grey images (y, x) in this file, whose strips or tiles can be decoded individually."""
        if self._several_files:
            return False
        inside = zip(self.axes[self.split :], self.shape[self.split :], strict=True)
        return self.keyframe.shape == tuple(n for a, n in inside if a in "YX")

    def read_rows(self, number: int, part: Box) -> Array | None:
        """A part (y, x) of a grey page directly from the file if the page is contiguous; else None."""
        page = self._page(number)
        if not page.is_final:
            return None
        offsets, counts = page.dataoffsets, page.databytecounts
        if any(a + n != b for a, n, b in zip(offsets[:-1], counts[:-1], offsets[1:], strict=True)):
            return None
        width, dtype = self.keyframe.shape[1], self.dtype.newbyteorder(page.parent.byteorder)
        (y0, x0), (y1, x1) = part.start, part.stop
        page.parent.filehandle.seek(offsets[0] + y0 * width * dtype.itemsize)
        data = page.parent.filehandle.read((y1 - y0) * width * dtype.itemsize)
        if len(data) < (y1 - y0) * width * dtype.itemsize:
            raise EOFError(_CUT_SHORT)
        return np.frombuffer(data, dtype).reshape(-1, width)[:, x0:x1]

    def read_segment(self, number: int, index: int) -> tuple[bytes, Any] | None:
        """The bytes of one strip or tile of a page and its JPEG tables; None if it is missing from the page."""
        page = self._page(number)
        if not page.databytecounts[index]:
            return None
        if page.dataoffsets[index] + page.databytecounts[index] > page.parent.filehandle.size:
            raise EOFError(_CUT_SHORT)
        page.parent.filehandle.seek(page.dataoffsets[index])
        return page.parent.filehandle.read(page.databytecounts[index]), page.jpegtables

    def segment(self, number: int, index: int) -> Array:
        """One strip or tile of a page, decoded as ``image_yx``; only reading its bytes needs the lock."""
        with self.lock:
            found = self.read_segment(number, index)
        if found is None:
            return np.full(self.keyframe.chunks[:2], self.keyframe.nodata, self.dtype)
        data, tables = found
        if self.keyframe.compression in _PICTURES:
            stored.check_picture(data, math.prod(self.keyframe.chunks[:2]))
        if self.keyframe.compression == tifffile.COMPRESSION.JPEG and _END_OF_JPEG not in data:
            raise EOFError("the JPEG ends within its voxels")  # the decoder would fill the rest with grey
        segment, _, shape = self.keyframe.decode(data, index, jpegtables=tables)
        return np.asarray(segment)[0, : shape[1], : shape[2], 0]

    def read_page(self, number: int) -> Array:
        """Read a whole page, with colour or several planes."""
        page = self._page(number)
        file = page.parent.filehandle
        closed = file.closed  # tifffile closes the other files of a set after reading their headers
        if closed:
            file.open()
        try:
            check_bytes(page)
            for index in range(len(page.dataoffsets) if self.keyframe.compression in _PICTURES else 0):
                found = self.read_segment(number, index)
                stored.check_picture(found[0] if found else b"", math.prod(self.keyframe.chunks[:2]))
            return np.asarray(page.asarray())
        finally:
            if closed:
                file.close()

    def _page(self, number: int) -> tifffile.TiffPage | tifffile.TiffFrame:
        page = self.pages[number]
        if page is None:
            raise EOFError(f"page {number} is missing")
        return page


def create_tiff(path: Path, info: VolumeInfo) -> stored.FlatOutput:
    """An uncompressed, contiguous TIFF into which boxes are written in place."""
    dtype, text = info.dtype.newbyteorder("<"), json.dumps({"mitoseg": dict(info.metadata)})
    options: dict[str, Any] = {"photometric": "minisblack", "returnoffset": True}
    big = stored.check_room(path, info, dtype) > CLASSIC_BYTES
    if big:
        names = {f"PhysicalSize{a}": size for a, size in zip("ZYX", info.voxel_size or (), strict=False)}
        units = {f"{name}Unit": "nm" for name in names}
        unique = f"{info.shape} {info.dtype} {info.voxel_size} {text}"  # else it would be random
        uuid = str(uuid5(NAMESPACE_URL, unique))
        options["metadata"] = {"axes": "ZYX", **names, **units, "UUID": uuid, "MapAnnotation": {"mitoseg": text}}
    else:
        # tifffile's own description refuses 32-bit integers, which ImageJ can read
        depth, kind = info.shape[0], info.metadata.get("kind")
        lines = ["ImageJ=1.54f", f"images={depth}", f"slices={depth}", "hyperstack=true", "mode=grayscale"]
        if info.voxel_size:
            lines += ["unit=nm", f"spacing={info.voxel_size[0]!r}"]
            options["resolution"] = (1 / info.voxel_size[2], 1 / info.voxel_size[1])
        if kind in ("mask", "probability"):  # ImageJ would show a mask of 0 and 1 as black
            most = float(info.metadata.get("scale") or 1) if kind == "probability" else 1.0
            lines += ["min=0.0", f"max={most}"]
        options |= {"metadata": None, "description": "\n".join([*lines, "loop=false", ""]), "resolutionunit": "NONE"}
        options["extratags"] = tifffile.imagej_metadata_tag({"Info": text}, "<")
    with tifffile.TiffWriter(path, bigtiff=big, ome=big, byteorder="<") as tif:
        place = tif.write(None, shape=info.shape, dtype=info.dtype, **options)
    assert place is not None
    return stored.FlatOutput(path, info.shape, dtype, int(place[0]))


FORMAT = stored.Format(
    "a TIFF stack",
    SUFFIXES,
    open_tiff,
    lambda path, info, *_: create_tiff(path, info),
    voxel_types=("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"),  # that Fiji opens
    pictures=True,
)
