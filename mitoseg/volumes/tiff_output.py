"""TIFF stacks that Fiji opens with their voxel size.

< 4 GB   ImageJ's TIFF: unit, spacing and resolution, mitoseg's metadata in Info
else     BigTIFF with OME-XML, which Fiji opens through Bio-Formats: PhysicalSize, and an annotation
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes.base import VolumeInfo
from mitoseg.volumes.flat_output import FlatOutput, check_room
from mitoseg.volumes.stored import dump_metadata

CLASSIC_BYTES = 2**32 - 2**25
"""The largest stack in a classic TIFF, with room for the headers of its pages."""

DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def check_tiff_dtype(path: str, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that Fiji would not open.

    Raises:
        UserError: It would not.
    """
    if dtype not in DTYPES:
        remedy = f"choose {', '.join(DTYPES)}, or a name that ends in .h5 or .zarr"
        raise UserError(f"a TIFF of {dtype} would not open in Fiji", path, remedy)


class TiffOutput(FlatOutput):
    """An uncompressed TIFF in one piece, written at the boxes' places."""

    def __init__(self, path: Path, info: VolumeInfo) -> None:
        check_tiff_dtype(info.path, info.dtype)
        dtype = info.dtype.newbyteorder("<")
        offset = _write_empty(path, info, big=check_room(path, info, dtype) > CLASSIC_BYTES)
        super().__init__(path, info.shape, dtype, offset)


def _write_empty(path: Path, info: VolumeInfo, *, big: bool) -> int:
    """Write the headers of a TIFF whose voxels are zero; returns where they start."""
    shape, text = info.shape, dump_metadata(info.metadata)
    options: dict[str, Any] = {"shape": shape, "dtype": info.dtype, "photometric": "minisblack", "returnoffset": True}
    if big:
        names = {f"PhysicalSize{a}": size for a, size in zip("ZYX", info.voxel_size or (), strict=False)}
        units = {f"{name}Unit": "nm" for name in names}
        named = str(
            uuid5(NAMESPACE_URL, f"{shape} {info.dtype} {info.voxel_size} {text}")
        )  # random, were it not given
        options["metadata"] = {"axes": "ZYX", **names, **units, "UUID": named, "MapAnnotation": {"mitoseg": text}}
    else:
        options |= {"metadata": None, "description": _imagej_description(info), "resolutionunit": "NONE"}
        options["extratags"] = tifffile.imagej_metadata_tag({"Info": text}, "<")
        if info.voxel_size:
            options["resolution"] = (1 / info.voxel_size[2], 1 / info.voxel_size[1])
    with tifffile.TiffWriter(path, bigtiff=big, ome=big, byteorder="<") as tif:
        place = tif.write(None, **options)
    assert place is not None
    return int(place[0])


def _imagej_description(info: VolumeInfo) -> str:
    """The text by which ImageJ knows a stack; tifffile's own would refuse 32-bit integers, which ImageJ reads."""
    depth = info.shape[0]
    lines = ["ImageJ=1.54f", f"images={depth}", f"slices={depth}", "hyperstack=true", "mode=grayscale"]
    if info.voxel_size:
        lines += ["unit=nm", f"spacing={info.voxel_size[0]!r}"]
    kind = info.metadata.get("kind")
    if kind in ("mask", "probability"):  # ImageJ would show a mask of 0 and 1 as black
        lines += ["min=0.0", f"max={float(info.metadata.get('scale') or 1) if kind == 'probability' else 1.0}"]
    return "\n".join([*lines, "loop=false", ""])
