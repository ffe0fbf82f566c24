"""One way to open a volume, whatever its format."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mitoseg.errors import UserError
from mitoseg.volumes import hdf5, images, mrc, n5, tiff, zarrs
from mitoseg.volumes.base import Volume
from mitoseg.volumes.reading import check_regular, reading

log = logging.getLogger(__name__)
FORMATS = "a TIFF stack, a folder of png or tif slices, file.h5:/dataset, a Zarr or N5 folder, or an MRC file"
_FOLDERS = (*zarrs.SUFFIXES, *n5.SUFFIXES)


def open_volume(
    path: str | os.PathLike[str], *, axes: str | None = None, voxel_size: Sequence[float] | None = None
) -> Volume:
    """Open a volume; reads no voxels.

    Args:
        path: A TIFF stack, a folder of png or tif slices, ``file.h5:/dataset``, a Zarr array, an OME-Zarr image or one
            of its levels, ``file.n5:/dataset``, an MRC file.
        axes: The order of the stored axes where the file does not make it plain: ``zyx``, ``xyz``, ``czyx`` (c of
            length 1, or RGB or RGBA, reduced to grey).
        voxel_size: (z, y, x) in nm; comes before the file's own.

    Returns:
        A lazy volume, z, y, x.

    Raises:
        UserError: The file is missing, damaged, empty, of an unknown kind, holds no real numbers, or its axes are
            ambiguous.
    """
    text = os.fspath(path)
    open_format = hdf5.open_hdf5
    with reading(text):
        check_regular(str(stored_in(text)))
        if zarrs.is_zarr(text):
            open_format = zarrs.open_zarr
        elif n5.is_n5(text):
            open_format = n5.open_n5
        elif Path(text).is_dir():
            open_format = images.open_folder
        elif Path(text).suffix.lower() in tiff.SUFFIXES:
            open_format = tiff.open_tiff
        elif mrc.is_mrc(text):
            open_format = mrc.open_mrc
        elif hdf5.split_dataset(text) is None:
            if not Path(text).exists():
                raise UserError("no such file or folder", text, "check the path")
            raise UserError("unknown kind of volume", text, f"give {FORMATS}")
    return open_format(text, axes=axes, voxel_size=voxel_size)


def warn_of_gaps(volume: Volume) -> None:
    """One warning where parts of a volume are missing, for those who go on all the same; see `Volume.find_gaps`.

    Raises:
        UserError: What is there cannot be read.
    """
    gaps = volume.find_gaps()
    if gaps is not None:
        log.warning("%s: %s", volume.path, gaps.what)


def stored_in(path: str | os.PathLike[str]) -> Path:
    """The file or folder that holds a volume.

    >>> stored_in("a.h5:/b").name, stored_in("a.zarr:/b").name, stored_in("a.tif").name
    ('a.h5', 'b', 'a.tif')
    """
    text = os.fspath(path)
    parts = None if Path(text).exists() else hdf5.split_dataset(text, (*hdf5.SUFFIXES, *_FOLDERS))
    if parts is None:
        return Path(text)
    return Path(*parts) if Path(parts[0]).suffix.lower() in _FOLDERS else Path(parts[0])


def check_same_shape(image: Volume, label: Volume) -> None:
    """Refuse an image and labels that do not lie voxel on voxel.

    Raises:
        UserError: Their shapes differ, or they are one file.
    """
    if image.path == label.path:
        raise UserError("image and labels are one file", label.path, "give the labels of the image")
    if image.shape != label.shape:
        what = f"image and labels differ in shape: {image.shape} of {image.path}, {label.shape}"
        raise UserError(what, label.path, f"give labels of the same volume{swapped(image.shape, label.shape)}")


def swapped(*shapes: tuple[int, ...]) -> str:
    """What to try where shapes differ in nothing but the order of their axes; empty where they do not.

    >>> swapped((10, 20, 30), (30, 20, 10)), swapped((10, 20, 30), (10, 20, 31))
    (', or store the axes of both in the same order: z, y, x', '')
    """
    if len({tuple(sorted(shape)) for shape in shapes}) > 1:
        return ""
    return ", or store the axes of both in the same order: z, y, x"
