"""NIfTI and NRRD files; the headers are read by nibabel and pynrrd, installed by the extra ``[formats]``.

Both list axes from the fastest one. Voxels keep their stored order, whichever way their axes point; those of NRRD
follow the header (.nrrd) or are in a separate file (.nhdr), uncompressed or compressed by gzip or bzip2.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError, import_extra
from mitoseg.volumes.axes import voxel_size_nm
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.stored import Format, Header, MappedVolume, ReadOptions, StoredVolume, opening

_SKEW = 1e-3
_TYPES = {
    "i1": "(signed char|int8|int8_t)",
    "u1": "(uchar|unsigned char|uint8|uint8_t)",
    "i2": "((signed )?short( int)?|int16|int16_t)",
    "u2": "(ushort|unsigned short( int)?|uint16|uint16_t)",
    "i4": "((signed )?int|int32|int32_t)",
    "u4": "(uint|unsigned int|uint32|uint32_t)",
    "i8": "(longlong|(signed )?long long( int)?|int64|int64_t)",
    "u8": "(ulonglong|unsigned long long( int)?|uint64|uint64_t)",
    "f4": "float",
    "f8": "double",
}
_PACKINGS = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2", "raw": None}
_COLOURS = ("rgb-color", "rgba-color", "3-color", "4-color")
_ANATOMICAL = ("ras", "las", "lps")
_SAVE = "save it as one .nrrd file with encoding raw or gzip"


class Grid(NamedTuple):
    """The orientation of a stored grid in world coordinates.

    ``letters``: the world axes that the stored ones run along, fastest first; ``sizes``: z, y, x in the file's unit;
    ``directions``: as in `Volume`.
    """

    letters: str
    sizes: tuple[float, ...]
    directions: str

    @classmethod
    def of(cls, path: str, matrix: npt.NDArray[np.float64]) -> Grid:
        """Read the (3, 3) matrix whose column n is the step, x, y, z, to the next voxel along stored axis n."""
        lengths = np.linalg.norm(matrix, axis=0)
        if not (np.isfinite(matrix).all() and lengths.all()):
            raise UserError("the file states no grid of voxels", path, "it is damaged: write it again")
        steps = matrix / lengths
        if np.abs(steps.T @ steps - np.eye(3)).max() > _SKEW:
            raise UserError("the axes of the volume are not at right angles", path, "resample it first")
        along = [int(np.abs(row).argmax()) for row in steps]
        if sorted(along) != [0, 1, 2]:
            raise UserError("the volume is oblique to the world axes", path, "give axes=, or resample it")
        letters = "".join("xyz"[along.index(n)] for n in range(3))
        signs = "".join("+" if steps[world, along[world]] > 0 else "-" for world in (2, 1, 0))
        return cls(letters, tuple(float(lengths[along[world]]) for world in (2, 1, 0)), signs)


def open_nifti(path: str, options: ReadOptions) -> StoredVolume:
    """Open a NIfTI file; reads its header only."""
    nibabel = import_extra("nibabel", "nibabel", "formats")
    with opening(path):
        image = nibabel.load(path)
        stored = image.dataobj
        dtype, shape, letters = stored.dtype, tuple(int(n) for n in image.shape), "xyztc"
        if dtype.names:  # RGB
            shape, dtype, letters = (len(dtype.names), *shape), np.dtype(np.uint8), "sxyzt"
        offset, scale = int(stored.offset), (float(stored.slope), float(stored.inter))
        direction, unit = image.affine[:3, :3], image.header.get_xyzt_units()[0]
    grid = Grid.of(path, direction)
    named = letters[: len(shape)].translate(str.maketrans("xyz", grid.letters))
    size = voxel_size_nm([float(f"{length:.6g}") for length in grid.sizes], unit)  # the affine is float32
    header = Header(shape[::-1], dtype, named[::-1], size, scale=scale)
    packing = "gzip" if path.lower().endswith(".gz") else None
    volume = MappedVolume(path, header, options, offset, "NIfTI", packing=packing)
    volume.directions = grid.directions
    return volume


def open_nrrd(path: str, options: ReadOptions) -> StoredVolume:
    """Open an NRRD file; reads its header only."""
    nrrd = import_extra("nrrd", "pynrrd", "formats")
    with opening(path), open(path, "rb") as stream:
        if re.search(rb"^data ?file: *(LIST|[^\n]*%\d*d)", stream.read(2**16), re.MULTILINE | re.IGNORECASE):
            raise UserError("the voxels of the NRRD header lie in several files", path, _SAVE)
        stream.seek(0)
        lines = (line.decode("ascii", "surrogateescape") for line in iter(stream.readline, b""))
        # pynrrd knows fields in small letters only
        found = nrrd.read_header(re.sub("^[^#:][^:]*: ", lambda field: field[0].lower(), line) for line in lines)
        start = stream.tell()
        encoding = str(found["encoding"]).lower()
        if encoding not in _PACKINGS:
            raise UserError(f"the voxels of the NRRD are stored as {encoding}", path, _SAVE)
        kind = str(found["type"]).strip().lower()
        kinds = [code for code, names in _TYPES.items() if re.fullmatch(names, kind)]
        if not kinds:
            raise ValueError(f"voxels of type {found['type']}")
        dtype, shape = np.dtype(kinds[0]), tuple(int(n) for n in found["sizes"])
        if dtype.itemsize > 1:
            dtype = dtype.newbyteorder({"little": "<", "big": ">"}[str(found["endian"]).lower()])  # type: ignore[arg-type]
        letters, size, directions = _space(path, found, len(shape))
        header = Header(shape[::-1], dtype, letters[::-1], size)
        file = str(found.get("data file") or found.get("datafile") or "")
        file, start = (os.path.join(os.path.dirname(path), file), 0) if file else (path, start)
        if not os.path.isfile(file):
            raise UserError("the file that holds the voxels of the NRRD header is not there", file, "put it there")
        with open(file, "rb") as voxels:
            voxels.seek(start)
            for _ in range(int(found.get("line skip", found.get("lineskip", 0)))):
                voxels.readline()
            start = voxels.tell()
        skip = int(found.get("byte skip", found.get("byteskip", 0)))
    packing = _PACKINGS[encoding]
    if packing is None:
        end = os.path.getsize(file) - math.prod(shape) * dtype.itemsize
        start, skip = 0, max(0, end if skip == -1 else start + skip)
    elif skip < 0:
        raise UserError("the NRRD counts the bytes to skip from the end of packed voxels", path, _SAVE)
    volume = MappedVolume(path, header, options, skip, "NRRD", file=file, packing=packing, start=start)
    volume.directions = directions
    return volume


def _space(path: str, found: Mapping[str, Any], count: int) -> tuple[str, VoxelSize | None, str]:
    """A letter per stored axis, fastest first; the voxel size; the directions of z, y and x (see `Volume`)."""
    kinds = [str(kind).lower() for kind in found.get("kinds", ["domain"] * count)]
    steps = [None if step is None else np.asarray(step, float) for step in found.get("space directions", ())]
    inside = [kind in ("domain", "space") for kind in kinds]
    if len(steps) == count:
        inside = [step is not None and bool(np.isfinite(step).all()) for step in steps]
    spatial = [i for i in range(count) if inside[i]]
    others = {"time": "t", **dict.fromkeys(_COLOURS, "s")}
    letters = ["" if inside[i] else others.get(kinds[i], "c") for i in range(count)]
    labels = [str(label).lower() for label in found.get("labels", ())]
    labels = [labels[i] for i in spatial] if len(labels) == count else []
    named = "".join(labels) if sorted(labels) == sorted("xyz"[: len(spatial)]) else "xyz"[: len(spatial)]
    size, directions = None, ""
    units = [str(unit) for unit in found.get("space units", ())]
    if len(spatial) == 3 and len(steps) == count:
        matrix = np.stack([np.asarray(steps[i]) for i in spatial], axis=1)
        space = str(found.get("space", "")).lower()
        space = "".join(word[0] for word in space.split("-")) if "-" in space else space
        world = np.array([-1 if letter in "lpi" else 1 for letter in space] if space in _ANATOMICAL else [1, 1, 1])
        grid = Grid.of(path, matrix * world[:, None])
        named, directions = grid.letters, grid.directions if space in _ANATOMICAL else ""
        size = voxel_size_nm(grid.sizes, [units[i] for i in (2, 1, 0)] if len(units) == 3 else "")
    elif len(spatial) in (2, 3) and "spacings" in found:
        per_axis = [str(unit) for unit in found.get("units", [""] * count)]
        of = {a: (found["spacings"][i], per_axis[i]) for a, i in zip(named, spatial, strict=True)}
        sizes, each = zip(*(of.get(a, (None, "")) for a in "zyx"), strict=True)
        size = voxel_size_nm(sizes, each, flat=len(spatial) == 2)
    for place, letter in zip(spatial, named if len(named) == len(spatial) else "?" * len(spatial), strict=True):
        letters[place] = letter
    return "".join(letters), size, directions


NIFTI = Format("a NIfTI file", (".nii", ".nii.gz"), open_nifti)
NRRD = Format("an NRRD file", (".nrrd", ".nhdr"), open_nrrd)
