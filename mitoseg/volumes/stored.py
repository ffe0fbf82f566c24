"""Code shared by the file formats: indexing, uncompressed voxels, metadata, one-line errors for library exceptions."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import json
import logging
import math
import os
import random
import re
import shutil
import tempfile
import warnings
import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from PIL import Image

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.axes import Layout, check_voxel_size, colour_codes, grey, resolve_axes
from mitoseg.volumes.base import Array, Volume, VolumeInfo, VoxelSize

logger = logging.getLogger(__name__)
Tile = tuple[int, int, int]
Image.MAX_IMAGE_PIXELS = None  # montages exceed Pillow's limit; sizes are checked here or counted as memory
_LARGE_PART = 64 * 2**20  # smaller parts are covered by the reader's general overhead
MANY_FILES, SAMPLED_FILES = 200_000, 20_000  # see `state_of`
CACHE_BYTES = 128 * 2**20
"""Size of a volume's cache of decoded pages, so that neighbouring boxes do not decode the same page twice."""
_UNPACKED_AT_ONCE = 2**24
# Texts of zarr's and tifffile's errors for unknown compressions, and libraries that log in addition to raising.
_UNKNOWN = ("UnknownCodecError", "not a known COMPRESSION", "> not supported")
_NOISY = ("tifffile", "zarr", "h5py", "imagecodecs", "nibabel.global", "PIL")


@dataclass(frozen=True)
class Header:
    """A file's metadata about its volume, in the file's own order of axes.

    ``flipped``: the bits of a voxel that are stored inverted; ``scale``: slope and intercept of the stored values;
    ``part_bytes``: decoded size of the smallest unit that is decoded as a whole, 0 for none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: str | None = None
    voxel_size: VoxelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    flipped: int = 0
    part_bytes: int = 0
    scale: tuple[float, float] = (1.0, 0.0)


@dataclass(frozen=True)
class ReadOptions:
    """The user's order of axes and voxel size (z, y, x) in nm, which override the file's."""

    axes: str | None = None
    voxel_size: Sequence[float] | None = None


class StoredVolume(Volume):
    """A volume in a file; subclasses read boxes of the stored array."""

    _opened: tuple[int, Any] | None = None

    def __init__(self, path: str, header: Header, options: ReadOptions) -> None:
        check_dtype(path, header.dtype)
        self._layout: Layout = resolve_axes(path, header.shape, header.axes, options.axes)
        self._reduce, self._colour = grey, self._layout.colour
        size = header.voxel_size if options.voxel_size is None else check_voxel_size(options.voxel_size)
        dtype = header.dtype.newbyteorder("=")
        self._part_bytes, self._stored_shape = header.part_bytes, header.shape
        self._flipped = dtype.type(header.flipped) if header.flipped else None
        self._scale = None if header.scale == (1, 0) else header.scale
        if self._scale is not None:  # float32 if precise enough for the stored type
            dtype = np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)
        super().__init__(VolumeInfo(path, self._layout.shape_zyx, dtype, size, dict(header.metadata)))
        if self._colour:
            logger.info("%s: colour reduced to grey, the largest of red, green and blue", path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _handle(self) -> Any:  # noqa: ANN401 (what `_open` gives)
        """The result of `_open`, opened again in every process: forked ones would share the file position."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    def _open(self) -> Any:  # noqa: ANN401 (each subclass has its own)
        """Open the file for this process."""
        raise NotImplementedError

    def scratch_bytes(self, box: Box) -> int:
        """Memory for a large chunk or strip and its copy; see `Volume.scratch_bytes`."""
        return 2 * self._part_bytes if self._part_bytes > _LARGE_PART else 0

    def as_labels(self) -> Volume:
        """See `Volume.as_labels`."""
        if not self._colour or self.dtype.kind != "u":
            return self
        labels = copy(self)
        labels._reduce = colour_codes
        labels.info = replace(self.info, dtype=np.dtype(np.uint32))
        return labels

    def _read(self, box: Box) -> Array:
        if not box.size:
            return np.empty(box.shape, self.dtype)
        with reading(self.path):
            stored = self._read_stored(self._layout.index(box))
            stored = stored if self._flipped is None else stored ^ self._flipped
            image_zyx = self._layout.arrange(stored, self._reduce)
            image_zyx = image_zyx if self._scale is None else image_zyx * self._scale[0] + self._scale[1]
        return np.ascontiguousarray(image_zyx, dtype=self.dtype)

    def _files(self) -> list[Path]:
        """Files, and folders with all their contents, that hold the voxels or their metadata."""
        return [Path(self.path)]

    def state(self) -> str:
        """A checksum over names, sizes and times of all files of the volume; see `Volume.state`."""
        with reading(self.path):
            return state_of(self._files())

    @abstractmethod
    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        """Read part of the stored array: slices with bounds, in the stored order of axes."""

    def _missing(self, missing: float, what: str) -> UserError | None:
        remedy = "restore them, or give missing_chunks=fill if they are meant to be empty"
        return UserError(what, self.path, remedy) if missing else None


