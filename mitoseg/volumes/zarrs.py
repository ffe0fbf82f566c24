"""Zarr arrays (formats 2 and 3) and OME-Zarr images: the finest level, or a named one; outputs are in format 3.

A chunk missing on disk silently reads as the fill value, and zarr does not limit how much a chunk unpacks to. The
folder is listed once: zarr itself looks up each chunk in a list of all.

image.ome.zarr          multiscales             level 0
image.ome.zarr/1        an array                level 1, with the axes and scale stated by the parent group
slide.zarr              bioformats2raw.layout   its only image, slide.zarr/0
plate.zarr              plate                   its only image, plate.zarr/A/1/0

The first voxel of level 1 covers voxels 0 and 1 of level 0, so its centre is half a level-0 voxel further: every level
has a scale and a translation, ``translation = (factor - 1) / 2 * voxel``.
"""

from __future__ import annotations

import bz2
import itertools
import json
import lzma
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec
from zarr.core.array_spec import ArrayConfigParams
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.storage import remove
from mitoseg.volumes import stored
from mitoseg.volumes.axes import agreed_size, stated_axes, stated_sizes, voxel_size_nm, warn_of_packing
from mitoseg.volumes.base import Array, VolumeInfo, VoxelSize
from mitoseg.volumes.hdf5 import CHUNK

SUFFIXES = (".zarr",)
_LARGEST_CHUNK = 2**31
Coordinates = tuple[int, ...]
_UNPACKERS: Mapping[str, Any] = {"zlib": zlib.decompressobj, "bz2": bz2.BZ2Decompressor, "lzma": lzma.LZMADecompressor}
_EMPTY = 2**64 - 1
# How much larger than in memory a chunk may be (if a filter stores another type), and a tolerance in bytes.
_LONGEST, _SLACK = 8, 2**20
MARKS = ("zarr.json", ".zarray", ".zgroup")
_OME = ".ome.zarr"
CONFIG: ArrayConfigParams = {"write_empty_chunks": True}
"""Chunks of zeros are written, too, so that missing chunks can be recognised."""
STORED: dict[str, Any] = {
    "compressors": ZstdCodec(level=1, checksum=True),
    "fill_value": 0,
    "dimension_names": ("z", "y", "x"),
    "config": CONFIG,
}
"""How arrays are written."""
Sizes = tuple[int, int, int]
_DEPTH = 3  # largest depth of an image in a group: plate, row, column, field
_MANY = 9
_SMALLEST_SIDE = 256  # a level with no side longer than this needs no coarser one
_TRANSFORMS = "coordinateTransformations"
_BLOCK_BYTES = 2**27


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


class ZarrOutput(stored.Output):
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
        with stored.opening(str(path)):
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
        stored.check_regular(path)
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


def _index(array: zarr.Array[Any], path: str, per: Coordinates) -> Any:  # noqa: ANN401 (an array or None)
    """Offset and length of each chunk of a shard; no chunks if the file is too short for the index."""
    codec = getattr(array.metadata, "codecs", (None,))[0]
    if not isinstance(codec, ShardingCodec):
        return None
    first, *rest = codec.index_codecs
    if not isinstance(first, BytesCodec) or any(not isinstance(c, Crc32cCodec) for c in rest):
        return None
    size = 16 * math.prod(per)
    total = size + 4 * len(rest)  # a CRC-32C has 4 bytes
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
    folder = stored.inside_folder(path, SUFFIXES)
    return (folder.is_dir() and folder.suffix.lower() in SUFFIXES) or any((folder / mark).is_file() for mark in MARKS)


