"""OME-Zarr 0.5 images (Zarr format 3) with all levels of a pyramid, as viewers want them.

out.ome.zarr/
    zarr.json     axes, voxel size and place of every level; mitoseg's metadata
    0/            the volume, in chunks of about a MiB or two
    1/ 2/ ...     each made of the level before, chunk by chunk, when the volume is whole
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from mitoseg.geometry import Box, tiles
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.pyramid import Level, coarser, holds_labels, levels
from mitoseg.volumes.zarr_output import CONFIG

SUFFIX = ".ome.zarr"
VERSION = "0.5"
_BLOCK_BYTES = 2**27


def is_ome(path: Path | str) -> bool:
    """Whether an output's name asks for an OME-Zarr image.

    >>> is_ome("a.OME.zarr"), is_ome("a.zarr")
    (True, False)
    """
    return Path(path).name.lower().endswith(SUFFIX)


def is_one_image(folder: Path) -> bool:
    """Whether a folder is an OME-Zarr image and nothing else: no labels, nothing beside its levels."""
    try:
        data = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        (image,) = data["attributes"]["ome"]["multiscales"]
        paths = {str(level["path"]) for level in image["datasets"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return {path.name for path in folder.iterdir()} <= {*paths, "zarr.json"}


def chunk_shape(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """(z, y, x) voxels of a chunk: 128 cubed for one or two bytes a voxel, else 64 cubed; never above the shape."""
    side = 128 if dtype.itemsize <= 2 else 64
    z, y, x = (min(side, n) for n in shape)
    return z, y, x


class OmeZarrOutput:
    """An image being written; `finish` makes its coarser levels.

    Args:
        path: A folder that does not exist.
        info: What is written.
        chunks: (z, y, x) voxels of a chunk.
    """

    def __init__(self, path: Path, info: VolumeInfo, chunks: tuple[int, int, int] | None = None) -> None:
        self._info = info
        self._levels = levels(info.shape, info.voxel_size or (1.0, 1.0, 1.0))
        self._labels = holds_labels(info.dtype, info.metadata)
        self._chunks = chunks
        self._group = zarr.create_group(store=path, zarr_format=3, attributes=self._attributes(path))
        self._finest = self._create(0)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box of the finest level; quick where it covers whole chunks."""
        self._finest[box.slices] = image_zyx

    def finish(self) -> None:
        """Make the coarser levels, each from the one before."""
        finer = self._finest
        for number in range(1, len(self._levels)):
            before, after = self._levels[number - 1], self._levels[number]
            steps = tuple(b // a for a, b in zip(before.factors, after.factors, strict=True))
            array = self._create(number)
            for box in tiles(Box.of_shape(after.shape), array.chunks):
                pairs = zip(box.start, box.stop, steps, before.shape, strict=True)
                part = tuple(slice(a * step, min(b * step, n)) for a, b, step, n in pairs)
                image_zyx = np.asarray(finer[part])
                array[box.slices] = coarser(image_zyx, (steps[0], steps[1], steps[2]), labels=self._labels)
            finer = array

    def close(self) -> None:
        """Nothing is held back."""

    def _create(self, number: int) -> zarr.Array[Any]:
        shape = self._levels[number].shape
        chunks = self._chunks or chunk_shape(shape, self._info.dtype)
        return self._group.create_array(
            str(number),
            shape=shape,
            dtype=self._info.dtype,
            chunks=tuple(min(c, n) for c, n in zip(chunks, shape, strict=True)),
            compressors=ZstdCodec(level=1, checksum=True),
            fill_value=0,
            dimension_names=("z", "y", "x"),
            config=CONFIG,
        )

    def _attributes(self, path: Path) -> dict[str, Any]:
        """The group's attributes; without a voxel size the scales count voxels and have no unit."""
        unit = {"unit": "nanometer"} if self._info.voxel_size else {}
        image = {
            "name": Path(self._info.path).name[: -len(SUFFIX)] or path.name,
            "axes": [{"name": a, "type": "space", **unit} for a in "zyx"],
            "datasets": [self._dataset(i, level) for i, level in enumerate(self._levels)],
            "type": "mode" if self._labels else "mean",
        }
        return {"ome": {"version": VERSION, "multiscales": [image]}, "mitoseg": dict(self._info.metadata)}

    def _dataset(self, number: int, level: Level) -> dict[str, Any]:
        voxel = self._info.voxel_size or (1.0, 1.0, 1.0)
        transforms = [
            {"type": "scale", "scale": list(level.scale(voxel))},
            {"type": "translation", "translation": list(level.translation(voxel))},
        ]
        return {"path": str(number), "coordinateTransformations": transforms}


def block_shape(info: VolumeInfo, tile: tuple[int, int, int]) -> tuple[int, int, int]:
    """(z, y, x) voxels to hand over at once: whole chunks, and as much of a tile as 128 MiB hold."""
    chunks = chunk_shape(info.shape, info.dtype)
    block = list(chunks)
    for axis in (2, 1, 0):
        room = _BLOCK_BYTES // (math.prod(block) * info.dtype.itemsize)
        wanted = -(-min(tile[axis], info.shape[axis]) // chunks[axis])
        block[axis] *= max(1, min(room, wanted))
    return block[0], block[1], block[2]
