"""The header of an MRC file: its fields, and what they mean for the volume.

    0 .. 1024                 sizes, mode, cell, axes, labels
    1024 .. 1024 + nsymbt     extended header
    from there                sections, rows, columns: z, y, x, unless maps, mapr and mapc say otherwise

Mode 0 is a signed byte since MRC2014, and was an unsigned one in many programs. IMOD's flags say which it is, else
the header's smallest and largest value, else the voxels themselves. IMOD's own bytes run from 0 to 255: signed ones
are stored less 128, which all of its programs add again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from mrcfile.constants import MAP_ID, MAP_ID_OFFSET_BYTES
from mrcfile.dtypes import HEADER_DTYPE

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.units import voxel_size_nm

logger = logging.getLogger(__name__)
IMOD_OFFSET, IMOD_STAMP, IMOD_SIGNED, IMOD_HALF_BYTES = 152, 1146047817, 1, 16
"""Where IMOD's stamp lies, with its flags behind it; the flags that say that bytes are signed, or hold two voxels."""
SIGN_BIT = 0x80
"""What differs between a byte from 0 to 255 and the same less 128 as a signed one."""
EXTENDED = b"MITO"
"""The type of an extended header that is mitoseg's metadata."""

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 3: "c8", 4: "c8", 6: "u2", 12: "f2"}
_VOLUME_STACKS = range(401, 631)
"""Space groups by which a file says that it holds several volumes of mz sections each."""
_LONGEST_NOTE = 2**20
_UNSIGNED = np.dtype(np.uint8)
_LOOKED_AT = (1024, 1024)
"""Rows and columns of a section that are looked at where the header does not say how bytes are meant."""
_FEW_VALUES, _CLEARLY = 16, 2
"""More values than these tell a sign; so many times rougher has the wrong reading to be."""


class Voxels(NamedTuple):
    """How the voxels of a file are stored, and what they mean.

    Attributes:
        stored: Their type in the file.
        meant: The type they are read as, where that is another one.
        flipped: The bits that the file stores inverted.
        limit: The largest stored value that agrees with what the file says of them; None where any does.
    """

    stored: np.dtype[Any]
    meant: np.dtype[Any] | None = None
    flipped: int = 0
    limit: int | None = None


class MrcHeader:
    """The header of an open file.

    Args:
        path: For the messages.
        file: The file, at its start.

    Raises:
        UserError: It is compressed, no MRC, of an unknown mode or damaged, or does not say how its bytes are meant.

    Attributes:
        offset: Where the voxels start, in bytes.
        note: What mitoseg wrote into labels or extended header; other programs may have added to it.
        voxels: How they are stored, and what they mean.
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
        self.voxels = self._voxels(file)

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
        """(z, y, x) in nm: the cell's edge over the number of intervals along it.

        Raises:
            UserError: The cell's angles are not right ones.
        """
        angles = [float(self._fields["cellb"][a]) for a in ("alpha", "beta", "gamma")]
        if any(math.isfinite(angle) and abs(angle - 90) > 0.01 for angle in angles) and any(angles):
            what = f"the MRC's cell has angles of {', '.join(f'{a:g}' for a in angles)} degrees, not 90"
            raise UserError(
                what, self._path, "resample it to right angles, or give voxel_size=[z,y,x] if they are right"
            )
        cells = [(float(self._fields["cella"][a]), self._int(f"m{a}")) for a in "zyx"]
        digits = 7  # of float32
        sizes = [float(f"{cell / count:.{digits}g}") if count > 0 else 0.0 for cell, count in cells]
        if sizes == [1.0, 1.0, 1.0]:
            text = "%s: the MRC states voxels of 1 Angstrom, as programs do that do not know; give voxel_size=[z,y,x]"
            logger.warning(text, self._path)
            return None
        return voxel_size_nm(sizes, "angstrom")

    def _voxels(self, file: BinaryIO) -> Voxels:
        """How the voxels are stored, and what they mean.

        Raises:
            UserError: A byte holds two voxels, or nothing tells whether bytes have a sign.
        """
        mode, (stamp, flags) = self._int("mode"), self._imod
        dtype = np.dtype(_DTYPES[mode]).newbyteorder("<" if self._order == "<" else ">")
        low, high = float(self._fields["dmin"]), float(self._fields["dmax"])
        ours = self.note.get("dtype")
        if mode == 6 and ours == "uint8" and stamp != IMOD_STAMP and not high > 255:
            return Voxels(dtype, _UNSIGNED, limit=255)
        if mode != 0:
            return Voxels(dtype)
        if stamp == IMOD_STAMP and flags & IMOD_HALF_BYTES:
            raise UserError("a byte of the MRC holds two voxels", self._path, "save it with mode 0, 1, 2, 6 or 12")
        if stamp == IMOD_STAMP:
            signed = bool(flags & IMOD_SIGNED)
            kept = signed and ours == "int8"
            return Voxels(dtype if kept else _UNSIGNED, flipped=SIGN_BIT if signed and not kept else 0)
        if low < 0 and low < high <= 127:
            return Voxels(dtype)
        if ours == "uint8" or (low >= 0 and high > 127):
            return Voxels(_UNSIGNED)
        if 0 <= low < high:
            return Voxels(_UNSIGNED, dtype, limit=127)
        return self._by_content(file)

    def _by_content(self, file: BinaryIO) -> Voxels:
        """Whether bytes have a sign, by the reading under which neighbours differ less, where the header says nothing.

        Raises:
            UserError: Both would do.
        """
        nz, ny, nx = self.shape
        if self.offset + nz * ny * nx > os.fstat(file.fileno()).st_size or not nz * ny * nx:
            return Voxels(_UNSIGNED)  # refused a moment later
        image_zyx = np.memmap(file, _UNSIGNED, "r", self.offset, (nz, ny, nx))
        part_zyx = np.asarray(image_zyx[sorted({0, nz // 2, nz - 1}), : _LOOKED_AT[0], : _LOOKED_AT[1]])
        if part_zyx.max() <= 127:
            return Voxels(_UNSIGNED, np.dtype(np.int8), limit=127)
        readings = [part_zyx.astype(np.int16), part_zyx.view(np.int8).astype(np.int16)]
        unsigned, signed = (sum(int(abs(np.diff(r, axis=a)).sum()) for a in (1, 2)) for r in readings)
        few = len(np.unique(part_zyx)) <= _FEW_VALUES
        if few or max(unsigned, signed) < _CLEARLY * min(unsigned, signed):
            what = "the MRC's header does not say whether its bytes run from 0 to 255 or from -128 to 127"
            raise UserError(what, self._path, "save it with IMOD's newstack, or with mode 1, 2 or 6")
        found = Voxels(_UNSIGNED if unsigned < signed else np.dtype(np.int8))
        text = "%s: the MRC's header does not say whether bytes have a sign; by their neighbours they are %s"
        logger.warning(text, self._path, "0 to 255" if unsigned < signed else "-128 to 127")
        return found


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
