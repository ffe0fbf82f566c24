"""N5 datasets, written ``file.n5:/dataset`` or ``file.n5/dataset``, by tensorstore, which the extra ``[n5]`` brings.

N5 counts axes from the fastest one on: x, y, z. Its attributes lie in ``attributes.json`` of the dataset and of the
groups around it. The voxel size is the nearest one that they state, times the dataset's own ``downsamplingFactors``:

    pixelResolution   {"dimensions": [x, y, z], "unit": "nm"}   n5-viewer, OpenOrganelle
    resolution        [x, y, z], with "units" or in nm          Paintera, BigDataViewer
    scales            of a group: the factors of s0, s1, ...
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.volumes.base import Array, VoxelSize
from mitoseg.volumes.hdf5 import split_dataset
from mitoseg.volumes.reading import CACHE_BYTES, opening, reading
from mitoseg.volumes.stored import REFILL, Header, StoredVolume
from mitoseg.volumes.units import voxel_size_nm

SUFFIXES = (".n5",)
_NEEDED = ("dimensions", "blockSize", "dataType")
_LARGEST_BLOCK = 2**31
_AXES = {2: "xy", 3: "xyz"}


def is_n5(path: str) -> bool:
    """Whether a path is an N5 container, or a group or dataset in one."""
    folder = n5_folder(path)
    return any(part.suffix.lower() in SUFFIXES for part in (folder, *folder.parents) if part.name) and (
        folder.is_dir() or split_dataset(path, SUFFIXES) is not None
    )


def n5_folder(path: str) -> Path:
    """The folder of a dataset or group; ``a.n5:/b`` is ``a.n5/b``."""
    parts = split_dataset(path, SUFFIXES)
    return Path(path) if parts is None or Path(path).exists() else Path(parts[0], parts[1])


def open_n5(path: str, *, axes: str | None = None, voxel_size: Sequence[float] | None = None) -> StoredVolume:
    """Open a dataset, or the finest level or only dataset of a group; reads attributes only.

    Raises:
        UserError: No such folder, no dataset or several, damaged attributes, or tensorstore is not installed.
    """
    folder = n5_folder(path)
    if not folder.is_dir():
        raise UserError("no such folder", path, "check the path")
    with opening(path):
        dataset = _dataset(folder, path)
        attributes = _attributes(dataset)
        shape, dtype = tuple(int(n) for n in attributes["dimensions"]), np.dtype(str(attributes["dataType"]))
        block = tuple(int(n) for n in attributes["blockSize"])
        if len(block) != len(shape) or min(block) < 1 or math.prod(block) * dtype.itemsize > _LARGEST_BLOCK:
            raise UserError(f"the N5 dataset states blocks of {block} for a shape of {shape}", path, "it is damaged")
        stated = attributes.get("axes")
        named = "".join(map(str, stated)).lower() if isinstance(stated, list) else ""
        letters = named if len(named) == len(shape) and set(named) <= set("xyzct") else _AXES.get(len(shape))
        header = Header(shape, dtype, letters, _voxel_size(dataset, letters))
        import_extra("tensorstore", "tensorstore", "n5")
    return N5Volume(path, dataset, header, block, axes=axes, voxel_size=voxel_size)


def _attributes(folder: Path) -> dict[str, Any]:
    file = folder / "attributes.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise TypeError("attributes.json holds no object")
    return found


def _is_dataset(folder: Path) -> bool:
    return all(key in _attributes(folder) for key in _NEEDED)


def _dataset(folder: Path, path: str) -> Path:
    """The folder itself, its finest level ``s0``, or its only dataset."""
    if _is_dataset(folder):
        return folder
    if (folder / "s0").is_dir() and _is_dataset(folder / "s0"):
        return folder / "s0"
    found = sorted(f.parent for f in folder.rglob("attributes.json") if _is_dataset(f.parent))
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{path}:/{f.relative_to(folder).as_posix()}" for f in found[:8])
    what = f"the N5 group holds {len(found)} datasets"
    raise UserError(what, path, f"name one: {known}" if known else "check the path")


def _voxel_size(dataset: Path, letters: str | None) -> VoxelSize | None:
    """(z, y, x) in nm of a dataset; None where nothing states it."""
    if letters is None or not set("xyz") <= set(letters):
        return None
    own, size, parent = _attributes(dataset), None, _attributes(dataset.parent)
    for folder in (dataset, *dataset.parents):
        size = size or _stated(_attributes(folder))
        if folder.suffix.lower() in SUFFIXES:
            break
    factors = own.get("downsamplingFactors", [1] * len(letters))
    scales = parent.get("scales") or parent.get("downsamplingFactors")
    level = dataset.name.removeprefix("s")
    if "downsamplingFactors" not in own and isinstance(scales, list) and level.isdecimal():
        factors = scales[int(level)] if int(level) < len(scales) else factors
    if size is None or len(size[0]) != len(letters) or len(factors) != len(letters):
        return None
    sizes = [float(a) * float(f) for a, f in zip(size[0], factors, strict=True)]
    places = [letters.index(a) for a in "zyx"]
    return voxel_size_nm([sizes[i] for i in places], [size[1][i] for i in places])


def _stated(attributes: Mapping[str, Any]) -> tuple[list[Any], list[str]] | None:
    """Voxel size and units of a group or dataset, in the stored order of axes."""
    pixel = attributes.get("pixelResolution")
    if isinstance(pixel, Mapping):
        sizes, units = pixel.get("dimensions"), pixel.get("unit", "um")
    else:
        sizes, units = pixel or attributes.get("resolution"), attributes.get("units", "nm")
    if not isinstance(sizes, list):
        return None
    return sizes, [str(u) for u in units] if isinstance(units, list) else [str(units)] * len(sizes)


class N5Volume(StoredVolume):
    """A dataset of an N5 container; every process opens it for itself."""

    def __init__(
        self,
        path: str,
        dataset: Path,
        header: Header,
        block: tuple[int, ...],
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._folder, self._block, self._stored_shape = dataset.absolute(), block, header.shape
        self._open: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def find_gaps(self) -> UserError | None:
        """Blocks that are not there; see `Volume.find_gaps`."""
        with reading(self.path):
            grid = [-(-n // b) for n, b in zip(self._stored_shape, self._block, strict=True)]
            there = sum(1 for name in self._files() if all(int(i) < n for i, n in zip(name, grid, strict=True)))
        missing = math.prod(grid) - there
        if not missing:
            return None
        return UserError(f"{missing} of {math.prod(grid)} blocks are missing and would read as 0", self.path, REFILL)

    def _files(self) -> list[tuple[str, ...]]:
        """The files of blocks, as their places in the grid."""
        found = []
        for folder, _, names in os.walk(self._folder):
            above = Path(folder).relative_to(self._folder).parts
            found += [(*above, name) for name in names]
        return [f for f in found if len(f) == len(self._block) and all(part.isdecimal() for part in f)]

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        if self._open is None or self._open[0] != os.getpid():
            store = {"driver": "file", "path": f"{self._folder}{os.sep}"}
            context = {"cache_pool": {"total_bytes_limit": CACHE_BYTES}}
            spec = {"driver": "n5", "kvstore": store, "context": context}
            self._open = (
                os.getpid(),
                import_extra("tensorstore", "tensorstore", "n5").open(spec, read=True, open=True).result(),
            )
        return np.asarray(self._open[1][index].read().result())
