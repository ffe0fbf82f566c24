"""Connected components of a volume that is too large for memory: block by block, then joined across the blocks.

A block is read with one voxel more at its far sides, the first layer of the next block:

    block A    0 1 2 3|4
    block B           |4 5 6 7|8

Two voxels that touch, even at a corner, share a corner of smallest coordinates, and the block that holds this corner
reads both, whatever the connectivity. So blocks are joined where they share a voxel of a layer; layers between blocks
that meet in a face are enough. `summarize_block` and `relabel_block` need one block alone; `Joiner` needs them all.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cc3d
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import find_objects
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes.base import Array, ArrayVolume, ArrayWriter, BoxWriter, Volume
from mitoseg.volumes.opening import VolumeWriter, create_volume, open_volume
from mitoseg.volumes.staging import explained
from mitoseg.volumes.zarrs import ZarrOutput, remove_partial

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint32]
Objects = npt.NDArray[np.void]
"""A table of objects (n,) with the fields of `OBJECT`; row ``i`` belongs to label ``i + 1``."""
OBJECT = np.dtype([("voxels", np.int64), ("start", np.int64, 3), ("stop", np.int64, 3), ("first", np.int64)])
"""Corners (z, y, x) of the half-open bounding box in the volume, and the first voxel in raster order:
(z * Y + y) * X + x in a volume of shape (Z, Y, X)."""
NOWHERE = np.iinfo(np.int64).max  # first voxel of an object that has none
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class BlockSummary:
    """What other blocks need to know of a block."""

    block: Box
    pieces: Objects  # its components, without the layer that belongs to the next block
    near: tuple[Packed | None, ...]  # for each axis, the labels of its first layer; None at the volume's start
    far: tuple[Packed | None, ...]  # and of the layer shared with the next block; None at the volume's end


def summarize_block(mask: Volume, block: Box, connectivity: int) -> BlockSummary:
    """Components of one block of a regular grid; what is not zero is foreground."""
    mask_zyx = _read(mask, block)
    with one_at_a_time():
        label_zyx, count = label_components(mask_zyx, connectivity)
        own = tuple(slice(0, n) for n in block.shape)
        pieces = measure_objects(label_zyx[own], count, block.start, mask.shape)
        near = tuple(pack(np.take(label_zyx, 0, axis)) if a else None for axis, a in enumerate(block.start))
        far = tuple(
            pack(np.take(label_zyx, n, axis)) if label_zyx.shape[axis] > n else None
            for axis, n in enumerate(block.shape)
        )
    return BlockSummary(block, pieces, near, far)


def relabel_block(mask: Volume, block: Box, table: npt.NDArray[Value], connectivity: int) -> npt.NDArray[Value]:
    """The voxels of a block with what ``table`` says of its labels, as `summarize_block` numbers them.

    The components are computed again, which costs less than storing them.
    """
    mask_zyx = _read(mask, block)
    with one_at_a_time():
        label_zyx, _ = label_components(mask_zyx, connectivity)
        return table[label_zyx[tuple(slice(0, n) for n in block.shape)]]


def _read(mask: Volume, block: Box) -> Array:
    """A block with the first layers of those after it."""
    return mask.read(Box(block.start, tuple(n + 1 for n in block.stop)).clip(mask.box))


def label_components(mask_zyx: npt.NDArray[np.generic], connectivity: int) -> tuple[Labels, int]:
    """Components of an array in memory, and how many there are; in no stated order."""
    foreground_zyx = np.ascontiguousarray(mask_zyx != 0).view(np.uint8)  # cc3d 4.1 fails on some tiny bool arrays
    options: dict[str, Any] = {"connectivity": connectivity, "return_N": True, "out_dtype": np.uint32}
    label_zyx, count = cc3d.connected_components(foreground_zyx, **options)
    return label_zyx, int(count)


class Joiner:
    """Joins the components of all blocks of a grid, whose summaries come in any order.

    A layer is kept until the block on its other side has come. What grows with the volume is the table of pieces, the
    pairs of them that touch, and one run of blocks' layers.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[Box, int]] = []
        self._pieces: list[Objects] = [_no_objects(0)]
        self._total = 0
        self._pairs: list[Ints] = [np.zeros((0, 2), np.int64)]
        self._waiting: dict[tuple[int, tuple[int, ...]], tuple[int, Packed]] = {}

    def add(self, summary: BlockSummary) -> None:
        """Take one block."""
        block, offset = summary.block, self._total
        self._blocks.append((block, offset))
        self._pieces.append(summary.pieces)
        self._total += len(summary.pieces)
        for axis, (near, far) in enumerate(zip(summary.near, summary.far, strict=True)):
            if near is not None:
                self._match(axis, block.start, offset, near)
            if far is not None:
                next_start = (*block.start[:axis], block.stop[axis], *block.start[axis + 1 :])
                self._match(axis, next_start, offset, far)

    def _match(self, axis: int, start: tuple[int, ...], offset: int, face: Packed) -> None:
        """One of the two views of the first layer of the block at ``start``; the second that comes finds the first."""
        other = self._waiting.pop((axis, start), None)
        if other is None:
            self._waiting[axis, start] = (offset, face)
            return
        mine, theirs = unpack(face), unpack(other[1])
        both = np.stack([mine, theirs], -1)[mine > 0].astype(np.int64)
        if len(both):
            self._pairs.append(np.unique(both, axis=0) - 1 + np.array([offset, other[0]]))

    def finish(self) -> tuple[Objects, dict[Box, Labels]]:
        """The components by their first voxels; for each block the table from its labels (0 included) to theirs."""
        total = self._total
        first, second = np.concatenate(self._pairs).T
        contacts = coo_array((np.ones(len(first), bool), (first, second)), (total, total))
        count, group = connected_components(contacts, directed=False) if total else (0, np.zeros(0, np.int32))
        pieces, joined = np.concatenate(self._pieces), _no_objects(count)
        for name, join in (("voxels", np.add), ("first", np.minimum), ("start", np.minimum), ("stop", np.maximum)):
            join.at(joined[name], group, pieces[name])
        order = np.argsort(joined["first"])
        rank = np.empty(count, np.uint32)
        rank[order] = np.arange(1, count + 1)
        ends = [*(offset for _, offset in self._blocks[1:]), total]
        tables = {
            block: np.concatenate([[0], rank[group[a:b]]]).astype(np.uint32)
            for (block, a), b in zip(self._blocks, ends, strict=True)
        }
        return joined[order], tables


