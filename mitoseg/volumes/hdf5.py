"""HDF5 datasets, written ``file.h5:/dataset``; Imaris files, whose chunks extend beyond the image.

Imaris: DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data    z, y, x; the image is ImageSizeZ, Y, X of it
        DataSetInfo/Image                                       ExtMin0 to ExtMax2, corners along x, y, z, and Unit
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import io
import itertools
import json
import math
import os
import re
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import stored
from mitoseg.volumes.axes import (
    agreed_size,
    bdv_voxel_size,
    coarser_size,
    decoded,
    stated_axes,
    stated_sizes,
    voxel_size_nm,
    warn_of_packing,
)
from mitoseg.volumes.base import Array, VolumeInfo, VoxelSize

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")
CHUNK = (16, 256, 256)  # voxels of a chunk (z, y, x): 1 MiB of uint8, 4 MiB of float32
# Filters of the package hdf5plugin by their registered numbers; it has others, too.
_PLUGINS = {32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard", 32026: "Blosc2"}
_CELLS = re.compile(r"/t(\d{5,})/s(\d{2,})/(\d+)/cells")  # BigDataViewer's datasets: time, setup and level
_DEFLATE, _SLACK = 1032, 2**20  # gzip's largest ratio, and a tolerance in bytes
_DEEPEST = 16  # nesting of virtual datasets; each is a recursion in HDF5's own code


def open_hdf5(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open a dataset of an HDF5 file; reads its header only."""
    file, name = stored.split_dataset(path, SUFFIXES) or (path, "")
    with stored.opening(file), _open_file(file) as h5:
        dataset = _dataset(h5, file, name)
        held_in = dataset.file.filename if dataset.file != h5 else file  # an external link leads to another file
        _check_dataset(dataset)
        attributes = {key: decoded(value) for key, value in dataset.attrs.items()}
        warn_of_packing(path, attributes)
        shape, dtype, name = dataset.shape, dataset.dtype, dataset.name
        part = math.prod(dataset.chunks or ()) * dtype.itemsize
        tags = None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            tags = [axis["key"] for axis in json.loads(str(attributes["axistags"]))["axes"]]
        stated = stated_axes(attributes, dataset.ndim, attributes.get("axes"), tags)
        stated = stated or stated_axes({}, dataset.ndim, [dim.label for dim in dataset.dims])
        size = None
        if options.voxel_size is None and len(shape) >= 2:
            size = _voxel_size(held_in, dataset, attributes, stated or options.axes or "zyx"[-len(shape) :])
    if _CELLS.fullmatch(name) and dtype == np.int16:
        dtype = np.dtype(np.uint16)  # BigDataViewer stores unsigned numbers as signed ones
    header = stored.Header(
        shape, dtype, stated, size, stored.load_metadata(attributes.get("mitoseg")), part_bytes=part
    )
    return _Hdf5Volume(path, held_in, name, header, options)


def _open_file(file: str, **options: int) -> h5py.File:
    try:
        return h5py.File(file, "r", **options)
    except BlockingIOError as error:
        what = "another program has the HDF5 file open for writing"
        raise UserError(what, file, "close it there, or wait until it has ended") from error
    except OSError as error:
        if "unable to lock file" in str(error):
            what = "the file system does not support file locks, which HDF5 needs"
            raise UserError(what, file, "set HDF5_USE_FILE_LOCKING=FALSE while nothing writes the file") from error
        if "already open for write" in str(error):
            what = "another program is writing the HDF5 file, or crashed while writing it"
            raise UserError(what, file, "wait until it is closed; after a crash, run h5clear -s") from error
        raise


def _check_dataset(dataset: h5py.Dataset) -> None:
    """Refuse a dataset, or a source of a virtual one, that cannot be read or not safely."""
    for part, files in _sources(dataset, ()):
        plist = part.id.get_create_plist()
        for code, *_, name in (plist.get_filter(i) for i in range(plist.get_nfilters())):
            with contextlib.suppress(ImportError):
                None if h5py.h5z.filter_avail(code) else importlib.import_module("hdf5plugin")
            if not h5py.h5z.filter_avail(code):
                kind = _PLUGINS.get(code) or decoded(name) or "an unknown filter"
                what = f"the HDF5 dataset is compressed with {kind} (filter {code}), which HDF5 cannot read by itself"
                raise UserError(what, part.file.filename, "pip install hdf5plugin, or write it again with gzip")
        for file in files:
            if file.exists() and not file.is_file():
                what = "the voxels of the HDF5 dataset are not in a regular file"
                raise UserError(what, str(file), "copy the dataset")


