"""Chunked, compressed HDF5 datasets."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.reading import CACHE_BYTES, opening
from mitoseg.volumes.stored import dump_metadata

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CHUNK = (16, 256, 256)
"""Voxels of a chunk (z, y, x): 1 MiB of uint8, 4 MiB of float32."""


def check_only_dataset(file: Path, dataset: str) -> None:
    """Refuse to replace a file that holds more than the dataset to write.

    Raises:
        UserError: It does, or it cannot be read.
    """
    others: list[str] = []
    with opening(str(file)), h5py.File(file, "r") as h5:
        h5.visititems(lambda name, item: others.append(name) if isinstance(item, h5py.Dataset) else None)
    others = [name for name in others if name != dataset]
    if others:
        what = f"the output holds other datasets ({', '.join(others[:4])}) that overwriting would remove"
        raise UserError(what, str(file), "choose another file")


class _Sink(io.FileIO):
    """A file that keeps its first error to itself: HDF5 would crash the process at its end if it saw one."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``, or pretend to."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view and self.error is None:
                view = view[super().write(view) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length, or pretend to."""
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        """Raise the first error."""
        if self.error is not None:
            raise self.error


class Hdf5Output:
    """A dataset with gzip compression and its metadata as attributes."""

    def __init__(self, path: Path, dataset: str, info: VolumeInfo) -> None:
        self._sink = _Sink(path, "w+")
        self._h5 = h5py.File(self._sink, "w", rdcc_nbytes=CACHE_BYTES, rdcc_nslots=10007)
        try:
            chunks = tuple(min(c, n) for c, n in zip(CHUNK, info.shape, strict=True))
            self._dataset = self._h5.create_dataset(
                dataset, info.shape, info.dtype, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True
            )
            attributes = self._dataset.attrs
            attributes["axes"], attributes["mitoseg"] = "zyx", dump_metadata(info.metadata)
            if info.voxel_size:
                attributes["voxel_size_nm"] = np.asarray(info.voxel_size, float)
                attributes["element_size_um"] = np.asarray(info.voxel_size, float) / 1000  # Fiji and ilastik read this
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box."""
        self._dataset[box.slices] = image_zyx
        self._sink.check()

    def close(self) -> None:
        """Write what is cached and close the file."""
        self._h5.close()
        self._sink.close()
        self._sink.check()
