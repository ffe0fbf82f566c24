"""Imaris files: HDF5 with levels, times and channels, whose chunks reach beyond the image.

DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data    z, y, x; of it ImageSizeZ, Y and X are the image
DataSetInfo/Image                                       ExtMin0 to ExtMax2, the corners along x, y, z, and Unit

A path may name any of them: ``file.ims:/DataSet/ResolutionLevel 1/TimePoint 0/Channel 0/Data``.
"""

from __future__ import annotations

import h5py
import numpy as np

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.hdf5 import Hdf5Volume
from mitoseg.volumes.stored import Format, Header, ReadOptions, StoredVolume, opening, split_dataset
from mitoseg.volumes.units import voxel_size_nm

SUFFIXES = (".ims",)
_LEVEL = "DataSet/ResolutionLevel 0"


def open_imaris(path: str, options: ReadOptions) -> StoredVolume:
    """Open the finest level of the only channel and time of an Imaris file, or the dataset that is named."""
    file, name = split_dataset(path, SUFFIXES) or (path, "")
    with opening(file), h5py.File(file, "r") as h5:
        known = [f"{_LEVEL}/{t}/{c}/Data" for t in h5[_LEVEL] for c in h5[f"{_LEVEL}/{t}"]]
        name = name or (known[0] if len(known) == 1 else "")
        dataset = h5.get(name) if name else None
        if not isinstance(dataset, h5py.Dataset):
            named = ", ".join(f"{file}:/{one}" for one in known[:8])
            what = f"no dataset {name!r} in the file" if name else f"the file holds {len(known)} channels or times"
            raise UserError(what, file, f"name one of its datasets: {named}")
        sizes = [_text(dataset.parent, f"ImageSize{a}") for a in "ZYX"]
        shape = tuple(n if size is None else int(size) for n, size in zip(dataset.shape, sizes, strict=True))
        if any(n > stored for n, stored in zip(shape, dataset.shape, strict=True)):
            what = f"the image of {shape} is larger than its dataset of {dataset.shape}"
            raise UserError(what, path, "the file is damaged: export it again")
        header = Header(shape, dataset.dtype, "zyx", _voxel_size(h5, shape))
    return Hdf5Volume(path, file, name, header, options)


def _text(group: h5py.Group, name: str) -> str | None:
    """An attribute, which Imaris stores letter by letter."""
    value = group.attrs.get(name)
    return None if value is None else b"".join(np.ravel(np.asarray(value, "S"))).decode("utf-8", "replace").strip()


def _voxel_size(h5: h5py.File, shape: tuple[int, ...]) -> VoxelSize | None:
    """(z, y, x) in nm: the extent of the image, shared by the voxels of a level."""
    about = h5.get("DataSetInfo/Image")
    if about is None:
        return None
    ends = [[_text(about, f"Ext{end}{i}") for end in ("Min", "Max")] for i in (2, 1, 0)]
    if any(value is None for pair in ends for value in pair):
        return None
    lengths = [(float(high or 0) - float(low or 0)) / n for (low, high), n in zip(ends, shape, strict=True)]
    return voxel_size_nm(lengths, _text(about, "Unit") or "")


FORMAT = Format("an Imaris file", SUFFIXES, open_imaris, datasets=True)
