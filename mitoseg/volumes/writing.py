"""One way to write a volume, whatever its format: boxes in any order, the file appears when it is complete."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.storage import atomic_output, check_output, plain
from mitoseg.volumes import hdf5, mrc, tiff, zarrs
from mitoseg.volumes.base import Array, VolumeInfo
from mitoseg.volumes.hdf5_output import Hdf5Output, check_only_dataset
from mitoseg.volumes.mrc_output import MrcOutput, check_mrc_dtype
from mitoseg.volumes.ome_output import OmeZarrOutput, is_ome, is_one_image
from mitoseg.volumes.stored import check_dtype
from mitoseg.volumes.tiff_output import TiffOutput, check_tiff_dtype
from mitoseg.volumes.units import check_voxel_size
from mitoseg.volumes.zarr_output import ZarrOutput, is_array


class Output(Protocol):
    """A file being written."""

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box, in the file's dtype."""

    def close(self) -> None:
        """Hand everything to the operating system; may be called again."""


class VolumeWriter:
    """A volume being written, a context manager; see `create_volume`.

    Attributes:
        info: What is being written.
    """

    def __init__(self, info: VolumeInfo, *, overwrite: bool, chunks: tuple[int, int, int] | None = None) -> None:
        self.info, self._chunks = info, chunks
        self._file, self._dataset = place(info.path)
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._output: Output | None = None
        check_volume_output(info.path, overwrite, info.dtype)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_output(self._file, overwrite=self._overwrite))
            self._output = self._create(temporary)
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
        if not isinstance(output, ZarrOutput):
            return None
        axes = zip(block, output.chunks, self.info.shape, strict=True)
        return output.path.absolute() if all(n % chunk == 0 or n >= size for n, chunk, size in axes) else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        output, self._output = self._output, None
        with self._stack:  # renames the file or, on an exception, removes it
            try:
                if output is not None:
                    if error is None and isinstance(output, OmeZarrOutput):
                        output.finish()
                    output.close()
            except Exception:
                if error is None:
                    raise
            if error is not None:
                raise error

    def _create(self, temporary: Path) -> Output:
        """The format's own file, empty."""
        suffix = self._file.suffix.lower()
        if suffix in tiff.SUFFIXES:
            return TiffOutput(temporary, self.info)
        if suffix in hdf5.SUFFIXES:
            return Hdf5Output(temporary, self._dataset, self.info)
        if suffix in mrc.SUFFIXES:
            return MrcOutput(temporary, self.info)
        if is_ome(self._file):
            return OmeZarrOutput(temporary, self.info, self._chunks)
        return ZarrOutput(temporary, self.info, self._chunks)


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
    file, dataset = place(path)
    if dtype is not None:
        check_voxel_type(path, dtype)
    check_output(file, overwrite)
    if file.is_dir() and not is_array(file) and not is_one_image(file):
        raise UserError("the output is a folder that overwriting would remove", str(file), "choose another name")
    if file.is_file() and file.suffix.lower() in hdf5.SUFFIXES:
        check_only_dataset(file, dataset)


def check_voxel_type(path: str, dtype: npt.DTypeLike) -> None:
    """Refuse voxels that an output's format cannot hold.

    Raises:
        UserError: It cannot.
    """
    suffix = place(path)[0].suffix.lower()
    if suffix in mrc.SUFFIXES:
        check_mrc_dtype(path, np.dtype(dtype))
    if suffix in tiff.SUFFIXES:
        check_tiff_dtype(path, np.dtype(dtype))


def place(path: str) -> tuple[Path, str]:
    """The file or folder to write, and the dataset inside it (of formats that have such).

    Raises:
        UserError: An unknown suffix.
    """
    file, dataset = hdf5.split_dataset(path) or (path, "")
    if Path(file).suffix.lower() not in (*tiff.SUFFIXES, *hdf5.SUFFIXES, *mrc.SUFFIXES, *zarrs.SUFFIXES):
        raise UserError(
            "unknown kind of output", path, "choose a name that ends in .tif, .h5, .zarr, .ome.zarr or .mrc"
        )
    return Path(file), dataset or "volume"
