"""Open and write volumes in all supported formats, selected by suffix.

To add a format, write a module that defines a `Format` and add it to `FORMATS`, which determines what the commands
open and write, what ``input=`` finds in folders and what napari offers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError, as_path
from mitoseg.geometry import Box, tiles
from mitoseg.storage import atomic_output, check_output, plain
from mitoseg.volumes import hdf5, images, medical, mrc, n5, tiff, zarrs
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.stored import (
    Format,
    Output,
    ReadOptions,
    Tile,
    check_dtype,
    check_regular,
    reading,
    split_dataset,
)

log = logging.getLogger(__name__)
FORMATS: list[Format] = [
    *(tiff.FORMAT, hdf5.FORMAT, zarrs.FORMAT, zarrs.OME_FORMAT, n5.FORMAT, mrc.FORMAT, hdf5.IMARIS),
    *(medical.NIFTI, medical.NRRD, images.FORMAT),
]
"""All formats recognised by name; a folder of slices is recognised by its contents."""
_TIFF = "save it as TIFF or OME-TIFF, for example with Fiji"
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
# What to do with files of other kinds.
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


def split_path(path: str) -> tuple[str, str]:
    """Split a path into the file or folder and the dataset inside it, if it names one with a colon."""
    suffixes = [suffix for one in FORMATS if one.datasets for suffix in one.suffixes]
    return (None if Path(path).exists() else split_dataset(path, suffixes)) or (path, "")


def format_of(path: str) -> tuple[Format, str] | None:
    """The format recognised by name, and the matching suffix; None if there is none."""
    name = split_path(path)[0].lower().rstrip("/" + os.sep)
    found = [(one, suffix) for one in FORMATS for suffix in one.suffixes if name.endswith(suffix)]
    return max(found, key=lambda pair: len(pair[1]), default=None)


def container_format(path: str) -> Format | None:
    """The format of a folder that is itself a volume or a container of volumes, such as Zarr or N5."""
    return next((one for one in FORMATS if one.recognize is not None and one.recognize(path)), None)


def stored_in(path: str | os.PathLike[str]) -> Path:
    """The file or folder that contains a volume."""
    file, dataset = split_path(os.fspath(path))
    found = format_of(file) if dataset else None
    return Path(file, dataset) if found and found[0].recognize else Path(file)


class Place(NamedTuple):
    """Where an output goes: the file or folder, the dataset inside it (if the format has datasets), the format."""

    file: Path
    dataset: str
    format: Format


def place(path: str) -> Place:
    """Where and in which format an output is written; refuses an unknown suffix."""
    written = [one for one in FORMATS if one.create is not None]
    with_datasets = [suffix for one in written if one.check_replaced for suffix in one.suffixes]
    file, dataset = split_dataset(path, with_datasets) or (path, "")
    found = format_of(file) if Path(file).suffix else None
    if found is None or found[0] not in written:
        remedy = f"choose a name that ends in {_either([one.suffixes[0] for one in written])}"
        raise UserError("unknown kind of output", path, remedy)
    return Place(Path(file), dataset or "volume", found[0])


def check_voxel_type(path: str, dtype: npt.DTypeLike) -> None:
    """Refuse a voxel type that the output's format does not support."""
    target, name = place(path).format, np.dtype(dtype).name
    types = target.voxel_types
    if types is not None and name not in types:
        remedy = f"choose {', '.join(types)}, or a name that ends in {_either(written_suffixes(name, usual=True))}"
        raise UserError(f"{target.example} holds no {name}", path, remedy)


def written_suffixes(dtype: str, *, usual: bool = False) -> list[str]:
    """The suffixes of output formats that support a voxel type, of each the usual one first, or alone."""
    formats = [one for one in FORMATS if one.create and dtype in (one.voxel_types or [dtype])]
    return [suffix for one in formats for suffix in one.suffixes[: 1 if usual else None]]


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def open_volume(
    path: str | os.PathLike[str], *, axes: str | None = None, voxel_size: Sequence[float] | None = None
) -> Volume:
    """Open a volume; reads no voxels.

    ``path`` is a TIFF stack, a folder of slices, ``file.h5:/dataset``, a Zarr array, an OME-Zarr image or one of its
    levels, ``file.n5:/dataset``, an MRC, NIfTI, NRRD or Imaris file, or a single image as one slice. ``axes`` is the
    order of the stored axes, if the file leaves it open: ``zyx``, ``xyz``, ``czyx`` (c of length 1, or colour, which
    is reduced to grey). ``voxel_size``, (z, y, x) in nm, overrides the file's own.

    Raises:
        UserError: The file is missing, damaged, empty, of an unknown kind, or its axes are ambiguous.
    """
    text = as_path(path)
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
            first, *others = (one.example for one in FORMATS)
            remedy, suffix = f"give {first}, a folder of slices, {_either(others)}", Path(text).suffix.lower()
            if suffix in _PACKED and format_of(text[: -len(suffix)]):
                remedy = "unpack it first"
            raise UserError("unknown kind of volume", text, _NOT_READ.get(suffix, remedy))
    return open_format(text, ReadOptions(axes, voxel_size))


def warn_of_gaps(volume: Volume) -> None:
    """Warn if parts of a volume are missing, where this is not an error; see `Volume.find_gaps`."""
    gaps = volume.find_gaps()
    if gaps is not None:
        log.warning("%s: %s", volume.path, gaps.what)


