"""OME-Zarr images: locating them in a group, describing their levels, and writing them with coarser levels.

image.ome.zarr          multiscales             level 0
image.ome.zarr/1        an array                level 1, with the axes and scale stated by the parent group
slide.zarr              bioformats2raw.layout   its only image, slide.zarr/0
plate.zarr              plate                   its only image, plate.zarr/A/1/0

The first voxel of level 1 covers voxels 0 and 1 of level 0, so its centre is half a level-0 voxel further: every level
has a scale and a translation, ``translation = (factor - 1) / 2 * voxel``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes.axes import voxel_size_nm
from mitoseg.volumes.base import Array, VolumeInfo, VoxelSize
from mitoseg.volumes.stored import Output, load_metadata

MARKS = ("zarr.json", ".zarray", ".zgroup")
SUFFIX = ".ome.zarr"
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
_SMALLEST_SIDE = 256  # no coarser level is made of one with no longer sides
_LABEL_KINDS = ("mask", "instances")
_VERSION, _TRANSFORMS = "0.5", "coordinateTransformations"
_BLOCK_BYTES = 2**27


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
            axes, size = _space(image, level)
            metadata = load_metadata(group.attrs.asdict())
            return LevelHeader(str(level["path"]), axes, size, metadata, bool(_scales(image, level)))
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


def _space(image: Mapping[str, Any], level: Mapping[str, Any]) -> tuple[str | None, VoxelSize | None]:
    """Axes and voxel size of a level: its own scale times that of all levels."""
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image.get("axes", ())]
    letters = "".join(str(axis.get("name", "?"))[:1].lower() for axis in axes) or None
    scales = _scales(image, level)
    if letters is None or not scales or not set("yx") <= set(letters):
        return letters, None
    scale = np.prod(np.broadcast_arrays(*scales, np.ones(len(letters))), axis=0)
    places = [letters.find(a) for a in "zyx"]
    sizes, units = zip(*((scale[i], axes[i].get("unit", "")) if i >= 0 else (None, "") for i in places), strict=True)
    return letters, voxel_size_nm(sizes, units, flat="z" not in letters)


def _scales(image: Mapping[str, Any], level: Mapping[str, Any]) -> list[npt.NDArray[np.float64]]:
    """The scales of a level and of the whole image, as far as they are stated."""
    transforms = [*level.get(_TRANSFORMS, ()), *image.get(_TRANSFORMS, ())]
    return [np.asarray(t["scale"], float) for t in transforms if t.get("type") == "scale" and "scale" in t]


@dataclass(frozen=True)
class Level:
    """One level of a pyramid: its shape (z, y, x), and its factor (level-0 voxels per voxel) along each axis."""

    shape: Sizes
    factors: Sizes = (1, 1, 1)

    def scale(self, voxel: VoxelSize) -> VoxelSize:
        """Its voxel size, from that of level 0."""
        z, y, x = (size * factor for size, factor in zip(voxel, self.factors, strict=True))
        return z, y, x

    def transforms(self, voxel: VoxelSize) -> list[dict[str, Any]]:
        """Its OME-Zarr transformations: scale, and translation between the centres of the first voxels."""
        shift = [size * (factor - 1) / 2 for size, factor in zip(voxel, self.factors, strict=True)]
        return [{"type": "scale", "scale": list(self.scale(voxel))}, {"type": "translation", "translation": shift}]


def levels(shape: Sizes, voxel: VoxelSize = (1.0, 1.0, 1.0)) -> list[Level]:
    """The levels of a volume, from the finest down to the first with sides of at most 256 voxels."""
    found = [Level(shape)]
    while max(found[-1].shape) > _SMALLEST_SIDE:
        last = found[-1]
        steps = halved(last.shape, last.scale(voxel))
        z, y, x = (-(-n // step) for n, step in zip(last.shape, steps, strict=True))
        by_z, by_y, by_x = (factor * step for factor, step in zip(last.factors, steps, strict=True))
        found.append(Level((z, y, x), (by_z, by_y, by_x)))
    return found


def halved(shape: Sizes, voxel: VoxelSize) -> Sizes:
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
    return kind in _LABEL_KINDS or (kind is None and dtype.kind in "iu" and dtype.itemsize > 2)


def coarser(image_zyx: Array, steps: Sizes, *, labels: bool) -> Array:
    """Downsample by ``steps`` of 1 or 2 along each axis, from a box that starts at the edge of a coarser voxel.

    For ``labels`` the most frequent value is taken (ties: foreground, then the first), otherwise the mean, rounded for
    integers. At an odd end the last voxel counts twice, which is equivalent to leaving out the missing one.
    """
    margin = [(0, n % step) for n, step in zip(image_zyx.shape, steps, strict=True)]
    filled = np.pad(image_zyx, margin, mode="edge") if any(b for _, b in margin) else image_zyx
    starts = itertools.product(*(range(step) for step in steps))
    parts = [filled[tuple(slice(a, None, step) for a, step in zip(at, steps, strict=True))] for at in starts]
    return _majority(parts) if labels else _mean(parts)


def _mean(parts: list[Array]) -> Array:
    dtype = parts[0].dtype
    wide = np.float64 if dtype.itemsize > 2 and dtype != np.float32 else np.float32
    total: npt.NDArray[np.floating] = parts[0].astype(wide)
    for part in parts[1:]:
        total += part
    total /= len(parts)
    if dtype.kind in "iu":
        np.floor(total + 0.5, out=total)
    return total.astype(dtype)


def _majority(parts: list[Array]) -> Array:
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


def chunk_shape(shape: Sizes, dtype: np.dtype[Any]) -> Sizes:
    """Chunk shape (z, y, x): 128 cubed for one or two bytes per voxel, else 64 cubed; at most the volume's shape."""
    z, y, x = (min(128 if dtype.itemsize <= 2 else 64, n) for n in shape)
    return z, y, x