def _sources(dataset: h5py.Dataset, above: tuple[tuple[str, str], ...]) -> Iterator[tuple[h5py.Dataset, list[Path]]]:
    """A dataset and its files, raw ones and those of virtual sources too; then the same of these sources."""
    file = Path(dataset.file.filename).absolute()
    here = (os.path.realpath(file), dataset.name)
    if here in above or len(above) > _DEEPEST:
        what = "the virtual dataset refers to itself" if here in above else "virtual datasets are nested too deeply"
        raise UserError(what, f"{file}:{dataset.name}", "make it of datasets that hold voxels")
    files = [place for name, *_ in dataset.external or () for place in (file.parent / name, Path(name).absolute())]
    inner: set[tuple[Path, str]] = set()
    named = {(s.file_name, s.dset_name) for s in (dataset.virtual_sources() if dataset.is_virtual else ())}
    for name, part in (tuple(map(os.fsdecode, pair)) for pair in named):
        pattern = "*".join(map(glob.escape, re.split(r"%\d*b", str(file.parent / name))))
        found = [file] if name == "." else sorted(map(Path, glob.glob(pattern))) or [file.parent / name]
        files += found
        parts = [part.replace("%b", str(number)) for number in range(_DEEPEST if "%b" in part else 1)]
        inner |= set(itertools.product(found[:_DEEPEST], parts))
    yield dataset, [file, *files]
    for other, part in inner:
        if other.is_file():
            with contextlib.nullcontext(dataset.file) if other == file else _open_file(str(other)) as h5:
                if isinstance(h5.get(part), h5py.Dataset):
                    yield from _sources(h5[part], (*above, here))


def _voxel_size(file: str, dataset: h5py.Dataset, attributes: Mapping[str, object], letters: str) -> VoxelSize | None:
    """(z, y, x) in nm from the dataset's attributes, ilastik's axistags, or BigDataViewer's XML beside the file."""
    found = stated_sizes(attributes, letters)
    cells = _CELLS.fullmatch(dataset.name)
    whole = bdv_voxel_size(Path(file), int(cells[2])) if cells else None
    if cells and whole:
        levels = np.asarray(dataset.file[f"s{cells[2]}/resolutions"], float)  # factors along x, y, z
        found["BigDataViewer's XML"] = coarser_size(whole, levels[int(cells[3])][::-1])
    with contextlib.suppress(ValueError, KeyError, TypeError):
        tags = {tag["key"]: tag.get("resolution") for tag in json.loads(str(attributes["axistags"]))["axes"]}
        units = json.loads(str(attributes.get("axis_units", "{}")))
        sizes = [tags.get(a) for a in "zyx"]
        named = voxel_size_nm(sizes, [units.get(a) or "nm" for a in "zyx"], flat="z" not in tags)
        if named and (units or {*sizes} != {1}):  # 1 without a unit counts voxels
            found["axistags"] = named
    return agreed_size(file, found)


def _dataset(h5: h5py.File, file: str, name: str) -> h5py.Dataset:
    """The dataset of that name, or the file's only volume."""
    if name and isinstance(h5.get(name), h5py.Dataset):
        return h5[name]
    items: dict[str, Any] = {}
    h5.visititems(items.__setitem__)
    found = {path: item for path, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim >= 2}
    three = {path: item for path, item in found.items() if item.ndim == 3} or found
    views = {match and match.groups()[:2] for match in (_CELLS.fullmatch(item.name) for item in three.values())}
    if len(views) == 1 and None not in views:  # levels of one view, the finest first
        three = {path: item for path, item in three.items() if item.name.endswith("/0/cells")}
    if not name and len(three) == 1:
        return next(iter(three.values()))
    known = ", ".join(f"{file}:/{path}" for path in sorted(found)[:8]) or "none at all"
    what = f"no dataset {name!r} in the file" if name else "the file does not contain exactly one volume"
    raise UserError(what, file, f"name one of its datasets: {known}")


