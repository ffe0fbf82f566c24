"""MRC files, as IMOD and electron microscopes write them.

Rows keep the order in which they are stored; IMOD and Fiji show the first one at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array
from mitoseg.volumes.mapped import MappedVolume
from mitoseg.volumes.mrc_header import MrcHeader
from mitoseg.volumes.reading import opening
from mitoseg.volumes.stored import Header, StoredVolume, load_metadata

SUFFIXES = (".mrc", ".mrcs", ".rec", ".map", ".st", ".ali")
_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


def is_mrc(path: str) -> bool:
    """Whether a name ends like an MRC file's, also a compressed one's, which is then refused.

    >>> is_mrc("a.MRC"), is_mrc("a.rec.gz"), is_mrc("a.gz")
    (True, True, False)
    """
    name = Path(path.lower())
    return (name.with_suffix("") if name.suffix in _PACKED_SUFFIXES else name).suffix in SUFFIXES


def open_mrc(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open an MRC file; reads its header only.

    Raises:
        UserError: No such file, no MRC, complex or packed voxels, several volumes, a file that is cut short.
    """
    if not Path(path).is_file():
        raise UserError("no such file", path, "check the path")
    with opening(path), open(path, "rb") as file:
        found = MrcHeader(path, file)
        size = found.voxel_size if voxel_size is None else None
        stored, meant, flipped, limit = found.voxels
        header = Header(found.shape, stored, found.axes(axes), size, load_metadata(found.note), flipped)
    if limit is None:
        return MappedVolume(path, header, found.offset, "MRC", axes=axes, voxel_size=voxel_size)
    return LimitedMrc(path, header, found.offset, meant or stored, limit, axes=axes, voxel_size=voxel_size)


class LimitedMrc(MappedVolume):
    """An MRC whose voxels have to stay below a limit to be what the file says they are; checked as they are read.

    Bytes that mitoseg stored as 16 bits, and bytes from 0 to 127, to which a sign makes no difference.
    """

    def __init__(
        self,
        path: str,
        header: Header,
        offset: int,
        dtype: np.dtype[Any],
        limit: int,
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, offset, "MRC", axes=axes, voxel_size=voxel_size)
        self.info = replace(self.info, dtype=dtype)
        self._limit = limit

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        stored = super()._read_stored(index)
        if stored.max() > self._limit:
            what = f"by its header the MRC's voxels are at most {self._limit}, but some are {stored.max()}"
            raise UserError(what, self.path, "the header is out of date: save it with IMOD's newstack, or as 16 bits")
        return stored
