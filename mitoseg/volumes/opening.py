"""Open a volume, or write one, whatever its format.

Outputs take boxes in any order, and have their names when they are complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.storage import atomic_output, check_output, plain
from mitoseg.volumes import images
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.formats import check_voxel_type, container_format, format_of, how_to_give, place, stored_in
from mitoseg.volumes.ome_zarr import is_one_image
from mitoseg.volumes.stored import Output, ReadOptions, check_dtype, check_regular, reading
from mitoseg.volumes.units import check_voxel_size
from mitoseg.volumes.zarrs import is_array

log = logging.getLogger(__name__)


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
        found, container = format_of(text), container_format(text)
        if container is not None:
            open_format: Callable[[str, ReadOptions], Volume] = container.open
        elif Path(text).is_dir():
            open_format = images.open_slices
        elif not stored_in(text).exists():
            raise UserError("no such file or folder", text, "check the path")
        elif found is not None:
            open_format = found[0].open
        else:
            raise UserError("unknown kind of volume", text, how_to_give(text))
    return open_format(text, ReadOptions(axes, voxel_size))


def warn_of_gaps(volume: Volume) -> None:
    """One warning where parts of a volume are missing, for those who go on all the same; see `Volume.find_gaps`."""
    gaps = volume.find_gaps()
    if gaps is not None:
        log.warning("%s: %s", volume.path, gaps.what)


def warn_of_sizes(*volumes: Volume) -> None:
    """One warning where the files of volumes that lie voxel on voxel state voxel sizes that differ by over 1 %."""
    stated = {volume.path: volume.voxel_size for volume in volumes if volume.voxel_size is not None}
    if stated and not np.allclose(list(stated.values()), next(iter(stated.values())), rtol=0.01):
        log.warning("the files state other voxel sizes (z, y, x) in nm, give voxel_size= if they do fit: %s", stated)


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


class VolumeWriter:
    """A volume being written, a context manager; see `create_volume`.

    Attributes:
        info: What is being written.
    """

    def __init__(self, info: VolumeInfo, *, overwrite: bool, chunks: tuple[int, int, int] | None = None) -> None:
        self.info, self._chunks = info, chunks
        self._place = place(info.path)
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._output: Output | None = None
        check_volume_output(info.path, overwrite, info.dtype)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_output(self._place.file, overwrite=self._overwrite))
            create = self._place.format.create
            assert create is not None
            self._output = create(temporary, self.info, self._place.dataset, self._chunks)
            self._stack = stack.pop_all()
        return self

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box; boxes may come in any order, what is never written is zero.

        Args:
            box: Where, inside the volume.
            image_zyx: Of the box's shape, and of a dtype that fits the volume's.

        Raises:
            ValueError: Box, shape or dtype do not fit, or the volume is not open.
            OSError: The disk is full; leaving the context makes a `UserError` of it.
        """
        if self._output is None:
            raise ValueError("write inside `with create_volume(...) as writer`")
        inside = all(a >= 0 and b <= n for a, b, n in zip(box.start, box.stop, self.info.shape, strict=True))
        if not inside or image_zyx.shape != box.shape:
            raise ValueError(f"{image_zyx.shape} does not fit box {box} of a volume of shape {self.info.shape}")
        if not np.can_cast(image_zyx.dtype, self.info.dtype, "same_kind"):
            raise ValueError(f"{image_zyx.dtype} does not fit a volume of {self.info.dtype}")
        if box.size:
            self._output.write(box, image_zyx.astype(self.info.dtype, copy=False))

    def shared(self, block: Sequence[int]) -> Path | None:
        """The Zarr array being written, if several processes may write whole blocks of this size, from the origin on.

        None where the output is of another format, or blocks share chunks: then `write` is the only way.
        """
        output = self._output
        if output is None or output.array is None:
            return None
        axes = zip(block, output.chunks, self.info.shape, strict=True)
        return output.array if all(n % chunk == 0 or n >= size for n, chunk, size in axes) else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        output, self._output = self._output, None
        with self._stack:  # renames the file or, on an exception, removes it
            try:
                if output is not None:
                    if error is None:
                        output.finish()
                    output.close()
            except Exception:
                if error is None:
                    raise
            if error is not None:
                raise error


