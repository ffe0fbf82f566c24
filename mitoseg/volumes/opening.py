"""One way to open a volume, whatever its format."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mitoseg.errors import UserError
from mitoseg.volumes import hdf5, images, imaris, mrc, n5, nifti, nrrd, tiff, zarrs
from mitoseg.volumes.base import Volume
from mitoseg.volumes.reading import check_regular, reading

log = logging.getLogger(__name__)
GIVE = (
    "give a TIFF stack, a folder of slices, file.h5:/dataset, a Zarr or N5 folder, an MRC, NIfTI, NRRD or Imaris "
    "file, or a picture"
)


class Format(NamedTuple):
    """A format by the ends of its names.

    Attributes:
        suffixes: In small letters.
        open: Takes a path, and ``axes`` and ``voxel_size`` as `open_volume`.
        datasets: Whether a path may go on inside the file or folder: ``file.h5:/dataset``.
        folder: Whether it is a folder.
    """

    suffixes: tuple[str, ...]
    open: Callable[..., Volume]
    datasets: bool = False
    folder: bool = False


FORMATS = (
    Format(tiff.SUFFIXES, tiff.open_tiff),
    Format(hdf5.SUFFIXES, hdf5.open_hdf5, datasets=True),
    Format(zarrs.SUFFIXES, zarrs.open_zarr, datasets=True, folder=True),
    Format(n5.SUFFIXES, n5.open_n5, datasets=True, folder=True),
    Format(mrc.SUFFIXES, mrc.open_mrc),
    Format(imaris.SUFFIXES, imaris.open_imaris, datasets=True),
    Format(nifti.SUFFIXES, nifti.open_nifti),
    Format(nrrd.SUFFIXES, nrrd.open_nrrd),
    Format((".png", *images.PICTURES), images.open_picture),
)
"""All that is told by a name; a folder of slices is told by what it holds."""
DATASET_SUFFIXES = tuple(suffix for one in FORMATS if one.datasets for suffix in one.suffixes)
_FOLDERS = tuple(suffix for one in FORMATS if one.folder for suffix in one.suffixes)
_TIFF = "save it as TIFF or OME-TIFF, for example with Fiji"
_NOT_READ = {
    ".am": "Amira's own format: export it as NRRD or TIFF (Export Data As)",
    ".json": images.POLYGONS,
    ".xml": images.POLYGONS,
    ".wkw": "export the layer from webKnossos as OME-TIFF or Zarr",
    ".mha": "save it as .nrrd or .nii.gz",
    ".mhd": "save it as .nrrd or .nii.gz",
    ".npy": "save it as .tif, .h5 or .zarr, with its voxel size",
    ".npz": "save it as .tif, .h5 or .zarr, with its voxel size",
    **dict.fromkeys((".czi", ".dm3", ".dm4", ".lif", ".nd2", ".ser", ".emd", ".svs", ".vsi"), _TIFF),
}
"""What to do with files of other kinds."""


def format_of(path: str) -> tuple[Format, str] | None:
    """The format that a name tells, and the suffix that tells it; None where there is none.

    >>> format_of("a/b.NII.GZ")[1], format_of("a.ims:/DataSet")[1], format_of("a.txt")
    ('.nii.gz', '.ims', None)
    """
    parts = None if Path(path).exists() else hdf5.split_dataset(path, DATASET_SUFFIXES)
    name = (path if parts is None else parts[0]).lower().rstrip("/" + os.sep)
    found = [(one, suffix) for one in FORMATS for suffix in one.suffixes if name.endswith(suffix)]
    return max(found, key=lambda pair: len(pair[1]), default=None)


def open_volume(
    path: str | os.PathLike[str], *, axes: str | None = None, voxel_size: Sequence[float] | None = None
) -> Volume:
    """Open a volume; reads no voxels.

    Args:
        path: A TIFF stack, a folder of slices, ``file.h5:/dataset``, a Zarr array, an OME-Zarr image or one of its
            levels, ``file.n5:/dataset``, an MRC, NIfTI, NRRD or Imaris file, or a picture, which is one slice.
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
    with reading(text):
        check_regular(str(stored_in(text)))
        found = format_of(text)
        if zarrs.is_zarr(text):
            open_format: Callable[..., Volume] = zarrs.open_zarr
        elif n5.is_n5(text):
            open_format = n5.open_n5
        elif Path(text).is_dir():
            open_format = images.open_folder
        elif found is not None:
            open_format = found[0].open
        elif mrc.is_mrc(text):
            open_format = mrc.open_mrc
        elif not Path(text).exists():
            raise UserError("no such file or folder", text, "check the path")
        else:
            raise UserError("unknown kind of volume", text, _NOT_READ.get(Path(text).suffix.lower(), GIVE))
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
    parts = None if Path(text).exists() else hdf5.split_dataset(text, DATASET_SUFFIXES)
    if parts is None:
        return Path(text)
    return Path(*parts) if Path(parts[0]).suffix.lower() in _FOLDERS else Path(parts[0])


def check_same_shape(image: Volume, label: Volume) -> None:
    """Refuse an image and labels that do not lie voxel on voxel.

    Raises:
        UserError: Their shapes differ, they are one file, or their files say that their axes run in other directions.
    """
    if image.directions and label.directions and image.directions != label.directions:
        what = f"image and labels are turned: z, y, x run {image.directions} and {label.directions} along the world's"
        raise UserError(what, label.path, "save both with one orientation")
    if image.path == label.path and stored_in(image.path).exists():  # not two arrays in memory
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
