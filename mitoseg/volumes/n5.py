"""N5 datasets, named ``file.n5:/dataset`` or ``file.n5/dataset``, read by tensorstore (extra ``[n5]``).

N5 lists axes from the fastest one. Programs differ in whether a level states its own voxel size or the one at full
resolution:

    transform           absolute                                            COSEM
    pixelResolution     times the dataset's own ``downsamplingFactors``     n5-viewer
    the same            absolute, if in a group with ``scales``             COSEM
    resolution          of a group or s0, times the level's factors         Paintera
    name.xml            beside name.n5, times the level's factors           BigDataViewer
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.errors import UserError, import_extra
from mitoseg.volumes import stored
from mitoseg.volumes.axes import agreed_size, bdv_voxel_size, coarser_size, same_size, stated_axes, stated_sizes
from mitoseg.volumes.base import Array, VoxelSize

SUFFIXES = (".n5",)
_NEEDED = {"dimensions", "blockSize", "dataType"}
_COMPRESSIONS = ("raw", "gzip", "bzip2", "xz", "blosc", "zstd")
_LARGEST_BLOCK = 2**31
_AXES = {2: "xy", 3: "xyz"}


def is_n5(path: str) -> bool:
    """Whether a path is an N5 container, or a group or dataset in one."""
    folder = stored.inside_folder(path, SUFFIXES)
    return folder.is_dir() and any(part.suffix.lower() in SUFFIXES for part in (folder, *folder.parents))


def open_n5(path: str, options: stored.ReadOptions) -> stored.StoredVolume:
    """Open a dataset, or the finest level or only dataset of a group; reads attributes only."""
    folder = stored.inside_folder(path, SUFFIXES)
    if not folder.is_dir():
        raise UserError("no such folder", path, "check the path")
    with stored.opening(path):
        dataset = _dataset(folder, path)
        attributes = _attributes(dataset)
        stored.check_multiset(path, attributes)
        shape, dtype = tuple(int(n) for n in attributes["dimensions"]), np.dtype(str(attributes["dataType"]))
        block = tuple(int(n) for n in attributes["blockSize"])
        if len(block) != len(shape) or min(block) < 1 or math.prod(block) * dtype.itemsize > _LARGEST_BLOCK:
            raise UserError(f"the N5 dataset states blocks of {block} for a shape of {shape}", path, "it is damaged")
        packing = attributes.get("compression", {"type": attributes.get("compressionType", "raw")})
        if isinstance(packing, Mapping) and packing.get("type") not in _COMPRESSIONS:
            what = f"the N5 dataset is compressed with {packing.get('type')}, which is not read"
            raise UserError(what, path, f"write it again with {', '.join(_COMPRESSIONS[1:])}")
        letters = stated_axes({}, len(shape), attributes.get("axes")) or _AXES.get(len(shape))
        size = _voxel_size(path, dataset, letters) if letters and options.voxel_size is None else None
        header = stored.Header(shape, dtype, letters, size, part_bytes=math.prod(block) * dtype.itemsize)
        import_extra("tensorstore", "tensorstore", "n5")
    volume = _N5Volume(path, header, options)
    volume._folder, volume._block = dataset.absolute(), block
    return volume


def _attributes(folder: Path) -> dict[str, Any]:
    file = folder / "attributes.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise TypeError("attributes.json holds no object")
    return found


def _dataset(folder: Path, path: str) -> Path:
    """The folder itself, its finest level ``s0``, or its only dataset."""
    if {*_attributes(folder)} >= _NEEDED:
        return folder
    if (folder / "s0").is_dir() and {*_attributes(folder / "s0")} >= _NEEDED:
        return folder / "s0"
    found = sorted(f.parent for f in folder.rglob("attributes.json") if {*_attributes(f.parent)} >= _NEEDED)
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{path}:/{f.relative_to(folder).as_posix()}" for f in found[:8])
    what = f"the N5 group holds {len(found)} datasets"
    raise UserError(what, path, f"name one: {known}" if known else "check the path")


def _voxel_size(path: str, dataset: Path, letters: str) -> VoxelSize | None:
    """(z, y, x) in nm of a dataset, as all statements agree; None if it is not stated."""
    own = _stated(_attributes(dataset), letters)
    # COSEM's list of levels in the group
    images = None if "transform" in own else _attributes(dataset.parent).get("multiscales")
    listed = images[0].get("datasets", []) if isinstance(images, list) and images else []
    levels = [level for level in listed if str(level.get("path", "")).strip("/") == dataset.name]
    in_list = _stated({"transform": levels[0].get("transform")}, letters) if levels else {}
    absolute = own.pop("transform", None) or in_list.get("transform")
    here, whole = agreed_size(path, own), _full_resolution(path, dataset, letters)
    factors, own_factors = _factors(dataset, letters)
    if factors is None:
        return agreed_size(path, {"transform": absolute, "own": here or whole})
    reduced = whole and coarser_size(whole, factors)
    expected = agreed_size(path, {"transform": absolute, "of its full resolution, times its factors": reduced})
    if here is None:
        return expected
    if expected is None:
        return coarser_size(here, factors) if own_factors else here
    if not any(same_size(size, expected) for size in (here, coarser_size(here, factors))):
        return agreed_size(path, {"of this level": here, "by its transform or its full resolution": expected})
    return expected


def _stated(attributes: Mapping[str, Any], letters: str) -> dict[str, VoxelSize]:
    return stated_sizes(attributes, letters, "".join(a for a in letters if a in "zyx"))


def _full_resolution(path: str, dataset: Path, letters: str) -> VoxelSize | None:
    """The full-resolution voxel size stated by the parent groups, the sibling s0 or BigDataViewer's XML."""
    view = re.search(r"/setup(\d+)/timepoint\d+/s\d+$", dataset.as_posix())
    container = next((f for f in dataset.parents if f.suffix.lower() in SUFFIXES), dataset.parent)
    if view:  # its "resolution" is in the unit stated by the XML
        return bdv_voxel_size(container, int(view[1]))
    finest = dataset.with_name("s0")
    levels = [finest] if re.fullmatch(r"s\d+", dataset.name) and finest != dataset else []
    for folder in (*levels, *dataset.parents):
        found = _stated(_attributes(folder), letters)
        size = found.pop("transform", None) or agreed_size(path, found)
        if size or folder == container:
            return size
    return None


