"""Chunked Zarr arrays, format 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zarr

from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.hdf5_output import CHUNK


def is_array(folder: Path) -> bool:
    """Whether a folder is one Zarr array, not a group that may hold several."""
    try:
        return bool(json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["node_type"] == "array")
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / ".zarray").is_file()


class ZarrOutput:
    """A Zarr array whose metadata are its attributes."""

    def __init__(self, path: Path, info: VolumeInfo) -> None:
        attributes: dict[str, Any] = {"mitoseg": dict(info.metadata)}
        if info.voxel_size:
            attributes["voxel_size_nm"] = list(info.voxel_size)
        self._array = zarr.create_array(
            store=path,
            shape=info.shape,
            dtype=info.dtype,
            chunks=tuple(min(c, n) for c, n in zip(CHUNK, info.shape, strict=True)),
            fill_value=0,
            zarr_format=3,
            dimension_names=("z", "y", "x"),
            attributes=attributes,
        )

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box."""
        self._array[box.slices] = image_zyx

    def close(self) -> None:
        """Nothing is held back."""
