"""TIFF stacks that Fiji opens with their voxel size.

< 4 GB   ImageJ's TIFF: unit, spacing and resolution, mitoseg's metadata in Info
else     BigTIFF with OME-XML, which Fiji opens through Bio-Formats: PhysicalSize, and an annotation
"""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.stored import dump_metadata

CLASSIC_BYTES = 2**32 - 2**25
"""The largest stack in a classic TIFF, with room for the headers of its pages."""


DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


class TiffOutput:
    """An uncompressed TIFF in one piece, written at the boxes' places.

    Not through a memory map: a full disk would kill the process instead of raising an error.
    """

    def __init__(self, path: Path, info: VolumeInfo) -> None:
        if info.dtype not in DTYPES:
            remedy = f"choose {', '.join(DTYPES)}, or a name that ends in .h5 or .zarr"
            raise UserError(f"a TIFF of {info.dtype} would not open in Fiji", info.path, remedy)
        self._shape, self._dtype = info.shape, info.dtype.newbyteorder("<")
        size = math.prod(info.shape) * info.dtype.itemsize
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed", str(path))
        self._offset = _write_empty(path, info, big=size > CLASSIC_BYTES)
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
                _write_all(self._file, memoryview(run).cast("B"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _write_all(file: Any, data: memoryview) -> None:  # noqa: ANN401 (io.FileIO or what a test puts there)
    """Write all of ``data``; an unbuffered file may take less at a time."""
    while data:
        data = data[file.write(data) :]


def _write_empty(path: Path, info: VolumeInfo, *, big: bool) -> int:
    """Write the headers of a TIFF whose voxels are zero; returns where they start."""
    shape, text = info.shape, dump_metadata(info.metadata)
    options: dict[str, Any] = {"shape": shape, "dtype": info.dtype, "photometric": "minisblack", "returnoffset": True}
    if big:
        names = {f"PhysicalSize{a}": size for a, size in zip("ZYX", info.voxel_size or (), strict=False)}
        units = {f"{name}Unit": "nm" for name in names}
        options["metadata"] = {"axes": "ZYX", **names, **units, "MapAnnotation": {"mitoseg": text}}
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
