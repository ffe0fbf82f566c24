"""Writing voxels in one piece, not compressed, into a file that has its final size from the start.

Not through a memory map: a full disk would kill the process instead of raising an error.
"""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, VolumeInfo


def check_room(path: Path, info: VolumeInfo, dtype: np.dtype[Any]) -> int:
    """The bytes of a volume's voxels.

    Args:
        path: The file to be written.
        info: What is written.
        dtype: As stored.

    Raises:
        OSError: The disk has no room for them.
    """
    size = math.prod(info.shape) * dtype.itemsize
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed", str(path))
    return size


class FlatOutput:
    """Writes boxes at their places in a file that exists with its final size.

    Args:
        path: The file.
        shape: (z, y, x).
        dtype: As stored, with the file's byte order.
        offset: Where the voxels start, in bytes.
    """

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
                _write_all(self._file, memoryview(run).cast("B"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _write_all(file: Any, data: memoryview) -> None:  # noqa: ANN401 (io.FileIO or what a test puts there)
    """Write all of ``data``; an unbuffered file may take less at a time."""
    while data:
        data = data[file.write(data) :]
