"""MRC files, as IMOD and electron microscopes write them.

Rows keep the order in which they are stored; IMOD and Fiji show the first one at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
        header = Header(found.shape, found.dtype, found.axes(axes), found.voxel_size, load_metadata(found.note))
        if found.is_widened:
            return WidenedMrc(path, header, found.offset, "MRC", axes=axes, voxel_size=voxel_size)
        return MappedVolume(path, header, found.offset, "MRC", axes=axes, voxel_size=voxel_size)


class WidenedMrc(MappedVolume):
    """An MRC of 16 bits whose label says that the voxels are bytes; they are read as such."""

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
        super().__init__(path, header, offset, kind, axes=axes, voxel_size=voxel_size)
        self.info = replace(self.info, dtype=np.dtype(np.uint8))

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        stored = super()._read_stored(index)
        if stored.max() > np.iinfo(np.uint8).max:
            what = "the MRC's label says that voxels are bytes, but some are above 255"
            raise UserError(what, self.path, "another program has changed them: remove the labels")
        return stored