class Output:
    """A file being written, with all voxels initially 0.

    ``array`` is the Zarr array to which several processes may write at once, if it is one; ``chunks`` its chunk shape.
    """

    array: Path | None = None
    chunks: tuple[int, ...] = (1, 1, 1)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box, in the file's dtype."""
        raise NotImplementedError

    def finish(self) -> None:
        """Add what is derived from the whole volume, once it is written."""

    def close(self) -> None:
        """Flush everything to the operating system; may be called again."""


@dataclass(frozen=True)
class Format:
    """Everything the rest of the program needs to know about a file format."""

    example: str  # how messages name it, such as ``file.h5:/dataset``
    suffixes: tuple[str, ...]  # in lower case, the usual one first
    open: Callable[[str, ReadOptions], Volume]
    create: Callable[[Path, VolumeInfo, str, Tile | None], Output] | None = None
    """Creates an empty output: its path, what is written, the dataset inside it, the chunks (z, y, x) or None."""
    voxel_types: tuple[str, ...] | None = None  # that an output can hold; None: all
    recognize: Callable[[str], bool] | None = None  # whether a folder has this format, whatever its name
    datasets: bool = False  # whether a path may continue inside the file or folder: ``file.h5:/dataset``
    pictures: bool = False  # whether a folder of such files may be a volume, with one file per slice
    check_replaced: Callable[[Path, str], None] | None = None  # refuses to replace other datasets
    block: Callable[[VolumeInfo, Tile], Tile] | None = None  # to write at once, given a tile; None: the tile


def split_dataset(path: str, suffixes: Iterable[str]) -> tuple[str, str] | None:
    r"""Split ``file.h5:/dataset`` into file and dataset ("" if none is named); None for other paths.

    >>> split_dataset(r"C:\a.h5:/b/c", [".h5"]), split_dataset("a.h5", [".h5"]), split_dataset("a.tif", [".h5"])
    (('C:\\a.h5', 'b/c'), ('a.h5', ''), None)
    """
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    match = re.fullmatch(rf"(.*?(?:{endings}))(?::(.*))?", path, re.IGNORECASE | re.DOTALL)
    return (match[1], (match[2] or "").strip("/")) if match else None


def inside_folder(path: str, suffixes: Iterable[str]) -> Path:
    """The folder of an array or group; ``a.zarr:/b`` is ``a.zarr/b``."""
    parts = split_dataset(path, suffixes)
    return Path(path) if parts is None or Path(path).exists() else Path(*parts)


def state_of(places: Iterable[Path]) -> str:
    """A checksum over names, sizes and times of files, and of all files in folders, without hidden ones.

    Beyond `MANY_FILES`, which take minutes to query on a network, it covers all names, the times of folders (which
    change when a file is added, removed or replaced), metadata files, and a fixed sample of `SAMPLED_FILES` others.
    """
    files: list[str] = []
    for place in {os.path.abspath(place) for place in places}:
        files += [] if os.path.isdir(place) else [place]
        for folder, _, names in os.walk(place, followlinks=True):
            files += [os.path.join(folder, name) for name in names if name[0] != "." or name[:2] == ".z"]
    files = counted = sorted(files)
    if len(files) > MANY_FILES:
        metadata = [file for file in files if file.endswith(("json", ".zarray", ".zattrs", ".zgroup"))]
        folders = sorted({os.path.dirname(file) for file in files})
        counted = [*folders, *metadata, *random.Random(0).sample(files, SAMPLED_FILES)]
    digest = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape"))
    for file in counted:
        try:
            state = os.stat(file)
            digest.update(f"{state.st_size} {state.st_mtime_ns}\n".encode())
        except FileNotFoundError:
            digest.update(b"missing\n")
    return digest.hexdigest()[:16]


