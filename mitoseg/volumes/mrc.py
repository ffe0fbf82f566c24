"""MRC files, as written by IMOD and electron microscopes, and readable by IMOD, Fiji and mrcfile.

Rows keep their stored order; IMOD and Fiji show the first one at the bottom. Mode 0 is a signed byte since MRC2014,
but unsigned in many older programs. IMOD's flags decide which it is, else the header's minimum and maximum, else the
voxels themselves. IMOD's own bytes run from 0 to 255: as signed bytes they are stored minus 128.

Outputs use modes 2 (float32), 1 (int16), 6 (uint16, and uint8 with a label stating this) and 0 (int8 with IMOD's flag,
and masks). mitoseg's metadata are JSON in the labels or, beyond 800 characters, in an extended header.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from mrcfile.constants import MAP_ID, MAP_ID_OFFSET_BYTES, VOLUME_SPACEGROUP
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import machine_stamp_from_byte_order

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import stored
from mitoseg.volumes.axes import voxel_size_nm
from mitoseg.volumes.base import Array, VolumeInfo, VoxelSize

logger = logging.getLogger(__name__)
# Offset of IMOD's stamp, followed by its flags; the flags for signed bytes and for two voxels per byte.
_IMOD_OFFSET, _IMOD_STAMP, _IMOD_SIGNED, _IMOD_HALF_BYTES = 152, 1146047817, 1, 16
_SIGN_BIT = 0x80  # the bit that differs between an unsigned byte and the same value minus 128, signed
_EXTENDED = b"MITO"  # type of the extended header with mitoseg's metadata
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 3: "c8", 4: "c8", 6: "u2", 12: "f2"}
_VOLUME_STACKS = range(401, 631)  # space groups of files with several volumes of mz sections each
_LONGEST_NOTE = 2**20
_UNSIGNED = np.dtype(np.uint8)
# To detect signed bytes without the header: rows and columns sampled, least number of distinct values needed, and the
# factor by which the wrong reading must be rougher.
_SEEN, _FEW_VALUES, _CLEARLY = 1024, 16, 2
_MODES = {"uint8": 6, "int8": 0, "uint16": 6, "int16": 1, "float32": 2}
_STORED = {0: "i1", 1: "<i2", 2: "<f4", 6: "<u2"}
_LABELS, _LABEL = 10, 80
_RANGE_OFFSET = 76


def open_mrc(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open an MRC file; reads its header only."""
    with stored.opening(path), open(path, "rb") as file:
        found = _MrcHeader(path, file)
        size = found.voxel_size if options.voxel_size is None else None
        dtype, meant, flipped, limit = found.voxels
        header = stored.Header(
            found.shape, dtype, found.axes(options.axes), size, stored.load_metadata(found.note), flipped
        )
    volume = _Mrc(path, header, options, found.offset, "MRC")
    volume.info, volume.limit = replace(volume.info, dtype=meant or volume.dtype), limit
    return volume


class _Mrc(stored.MappedVolume):
    """An MRC whose voxels are checked on reading against an upper limit, if there is one, implied by its header."""

    limit: int | None = None

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        voxels = super()._read_stored(index)
        if self.limit is not None and voxels.max() > self.limit:
            what = f"by its header the MRC's voxels are at most {self.limit}, but some are {voxels.max()}"
            raise UserError(what, self.path, "the header is out of date: save it with IMOD's newstack, or as 16 bits")
        return voxels


class _Voxels(NamedTuple):
    """The type in the file, the intended type if different, the bits stored inverted, the largest valid value."""

    dtype: np.dtype[Any]
    meant: np.dtype[Any] | None = None
    flipped: int = 0
    limit: int | None = None


