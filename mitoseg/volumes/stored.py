"""What volumes in files share: boxes to stored indices, plain voxels, metadata, one line for what libraries throw."""

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
Image.MAX_IMAGE_PIXELS = None  # montages are larger than Pillow allows; sizes are checked here, or count as memory
_LARGE_PART = 64 * 2**20  # smaller parts are among what a reader takes anyhow
MANY_FILES, SAMPLED_FILES = 200_000, 20_000  # see `state_of`
CACHE_BYTES = 128 * 2**20
"""Decoded voxels that a volume keeps, so that neighbouring boxes do not decode the same page twice."""
_UNPACKED_AT_ONCE = 2**24
# What zarr and tifffile say of compressions that they do not know, and the libraries that log beside their errors.
_UNKNOWN = ("UnknownCodecError", "not a known COMPRESSION", "> not supported")
_NOISY = ("tifffile", "zarr", "h5py", "imagecodecs", "nibabel.global", "PIL")


@dataclass(frozen=True)
class Header:
    """What a file says of its volume, in the file's own order of axes.

    ``flipped`` are the bits of a voxel that are stored inverted; ``scale`` what a stored 1 is worth, and what a stored
    0 stands for; ``part_bytes`` what the smallest part takes that is decoded as a whole, 0 for none.
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
    """What a user says of a file: the order of its axes and its voxel size (z, y, x) in nm; come before the file's."""

    axes: str | None = None
    voxel_size: Sequence[float] | None = None


