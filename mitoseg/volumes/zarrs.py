"""Zarr arrays (formats 2 and 3) and OME-Zarr images, of which the finest level is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mitoseg.errors import UserError
from mitoseg.volumes.base import Array, VoxelSize
from mitoseg.volumes.hdf5 import split_dataset
from mitoseg.volumes.reading import opening, reading
from mitoseg.volumes.stored import Header, StoredVolume, load_metadata
from mitoseg.volumes.units import voxel_size_nm
from mitoseg.volumes.zarr_chunks import count_chunks

SUFFIXES = (".zarr",)
_MARKS = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: str) -> bool:
    """Whether a path is a Zarr array or group, also inside one (``image.zarr/0``, ``image.zarr:/0``)."""
    folder = _folder(path)
    return folder.suffix.lower() in SUFFIXES or any((folder / mark).is_file() for mark in _MARKS)


def _folder(path: str) -> Path:
    """The folder of an array or group; ``a.zarr:/b`` is ``a.zarr/b``."""
    parts = split_dataset(path, SUFFIXES)
    return Path(path) if parts is None or Path(path).exists() else Path(parts[0], parts[1])


def open_zarr(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a Zarr array, a group with one array, or level 0 of an OME-Zarr image; reads metadata only.

    Raises:
        UserError: No such folder, damaged metadata, several arrays to choose from, ambiguous axes.
    """
    folder = _folder(path)
    if not folder.is_dir():
        raise UserError("no such folder", path, "check the path")
    with opening(path):
        try:
            node = zarr.open(store=folder.absolute(), mode="r")
        except FileNotFoundError as error:
            raise UserError("the folder is no Zarr array or group", path, "check the path") from error
        if isinstance(node, zarr.Array):
            array, header = node, _header(node)
        else:
            array, header = _of_group(node, path)
    return ZarrVolume(path, array, header, axes=axes, voxel_size=voxel_size)


def _header(array: zarr.Array[Any], axes: str | None = None, size: VoxelSize | None = None) -> Header:
    """What an array's own metadata says, where the group around it says nothing."""
    attributes = array.attrs.asdict()
    size = size or voxel_size_nm(_listed(attributes.get("voxel_size_nm")))
    size = size or voxel_size_nm(_listed(attributes.get("element_size_um")), "um")
    return Header(tuple(array.shape), np.dtype(array.dtype), axes or _named(array), size, load_metadata(attributes))


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, Sequence) else []


def _named(array: zarr.Array[Any]) -> str | None:
    """The names of the dimensions, where all are one letter."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    text = "".join(str(name).lower() for name in _listed(names))
    return text if len(text) == array.ndim and set(text) <= set("tczyx") else None


def _of_group(group: zarr.Group, path: str) -> tuple[zarr.Array[Any], Header]:
    """Level 0 of an OME-Zarr image, or the only array of a group."""
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    scales = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if isinstance(scales, Sequence) and scales and isinstance(scales[0], Mapping):
        return _of_image(group, scales[0])
    arrays = [name for name, _ in group.arrays()]
    if len(arrays) == 1:
        array = group[arrays[0]]
        assert isinstance(array, zarr.Array)
        return array, _header(array)
    known = ", ".join(f"{path}/{name}" for name in sorted([*arrays, *(n for n, _ in group.groups())])[:8])
    what = f"the group holds {len(arrays)} arrays"
    raise UserError(what, path, f"name one: {known}" if known else "check the path")


def _of_image(group: zarr.Group, image: Mapping[str, Any]) -> tuple[zarr.Array[Any], Header]:
    """Level 0 of an OME-Zarr image, with the axes and the scale that it states."""
    level = image["datasets"][0]
    array = group[level["path"]]
    assert isinstance(array, zarr.Array)
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image.get("axes", ())]
    letters = "".join(str(axis.get("name", "?"))[:1].lower() for axis in axes)
    if len(letters) != array.ndim:
        return array, _header(array)
    scale = np.ones(array.ndim)
    known = False
    for transform in [*level.get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]:
        if transform.get("type") == "scale":
            scale, known = scale * np.asarray(transform["scale"], float), True
    size = None
    if known and set("zyx") <= set(letters):
        places = [letters.index(a) for a in "zyx"]
        size = voxel_size_nm([scale[i] for i in places], [axes[i].get("unit", "") for i in places])
    return array, _header(array, letters, size)


class ZarrVolume(StoredVolume):
    """A Zarr array."""

    def __init__(
        self,
        path: str,
        array: zarr.Array[Any],
        header: Header,
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._array = array

    def check_complete(self) -> None:
        """Refuse an array of which chunks are missing; see `Volume.check_complete`."""
        with reading(self.path):
            there, count = count_chunks(self._array)
        if there < count:
            what = f"{count - there} of {count} chunks are missing and would read as {self._array.fill_value}"
            raise UserError(what, self.path, "restore them, or give missing_chunks=fill if they are meant to be empty")

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        return np.asarray(self._array[index])
