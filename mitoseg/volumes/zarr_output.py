"""Chunked Zarr arrays, format 3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import zarr
from zarr.codecs import ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from mitoseg.geometry import Box
from mitoseg.storage import remove
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.hdf5_output import CHUNK
from mitoseg.volumes.reading import opening

CONFIG: ArrayConfigParams = {"write_empty_chunks": True}
"""Every chunk is written, also one of zeros, so that a missing one is known for missing."""


def remove_partial(array: Path) -> None:
    """Remove chunks of an array that were half written when their process was killed; nobody may write now."""
    for partial in array.rglob("*.partial"):  # zarr writes a chunk under such a name first
        remove(partial)


def is_array(folder: Path) -> bool:
    """Whether a folder is one Zarr array, not a group that may hold several."""
    try:
        return bool(json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["node_type"] == "array")
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / ".zarray").is_file()


class ZarrOutput:
    """A Zarr array whose metadata are its attributes.

    Every chunk is written, also one of zeros, so that a missing one is known for missing; and each has a checksum.

    Args:
        path: A folder that does not exist.
        info: What is written.
        chunks: (z, y, x) voxels of a chunk.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, info: VolumeInfo, chunks: tuple[int, int, int] | None = None) -> None:
        self.path = path
        attributes: dict[str, Any] = {"mitoseg": dict(info.metadata)}
        if info.voxel_size:
            attributes["voxel_size_nm"] = list(info.voxel_size)
        self._array = zarr.create_array(
            store=path,
            shape=info.shape,
            dtype=info.dtype,
            chunks=tuple(min(c, n) for c, n in zip(chunks or CHUNK, info.shape, strict=True)),
            compressors=ZstdCodec(level=1, checksum=True),
            fill_value=0,
            zarr_format=3,
            dimension_names=("z", "y", "x"),
            attributes=attributes,
            config=CONFIG,
        )

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Go on writing an array, perhaps as one of several processes.

        Raises:
            UserError: It cannot be opened.
        """
        output = cls.__new__(cls)
        output.path = path
        with opening(str(path)):
            output._array = zarr.open_array(store=path, mode="r+").with_config(CONFIG)  # config= is ignored with r+
        return output

    @property
    def chunks(self) -> tuple[int, ...]:
        """(z, y, x) voxels of a chunk."""
        return tuple(self._array.chunks)

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box."""
        self._array[box.slices] = image_zyx

    def describe(self, metadata: Mapping[str, Any]) -> None:
        """Say something else of the array."""
        self._array.attrs["mitoseg"] = dict(metadata)

    def close(self) -> None:
        """Nothing is held back."""