def warn_of_sizes(*volumes: Volume) -> None:
    """Warn if the files of volumes on the same grid state voxel sizes that differ by more than 1 %."""
    stated = {volume.path: volume.voxel_size for volume in volumes if volume.voxel_size is not None}
    if stated and not np.allclose(list(stated.values()), next(iter(stated.values())), rtol=0.01):
        log.warning("the files state different voxel sizes (z, y, x) in nm; if wrong, give voxel_size=: %s", stated)


def check_same_shape(image: Volume, label: Volume) -> None:
    """Refuse an image and labels that are the same file, differ in shape, or state different axis directions."""
    if image.directions and label.directions and image.directions != label.directions:
        runs = f"z, y, x run {image.directions} and {label.directions} along the world axes"
        what = f"image and labels are oriented differently: {runs}"
        raise UserError(what, label.path, "save both with the same orientation")
    if image.path == label.path and stored_in(image.path).exists():  # not two arrays in memory
        raise UserError("image and labels are one file", label.path, "give the labels of the image")
    if image.shape != label.shape:
        what = f"image and labels differ in shape: {image.shape} of {image.path}, {label.shape}"
        raise UserError(what, label.path, f"give labels of the same volume{swapped(image.shape, label.shape)}")


def swapped(*shapes: tuple[int, ...]) -> str:
    """An additional remedy if shapes differ only in the order of axes; else empty."""
    if len({tuple(sorted(shape)) for shape in shapes}) > 1:
        return ""
    return ", or store the axes of both in the same order: z, y, x"


class VolumeWriter:
    """A volume being written, a context manager; see `create_volume`."""

    def __init__(self, info: VolumeInfo, *, overwrite: bool, chunks: Tile | None = None) -> None:
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
        """Write one box inside the volume, of a compatible dtype, in any order; voxels never written are zero."""
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
        """The Zarr array to which several processes may write whole blocks of this size, aligned to the origin.

        None if the output has another format or blocks share chunks; then only `write` can be used.
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
        hidden = [] if error is None else [Exception]
        with self._stack:  # renames the file or, on an exception, removes it
            with suppress(*hidden):
                if output is not None and error is None:
                    output.finish()
                if output is not None:
                    output.close()
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
    chunks: Tile | None = None,
) -> VolumeWriter:
    """Prepare a volume for writing; the file appears under its name when the context ends without an exception.

    The suffix of ``path`` selects the format: ``.tif`` and ``.tiff`` (ImageJ, or BigTIFF with OME-XML from 4 GB),
    ``.h5`` and ``.hdf5`` (optionally ``file.h5:/dataset``), ``.zarr`` (format 3), ``.ome.zarr`` (OME-Zarr 0.5 with
    coarser levels), ``.mrc`` and ``.rec``. ``shape``, ``voxel_size`` in nm and ``chunks`` of a Zarr array are z, y,
    x; bool is stored as uint8; ``metadata`` are plain data that ``open_volume(path).info.metadata`` returns.

    Raises:
        UserError: The suffix is unknown, the output exists, its folder is not writable, or the shape is empty.
    """
    text = as_path(path)
    sizes = tuple(int(n) for n in shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise UserError("not the shape of a volume", sizes, "give z, y, x, each at least 1")
    if chunks is not None and (len(chunks) != 3 or min(chunks) < 1):
        raise ValueError(f"chunks={chunks}: give z, y, x, each at least 1")
    held = np.dtype(np.uint8) if np.dtype(dtype) == bool else np.dtype(dtype)
    check_dtype(text, held)
    size = None if voxel_size is None else check_voxel_size(voxel_size)
    z, y, x = sizes
    info = VolumeInfo(text, (z, y, x), held, size, plain(metadata or {}))
    return VolumeWriter(info, overwrite=overwrite, chunks=chunks)


def check_volume_output(path: str | os.PathLike[str], overwrite: bool, dtype: npt.DTypeLike | None = None) -> None:
    """Refuse, before any work is done, an output that cannot be written or would replace more than one volume."""
    text = as_path(path)
    file, dataset, written = place(text)
    if dtype is not None:
        check_voxel_type(text, dtype)
    check_output(file, overwrite)
    if file.is_dir() and not zarrs.is_array(file) and not zarrs.is_one_image(file):
        raise UserError("the output is a folder that overwriting would remove", str(file), "choose another name")
    if file.is_file() and written.check_replaced is not None:
        written.check_replaced(file, dataset)


def convert(
    source: Volume,
    info: VolumeInfo,
    tile: Tile,
    *,
    read: Callable[[Volume, Box], Array] = lambda volume, box: volume.read(box),
    on_box: Callable[[Box], None] | None = None,
) -> None:
    """Write a volume tile by tile (OME-Zarr: by whole chunks) to ``info.path``, whose suffix selects the format."""
    block = place(info.path).format.block
    part = tile if block is None else block(info, tile)
    options: dict[str, Any] = {"voxel_size": info.voxel_size, "metadata": info.metadata}
    with create_volume(info.path, info.shape, info.dtype, **options) as writer:
        for box in tiles(source.box, part):
            writer.write(box, read(source, box))
            if on_box is not None:
                on_box(box)