class _MrcHeader:
    """The header of an open file: ``offset`` is the start of the voxels, ``note`` mitoseg's metadata."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        data = file.read(HEADER_DTYPE.itemsize)
        packed = next((name for magic, name in _PACKED.items() if data.startswith(magic)), None)
        if packed:
            raise UserError(f"the MRC is compressed with {packed}", path, "unpack it first")
        if len(data) < HEADER_DTYPE.itemsize or data[MAP_ID_OFFSET_BYTES:][:3] != MAP_ID[:3]:
            raise UserError("the file is not an MRC file", path, "it is damaged, incomplete or of another kind")
        self._path = path
        orders = "><" if data[MAP_ID_OFFSET_BYTES + len(MAP_ID)] == 0x11 else "<>"  # by the stamp, unless only the
        modes = [int(struct.unpack_from(f"{order}i", data, 12)[0]) for order in orders]  # other gives a valid mode
        self._order = next((order for order, mode in zip(orders, modes, strict=True) if mode in _DTYPES), "")
        if not self._order:
            raise UserError(f"the MRC's voxels are of mode {modes[0]}", path, "save it with mode 0, 1, 2, 6 or 12")
        self._fields = np.frombuffer(data, HEADER_DTYPE.newbyteorder(self._order))[0]
        self._imod = struct.unpack_from(f"{self._order}ii", data, _IMOD_OFFSET)
        extended = self._int("nsymbt")
        if not 0 <= extended <= os.fstat(file.fileno()).st_size:
            raise UserError(f"the MRC states an extended header of {extended} bytes", path, "it is damaged")
        self.offset = len(data) + extended
        ours = self._fields["exttyp"] == _EXTENDED and extended <= _LONGEST_NOTE
        text = file.read(extended) if ours else b"".join(self._fields["label"])
        note = None
        with suppress(ValueError, RecursionError):
            note, _ = json.JSONDecoder().raw_decode(text.decode("ascii", errors="replace"))
        self.note: dict[str, Any] = note if isinstance(note, dict) else {}
        self.voxels = self._voxels(file)

    def _int(self, name: str) -> int:
        return int(self._fields[name])

    @property
    def shape(self) -> tuple[int, int, int]:
        nz, ny, nx, mz = (self._int(name) for name in ("nz", "ny", "nx", "mz"))
        if min(nz, ny, nx) < 0:
            raise UserError(f"the MRC states a size of {nz} x {ny} x {nx}", self._path, "it is damaged")
        if self._int("ispg") in _VOLUME_STACKS and 0 < mz < nz:
            raise UserError(f"the MRC holds {nz // mz} volumes", self._path, "save one of them alone")
        return nz, ny, nx

    def axes(self, asked: str | None) -> str | None:
        """The letters of sections, rows and columns; old files do not state them and mean z, y, x."""
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
        angles = [float(self._fields["cellb"][a]) for a in ("alpha", "beta", "gamma")]
        if any(math.isfinite(angle) and abs(angle - 90) > 0.01 for angle in angles) and any(angles):
            what = f"the MRC's cell has angles of {', '.join(f'{a:g}' for a in angles)} degrees, not 90"
            remedy = "resample it to right angles, or give voxel_size=[z,y,x] if they are right"
            raise UserError(what, self._path, remedy)
        cells = [(float(self._fields["cella"][a]), self._int(f"m{a}")) for a in "zyx"]
        sizes = [float(f"{cell / count:.7g}") if count > 0 else 0.0 for cell, count in cells]  # digits of float32
        if sizes == [1.0, 1.0, 1.0]:
            text = "%s: the MRC states voxels of 1 Angstrom, a common default for unknown; give voxel_size=[z,y,x]"
            logger.warning(text, self._path)
            return None
        return voxel_size_nm(sizes, "angstrom")

    def _voxels(self, file: BinaryIO) -> _Voxels:
        mode, (stamp, flags) = self._int("mode"), self._imod
        dtype = np.dtype(_DTYPES[mode]).newbyteorder("<" if self._order == "<" else ">")
        low, high = float(self._fields["dmin"]), float(self._fields["dmax"])
        ours = self.note.get("dtype")
        if mode == 6 and ours == "uint8" and stamp != _IMOD_STAMP and not high > 255:
            return _Voxels(dtype, _UNSIGNED, limit=255)
        if (mode == 1 and 32767 < high <= 65535) or (mode == 6 and low < 0 and low < high):
            sign = "a" if mode == 1 else "no"
            what = f"the MRC's 16 bits have {sign} sign, but by its header values run from {low:g} to {high:g}"
            raise UserError(what, self._path, "the header is wrong: save it with IMOD's newstack, or with mode 2")
        if mode != 0:
            return _Voxels(dtype)
        if stamp == _IMOD_STAMP and flags & _IMOD_HALF_BYTES:
            raise UserError("a byte of the MRC holds two voxels", self._path, "save it with mode 0, 1, 2, 6 or 12")
        if stamp == _IMOD_STAMP:
            signed = bool(flags & _IMOD_SIGNED)
            kept = signed and ours == "int8"
            return _Voxels(dtype if kept else _UNSIGNED, flipped=_SIGN_BIT if signed and not kept else 0)
        if low < 0 and low < high <= 127:
            return _Voxels(dtype)
        if ours == "uint8" or (low >= 0 and high > 127):
            return _Voxels(_UNSIGNED)
        if 0 <= low < high:
            return _Voxels(_UNSIGNED, dtype, limit=127)
        return self._by_content(file)

    def _by_content(self, file: BinaryIO) -> _Voxels:
        """Decide whether bytes are signed, by which reading makes neighbours differ less."""
        nz, ny, nx = self.shape
        if self.offset + nz * ny * nx > os.fstat(file.fileno()).st_size or not nz * ny * nx:
            return _Voxels(_UNSIGNED)  # the caller refuses this
        image_zyx = np.memmap(file, _UNSIGNED, "r", self.offset, (nz, ny, nx))
        part_zyx = np.asarray(image_zyx[sorted({0, nz // 2, nz - 1}), :_SEEN, :_SEEN])
        if part_zyx.max() <= 127:
            return _Voxels(_UNSIGNED, np.dtype(np.int8), limit=127)
        readings = [part_zyx.astype(np.int16), part_zyx.view(np.int8).astype(np.int16)]
        unsigned, signed = (sum(int(abs(np.diff(r, axis=a)).sum()) for a in (1, 2)) for r in readings)
        few = len(np.unique(part_zyx)) <= _FEW_VALUES
        if few or max(unsigned, signed) < _CLEARLY * min(unsigned, signed):
            what = "the MRC's header does not say whether its bytes run from 0 to 255 or from -128 to 127"
            raise UserError(what, self._path, "save it with IMOD's newstack, or with mode 1, 2 or 6")
        found = _Voxels(_UNSIGNED if unsigned < signed else np.dtype(np.int8))
        text = "%s: the MRC's header does not say whether bytes have a sign; by their neighbours they are %s"
        logger.warning(text, self._path, "0 to 255" if unsigned < signed else "-128 to 127")
        return found


class MrcOutput(stored.FlatOutput):
    """Writes boxes in place; minimum and maximum are added to the header at the end."""

    def __init__(self, path: Path, info: VolumeInfo) -> None:
        mask = info.dtype == np.uint8 and info.metadata.get("kind") == "mask"
        mode = 0 if mask else _MODES[info.dtype.name]
        dtype = np.dtype(_STORED[mode])
        size = stored.check_room(path, info, dtype)
        header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
        for n, a, length in zip(info.shape, "zyx", info.voxel_size or (0, 0, 0), strict=True):
            header[f"n{a}"] = header[f"m{a}"] = n
            header["cella"][a] = length * 10 * n
        header["cellb"] = 90, 90, 90
        header["mode"], header["ispg"], header["nversion"] = mode, VOLUME_SPACEGROUP, 20141
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
        header["map"], header["machst"] = MAP_ID, list(machine_stamp_from_byte_order("<"))
        header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1  # unknown
        text = json.dumps({"mitoseg": dict(info.metadata), "dtype": info.dtype.name}).encode("ascii")
        extended = b""
        if len(text) <= _LABELS * _LABEL:
            labels = [text[i : i + _LABEL] for i in range(0, len(text), _LABEL)]
            header["label"][: len(labels)], header["nlabl"] = labels, len(labels)
        else:
            extended = text.ljust(-(-len(text) // 16) * 16)
            header["exttyp"], header["nsymbt"] = _EXTENDED, len(extended)
        data = bytearray(header.tobytes())
        if info.dtype == np.int8:
            struct.pack_into("<ii", data, _IMOD_OFFSET, _IMOD_STAMP, _IMOD_SIGNED)
        head = bytes(data) + extended
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + size)
        super().__init__(path, info.shape, dtype, len(head))
        self._most = np.iinfo(dtype).max if mask else None
        self._low, self._high, self._written = math.inf, -math.inf, 0

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box; refuse a mask with values that a signed byte cannot hold."""
        low, high = float(image_zyx.min()), float(image_zyx.max())
        if self._most is not None and high > self._most:
            raise ValueError(f"a mask of 0 and 1 cannot hold {high:g}")
        super().write(box, image_zyx)
        self._low, self._high = float(np.minimum(self._low, low)), float(np.maximum(self._high, high))  # a NaN stays
        self._written += box.size

    def close(self) -> None:
        """Write the range of values, if each voxel was written exactly once, and close the file."""
        known = self._written == math.prod(self._shape) and math.isfinite(self._low) and math.isfinite(self._high)
        if known and not self._file.closed:
            self._file.seek(_RANGE_OFFSET)
            self._file.write(struct.pack("<fff", self._low, self._high, self._low - 1))  # mean unknown if below both
        super().close()


FORMAT = stored.Format(
    "an MRC",
    (".mrc", ".mrcs", ".rec", ".map", ".st", ".ali"),
    open_mrc,
    lambda path, info, *_: MrcOutput(path, info),
    voxel_types=tuple(_MODES),
)