def open_zarr(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open a Zarr array, a group with one array, or level 0 of an OME-Zarr image; reads metadata only."""
    folder = stored.inside_folder(path, SUFFIXES)
    if not folder.is_dir():
        raise UserError("the Zarr is a file, not a folder", path, "unpack it")
    with stored.opening(path):
        try:
            node = zarr.open(store=_CheckedStore(folder.absolute(), read_only=True), mode="r")
        except FileNotFoundError as error:
            raise UserError("the folder is not a Zarr array or group", path, "check the path") from error
        array, stated = (node, header_from_above(folder)) if isinstance(node, zarr.Array) else _of_group(node, path)
        stored.check_multiset(path, array.attrs.asdict())
        header = _header(path, array, stated, options)
        if header.part_bytes > max(_LARGEST_CHUNK, 2 * array.nbytes):  # before memory is allocated for one
            what = f"the Zarr array states chunks of {array.chunks} for a shape of {array.shape}"
            raise UserError(what, path, "it is damaged")
    volume = ZarrVolume(path, array, header, options)
    volume.lacks_scale = stated is not None and not stated.scaled and volume.voxel_size is None
    return volume


def _header(path: str, array: zarr.Array[Any], stated: LevelHeader | None, user: stored.ReadOptions) -> stored.Header:
    """The metadata of the image that contains an array, or the array's own if there is none."""
    attributes = array.attrs.asdict()
    warn_of_packing(path, attributes)
    if stated is not None and (stated.axes is None or len(stated.axes) != array.ndim):
        stated = replace(stated, axes=None, voxel_size=None)
    names = getattr(array.metadata, "dimension_names", None)
    axes = (stated and stated.axes) or stated_axes(attributes, array.ndim, names)
    size = stated.voxel_size if stated else None
    if size is None and user.voxel_size is None:
        size = agreed_size(path, stated_sizes(attributes, axes or user.axes or "zyx"[-array.ndim :]))
    metadata = (stated and stated.metadata) or stored.load_metadata(attributes)
    part = math.prod(array.chunks) * array.dtype.itemsize
    return stored.Header(tuple(array.shape), np.dtype(array.dtype), axes, size, metadata, part_bytes=part)


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


class ZarrVolume(stored.StoredVolume):
    """A Zarr array; ``lacks_scale`` if its OME-Zarr image states no scale and the voxel size is unknown."""

    def __init__(self, path: str, array: zarr.Array[Any], header: stored.Header, options: stored.ReadOptions) -> None:
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
        array, there = self._array, 0
        grid = _parts(array.shape, array.chunks)
        with stored.reading(self.path):
            for path, place in _files(array, _parts(array.shape, array.shards or array.chunks)):
                if array.shards is None:
                    there += 1
                    continue
                per = _parts(array.shards, array.chunks)
                inside = tuple(slice(min(p, n - i * p)) for i, p, n in zip(place, per, grid, strict=True))
                index = _index(array, path, per)  # None: of an unknown kind, and taken for complete
                present = np.ones(per, bool) if index is None else (index != _EMPTY).any(-1)
                there += int(np.count_nonzero(present[inside]))
        count = math.prod(grid)
        what = f"{count - there} of {count} chunks are missing and would read as {array.fill_value}"
        return self._missing(max(0, count - there), what)

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        return np.asarray(self._array[index])


@dataclass(frozen=True)
class LevelHeader:
    """An image's metadata for the level at ``path``; ``scaled``: whether it states a scale, even without a unit."""

    path: str
    axes: str | None
    voxel_size: VoxelSize | None
    metadata: Mapping[str, Any]
    scaled: bool = True


def find_image(group: zarr.Group, path: str) -> zarr.Group | None:
    """The group itself if it is an image, else the only image in it; None if there is none."""
    if _multiscales(group) is not None:
        return group
    found = list(itertools.islice(_images_below(group, "", _DEPTH), _MANY))
    if len(found) > 1:
        names = ", ".join(f"{path}/{name}" for name, _ in found[: _MANY - 1])
        more = " and more" if len(found) == _MANY else ""
        raise UserError("the group holds several images", path, f"name one: {names}{more}")
    return found[0][1] if found else None


def _images_below(group: zarr.Group, prefix: str, depth: int) -> Iterator[tuple[str, zarr.Group]]:
    for name, child in sorted(group.groups()):
        if _multiscales(child) is not None:
            yield f"{prefix}{name}", child
        elif depth > 1:
            yield from _images_below(child, f"{prefix}{name}/", depth - 1)


def _multiscales(group: zarr.Group) -> Mapping[str, Any] | None:
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if isinstance(images, Sequence) and images and isinstance(images[0], Mapping):
        return images[0]
    return None


def level_header(group: zarr.Group, path: str | None = None) -> LevelHeader | None:
    """An image's metadata for its finest level, or the level at this path; None if there is no such level."""
    image = _multiscales(group)
    assert image is not None
    for level in image["datasets"]:
        if path is None or str(level["path"]).strip("/") == path:
            axes, size, scaled = _space(image, level)
            return LevelHeader(str(level["path"]), axes, size, stored.load_metadata(group.attrs.asdict()), scaled)
    return None


def find_levels(path: str) -> list[str]:
    """Paths of an OME-Zarr image's levels relative to its folder, finest first; empty if it is not an image."""
    folder = Path(path).absolute()
    if not any((folder / mark).is_file() for mark in MARKS):
        return []
    group = zarr.open(store=folder, mode="r")
    found = find_image(group, path) if isinstance(group, zarr.Group) else None
    image = None if found is None else _multiscales(found)
    if found is None or image is None:
        return []
    above = f"{found.path}/" if found.path else ""
    return [above + str(level["path"]).strip("/") for level in image["datasets"]]


def header_from_above(folder: Path) -> LevelHeader | None:
    """The metadata for an array in the image that contains its folder; None if no image lists it."""
    folder = folder.absolute()
    for parent in folder.parents:
        if not any((parent / mark).is_file() for mark in MARKS):
            return None
        group = zarr.open(store=parent, mode="r")
        if isinstance(group, zarr.Group) and _multiscales(group) is not None:
            return level_header(group, folder.relative_to(parent).as_posix())
    return None


def _space(image: Mapping[str, Any], level: Mapping[str, Any]) -> tuple[str | None, VoxelSize | None, bool]:
    """Axes and voxel size of a level: its own scale times that of all levels; and whether a scale is stated."""
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image.get("axes", ())]
    letters = "".join(str(axis.get("name", "?"))[:1].lower() for axis in axes) or None
    transforms = [*level.get(_TRANSFORMS, ()), *image.get(_TRANSFORMS, ())]
    scales = [np.asarray(t["scale"], float) for t in transforms if t.get("type") == "scale" and "scale" in t]
    if letters is None or not scales or not set("yx") <= set(letters):
        return letters, None, bool(scales)
    scale = np.prod(np.broadcast_arrays(*scales, np.ones(len(letters))), axis=0)
    places = [letters.find(a) for a in "zyx"]
    sizes, units = zip(*((scale[i], axes[i].get("unit", "")) if i >= 0 else (None, "") for i in places), strict=True)
    return letters, voxel_size_nm(sizes, units, flat="z" not in letters), True


