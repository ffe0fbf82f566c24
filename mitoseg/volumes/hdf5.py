"""HDF5 datasets, written ``file.h5:/dataset``."""

from __future__ import annotations

import json
import math
import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array
from mitoseg.volumes.reading import CACHE_BYTES, opening, reading
from mitoseg.volumes.stored import REFILL, Header, StoredVolume, load_metadata
from mitoseg.volumes.units import voxel_size_nm

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")


def split_dataset(path: str, suffixes: Sequence[str] = SUFFIXES) -> tuple[str, str] | None:
    r"""Split ``file.h5:/dataset`` into file and dataset ("" where none is named); None for other paths.

    >>> split_dataset(r"C:\a.h5:/b/c"), split_dataset("a.h5"), split_dataset("a.tif")
    (('C:\\a.h5', 'b/c'), ('a.h5', ''), None)
    """
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    match = re.fullmatch(rf"(.*?(?:{endings}))(?::(.*))?", path, re.IGNORECASE | re.DOTALL)
    return (match[1], (match[2] or "").strip("/")) if match else None


def open_hdf5(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a dataset of an HDF5 file; reads its header only.

    Raises:
        UserError: No such file or dataset, several to choose from, a damaged file, ambiguous axes.
    """
    file, name = split_dataset(path) or (path, "")
    if not Path(file).is_file():
        raise UserError("no such file", file, "check the path")
    with opening(file), h5py.File(file, "r") as h5:
        dataset = _dataset(h5, file, name)
        attributes = dict(dataset.attrs)
        shape, dtype, name = dataset.shape, dataset.dtype, dataset.name
    size = voxel_size_nm(_listed(attributes.get("voxel_size_nm"))) or voxel_size_nm(
        _listed(attributes.get("element_size_um")), "um"
    )
    header = Header(shape, dtype, _axes(attributes, len(shape)), size, load_metadata(attributes.get("mitoseg")))
    return Hdf5Volume(path, file, name, header, axes=axes, voxel_size=voxel_size)


def _listed(value: object) -> list[object]:
    """An attribute as a list; empty where it is missing."""
    return [] if value is None else list(np.ravel(np.asarray(value)))


def _dataset(h5: h5py.File, file: str, name: str) -> h5py.Dataset:
    """The dataset of that name, or the file's only volume."""
    found: dict[str, h5py.Dataset] = {}

    def visit(path: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2:
            found[path] = item

    if name and isinstance(h5.get(name), h5py.Dataset):
        return h5[name]
    h5.visititems(visit)
    three = {path: item for path, item in found.items() if item.ndim == 3} or found
    if not name and len(three) == 1:
        return next(iter(three.values()))
    known = ", ".join(f"{file}:/{path}" for path in sorted(found)[:8]) or "none at all"
    what = f"no dataset {name!r} in the file" if name else "the file holds not one volume but several or none"
    raise UserError(what, file, f"name one of its datasets: {known}")


def _axes(attributes: dict[str, Any], ndim: int) -> str | None:
    """The axes that mitoseg or ilastik (axistags) state."""
    stated = attributes.get("axes")
    try:
        if stated is None and "axistags" in attributes:
            stated = "".join(axis["key"] for axis in json.loads(attributes["axistags"])["axes"])
    except (ValueError, KeyError, TypeError):
        return None
    return stated if isinstance(stated, str) and len(stated) == ndim and set(stated.lower()) <= set("tczyx") else None


class Hdf5Volume(StoredVolume):
    """A dataset of an HDF5 file; every process opens the file for itself."""

    def __init__(
        self,
        path: str,
        file: str,
        name: str,
        header: Header,
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._file, self._name = os.path.abspath(file), name
        self._open: tuple[int, h5py.Dataset] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def find_gaps(self) -> UserError | None:
        """Chunks that were never written; see `Volume.find_gaps`."""
        with reading(self.path), h5py.File(self._file, "r") as h5:
            missing, what, value = _missing_parts(h5[self._name])
        return UserError(f"{what} and would read as {value}", self.path, REFILL) if missing else None

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        if self._open is None or self._open[0] != os.getpid():
            h5 = h5py.File(self._file, "r", rdcc_nbytes=CACHE_BYTES, rdcc_nslots=10007)
            weakref.finalize(self, h5.close)
            self._open = (os.getpid(), h5[self._name])
        return np.asarray(self._open[1][index])


def _missing_parts(dataset: h5py.Dataset) -> tuple[int, str, object]:
    """How many chunks, or files of a virtual dataset, are missing; the same as text; what they would read as."""
    if dataset.is_virtual:
        files = {os.fsdecode(source.file_name) for source in dataset.virtual_sources()} - {"."}
        folder = os.path.dirname(os.path.abspath(dataset.file.filename))
        missing = sum("%b" not in file and not os.path.exists(os.path.join(folder, file)) for file in files)
        return missing, f"{missing} of {len(files)} files of the virtual dataset are missing", dataset.fillvalue
    if dataset.chunks is None:
        missing = int(dataset.size > 0 and dataset.external is None and dataset.id.get_storage_size() == 0)
        return missing, "the voxels of the dataset were never written", dataset.fillvalue
    count = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    missing = count - dataset.id.get_num_chunks()
    return missing, f"{missing} of {count} chunks were never written", dataset.fillvalue
