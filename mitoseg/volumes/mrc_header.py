"""The header of an MRC file: its fields, and what they mean for the volume.

    0 .. 1024                 sizes, mode, cell, axes, labels
    1024 .. 1024 + nsymbt     extended header
    from there                sections, rows, columns: z, y, x, unless maps, mapr and mapc say otherwise

Mode 0 is a signed byte since MRC2014, and was an unsigned one in many programs. A byte is taken for unsigned where the
flags that IMOD leaves in the header say so; without them, where the header's smallest and largest value can be nothing
else, or mitoseg's own label says it.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, BinaryIO

import numpy as np
from mrcfile.constants import MAP_ID, MAP_ID_OFFSET_BYTES
from mrcfile.dtypes import HEADER_DTYPE

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.units import voxel_size_nm

IMOD_OFFSET, IMOD_STAMP, IMOD_SIGNED = 152, 1146047817, 1
"""Where IMOD's stamp lies, with its flags behind it; and the flag that says that bytes are signed."""
EXTENDED = b"MITO"
"""The type of an extended header that is mitoseg's metadata."""

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 3: "c8", 4: "c8", 6: "u2", 12: "f2"}
_VOLUME_STACKS = range(401, 631)
"""Space groups by which a file says that it holds several volumes of mz sections each."""
_LONGEST_NOTE = 2**20


class MrcHeader:
    """The header of an open file.

    Args:
        path: For the messages.
        file: The file, at its start.

    Raises:
        UserError: It is compressed, no MRC, of an unknown mode or damaged.

    Attributes:
        offset: Where the voxels start, in bytes.
        note: What mitoseg wrote into labels or extended header; other programs may have added to it.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        data = file.read(HEADER_DTYPE.itemsize)
        packed = next((name for magic, name in _PACKED.items() if data.startswith(magic)), None)
        if packed:
            raise UserError(f"the MRC is compressed with {packed}", path, "unpack it first")
        if len(data) < HEADER_DTYPE.itemsize or data[MAP_ID_OFFSET_BYTES:][:3] != MAP_ID[:3]:
            raise UserError("the file is no MRC", path, "it is damaged, incomplete or of another kind")
        self._path = path
        self._order = _byte_order(path, data)
        self._fields = np.frombuffer(data, HEADER_DTYPE.newbyteorder(self._order))[0]
        self._imod = struct.unpack_from(f"{self._order}ii", data, IMOD_OFFSET)
        extended = self._int("nsymbt")
        if not 0 <= extended <= os.fstat(file.fileno()).st_size:
            raise UserError(f"the MRC states an extended header of {extended} bytes", path, "it is damaged")
        self.offset = len(data) + extended
        ours = self._fields["exttyp"] == EXTENDED and extended <= _LONGEST_NOTE
        self.note = _parse(file.read(extended) if ours else b"".join(self._fields["label"]))

    def _int(self, name: str) -> int:
        return int(self._fields[name])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(sections, rows, columns).

        Raises:
            UserError: There are several volumes, or negative numbers.
        """
        nz, ny, nx, mz = (self._int(name) for name in ("nz", "ny", "nx", "mz"))
        if min(nz, ny, nx) < 0:
            raise UserError(f"the MRC states a size of {nz} x {ny} x {nx}", self._path, "it is damaged")
        if self._int("ispg") in _VOLUME_STACKS and 0 < mz < nz:
            raise UserError(f"the MRC holds {nz // mz} volumes", self._path, "save one of them alone")
        return nz, ny, nx

    def axes(self, asked: str | None) -> str | None:
        """The letters of sections, rows and columns; old files state nothing and mean z, y, x.

        Args:
            asked: What the user says they are.

        Raises:
            UserError: Neither the file nor the user says it.
        """
        stated = [self._int(name) for name in ("maps", "mapr", "mapc")]
        if stated == [0, 0, 0]:
            return "zyx"
        if sorted(stated) == [1, 2, 3]:
            return "".join("xyz"[n - 1] for n in stated)
        if asked is None:
            what = f"the MRC's axes (maps, mapr, mapc) are {stated}, not 1, 2 and 3 in some order"
            raise UserError(what, self._path, "say which axis is which, for example axes=zyx")
        return None

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm: the cell's edge over the number of intervals along it."""
        cells = [(float(self._fields["cella"][a]), self._int(f"m{a}")) for a in "zyx"]
        digits = 7  # of float32
        sizes = [float(f"{cell / count:.{digits}g}") if count > 0 else 0.0 for cell, count in cells]
        return voxel_size_nm(sizes, "angstrom")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored voxels."""
        mode = self._int("mode")
        if mode == 0 and self._bytes_are_unsigned():
            return np.dtype(np.uint8)
        return np.dtype(_DTYPES[mode]).newbyteorder("<" if self._order == "<" else ">")

    @property
    def is_widened(self) -> bool:
        """Whether mitoseg wrote bytes as 16 bits, and IMOD has not written other values since."""
        changed = self._imod[0] == IMOD_STAMP or float(self._fields["dmax"]) > 255
        return self._int("mode") == 6 and self.note.get("dtype") == "uint8" and not changed

    def _bytes_are_unsigned(self) -> bool:
        stamp, flags = self._imod
        if stamp == IMOD_STAMP:
            return not flags & IMOD_SIGNED
        low, high = float(self._fields["dmin"]), float(self._fields["dmax"])
        return low >= 0 and (high > 127 or self.note.get("dtype") == "uint8")


def _byte_order(path: str, data: bytes) -> str:
    """``<`` or ``>``, as the machine stamp says, unless the mode makes sense only in the other one."""
    stamp = data[MAP_ID_OFFSET_BYTES + len(MAP_ID)]
    orders = "><" if stamp == 0x11 else "<>"
    modes = [int(struct.unpack_from(f"{order}i", data, 12)[0]) for order in orders]
    for order, mode in zip(orders, modes, strict=True):
        if mode in _DTYPES:
            return order
    raise UserError(f"the MRC's voxels are of mode {modes[0]}", path, "save it with mode 0, 1, 2, 6 or 12")


def _parse(text: bytes) -> dict[str, Any]:
    """The JSON at the start of a text, if there is some."""
    try:
        note, _ = json.JSONDecoder().raw_decode(text.decode("ascii", errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