def level_factors(shape: Sizes, voxel: VoxelSize = (1.0, 1.0, 1.0)) -> list[Sizes]:
    """Level-0 voxels per voxel of each level along z, y, x, down to the first with sides of at most 256 voxels."""
    found: list[Sizes] = [(1, 1, 1)]
    while max(sides := _parts(shape, found[-1])) > _SMALLEST_SIDE:
        steps = halved(sides, [size * factor for size, factor in zip(voxel, found[-1], strict=True)])
        z, y, x = (factor * step for factor, step in zip(found[-1], steps, strict=True))
        found.append((z, y, x))
    return found


def halved(shape: Coordinates, voxel: Sequence[float]) -> Sizes:
    """The factor of the next level along each axis, 1 or 2; axes of a single voxel are ignored.

    An axis is not halved while its voxel is longer than the shortest by more than a factor of the square root of two.

    >>> halved((100, 100, 100), (50, 5, 5)), halved((100, 100, 100), (50, 40, 40))
    ((1, 2, 2), (2, 2, 2))
    """
    shortest = min(size for size, n in zip(voxel, shape, strict=True) if n > 1)
    z, y, x = (2 if n > 1 and size <= math.sqrt(2) * shortest else 1 for size, n in zip(voxel, shape, strict=True))
    return z, y, x


def holds_labels(dtype: np.dtype[Any], metadata: Mapping[str, Any]) -> bool:
    """Whether voxels are labels, which cannot be averaged: masks, instances, and long integers of unknown kind."""
    kind = metadata.get("kind")
    return kind in ("mask", "instances") or (kind is None and dtype.kind in "iu" and dtype.itemsize > 2)


def coarser(image_zyx: Array, steps: Sizes, *, labels: bool) -> Array:
    """Downsample by ``steps`` of 1 or 2 along each axis, from a box that starts at the edge of a coarser voxel.

    For ``labels`` the most frequent value is taken (ties: foreground, then the first), otherwise the mean, rounded for
    integers. At an odd end the last voxel counts twice, which is equivalent to leaving out the missing one.
    """
    margin = [(0, n % step) for n, step in zip(image_zyx.shape, steps, strict=True)]
    filled = np.pad(image_zyx, margin, mode="edge") if any(b for _, b in margin) else image_zyx
    starts = itertools.product(*(range(step) for step in steps))
    parts = [filled[tuple(slice(a, None, step) for a, step in zip(at, steps, strict=True))] for at in starts]
    if not labels:
        dtype = parts[0].dtype
        wide = np.float64 if dtype.itemsize > 2 and dtype != np.float32 else np.float32
        total: npt.NDArray[np.floating] = parts[0].astype(wide)
        for part in parts[1:]:
            total += part
        total /= len(parts)
        if dtype.kind in "iu":
            np.floor(total + 0.5, out=total)
        return total.astype(dtype)
    best, most = parts[0], np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = np.zeros(part.shape, np.uint8)
        for other in parts:
            count += part == other
        count = 2 * count + (part != 0)
        best, most = np.where(count > most, part, best), np.maximum(count, most)
    return best


