"""MRC files that IMOD, Fiji and mrcfile open.

dtype             mode
float32           2
int16, uint16     1, 6
int8              0, with IMOD's flag for signed bytes
uint8             6: MRC has no unsigned byte, and programs differ in what they take mode 0 for; the label says that
                  the voxels are bytes, and they are uint8 again when mitoseg reads them
uint8, a mask     0: to 0 and 1 it makes no difference

The voxel size goes into the cell (in Angstrom, as float32); mitoseg's metadata as JSON into the labels, or, if it is
longer than 800 letters, into an extended header of its own type. Nothing tells of the time, so that equal volumes are
equal files.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.constants import MAP_ID, VOLUME_SPACEGROUP
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import machine_stamp_from_byte_order

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.flat_output import FlatOutput, check_room
from mitoseg.volumes.mrc_header import EXTENDED, IMOD_OFFSET, IMOD_SIGNED, IMOD_STAMP

MODES = {"uint8": 6, "int8": 0, "uint16": 6, "int16": 1, "float32": 2}
_STORED = {0: "i1", 1: "<i2", 2: "<f4", 6: "<u2"}
_LABELS, _LABEL = 10, 80
_RANGE_OFFSET = 76


def check_mrc_dtype(path: str, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that an MRC cannot hold.

    Raises:
        UserError: It cannot.
    """
    if dtype.name not in MODES:
        remedy = f"choose {', '.join(MODES)}, or a name that ends in .tif, .h5 or .zarr"
        raise UserError(f"an MRC holds no {dtype}", path, remedy)


class MrcOutput(FlatOutput):
    """An MRC written at the boxes' places; the smallest and largest value go into the header at the end."""

    def __init__(self, path: Path, info: VolumeInfo) -> None:
        check_mrc_dtype(info.path, info.dtype)
        mask = info.dtype == np.uint8 and info.metadata.get("kind") == "mask"
        mode = 0 if mask else MODES[info.dtype.name]
        dtype = np.dtype(_STORED[mode])
        size = check_room(path, info, dtype)
        head = _head(info, mode)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + size)
        super().__init__(path, info.shape, dtype, len(head))
        self._most = np.iinfo(dtype).max if mask else None
        self._low, self._high, self._written = math.inf, -math.inf, 0

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box; see `FlatOutput.write`.

        Raises:
            ValueError: A mask holds more than a signed byte can.
        """
        low, high = float(image_zyx.min()), float(image_zyx.max())
        if self._most is not None and high > self._most:
            raise ValueError(f"a mask of 0 and 1 cannot hold {high:g}")
        super().write(box, image_zyx)
        self._low, self._high = float(np.minimum(self._low, low)), float(np.maximum(self._high, high))  # a NaN stays
        self._written += box.size

    def close(self) -> None:
        """Write the range of values, where each voxel was written once, and close the file."""
        known = self._written == math.prod(self._shape) and math.isfinite(self._low) and math.isfinite(self._high)
        if known and not self._file.closed:
            self._file.seek(_RANGE_OFFSET)
            self._file.write(struct.pack("<fff", self._low, self._high, self._low - 1))  # a mean below both: not known
        super().close()


def _head(info: VolumeInfo, mode: int) -> bytes:
    """Header and extended header."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder("<"))
    for n, a, size in zip(info.shape, "zyx", info.voxel_size or (0, 0, 0), strict=True):
        header[f"n{a}"] = header[f"m{a}"] = n
        header["cella"][a] = size * 10 * n
    header["cellb"] = 90, 90, 90
    header["mode"], header["ispg"], header["nversion"] = mode, VOLUME_SPACEGROUP, 20141
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["map"], header["machst"] = MAP_ID, list(machine_stamp_from_byte_order("<"))
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1  # not known
    text = json.dumps({"mitoseg": dict(info.metadata), "dtype": info.dtype.name}).encode("ascii")
    extended = b""
    if len(text) <= _LABELS * _LABEL:
        labels = [text[i : i + _LABEL] for i in range(0, len(text), _LABEL)]
        header["label"][: len(labels)], header["nlabl"] = labels, len(labels)
    else:
        extended = text.ljust(-(-len(text) // 16) * 16)
        header["exttyp"], header["nsymbt"] = EXTENDED, len(extended)
    data = bytearray(header.tobytes())
    if info.dtype == np.int8:
        struct.pack_into("<ii", data, IMOD_OFFSET, IMOD_STAMP, IMOD_SIGNED)
    return bytes(data) + extended