class OmeZarrOutput(Output):
    """An image being written; `finish` adds the coarser levels."""

    def __init__(self, path: Path, info: VolumeInfo, chunks: Sizes | None = None) -> None:
        self._info = info
        self._levels = levels(info.shape, info.voxel_size or (1.0, 1.0, 1.0))
        self._labels = holds_labels(info.dtype, info.metadata)
        self._chunks = chunks
        self._group = zarr.create_group(store=path, zarr_format=3, attributes=self._attributes(path))
        self._finest = self._create(0)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box of the finest level."""
        self._finest[box.slices] = image_zyx

    def finish(self) -> None:
        """Make each coarser level from the previous one."""
        finer = self._finest
        for number, (before, after) in enumerate(itertools.pairwise(self._levels), 1):
            z, y, x = steps = tuple(b // a for a, b in zip(before.factors, after.factors, strict=True))
            array = self._create(number)
            for box in tiles(Box.of_shape(after.shape), array.chunks):
                pairs = zip(box.start, box.stop, steps, before.shape, strict=True)
                part = tuple(slice(a * step, min(b * step, n)) for a, b, step, n in pairs)
                array[box.slices] = coarser(np.asarray(finer[part]), (z, y, x), labels=self._labels)
            finer = array

    def _create(self, number: int) -> zarr.Array[Any]:
        shape, dtype = self._levels[number].shape, self._info.dtype
        sides = zip(self._chunks or chunk_shape(shape, dtype), shape, strict=True)
        chunks = tuple(min(c, n) for c, n in sides)
        return self._group.create_array(str(number), shape=shape, dtype=dtype, chunks=chunks, **STORED)

    def _attributes(self, path: Path) -> dict[str, Any]:
        """The group's attributes; without a voxel size, scales are in voxels and have no unit."""
        unit, voxel = {"unit": "nanometer"} if self._info.voxel_size else {}, self._info.voxel_size or (1.0, 1.0, 1.0)
        datasets = ({"path": str(i), _TRANSFORMS: level.transforms(voxel)} for i, level in enumerate(self._levels))
        image = {
            "name": Path(self._info.path).name[: -len(SUFFIX)] or path.name,
            "axes": [{"name": a, "type": "space", **unit} for a in "zyx"],
            "datasets": list(datasets),
            "type": "mode" if self._labels else "mean",
        }
        return {"ome": {"version": _VERSION, "multiscales": [image]}, "mitoseg": dict(self._info.metadata)}


def block_shape(info: VolumeInfo, tile: Sizes) -> Sizes:
    """Shape (z, y, x) of the blocks to write: whole chunks, and as much of a tile as fits into 128 MiB."""
    chunks = chunk_shape(info.shape, info.dtype)
    block = list(chunks)
    for axis in (2, 1, 0):
        room = _BLOCK_BYTES // (math.prod(block) * info.dtype.itemsize)
        wanted = -(-min(tile[axis], info.shape[axis]) // chunks[axis])
        block[axis] *= max(1, min(room, wanted))
    return block[0], block[1], block[2]