def is_one_image(folder: Path) -> bool:
    """Whether a folder contains only an OME-Zarr image: no labels, nothing besides its levels."""
    try:
        data = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        (image,) = data["attributes"]["ome"]["multiscales"]
        paths = {str(level["path"]) for level in image["datasets"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {path.name for path in folder.iterdir()} <= {*paths, "zarr.json"}


def chunk_shape(shape: Coordinates, dtype: np.dtype[Any]) -> Sizes:
    """Chunk shape (z, y, x): 128 cubed for one or two bytes per voxel, else 64 cubed; at most the volume's shape."""
    z, y, x = (min(128 if dtype.itemsize <= 2 else 64, n) for n in shape)
    return z, y, x


class OmeZarrOutput(stored.Output):
    """An image being written; `finish` adds the coarser levels."""

    def __init__(self, path: Path, info: VolumeInfo, chunks: Sizes | None = None) -> None:
        self._info, self._chunks = info, chunks
        # without a voxel size the scales count voxels and have no unit
        unit, voxel = {"unit": "nanometer"} if info.voxel_size else {}, info.voxel_size or (1.0, 1.0, 1.0)
        self._factors, self._labels = level_factors(info.shape, voxel), holds_labels(info.dtype, info.metadata)
        datasets = []
        for number, factors in enumerate(self._factors):
            scale = [size * factor for size, factor in zip(voxel, factors, strict=True)]
            shift = [size * (factor - 1) / 2 for size, factor in zip(voxel, factors, strict=True)]
            moves = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
            datasets.append({"path": str(number), _TRANSFORMS: moves})
        image = {
            "name": Path(info.path).name[: -len(_OME)] or path.name,
            "axes": [{"name": a, "type": "space", **unit} for a in "zyx"],
            "datasets": datasets,
            "type": "mode" if self._labels else "mean",
        }
        about = {"ome": {"version": "0.5", "multiscales": [image]}, "mitoseg": dict(info.metadata)}
        self._group = zarr.create_group(store=path, zarr_format=3, attributes=about)
        self._finest = self._create(0)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box of the finest level."""
        self._finest[box.slices] = image_zyx

    def finish(self) -> None:
        """Make each coarser level from the previous one."""
        finer = self._finest
        for number, (before, after) in enumerate(itertools.pairwise(self._factors), 1):
            z, y, x = steps = tuple(b // a for a, b in zip(before, after, strict=True))
            array = self._create(number)
            for box in tiles(Box.of_shape(array.shape), array.chunks):
                pairs = zip(box.start, box.stop, steps, finer.shape, strict=True)
                part = tuple(slice(a * step, min(b * step, n)) for a, b, step, n in pairs)
                array[box.slices] = coarser(np.asarray(finer[part]), (z, y, x), labels=self._labels)
            finer = array

    def _create(self, number: int) -> zarr.Array[Any]:
        shape, dtype = _parts(self._info.shape, self._factors[number]), self._info.dtype
        chunks = tuple(map(min, self._chunks or chunk_shape(shape, dtype), shape))
        return self._group.create_array(str(number), shape=shape, dtype=dtype, chunks=chunks, **STORED)


def block_shape(info: VolumeInfo, tile: Sizes) -> Sizes:
    """Shape (z, y, x) of the blocks to write: whole chunks, and as much of a tile as fits into 128 MiB."""
    chunks = chunk_shape(info.shape, info.dtype)
    block = list(chunks)
    for axis in (2, 1, 0):
        room = _BLOCK_BYTES // (math.prod(block) * info.dtype.itemsize)
        wanted = -(-min(tile[axis], info.shape[axis]) // chunks[axis])
        block[axis] *= max(1, min(room, wanted))
    return block[0], block[1], block[2]


FORMAT = stored.Format(
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
    suffixes=(_OME,),
    create=lambda path, info, _, chunks: OmeZarrOutput(path, info, chunks),
    block=block_shape,
)