def touches_border(objects: Objects, shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which objects the border of a volume of this shape cuts: the bounding box reaches a face."""
    at_border: npt.NDArray[np.bool_] = ((objects["start"] == 0) | (objects["stop"] == np.asarray(shape))).any(axis=1)
    return at_border


def _no_objects(count: int) -> Objects:
    """Rows of objects without a voxel yet."""
    found = np.zeros(count, OBJECT)
    found["start"] = found["first"] = NOWHERE
    return found


def measure_objects(
    label_zyx: npt.NDArray[np.integer], count: int, origin: Sequence[int], shape: Sequence[int]
) -> Objects:
    """Measure labels 1 to ``count``, which may be absent, of a part that begins at ``origin`` of a volume."""
    found = _no_objects(count)
    found["voxels"] = np.bincount(label_zyx.ravel(), minlength=count + 1)[1:]
    for i, part in enumerate(find_objects(label_zyx, count)):
        if part is not None:
            found["start"][i] = [s.start + o for s, o in zip(part, origin, strict=True)]
            found["stop"][i] = [s.stop + o for s, o in zip(part, origin, strict=True)]
    flat = np.flatnonzero(label_zyx)
    first = np.full(count, -1)
    first[label_zyx.ravel()[flat[::-1]] - 1] = flat[::-1]  # of voxels of one label the last written, the first, stays
    z, y, x = (axis + o for axis, o in zip(np.unravel_index(first.clip(0), label_zyx.shape), origin, strict=True))
    found["first"] = np.where(first < 0, NOWHERE, (z * shape[1] + y) * shape[2] + x)
    return found


def least_voxels(volume: float, voxel_size: Sequence[float]) -> int:
    """Voxels that an object of ``volume`` nm3 has at least; rounding errors of the division do not count."""
    return math.ceil(volume / math.prod(voxel_size) - 1e-9)


def known_spacing(voxel_size: Sequence[float] | None, in_nm: Sequence[str]) -> Sequence[float]:
    """The voxel size (z, y, x) in nm, or ones where it is unknown and no option is in nm."""
    if voxel_size is None and in_nm:
        what = f"{in_nm[0]} is in nm, and the volume has no voxel size"
        raise UserError(what, None, "give voxel_size=[z,y,x], or leave the option out")
    return voxel_size or (1.0, 1.0, 1.0)


Packed = tuple[bytes, str, tuple[int, ...]]  # a compressed array, its type and its shape


def pack(array: Array) -> Packed:
    """An array, compressed."""
    return zlib.compress(np.ascontiguousarray(array).tobytes(), 1), array.dtype.str, array.shape


def unpack(packed: Packed) -> Array:
    """What `pack` was given; not to be written to."""
    data, dtype, shape = packed
    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape)


CHUNK = (64, 128, 128)  # voxels (z, y, x) of a chunk at most, so that one layer of the next block costs little


def store(
    volume: Volume,
    block: tuple[int, int, int],
    path: Path,
    *,
    engine: Engine | None = None,
    in_memory: int = 0,
    on_block: Callable[[Box], None] | None = None,
) -> Volume:
    """Compute a lazy volume block by block, so that reading it again computes nothing.

    It becomes a new Zarr array at ``path``, where all workers see it; or an array of up to ``in_memory`` voxels, where
    the engine is this process. For the rest see `write_blocks`.
    """
    engine, about = engine or LocalEngine(), volume.info
    if engine.in_process and math.prod(about.shape) <= in_memory:
        memory = ArrayWriter(about.shape, about.dtype)
        write_blocks(volume, block, memory, engine=engine, on_block=on_block)
        return ArrayVolume(memory.array_zyx, about.voxel_size, about.path, about.metadata)
    chunks = []  # that no two blocks share
    for side, n, most in zip(block, about.shape, CHUNK, strict=True):
        whole = side >= n
        chunks.append(min(most, n) if whole else max(d for d in range(1, min(side, most) + 1) if side % d == 0))
    options = {"voxel_size": about.voxel_size, "metadata": about.metadata, "chunks": tuple(chunks)}
    with create_volume(str(path), about.shape, about.dtype, **options) as writer:  # type: ignore[arg-type]
        write_blocks(volume, block, writer, engine=engine, on_block=on_block)
    return open_volume(str(path))


def write_blocks(
    volume: Volume,
    block: Sequence[int],
    writer: BoxWriter,
    *,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
    dtype: np.dtype[Any] | None = None,
) -> None:
    """Write a whole volume to a `VolumeWriter`, or anything like it, in blocks of ``block`` (z, y, x) voxels.

    Other processes write into a Zarr array themselves, where their blocks are made of whole chunks. For other outputs
    they send compressed blocks, and this process writes. Without an ``engine`` this process does it all. ``on_block``
    is called with each block that is written.
    """
    engine = engine or LocalEngine()
    array = writer.shared(block) if isinstance(writer, VolumeWriter) and not engine.in_process else None

    def take(item: tuple[Box, Volume], found: Array | Packed | None) -> None:
        if found is not None:
            writer.write(item[0], unpack(found) if isinstance(found, tuple) else found)
        if on_block is not None:
            on_block(item[0])

    function = partial(_make_block, array=array, dtype=dtype, compress=not engine.in_process)
    engine.map(function, ((part, volume.part(part)) for part in tiles(volume.box, block)), take)
    if array is not None:
        remove_partial(array)  # of workers that were killed


def _make_block(
    item: tuple[Box, Volume], *, array: Path | None, dtype: np.dtype[Any] | None, compress: bool
) -> Array | Packed | None:
    """Compute one block, and write it into a Zarr array or, if there is none, return it."""
    block, volume = item
    array_zyx = volume.read(block)
    if dtype is not None:
        array_zyx = array_zyx.astype(dtype, copy=False)
    if array is None:
        return pack(array_zyx) if compress else array_zyx
    with explained(array):
        ZarrOutput.reopen(array).write(block, array_zyx)
    return None


BLOCK = (32, 512, 512)  # voxels that are read at once, unless memory is short
VOXEL_BYTES = 32  # of each of them, at most
STARTS = ["box_z0", "box_y0", "box_x0"]
STOPS = ["box_z1", "box_y1", "box_x1"]
COLUMNS = ["instance", "voxels", *STARTS, *STOPS]


def count_block(labels_zyx: Array, start: Sequence[int] = (0, 0, 0)) -> pd.DataFrame:
    """The instances of a block of whole numbers, whatever their type: one row each, with `COLUMNS`.

    ``start`` is where the block lies in the volume (z, y, x), in whose voxels the half-open boxes are given.
    """
    flat = labels_zyx.ravel()
    inside = flat != 0
    codes, ids = pd.factorize(flat[inside])
    if len(ids) and ids.min() < 0:
        raise UserError(
            "an instance has a negative number", int(ids.min()), "number instances from 1, background is 0"
        )
    dense = np.zeros(flat.size, np.uint32)
    dense[inside] = codes + 1
    found = cc3d.statistics(dense.reshape(labels_zyx.shape), no_slice_conversion=True)
    boxes = np.asarray(found["bounding_boxes"], np.int64).reshape(-1, 3, 2)[1:]
    offset = np.asarray(start, np.int64)
    table = pd.DataFrame({"instance": ids.astype(np.uint64), "voxels": found["voxel_counts"][1:].astype(np.int64)})
    table[STARTS] = boxes[:, :, 0] + offset
    table[STOPS] = boxes[:, :, 1] + 1 + offset
    return table


def merge_counts(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One row for each instance of several tables, in order of the ids: voxels are summed, boxes joined."""
    given = [table for table in tables if len(table)]
    if not given:
        return count_block(np.zeros((1, 1, 1), np.uint8))
    joined = pd.concat(given, ignore_index=True).groupby("instance", sort=True)
    how = {"voxels": "sum"} | dict.fromkeys(STARTS, "min") | dict.fromkeys(STOPS, "max")
    return joined.agg(how).reset_index()[COLUMNS]


def count_instances(
    labels: Volume,
    *,
    block: tuple[int, int, int] = BLOCK,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
) -> pd.DataFrame:
    """`count_block` of a whole volume, in order of the ids, read ``block`` by block; see `write_blocks`."""
    if labels.dtype.kind not in "uib":
        raise UserError("instances are whole numbers", str(labels.dtype), "give instances, or kind=probability")
    total, waiting = merge_counts([]), list[pd.DataFrame]()

    def take(box: Box, table: pd.DataFrame) -> None:
        nonlocal total
        waiting.append(table)
        if sum(map(len, waiting)) > len(total):  # so that the total is not sorted anew for every block
            total = merge_counts([total, *waiting])
            waiting.clear()
        if on_block is not None:
            on_block(box)

    engine = engine or LocalEngine()
    engine.map(partial(_count_box, labels), tiles(labels.box, engine.fit(block, VOXEL_BYTES)), take)
    return merge_counts([total, *waiting])


def _count_box(labels: Volume, box: Box) -> pd.DataFrame:
    labels_zyx = labels.read(box)
    with one_at_a_time():
        return count_block(labels_zyx, box.start)