class _Hdf5Volume(stored.StoredVolume):
    def __init__(self, path: str, file: str, name: str, header: stored.Header, options: stored.ReadOptions) -> None:
        super().__init__(path, header, options)
        self._file, self._name = os.path.abspath(file), name

    def _files(self) -> list[Path]:
        """The file, which may contain just a link, and the files with the voxels that it refers to."""
        with _open_file(self._file) as h5:
            named = Path((stored.split_dataset(self.path, SUFFIXES) or (self.path,))[0])
            return sorted({named, *(file for _, files in _sources(h5[self._name], ()) for file in files)})

    def find_gaps(self) -> UserError | None:
        with stored.reading(self.path), _open_file(self._file) as h5:
            dataset = h5[self._name]
            value = dataset.fillvalue
            if dataset.is_virtual:
                files = {os.fsdecode(source.file_name) for source in dataset.virtual_sources()} - {"."}
                folder = os.path.dirname(os.path.abspath(dataset.file.filename))
                missing = sum("%b" not in file and not os.path.exists(os.path.join(folder, file)) for file in files)
                what = f"{missing} of {len(files)} files of the virtual dataset are missing"
            elif dataset.chunks is None:
                missing = dataset.size > 0 and dataset.external is None and dataset.id.get_storage_size() == 0
                what = "the voxels of the dataset were never written"
            else:
                count = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
                missing = count - dataset.id.get_num_chunks()
                what = f"{missing} of {count} chunks were never written"
        return self._missing(missing, f"{what} and would read as {value}")

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        dataset, checked = self._handle()
        self._check_chunks(dataset, index, checked)
        return np.asarray(dataset[index])

    def _open(self) -> tuple[h5py.Dataset, set[tuple[int, ...]]]:
        """The dataset, and its chunks known to have the right size."""
        h5 = _open_file(self._file, rdcc_nbytes=stored.CACHE_BYTES, rdcc_nslots=10007)
        weakref.finalize(self, h5.close)
        _check_dataset(h5[self._name])  # a new process has not loaded the filters yet
        return h5[self._name], set()

    def _check_chunks(self, dataset: h5py.Dataset, index: tuple[slice, ...], checked: set[tuple[int, ...]]) -> None:
        """Refuse a gzip chunk that unpacks to more than its size, which HDF5 does not check."""
        plist = dataset.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        if dataset.chunks is None or dataset.is_virtual or h5py.h5z.FILTER_DEFLATE not in filters:
            return
        place = filters.index(h5py.h5z.FILTER_DEFLATE)
        most = 2 * math.prod(dataset.chunks) * dataset.dtype.itemsize + _SLACK
        ranges = [range(s.start // c, -(-s.stop // c)) for s, c in zip(index, dataset.chunks, strict=True)]
        for chunk in set(itertools.product(*ranges)) - checked:
            origin = tuple(i * c for i, c in zip(chunk, dataset.chunks, strict=True))
            found = dataset.id.get_chunk_info_by_coord(origin)
            if found.byte_offset is None or found.filter_mask & (1 << place) or found.size * _DEFLATE <= most:
                continue
            packed = dataset.id.read_direct_chunk(origin)[1]
            with contextlib.suppress(zlib.error):  # HDF5 will report it
                if len(zlib.decompressobj().decompress(packed, most + 1)) > most:
                    what = "a chunk unpacks to more than belongs in it"
                    raise UserError(what, self.path, "it is damaged: copy it again")
        checked.update(itertools.product(*ranges))


def check_only_dataset(file: Path, dataset: str) -> None:
    """Refuse to replace a file that contains other datasets."""
    items: dict[str, Any] = {}
    with stored.opening(str(file)), h5py.File(file, "r") as h5:
        h5.visititems(items.__setitem__)
        others = [name for name, item in items.items() if isinstance(item, h5py.Dataset) and name != dataset]
    if others:
        what = f"the output contains other datasets ({', '.join(others[:4])}) that overwriting would remove"
        raise UserError(what, str(file), "choose another file")


class _Sink(io.FileIO):
    """A file that stores its first error instead of raising it: HDF5 would crash the process at exit."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view and self.error is None:
                view = view[super().write(view) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class Hdf5Output(stored.Output):
    """A gzip-compressed dataset with its metadata as attributes."""

    def __init__(self, path: Path, info: VolumeInfo, dataset: str) -> None:
        self._sink = _Sink(path, "w+")
        self._h5 = h5py.File(self._sink, "w", rdcc_nbytes=stored.CACHE_BYTES, rdcc_nslots=10007)
        try:
            chunks = tuple(min(c, n) for c, n in zip(CHUNK, info.shape, strict=True))
            self._dataset = self._h5.create_dataset(
                dataset, info.shape, info.dtype, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True
            )
            attributes = self._dataset.attrs
            attributes["axes"], attributes["mitoseg"] = "zyx", json.dumps({"mitoseg": dict(info.metadata)})
            if info.voxel_size:
                attributes["voxel_size_nm"] = np.asarray(info.voxel_size, float)
                attributes["element_size_um"] = np.asarray(info.voxel_size, float) / 1000  # Fiji and ilastik read this
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def write(self, box: Box, image_zyx: Array) -> None:
        """Write one box."""
        self._dataset[box.slices] = image_zyx
        self._sink.check()

    def close(self) -> None:
        """See `Output.close`."""
        self._h5.close()
        self._sink.close()
        self._sink.check()


FORMAT = stored.Format(
    "file.h5:/dataset",
    SUFFIXES,
    open_hdf5,
    lambda path, info, dataset, _: Hdf5Output(path, info, dataset),
    datasets=True,
    check_replaced=check_only_dataset,
)
_IMARIS_SUFFIXES = (".ims",)
_FINEST = "DataSet/ResolutionLevel 0"


def open_imaris(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open the named dataset of an Imaris file, or the finest level of its only channel and time point."""
    file, name = stored.split_dataset(path, _IMARIS_SUFFIXES) or (path, "")
    with stored.opening(file), h5py.File(file, "r") as h5:
        known = [f"{_FINEST}/{t}/{c}/Data" for t in h5[_FINEST] for c in h5[f"{_FINEST}/{t}"]]
        name = name or (known[0] if len(known) == 1 else "")
        dataset = h5.get(name) if name else None
        if not isinstance(dataset, h5py.Dataset):
            named = ", ".join(f"{file}:/{one}" for one in known[:8])
            what = f"no dataset {name!r} in the file" if name else f"the file has {len(known)} channels or time points"
            raise UserError(what, file, f"name one of its datasets: {named}")
        sizes = [_text(dataset.parent, f"ImageSize{a}") for a in "ZYX"]
        shape = tuple(n if size is None else int(size) for n, size in zip(dataset.shape, sizes, strict=True))
        if any(n > most for n, most in zip(shape, dataset.shape, strict=True)):
            what = f"the image of {shape} is larger than its dataset of {dataset.shape}"
            raise UserError(what, path, "the file is damaged: export it again")
        about, size = h5.get("DataSetInfo/Image"), None
        if about is not None:  # the extent of the image, divided by its number of voxels
            ends = [[_text(about, f"Ext{end}{i}") for end in ("Min", "Max")] for i in (2, 1, 0)]
            extents = zip(ends, shape, strict=True)
            if all(value is not None for pair in ends for value in pair):
                lengths = [(float(high or 0) - float(low or 0)) / n for (low, high), n in extents]
                size = voxel_size_nm(lengths, _text(about, "Unit") or "")
        header = stored.Header(shape, dataset.dtype, "zyx", size)
    return _Hdf5Volume(path, file, name, header, options)


def _text(group: h5py.Group, name: str) -> str | None:
    """A text attribute, which Imaris stores as an array of characters."""
    value = group.attrs.get(name)
    return None if value is None else b"".join(np.ravel(np.asarray(value, "S"))).decode("utf-8", "replace").strip()


IMARIS = stored.Format("an Imaris file", _IMARIS_SUFFIXES, open_imaris, datasets=True)
