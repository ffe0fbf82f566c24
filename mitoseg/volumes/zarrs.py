"""Zarr arrays (formats 2 and 3) and OME-Zarr images: the finest level, or a named one; outputs are in format 3.

A chunk missing on disk silently reads as the fill value, and zarr does not limit how much a chunk unpacks to. The
folder is listed once, because zarr's own count looks up each chunk in a list of all.
"""

from __future__ import annotations

import bz2
import json
import lzma
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import remove
from mitoseg.volumes.axes import agreed_size, stated_axes, stated_sizes, warn_of_packing
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.hdf5 import CHUNK
from mitoseg.volumes.ome_zarr import (
    CONFIG,
    MARKS,
    STORED,
    SUFFIX,
    LevelHeader,
    OmeZarrOutput,
    block_shape,
    find_image,
    header_from_above,
    level_header,
)
from mitoseg.volumes.stored import (
    Format,
    Header,
    Output,
    ReadOptions,
    StoredVolume,
    check_multiset,
    check_regular,
    inside_folder,
    load_metadata,
    opening,
    reading,
)

SUFFIXES = (".zarr",)
_LARGEST_CHUNK = 2**31
Coordinates = tuple[int, ...]
_UNPACKERS: Mapping[str, Any] = {"zlib": zlib.decompressobj, "bz2": bz2.BZ2Decompressor, "lzma": lzma.LZMADecompressor}
_EMPTY = 2**64 - 1
_CRC_BYTES = 4
# How much larger than in memory a chunk may be (if a filter stores another type), and a tolerance in bytes.
_LONGEST, _SLACK = 8, 2**20


def remove_partial(array: Path) -> None:
    """Remove partly written chunks left by a killed process; nobody may be writing to the array."""
    for partial in array.rglob("*.partial"):  # zarr's temporary name for a chunk being written
        remove(partial)


def is_array(folder: Path) -> bool:
    """Whether a folder is a single Zarr array, not a group."""
    try:
        return bool(json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["node_type"] == "array")
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / ".zarray").is_file()


class ZarrOutput(Output):
    """A Zarr array with its metadata as attributes; every chunk, even of zeros, is written with a checksum."""

    def __init__(self, path: Path, info: VolumeInfo, chunks: tuple[int, int, int] | None = None) -> None:
        self.array = path.absolute()
        attributes: dict[str, Any] = {"mitoseg": dict(info.metadata)}
        if info.voxel_size:
            attributes["voxel_size_nm"] = list(info.voxel_size)
        self.chunks = tuple(min(c, n) for c, n in zip(chunks or CHUNK, info.shape, strict=True))
        options: dict[str, Any] = {"chunks": self.chunks, "zarr_format": 3, "attributes": attributes, **STORED}
        self._array = zarr.create_array(store=path, shape=info.shape, dtype=info.dtype, **options)

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Continue writing an array, possibly as one of several processes."""
        output = cls.__new__(cls)
        output.array = path.absolute()
        with opening(str(path)):
            output._array = zarr.open_array(store=path, mode="r+").with_config(CONFIG)  # config= is ignored with r+
        output.chunks = output._array.chunks
        return output

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box."""
        self._array[box.slices] = image_zyx

    def describe(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata of the array."""
        self._array.attrs["mitoseg"] = dict(metadata)


class _CheckedStore(LocalStore):
    """A folder store that refuses chunks that unpack to more than the array's chunk size, and does not read pipes.

    Sizes stated in compressed chunks are checked before unpacking; otherwise chunks are unpacked up to the limit.
    """

    _stated: tuple[str, int] | None = None
    _sharded: zarr.Array[Any] | None = None

    def expect(self, array: zarr.Array[Any]) -> None:
        """Register the compression and size of an array's chunks."""
        codecs = getattr(array.metadata, "codecs", ()) or (getattr(array.metadata, "compressor", None),)
        if array.shards is not None and isinstance(codecs[0], ShardingCodec):
            self._sharded, codecs = array, codecs[0].codecs
        codecs = [codec for codec in codecs if not isinstance(codec, Crc32cCodec)]
        name = getattr(codecs[-1], "codec_id", type(codecs[-1]).__name__)
        size = math.prod(array.chunks) * array.dtype.itemsize
        self._stated = (name.lower().removesuffix("codec"), _LONGEST * size + _SLACK)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        path = os.path.join(self.root, key)
        check_regular(path)
        buffer = await super().get(key, prototype, byte_range)
        if buffer is not None and self._stated is not None and not key.endswith(("zarr.json", ".zarray", ".zattrs")):
            name, most = self._stated
            chunks = self._chunks(buffer.as_numpy_array(), path, byte_range)
            size = max((_unpacked_bytes(name, chunk, most) for chunk in chunks), default=0)
            if size > most:
                what = f"a chunk would unpack to {size / 2**20:.0f} MiB, more than belongs in it"
                raise UserError(what, path, "it is damaged: copy it again")
        return buffer

    def _chunks(self, data: Array, path: str, byte_range: ByteRequest | None) -> list[Array]:
        """The compressed chunks in the data read: all of it, or the chunks of a shard without its index."""
        if self._sharded is None:
            return [data]
        if byte_range is not None:
            return [data] if isinstance(byte_range, RangeByteRequest) and byte_range.start else []
        per = _parts(self._sharded.shards or (), self._sharded.chunks)
        index = _index(self._sharded, path, per)
        places = [] if index is None else index.reshape(-1, 2).tolist()
        return [data[start : start + length] for start, length in places if start != _EMPTY]


def _unpacked_bytes(codec: str, data: Array, most: int) -> int:
    """The unpacked size of a compressed chunk, as stated or by unpacking up to ``most`` + 1 bytes; 0 if unknown."""
    if codec in _UNPACKERS:
        try:
            return len(_UNPACKERS[codec]().decompress(data.tobytes(), most + 1))
        except (OSError, ValueError, zlib.error, lzma.LZMAError):  # its decoder will report it
            return 0
    head, tail = bytes(data[:18]), bytes(data[-4:])
    if codec == "blosc" and len(head) >= 16:
        return int.from_bytes(head[4:8], "little")
    if codec == "lz4" and len(head) >= 4:
        return int.from_bytes(head[:4], "little")
    if codec == "gzip" and head[:2] == b"\x1f\x8b":
        return int.from_bytes(tail, "little")
    if codec == "zstd" and head[:4] == b"(\xb5/\xfd" and len(head) >= 6:
        flag, single = head[4] >> 6, bool(head[4] & 0x20)
        start = 5 + (0 if single else 1) + (0, 1, 2, 4)[head[4] & 3]
        length = (1 if single else 0, 2, 4, 8)[flag]
        return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)
    return 0


