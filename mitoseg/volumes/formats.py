"""Every format of volumes that mitoseg knows, by the ends of names.

A new format is a module that defines a `Format`, and its line in `FORMATS`. What commands open and write, what
``input=`` finds in folders and what napari offers all follow from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.volumes import hdf5, images, imaris, mrc, n5, nifti, nrrd, tiff, zarrs
from mitoseg.volumes.stored import Format, split_dataset

FORMATS: list[Format] = [
    tiff.FORMAT,
    hdf5.FORMAT,
    zarrs.FORMAT,
    zarrs.OME_FORMAT,
    n5.FORMAT,
    mrc.FORMAT,
    imaris.FORMAT,
    nifti.FORMAT,
    nrrd.FORMAT,
    images.FORMAT,
]
"""All that is told by a name; a folder of slices is told by what it holds."""
_TIFF = "save it as TIFF or OME-TIFF, for example with Fiji"
_NOT_READ = {
    ".am": "Amira's own format: export it as NRRD or TIFF (Export Data As)",
    ".json": images.POLYGONS,
    ".xml": f"{images.POLYGONS}; of BigDataViewer's files, give the .h5 or .n5",
    ".wkw": "export the layer from webKnossos as OME-TIFF or Zarr",
    ".ozx": "unpack it: it is the ZIP of an OME-Zarr",
    ".mat": "save it as .tif or .nii",
    **dict.fromkeys((".mha", ".mhd"), "save it as .nrrd or .nii.gz"),
    **dict.fromkeys((".npy", ".npz"), "save it as .tif, .h5 or .zarr, with its voxel size"),
    **dict.fromkeys((".czi", ".dm3", ".dm4", ".lif", ".nd2", ".ser", ".emd", ".svs", ".vsi"), _TIFF),
}
"""What to do with files of other kinds."""


def how_to_give(path: str) -> str:
    """What to do about a path of no known format."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".xz", ".zst", ".zip") and format_of(path[: -len(suffixes[-1])]):
        return "unpack it first"
    first, *others = (one.example for one in FORMATS)
    known = f"give {first}, a folder of slices, {_either(others)}"
    return _NOT_READ.get(suffixes[-1], known) if suffixes else known


def split_path(path: str) -> tuple[str, str]:
    """The file or folder that a path names, and the dataset inside it, if it names one that way.

    >>> split_path("a.h5:/b"), split_path("a.tif")
    (('a.h5', 'b'), ('a.tif', ''))
    """
    suffixes = [suffix for one in FORMATS if one.datasets for suffix in one.suffixes]
    return (None if Path(path).exists() else split_dataset(path, suffixes)) or (path, "")


def format_of(path: str) -> tuple[Format, str] | None:
    """The format that a name tells, and the suffix that tells it; None where there is none.

    >>> format_of("a/b.NII.GZ")[1], format_of("a.ims:/DataSet")[1], format_of("a.txt")
    ('.nii.gz', '.ims', None)
    """
    name = split_path(path)[0].lower().rstrip("/" + os.sep)
    found = [(one, suffix) for one in FORMATS for suffix in one.suffixes if name.endswith(suffix)]
    return max(found, key=lambda pair: len(pair[1]), default=None)


def container_format(path: str) -> Format | None:
    """The format of a folder that is itself a volume, or holds some, as of Zarr or N5."""
    return next((one for one in FORMATS if one.recognize is not None and one.recognize(path)), None)


def stored_in(path: str | os.PathLike[str]) -> Path:
    """The file or folder that holds a volume.

    >>> stored_in("a.h5:/b").name, stored_in("a.zarr:/b").name, stored_in("a.tif").name
    ('a.h5', 'b', 'a.tif')
    """
    file, dataset = split_path(os.fspath(path))
    found = format_of(file) if dataset else None
    return Path(file, dataset) if found and found[0].recognize else Path(file)


class Place(NamedTuple):
    """Where an output goes: the file or folder, the dataset inside it (of formats that have such), the format."""

    file: Path
    dataset: str
    format: Format


def place(path: str) -> Place:
    """Where and as what an output is written.

    Raises:
        UserError: An unknown suffix.
    """
    written = [one for one in FORMATS if one.create is not None]
    with_datasets = [suffix for one in written if one.check_replaced for suffix in one.suffixes]
    file, dataset = split_dataset(path, with_datasets) or (path, "")
    found = format_of(file) if Path(file).suffix else None
    if found is None or found[0] not in written:
        known = [one.suffixes[0] for one in written]
        remedy = f"choose a name that ends in {_either(known)}"
        raise UserError("unknown kind of output", path, remedy)
    return Place(Path(file), dataset or "volume", found[0])


def check_voxel_type(path: str, dtype: npt.DTypeLike) -> None:
    """Refuse voxels that an output's format cannot hold."""
    target, name = place(path), np.dtype(dtype).name
    types = target.format.voxel_types
    if types is not None and name not in types:
        others = [one.suffixes[0] for one in _written(name)]
        remedy = f"choose {', '.join(types)}, or a name that ends in {_either(others)}"
        raise UserError(f"{target.format.example} holds no {name}", path, remedy)


def written_suffixes(dtype: str) -> list[str]:
    """The suffixes of outputs that can hold such voxels, the usual one first."""
    return [suffix for one in _written(dtype) for suffix in one.suffixes]


def _written(dtype: str) -> list[Format]:
    return [one for one in FORMATS if one.create and dtype in (one.voxel_types or [dtype])]


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