def create_volume(
    path: str | os.PathLike[str],
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    *,
    voxel_size: Sequence[float] | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    chunks: tuple[int, int, int] | None = None,
) -> VolumeWriter:
    """Prepare a volume for writing; the file appears under its name when the context ends without an exception.

    Args:
        path: The suffix chooses the format: ``.tif`` and ``.tiff`` (ImageJ's, a BigTIFF with OME-XML from 4 GB on),
            ``.h5`` and ``.hdf5`` (optionally ``file.h5:/dataset``), ``.zarr`` (format 3), ``.ome.zarr`` (OME-Zarr 0.5
            with coarser levels), ``.mrc`` and ``.rec``.
        shape: (z, y, x).
        dtype: Of the stored voxels; bool is stored as uint8.
        voxel_size: (z, y, x) in nm.
        metadata: Plain data that comes back as ``open_volume(path).info.metadata``.
        overwrite: Whether an output that exists may be replaced.
        chunks: (z, y, x) voxels of a chunk of a Zarr array, at most its shape; other formats have their own.

    Raises:
        UserError: An unknown suffix, an output that exists, a folder that may not be written, an empty shape.
        ValueError: Chunks without voxels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with create_volume(f"{folder}/a.tif", (2, 3, 4), "uint8", voxel_size=(50, 5, 5)) as writer:
        ...         writer.write(Box((0, 0, 0), (1, 3, 4)), np.ones((1, 3, 4), np.uint8))
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.tif']
    """
    text = os.fspath(path)
    sizes = tuple(int(n) for n in shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise UserError("not the shape of a volume", sizes, "give z, y, x, each at least 1")
    if chunks is not None and (len(chunks) != 3 or min(chunks) < 1):
        raise ValueError(f"chunks={chunks}: give z, y, x, each at least 1")
    stored = np.dtype(np.uint8) if np.dtype(dtype) == bool else np.dtype(dtype)
    check_dtype(text, stored)
    size = None if voxel_size is None else check_voxel_size(voxel_size)
    z, y, x = sizes
    info = VolumeInfo(text, (z, y, x), stored, size, plain(metadata or {}))
    return VolumeWriter(info, overwrite=overwrite, chunks=chunks)


def check_volume_output(path: str, overwrite: bool, dtype: npt.DTypeLike | None = None) -> None:
    """Refuse a volume that cannot be written, before any work is done; `create_volume` asks this too.

    Args:
        path: The output.
        overwrite: Whether an output that exists may be replaced.
        dtype: Of the voxels, where it is known already; not every format holds each.

    Raises:
        UserError: An unknown suffix, an output that exists, a folder that may not be written, a type that the format
            cannot hold; or overwriting would remove more than one volume: a folder that is neither a Zarr array nor
            one OME-Zarr image alone, an HDF5 file with other datasets.
    """
    file, dataset, written = place(path)
    if dtype is not None:
        check_voxel_type(path, dtype)
    check_output(file, overwrite)
    if file.is_dir() and not is_array(file) and not is_one_image(file):
        raise UserError("the output is a folder that overwriting would remove", str(file), "choose another name")
    if file.is_file() and written.check_replaced is not None:
        written.check_replaced(file, dataset)


def convert(
    source: Volume,
    info: VolumeInfo,
    tile: tuple[int, int, int],
    *,
    read: Callable[[Volume, Box], Array] = lambda volume, box: volume.read(box),
    on_box: Callable[[Box], None] | None = None,
) -> None:
    """Write a volume under another name, whose suffix chooses the format.

    Args:
        source: Where the voxels come from.
        info: What is written, and where (its path).
        tile: (z, y, x) voxels to read at once; an OME-Zarr image takes whole chunks instead.
        read: Reads a box of the source.
        on_box: Called with each box that is written.

    Raises:
        UserError: The source is damaged, or the output cannot be written.
    """
    block = place(info.path).format.block
    part = tile if block is None else block(info, tile)
    with create_volume(
        info.path, info.shape, info.dtype, voxel_size=info.voxel_size, metadata=info.metadata
    ) as writer:
        for box in tiles(source.box, part):
            writer.write(box, read(source, box))
            if on_box is not None:
                on_box(box)
