"""Voxels that lie in one piece in a file: mapped into memory for each read, if need be from an unpacked copy."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array
from mitoseg.volumes.stored import Header, StoredVolume

_PART = 2**24


class MappedVolume(StoredVolume):
    """A file of plain voxels.

    Args:
        path: As the user wrote it.
        header: What the file says; its dtype has the file's byte order.
        offset: Where the voxels start, in bytes.
        kind: What the file is called in messages, such as "TIFF".
        axes: What the user says of the axes, or None.
        voxel_size: What the user says, (z, y, x) in nm.

    Raises:
        UserError: As `StoredVolume`, or the file ends before its voxels do.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        offset: int,
        kind: str,
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._file = os.path.abspath(path)
        self._dtype, self._stored_shape, self._offset = header.dtype, header.shape, offset
        needed, size = offset + math.prod(header.shape) * header.dtype.itemsize, os.path.getsize(path)
        if needed > size:
            what = f"the {kind} is cut short, {size} of {needed} bytes are there"
            raise UserError(what, path, "copy it again")

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        mapped = np.memmap(self._file, self._dtype, "r", self._offset, self._stored_shape)
        return np.array(mapped[index])


class PackedVolume(StoredVolume):
    """Plain voxels behind gzip or bzip2, whose middle cannot be reached: the first read unpacks them.

    They go into a temporary file (``TMPDIR`` says where), which needs the room of all voxels and is gone with the
    volume; every process has its own.

    Args:
        path: As the user wrote it.
        header: What the file says; its dtype has the file's byte order.
        file: The file that holds the voxels.
        start: Bytes of that file before the packed ones.
        offset: Bytes before the voxels once they are unpacked.
        packing: ``gzip`` or ``bzip2``.
        axes: What the user says of the axes, or None.
        voxel_size: What the user says, (z, y, x) in nm.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        file: str,
        *,
        start: int = 0,
        offset: int = 0,
        packing: str = "gzip",
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._file, self._start, self._offset, self._packing = os.path.abspath(file), start, offset, packing
        self._dtype, self._stored_shape = header.dtype, header.shape
        self._unpacked: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpacked": None}

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        if self._unpacked is None or self._unpacked[0] != os.getpid():
            unpacked = tempfile.TemporaryFile(prefix="mitoseg.")  # noqa: SIM115 (it lives as long as the volume)
            weakref.finalize(self, unpacked.close)
            self._unpack(unpacked)
            self._unpacked = (os.getpid(), unpacked)
        mapped = np.memmap(self._unpacked[1], self._dtype, "r", 0, self._stored_shape)
        return np.array(mapped[index])

    def _unpack(self, unpacked: IO[bytes]) -> None:
        """Write the voxels alone."""
        missing = math.prod(self._stored_shape) * self._dtype.itemsize
        with open(self._file, "rb") as raw:
            raw.seek(self._start)
            packed = gzip.GzipFile(fileobj=raw) if self._packing == "gzip" else bz2.BZ2File(raw)
            packed.read(self._offset)
            while missing:
                part = packed.read(min(missing, _PART))
                if not part:
                    raise UserError(f"the file is cut short, {missing} bytes are missing", self.path, "copy it again")
                try:
                    unpacked.write(part)
                    unpacked.flush()
                except OSError as error:
                    remedy = "free some room, set TMPDIR to a folder with more, or unpack the file first"
                    raise UserError("there is no room to unpack the file", tempfile.gettempdir(), remedy) from error
                missing -= len(part)
            packed.read(1)  # the checksum is looked at where the stream ends