class StoredVolume(Volume):
    """A volume in a file; subclasses read a box of the stored array."""

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
        if self._scale is not None:  # float32 where it holds all digits that are stored
            dtype = np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)
        super().__init__(VolumeInfo(path, self._layout.shape_zyx, dtype, size, dict(header.metadata)))
        if self._colour:
            logger.info("%s: colour reduced to grey, the largest of red, green and blue", path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _handle(self) -> Any:  # noqa: ANN401 (what `_open` gives)
        """What `_open` gives, anew in every process: a forked one would share the position in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    def _open(self) -> Any:  # noqa: ANN401 (each subclass has its own)
        """Open the file for this process."""
        raise NotImplementedError

    def scratch_bytes(self, box: Box) -> int:
        """A chunk or strip and what it is copied to, where it is large; see `Volume.scratch_bytes`."""
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
        """Files, and folders with all that is in them, that hold the voxels or say what they mean."""
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
    """A file being written, with all voxels 0 at first.

    ``array`` is the Zarr array into which several processes may write at once, if it is one; ``chunks`` its chunks.
    """

    array: Path | None = None
    chunks: tuple[int, ...] = (1, 1, 1)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box, in the file's dtype."""
        raise NotImplementedError

    def finish(self) -> None:
        """Add what is made of the whole volume, once it is written."""

    def close(self) -> None:
        """Hand everything to the operating system; may be called again."""


@dataclass(frozen=True)
class Format:
    """All that the rest of the program knows of a format of files.

    Attributes:
        example: How messages name it, such as ``file.h5:/dataset``.
        suffixes: In small letters, the usual one first.
        open: Opens a path, with what the user says of it.
        create: Makes an empty output of a path, what is written, the dataset inside it, and the (z, y, x) voxels of a
            chunk or None; None where the format is only read.
        voxel_types: That an output can hold; None where it holds all.
        recognize: Whether a folder is of this format, whatever its name; None for formats of single files.
        datasets: Whether a path may go on inside the file or folder: ``file.h5:/dataset``.
        pictures: Whether a folder of such files may be a volume, each of them a slice.
        check_replaced: Refuses to replace a file that holds more than the dataset to write.
        block: (z, y, x) voxels to hand over at once, of what is written and of a tile; None: the tile.
    """

    example: str
    suffixes: tuple[str, ...]
    open: Callable[[str, ReadOptions], Volume]
    create: Callable[[Path, VolumeInfo, str, Tile | None], Output] | None = None
    voxel_types: tuple[str, ...] | None = None
    recognize: Callable[[str], bool] | None = None
    datasets: bool = False
    pictures: bool = False
    check_replaced: Callable[[Path, str], None] | None = None
    block: Callable[[VolumeInfo, Tile], Tile] | None = None


def split_dataset(path: str, suffixes: Iterable[str]) -> tuple[str, str] | None:
    r"""Split ``file.h5:/dataset`` into file and dataset ("" where none is named); None for other paths.

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
    """A checksum over names, sizes and times of files, and of all files below folders; hidden ones are left out.

    Of more than `MANY_FILES`, which take minutes to ask for on a network, these count: all names, the times of folders
    (in which a file appears, goes or is replaced), files of metadata, and the same `SAMPLED_FILES` of the others.
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
    """Whether the beginning of a WebP or a JPEG 2000 says that no value was changed."""
    marker = head.find(b"\xff\x52")  # of JPEG 2000's coding style, whose last byte is the wavelet: 1 can be undone
    return b"VP8L" in head[:64] or (0 <= marker < len(head) - 13 and head[marker + 13] == 1)


def check_picture(data: bytes, pixels: int) -> None:
    """Refuse a strip or tile whose own header (JPEG, JPEG 2000, PNG, WebP) states more pixels than belong in it."""
    with contextlib.suppress(OSError), Image.open(io.BytesIO(data)) as picture:
        if math.prod(picture.size) > 4 * pixels:
            raise ValueError(f"a strip or tile unpacks to {picture.width} x {picture.height} pixels")


def check_dtype(path: str, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that are no real numbers."""
    if dtype.kind == "c":
        raise UserError("the voxels are complex numbers", path, "give their magnitude or real part")
    if dtype.kind not in "buif":
        raise UserError(f"the voxels are not numbers but {dtype}", path, "give 8 or 16 bit integers or floats")


def check_multiset(path: str, attributes: Mapping[str, Any]) -> None:
    """Refuse Paintera's label multisets, whose blocks hold lists of labels and not voxels."""
    if attributes.get("isLabelMultiset"):
        remedy = "export them with paintera-conversion-helper as scalar labels (uint64)"
        raise UserError("the labels are a multiset of Paintera", path, remedy)


def load_metadata(text: object) -> dict[str, Any]:
    """Mitoseg's metadata from a file's header; empty where the text is something else."""
    try:
        data = json.loads(text) if isinstance(text, str | bytes) else text
    except ValueError:
        return {}
    found = data.get("mitoseg") if isinstance(data, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


class MappedVolume(StoredVolume):
    """A file of plain voxels from ``offset`` on, mapped into memory for each read.

    Voxels behind gzip or bzip2 (``packing``, from ``start`` on), whose middle cannot be reached, are unpacked by the
    first read of a process, into a temporary file (``TMPDIR`` says where), which is gone with the volume.
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
        """A file of the voxels alone, unpacked."""
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
            packed.read(1)  # the checksum is checked where the stream ends
        return unpacked


def check_room(path: Path, info: VolumeInfo, dtype: np.dtype[Any]) -> int:
    """The bytes of a volume's voxels; raises the error of a full disk where there is no room for them."""
    size = math.prod(info.shape) * dtype.itemsize
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed", str(path))
    return size


class FlatOutput(Output):
    """Writes boxes at their places in a file that exists with its final size."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], offset: int) -> None:
        self._shape, self._dtype, self._offset = shape, dtype, offset
        self._file = path.open("r+b", buffering=0)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box row by row, or slice by slice where its rows are whole."""
        _, height, width = self._shape
        image_zyx = np.ascontiguousarray(image_zyx, self._dtype)
        (z0, y0, x0), (depth, _, columns) = box.start, box.shape
        runs = image_zyx.reshape(depth, 1, -1) if columns == width else image_zyx
        for z, plane in enumerate(runs, z0):
            for y, run in enumerate(plane, y0):
                self._file.seek(self._offset + ((z * height + y) * width + x0) * self._dtype.itemsize)
                data = memoryview(run).cast("B")
                while data:  # an unbuffered file may take less at a time
                    data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_regular(path: str) -> None:
    """Refuse what is there and no file or folder: reading a pipe, a socket or a device may never end."""
    if os.path.isfile(path) or os.path.isdir(path):
        return
    if os.path.exists(path):
        raise UserError("this is not a file or folder but a pipe, a socket or a device", path, "give a file")
    if os.path.islink(path):
        raise UserError("the link leads nowhere", path, "mend it, or give the file itself")


@contextmanager
def reading(path: str) -> Iterator[list[logging.LogRecord]]:
    """Turn any failure of a library inside the block into a `UserError`; yields what the libraries have logged."""
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
        raise UserError("the memory is too small for a part of the file", path, remedy) from error
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
    """As `reading`, and without the libraries' warnings (not for threads: the warning filters are global)."""
    with warnings.catch_warnings(), reading(path) as records:
        warnings.simplefilter("ignore")
        yield records


class PageCache:
    """The last decoded pages of a volume, up to a number of bytes; other processes receive it empty."""

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self.capacity = capacity
        self._pages: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock, self._pid = Lock(), os.getpid()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._pages

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """The page of this key, decoded by ``decode`` where it is not at hand."""
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