def _parts(shape: Coordinates, part: Coordinates) -> Coordinates:
    return tuple(-(-n // p) for n, p in zip(shape, part, strict=True))


def _files(array: zarr.Array[Any], grid: Coordinates) -> Iterator[tuple[str, Coordinates]]:
    """The files of chunks or shards, with their grid coordinates."""
    assert isinstance(array.store, LocalStore)
    root = Path(array.store.root, array.path)
    for folder, _, names in os.walk(root, followlinks=True):
        prefix = Path(folder).relative_to(root).as_posix()
        for name in names:
            key = name if prefix == "." else f"{prefix}/{name}"
            coordinates = tuple(int(number) for number in re.findall(r"\d+", key))
            inside = len(coordinates) == len(grid) and all(i < n for i, n in zip(coordinates, grid, strict=True))
            if inside and array.metadata.encode_chunk_key(coordinates) == key:
                yield os.path.join(folder, name), coordinates


def _in_shard(array: zarr.Array[Any], path: str, coordinates: Coordinates) -> int:
    """How many of a shard's chunks inside the array exist; all if the kind of its index is unknown."""
    assert array.shards is not None
    per, grid = _parts(array.shards, array.chunks), _parts(array.shape, array.chunks)
    inside = tuple(slice(min(p, n - i * p)) for i, p, n in zip(coordinates, per, grid, strict=True))
    index = _index(array, path, per)
    if index is None:
        return math.prod(s.stop for s in inside)
    return int(np.count_nonzero((index != _EMPTY).any(-1)[inside]))


def _index(array: zarr.Array[Any], path: str, per: Coordinates) -> Any:  # noqa: ANN401 (an array or None)
    """Offset and length of each chunk of a shard; no chunks if the file is too short for the index."""
    codec = getattr(array.metadata, "codecs", (None,))[0]
    if not isinstance(codec, ShardingCodec):
        return None
    first, *rest = codec.index_codecs
    if not isinstance(first, BytesCodec) or any(not isinstance(c, Crc32cCodec) for c in rest):
        return None
    size = 16 * math.prod(per)
    total = size + _CRC_BYTES * len(rest)
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        file.seek(0 if codec.index_location.value == "start" else max(length - total, 0))
        data = file.read(size)
    if length < total:
        return np.full((*per, 2), _EMPTY, np.uint64)
    big = first.endian is not None and first.endian.value == "big"
    return np.frombuffer(data, ">u8" if big else "<u8").reshape(*per, 2)


def is_zarr(path: str) -> bool:
    """Whether a path is a Zarr array or group, or inside one (``image.zarr/0``, ``image.zarr:/0``)."""
    folder = inside_folder(path, SUFFIXES)
    return (folder.is_dir() and folder.suffix.lower() in SUFFIXES) or any((folder / mark).is_file() for mark in MARKS)


def open_zarr(path: str, options: ReadOptions) -> StoredVolume:
    """Open a Zarr array, a group with one array, or level 0 of an OME-Zarr image; reads metadata only."""
    folder = inside_folder(path, SUFFIXES)
    if not folder.is_dir():
        raise UserError("the Zarr is a file, not a folder", path, "unpack it")
    with opening(path):
        try:
            node = zarr.open(store=_CheckedStore(folder.absolute(), read_only=True), mode="r")
        except FileNotFoundError as error:
            raise UserError("the folder is not a Zarr array or group", path, "check the path") from error
        array, stated = (node, header_from_above(folder)) if isinstance(node, zarr.Array) else _of_group(node, path)
        check_multiset(path, array.attrs.asdict())
        header = _header(path, array, stated, options)
        if header.part_bytes > max(_LARGEST_CHUNK, 2 * array.nbytes):  # before memory is allocated for one
            what = f"the Zarr array states chunks of {array.chunks} for a shape of {array.shape}"
            raise UserError(what, path, "it is damaged")
    volume = ZarrVolume(path, array, header, options)
    volume.lacks_scale = stated is not None and not stated.scaled and volume.voxel_size is None
    return volume


def _header(path: str, array: zarr.Array[Any], stated: LevelHeader | None, options: ReadOptions) -> Header:
    """The metadata of the image that contains an array, or the array's own if there is none."""
    attributes = array.attrs.asdict()
    warn_of_packing(path, attributes)
    if stated is not None and (stated.axes is None or len(stated.axes) != array.ndim):
        stated = replace(stated, axes=None, voxel_size=None)
    names = getattr(array.metadata, "dimension_names", None)
    axes = (stated and stated.axes) or stated_axes(attributes, array.ndim, names)
    size = stated.voxel_size if stated else None
    if size is None and options.voxel_size is None:
        size = agreed_size(path, stated_sizes(attributes, axes or options.axes or "zyx"[-array.ndim :]))
    metadata = (stated and stated.metadata) or load_metadata(attributes)
    part = math.prod(array.chunks) * array.dtype.itemsize
    return Header(tuple(array.shape), np.dtype(array.dtype), axes, size, metadata, part_bytes=part)


def _of_group(group: zarr.Group, path: str) -> tuple[zarr.Array[Any], LevelHeader | None]:
    """The finest level of an OME-Zarr image, or the only array of a group."""
    image = find_image(group, path)
    if image is not None:
        stated = level_header(image)
        array = image[stated.path] if stated is not None else None
        if not isinstance(array, zarr.Array):
            raise UserError("the OME-Zarr image has no array of its finest level", path, "it is damaged or incomplete")
        return array, stated
    arrays = [name for name, _ in group.arrays()]
    if len(arrays) == 1:
        array = group[arrays[0]]
        assert isinstance(array, zarr.Array)
        return array, None
    known = ", ".join(f"{path}/{name}" for name in sorted([*arrays, *(n for n, _ in group.groups())])[:8])
    what = f"the group holds {len(arrays)} arrays"
    raise UserError(what, path, f"name one: {known}" if known else "check the path")


class ZarrVolume(StoredVolume):
    """A Zarr array; ``lacks_scale`` if its OME-Zarr image states no scale and the voxel size is unknown."""

    def __init__(self, path: str, array: zarr.Array[Any], header: Header, options: ReadOptions) -> None:
        super().__init__(path, header, options)
        self._array = array
        if isinstance(array.store, _CheckedStore):
            array.store.expect(array)
        self.lacks_scale = False

    def check_scale(self) -> None:
        """Refuse an OME-Zarr image that lacks the scale required by its format, as its voxel size is unknown."""
        if self.lacks_scale:
            raise UserError("the OME-Zarr image states no scale", self.path, "give voxel_size=[z,y,x] in nm")

    def _files(self) -> list[Path]:
        """The array's folder, and the metadata files of the groups above."""
        assert isinstance(self._array.store, LocalStore)
        folder = Path(self._array.store.root, self._array.path)
        found = [folder]
        for above in folder.parents:
            marks = [above / mark for mark in (*MARKS, ".zattrs") if (above / mark).is_file()]
            if not marks:
                break
            found += marks
        return found

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        array = self._array
        with reading(self.path):
            count = math.prod(_parts(array.shape, array.chunks))
            files = _files(array, _parts(array.shape, array.shards or array.chunks))
            there = sum(1 if array.shards is None else _in_shard(array, *file) for file in files)
        what = f"{count - there} of {count} chunks are missing and would read as {array.fill_value}"
        return self._missing(max(0, count - there), what)

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        return np.asarray(self._array[index])


FORMAT = Format(
    "a Zarr folder",
    SUFFIXES,
    open_zarr,
    lambda path, info, _, chunks: ZarrOutput(path, info, chunks),
    recognize=is_zarr,
    datasets=True,
)
OME_FORMAT = replace(
    FORMAT,
    example="an OME-Zarr image",
    suffixes=(SUFFIX,),
    create=lambda path, info, _, chunks: OmeZarrOutput(path, info, chunks),
    block=block_shape,
)
