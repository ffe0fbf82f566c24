"""Zarr arrays (formats 2 and 3) and OME-Zarr images: the finest level, or the one that is named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from mitoseg.errors import UserError
from mitoseg.volumes.axes import stated_axes
from mitoseg.volumes.base import Array
from mitoseg.volumes.ome_image import MARKS, LevelHeader, find_image, header_from_above, level_header
from mitoseg.volumes.stored import (
    REFILL,
    Format,
    Header,
    ReadOptions,
    StoredVolume,
    check_multiset,
    inside_folder,
    load_metadata,
    opening,
    reading,
)
from mitoseg.volumes.units import agreed_size, stated_sizes
from mitoseg.volumes.zarr_output import CheckedStore, ZarrOutput, count_chunks

SUFFIXES = (".zarr",)
_LARGEST_CHUNK = 2**31


def is_zarr(path: str) -> bool:
    """Whether a path is a Zarr array or group, also inside one (``image.zarr/0``, ``image.zarr:/0``)."""
    folder = inside_folder(path, SUFFIXES)
    return (folder.is_dir() and folder.suffix.lower() in SUFFIXES) or any((folder / mark).is_file() for mark in MARKS)


def open_zarr(path: str, options: ReadOptions) -> StoredVolume:
    """Open a Zarr array, a group with one array, or level 0 of an OME-Zarr image; reads metadata only."""
    folder = inside_folder(path, SUFFIXES)
    if not folder.is_dir():
        raise UserError("the Zarr is a file, not a folder", path, "unpack it")
    with opening(path):
        try:
            node = zarr.open(store=CheckedStore(folder.absolute(), read_only=True), mode="r")
        except FileNotFoundError as error:
            raise UserError("the folder is no Zarr array or group", path, "check the path") from error
        array, stated = (node, header_from_above(folder)) if isinstance(node, zarr.Array) else _of_group(node, path)
        check_multiset(path, array.attrs.asdict())
        header = _header(path, array, stated, options)
        _check_chunks(array, path)
    volume = ZarrVolume(path, array, header, options)
    volume.lacks_scale = stated is not None and not stated.scaled and volume.voxel_size is None
    return volume


def _header(path: str, array: zarr.Array[Any], stated: LevelHeader | None, options: ReadOptions) -> Header:
    """What the image around an array says, and the array's own metadata where there is none."""
    attributes = array.attrs.asdict()
    if stated is not None and (stated.axes is None or len(stated.axes) != array.ndim):
        stated = replace(stated, axes=None, voxel_size=None)
    names = getattr(array.metadata, "dimension_names", None)
    axes = (stated and stated.axes) or stated_axes(attributes, array.ndim, names)
    size = stated.voxel_size if stated else None
    if size is None and options.voxel_size is None:
        size = agreed_size(path, stated_sizes(attributes, axes or options.axes or "zyx"[-array.ndim :]))
    metadata = (stated and stated.metadata) or load_metadata(attributes)
    part = math.prod(array.chunks) * array.dtype.itemsize
    return Header(tuple(array.shape), np.dtype(array.dtype), axes, size, metadata, part_bytes=part)


def _check_chunks(array: zarr.Array[Any], path: str) -> None:
    """Refuse chunks that only damaged metadata can state, before memory is set aside for one."""
    size = math.prod(array.chunks) * array.dtype.itemsize
    if size > max(_LARGEST_CHUNK, 2 * array.nbytes):
        what = f"the Zarr array states chunks of {array.chunks} for a shape of {array.shape}"
        raise UserError(what, path, "it is damaged")


def _of_group(group: zarr.Group, path: str) -> tuple[zarr.Array[Any], LevelHeader | None]:
    """The finest level of an OME-Zarr image, or the only array of a group."""
    image = find_image(group, path)
    if image is not None:
        stated = level_header(image)
        array = image[stated.path] if stated is not None else None
        if not isinstance(array, zarr.Array):
            raise UserError("the OME-Zarr image has no array of its finest level", path, "it is damaged or incomplete")
        return array, stated
    arrays = [name for name, _ in group.arrays()]
    if len(arrays) == 1:
        array = group[arrays[0]]
        assert isinstance(array, zarr.Array)
        return array, None
    known = ", ".join(f"{path}/{name}" for name in sorted([*arrays, *(n for n, _ in group.groups())])[:8])
    what = f"the group holds {len(arrays)} arrays"
    raise UserError(what, path, f"name one: {known}" if known else "check the path")


class ZarrVolume(StoredVolume):
    """A Zarr array.

    Attributes:
        lacks_scale: Whether it is of an OME-Zarr image that states no scale, and its voxel size is not known.
    """

    def __init__(
        self,
        path: str,
        array: zarr.Array[Any],
        header: Header,
        options: ReadOptions,
    ) -> None:
        super().__init__(path, header, options)
        self._array = array
        if isinstance(array.store, CheckedStore):
            array.store.expect(array)
        self.lacks_scale = False

    def check_scale(self) -> None:
        """Refuse an OME-Zarr image that states no scale, as its format asks; its voxels may have any size."""
        if self.lacks_scale:
            raise UserError("the OME-Zarr image states no scale", self.path, "give voxel_size=[z,y,x] in nm")

    def files(self) -> list[Path]:
        """The array's folder, and what the groups above say of it."""
        assert isinstance(self._array.store, LocalStore)
        folder = Path(self._array.store.root, self._array.path)
        found = [folder]
        for above in folder.parents:
            marks = [above / mark for mark in (*MARKS, ".zattrs") if (above / mark).is_file()]
            if not marks:
                break
            found += marks
        return found

    def find_gaps(self) -> UserError | None:
        """Chunks that are not there; see `Volume.find_gaps`."""
        with reading(self.path):
            there, count = count_chunks(self._array)
        if there >= count:
            return None
        what = f"{count - there} of {count} chunks are missing and would read as {self._array.fill_value}"
        return UserError(what, self.path, REFILL)

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        return np.asarray(self._array[index])


FORMAT = Format(
    "a Zarr folder",
    SUFFIXES,
    open_zarr,
    lambda path, info, _, chunks: ZarrOutput(path, info, chunks),
    recognize=is_zarr,
    datasets=True,
)