def _factors(dataset: Path, letters: str) -> tuple[VoxelSize | None, bool]:
    """Downsampling factors relative to full resolution along z, y, x; whether the dataset itself states them."""
    level = re.fullmatch(r"s(\d+)", dataset.name)
    own, parent = _attributes(dataset).get("downsamplingFactors"), _attributes(dataset.parent)
    groups = (parent, _attributes(dataset.parent.parent))
    listed: list[Any] = next(
        (g[k] for g in groups for k in ("scales", "downsamplingFactors") if isinstance(g.get(k), list)), []
    )
    stated = own or (listed[int(level[1])] if level and int(level[1]) < len(listed) else None)
    finest = _attributes(dataset.with_name("s0")).get("dimensions") if level else None
    if stated is None and isinstance(finest, list):
        stated = [round(a / b) for a, b in zip(finest, _attributes(dataset)["dimensions"], strict=True)]
    if not isinstance(stated, list) or len(stated) != len(letters):
        return None, False
    z, y, x = (float(stated[letters.index(a)]) if a in letters else 1.0 for a in "zyx")
    return (z, y, x), own is not None


class _N5Volume(stored.StoredVolume):
    _folder: Path
    _block: tuple[int, ...]

    def _files(self) -> list[Path]:
        above = [folder / "attributes.json" for folder in self._folder.parents]
        return [self._folder, *(file for file in above if file.is_file())]

    def find_gaps(self) -> UserError | None:
        grid, there = [-(-n // b) for n, b in zip(self._stored_shape, self._block, strict=True)], 0
        with stored.reading(self.path):
            for folder, _, names in os.walk(self._folder):
                above = Path(folder).relative_to(self._folder).parts
                blocks = [(*above, name) for name in names if len(above) + 1 == len(grid)]
                for block in blocks:
                    if all(part.isdecimal() for part in block):
                        stored.check_regular(os.path.join(self._folder, *block))
                        there += all(int(i) < n for i, n in zip(block, grid, strict=True))
        missing = math.prod(grid) - there
        return self._missing(missing, f"{missing} of {math.prod(grid)} blocks are missing and would read as 0")

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        ranges = (range(s.start // n, -(-s.stop // n)) for s, n in zip(index, self._block, strict=True))
        for block in itertools.product(*ranges):
            stored.check_regular(os.path.join(self._folder, *map(str, block)))
        return np.asarray(self._handle()[index].read().result())

    def _open(self) -> Any:  # noqa: ANN401 (tensorstore's)
        store = {"driver": "file", "path": f"{self._folder}{os.sep}"}
        context = {"cache_pool": {"total_bytes_limit": stored.CACHE_BYTES}}
        spec = {"driver": "n5", "kvstore": store, "context": context}
        return import_extra("tensorstore", "tensorstore", "n5").open(spec, read=True, open=True).result()


FORMAT = stored.Format("an N5 folder", SUFFIXES, open_n5, recognize=is_n5, datasets=True)