def lossless(head: bytes) -> bool:
    """Whether the header of a WebP or JPEG 2000 image states lossless compression."""
    marker = head.find(b"\xff\x52")  # of JPEG 2000's coding style, whose last byte is the wavelet: 1 can be undone
    return b"VP8L" in head[:64] or (0 <= marker < len(head) - 13 and head[marker + 13] == 1)


def check_picture(data: bytes, pixels: int) -> None:
    """Refuse a strip or tile whose own header (JPEG, JPEG 2000, PNG, WebP) states more pixels than it should have."""
    with contextlib.suppress(OSError), Image.open(io.BytesIO(data)) as picture:
        if math.prod(picture.size) > 4 * pixels:
            raise ValueError(f"a strip or tile unpacks to {picture.width} x {picture.height} pixels")


def check_dtype(path: str, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that are not real numbers."""
    if dtype.kind == "c":
        raise UserError("the voxels are complex numbers", path, "give their magnitude or real part")
    if dtype.kind not in "buif":
        raise UserError(f"the voxels are not numbers but {dtype}", path, "give 8 or 16 bit integers or floats")


def check_multiset(path: str, attributes: Mapping[str, Any]) -> None:
    """Refuse Paintera's label multisets, whose blocks contain lists of labels instead of voxels."""
    if attributes.get("isLabelMultiset"):
        remedy = "export them with paintera-conversion-helper as scalar labels (uint64)"
        raise UserError("the labels are a multiset of Paintera", path, remedy)


def load_metadata(text: object) -> dict[str, Any]:
    """Mitoseg's metadata from a file's header; empty if the text is something else."""
    try:
        data = json.loads(text) if isinstance(text, str | bytes) else text
    except ValueError:
        return {}
    found = data.get("mitoseg") if isinstance(data, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


class MappedVolume(StoredVolume):
    """A file of uncompressed voxels from ``offset`` on, memory-mapped for each read.

    Voxels compressed by gzip or bzip2 (``packing``, from ``start`` on), which allow no random access, are unpacked on
    the first read of a process to a temporary file (in ``TMPDIR``), which is removed with the volume.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        options: ReadOptions,
        offset: int,
        kind: str,
        *,
        file: str | None = None,
        packing: str | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(path, header, options)
        self._file, self._packing, self._start = os.path.abspath(file or path), packing, start
        self._dtype, self._offset = header.dtype, offset
        check_regular(self._file)
        needed, size = offset + math.prod(header.shape) * header.dtype.itemsize, os.path.getsize(self._file)
        if packing is None and needed > size:
            what = f"the {kind} is cut short, {size} of {needed} bytes are there"
            raise UserError(what, self._file if file else path, "copy it again")

    def _files(self) -> list[Path]:
        return sorted({Path(self.path), Path(self._file)})

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        file, offset = (self._file, self._offset) if self._packing is None else (self._handle(), 0)
        return np.array(np.memmap(file, self._dtype, "r", offset, self._stored_shape)[index])

    def _open(self) -> IO[bytes]:
        """A file with just the voxels, unpacked."""
        unpacked = tempfile.TemporaryFile(prefix="mitoseg.")  # noqa: SIM115 (it lives as long as the volume)
        weakref.finalize(self, unpacked.close)
        missing = math.prod(self._stored_shape) * self._dtype.itemsize
        with open(self._file, "rb") as raw:
            raw.seek(self._start)
            packed = gzip.GzipFile(fileobj=raw) if self._packing == "gzip" else bz2.BZ2File(raw)
            packed.read(self._offset)
            while missing:
                part = packed.read(min(missing, _UNPACKED_AT_ONCE))
                if not part:
                    raise UserError(f"the file is cut short, {missing} bytes are missing", self.path, "copy it again")
                try:
                    unpacked.write(part)
                    unpacked.flush()
                except OSError as error:
                    remedy = "free some room, set TMPDIR to a folder with more, or unpack the file first"
                    raise UserError("there is no room to unpack the file", tempfile.gettempdir(), remedy) from error
                missing -= len(part)
            packed.read(1)  # the checksum is verified at the end of the stream
        return unpacked


def check_room(path: Path, info: VolumeInfo, dtype: np.dtype[Any]) -> int:
    """The size of a volume's voxels in bytes; raises the error of a full disk if there is no room for them."""
    size = math.prod(info.shape) * dtype.itemsize
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed", str(path))
    return size


class FlatOutput(Output):
    """Writes boxes in place into an existing file of its final size."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], offset: int) -> None:
        self._shape, self._dtype, self._offset = shape, dtype, offset
        self._file = path.open("r+b", buffering=0)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box row by row, or slice by slice if it spans whole rows."""
        _, height, width = self._shape
        image_zyx = np.ascontiguousarray(image_zyx, self._dtype)
        (z0, y0, x0), (depth, _, columns) = box.start, box.shape
        runs = image_zyx.reshape(depth, 1, -1) if columns == width else image_zyx
        for z, plane in enumerate(runs, z0):
            for y, run in enumerate(plane, y0):
                self._file.seek(self._offset + ((z * height + y) * width + x0) * self._dtype.itemsize)
                data = memoryview(run).cast("B")
                while data:  # an unbuffered file may write only a part
                    data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_regular(path: str) -> None:
    """Refuse pipes, sockets and devices, as reading them may never end."""
    if os.path.isfile(path) or os.path.isdir(path):
        return
    if os.path.exists(path):
        raise UserError("this is not a file or folder but a pipe, a socket or a device", path, "give a file")
    if os.path.islink(path):
        raise UserError("the link is broken", path, "repair it, or give the file itself")


@contextmanager
def reading(path: str) -> Iterator[list[logging.LogRecord]]:
    """Turn any library failure inside the block into a `UserError`; yields the libraries' log records."""
    records: list[logging.LogRecord] = []

    def collect(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    loggers = [logging.getLogger(name) for name in _NOISY]
    for logger in loggers:
        logger.addFilter(collect)
    try:
        yield records
    except UserError:
        raise
    except MemoryError as error:
        remedy = "read smaller parts, or check the file: a damaged header may state absurd sizes"
        raise UserError("too little memory for a part of the file", path, remedy) from error
    except FileNotFoundError as error:
        raise UserError("no such file or folder", path, "check the path") from error
    except PermissionError as error:
        raise UserError("the file may not be read", path, "check its permissions") from error
    except Exception as error:  # whatever a decoder throws at a damaged file
        reason = f"{type(error).__name__}: {error}"[:160]
        what, remedy = f"the file cannot be read ({reason})", "it is damaged, incomplete or of another kind"
        if any(words in reason for words in _UNKNOWN):
            what = f"the voxels are compressed or stored in a way that is not read ({reason})"
            remedy = "write the volume again with another compression, such as gzip"
        raise UserError(what, path, remedy) from error
    finally:
        for logger in loggers:
            logger.removeFilter(collect)


@contextmanager
def opening(path: str) -> Iterator[list[logging.LogRecord]]:
    """As `reading`, and suppresses the libraries' warnings (not thread-safe: warning filters are global)."""
    with warnings.catch_warnings(), reading(path) as records:
        warnings.simplefilter("ignore")
        yield records


class PageCache:
    """A cache of a volume's most recently decoded pages, limited in bytes; it is pickled empty."""

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self.capacity = capacity
        self._pages: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock, self._pid = Lock(), os.getpid()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._pages

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """The page with this key, decoded by ``decode`` if it is not cached."""
        if self._pid != os.getpid():  # the lock may have been held when this process was forked
            self.__init__(self.capacity)  # type: ignore[misc]
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key]
        page = decode()
        with self._lock:
            if key not in self._pages:
                self._pages[key] = page
                self._bytes += page.nbytes
            while self._bytes > self.capacity and len(self._pages) > 1:
                self._bytes -= self._pages.popitem(last=False)[1].nbytes
        return page

    def __reduce__(self) -> tuple[type[PageCache], tuple[int]]:
        return PageCache, (self.capacity,)
