r"""From a mask to numbered mitochondria, at any size.

    mask --> components of each block --> joined across blocks --> touching ones cut --> small ones left out --> ids

Ids run from 1 to N in the order of the objects' first voxels (z, then y, then x). An engine maps blocks, then whole
components, then blocks again, and only tables come together here: the result depends on neither blocks nor order.

Mitochondria that touch are cut at their necks: every maximum of the (smoothed) distance to the border seeds a basin of
a watershed. Two basins meet at a saddle, whose height is the radius of the neck; from the highest saddle on they are
joined unless the neck is narrow compared with the thinner body. That is the h-maxima transform with a depth relative
to the peak (dynamics of Grimaud, Proc. SPIE 1769, 1992; persistence).

    distance    peak 90 nm          peak 70 nm
                  /\                 /\
                 /  \_______________/  \        joined if saddle >= neck * 70 nm, or 70 nm - saddle < depth
                /      saddle 40 nm     \
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import gaussian_filter, maximum_position
from skimage.segmentation import watershed

from mitoseg.control_groups import memory_available
from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError, is_number
from mitoseg.geometry import Box, meeting, tiles
from mitoseg.segmentation.blockwise import (
    BlockSummary,
    Joiner,
    Objects,
    Packed,
    known_spacing,
    label_components,
    least_voxels,
    measure_objects,
    pack,
    relabel_block,
    summarize_block,
    touches_border,
    unpack,
    write_blocks,
)
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import ArrayVolume, BoxWriter, Volume, VolumeInfo

log = logging.getLogger(__name__)
BLOCK = (64, 512, 512)  # voxels (z, y, x) labelled at once, unless memory is short
VOXEL_BYTES = 24  # of each of them
Ids = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
Heights = npt.NDArray[np.float32]
RINGS = {6: 1, 18: 2, 26: 3}  # axes along which neighbours differ at most, by connectivity


def label_volume(
    mask: Volume,
    labelling: Labelling | None = None,
    *,
    voxel_size: Sequence[float] | None = None,
    block: tuple[int, int, int] | None = None,
    on_block: Callable[[Box], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
) -> InstanceVolume:
    """Number the mitochondria of a mask (not zero): a lazy volume of ids with a table, for `write_instances`.

    The mask is read twice, block by block (z, y, x voxels; None: `BLOCK`, or what fits), and must not change in
    between; blocks do not change the result. Other engines than this process read the mask for themselves.
    ``voxel_size`` in nm replaces the mask's, ``metadata`` come on top of the kind and how it was made, and
    ``on_block`` is called with each block that the first pass is done with.
    """
    labelling = labelling or Labelling()
    if not isinstance(labelling, Labelling):
        raise UserError("no such labelling", labelling, "give mitoseg.Labelling(split=True), or leave it out")
    size = voxel_size or mask.voxel_size
    spacing = labelling.spacing(size)
    engine, joiner = engine or LocalEngine(), Joiner()
    block = block or engine.fit(BLOCK, VOXEL_BYTES)

    def take(part: Box, summary: BlockSummary) -> None:
        joiner.add(summary)
        if on_block is not None:
            on_block(part)

    engine.map(partial(summarize_block, mask, connectivity=labelling.connectivity), tiles(mask.box, block), take)
    components, tables = joiner.finish()
    cut: dict[int, Parts] = {}

    def keep(item: tuple[int, Objects], parts: Parts | None) -> None:
        if parts is not None:
            cut[item[0]] = parts

    if labelling.split:
        # those that have room for two parts which are not fragments, the largest box first
        volume = components["voxels"] * float(np.prod(spacing))
        rows = np.flatnonzero((volume >= 2 * labelling.fragment) & (components["voxels"] > 1))
        size_of = np.prod(components["stop"][rows] - components["start"][rows], axis=1)
        rows = rows[np.argsort(-size_of, kind="stable")]
        function = partial(_split, mask=mask, labelling=labelling, voxel_size=spacing)
        engine.map(function, ((int(row), components[row : row + 1]) for row in rows), keep)
    about = {"kind": "instances", "labelling": asdict(labelling), **(metadata or {})}
    voxel_size = None if size is None else check_voxel_size(size)
    info = VolumeInfo(mask.path, mask.shape, np.dtype(np.uint32), voxel_size, about)
    least = least_voxels(labelling.min_volume, spacing) if labelling.min_volume else 1
    return InstanceVolume(info, mask, labelling.connectivity, block, components, tables, cut, least)


def label_array(
    mask_zyx: npt.NDArray[Any], labelling: Labelling | None = None, *, voxel_size: Sequence[float] | None = None
) -> npt.NDArray[np.uint32]:
    """`label_volume` of an array in memory.

    >>> label_array(np.array([[[1, 0, 1, 1]]])).tolist()
    [[[1, 0, 2, 2]]]
    """
    return label_volume(ArrayVolume(mask_zyx), labelling, voxel_size=voxel_size).read()


def write_instances(
    instances: InstanceVolume,
    writer: BoxWriter,
    *,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
) -> None:
    """Write the ids, in the blocks that `label_volume` used; see `mitoseg.segmentation.blockwise.write_blocks`."""
    write_blocks(instances, instances.block, writer, on_block=on_block, engine=engine)


@dataclass(frozen=True)
class Labelling:
    """How a mask becomes instances. Lengths are in nm, volumes in nm3."""

    connectivity: int = 6  # voxels are neighbours over faces (6), edges as well (18), or corners as well (26)
    split: bool = False  # whether touching mitochondria are cut at their necks; see the module
    smoothing: float = 20.0  # standard deviation of a Gaussian filter of the distance to the border
    neck: float = 0.5
    """Two bodies stay one if the neck between them is at least this share of the thinner body, from 0 (nothing is cut)
    to 1 (every maximum of the distance is an object)."""
    depth: float = 0.0  # they stay one if the thinner body's radius is not larger than the neck's by this much
    seed_distance: float = 0.0  # they stay one if their middles lie closer together
    fragment: float = 4.0e6  # what is cut off and smaller is joined to its neighbour again
    min_volume: float | None = None  # objects below it are left out; None keeps all

    def __post_init__(self) -> None:
        if self.connectivity not in (6, 18, 26):
            raise UserError("labelling.connectivity is not a neighbourhood", self.connectivity, "give 6, 18 or 26")
        if not isinstance(self.split, bool):
            raise UserError("labelling.split is neither true nor false", self.split, "give true or false")
        for name, value in list(vars(self).items())[2:]:
            if not (is_number(value) and 0 <= value < math.inf) and (name, value) != ("min_volume", None):
                raise UserError(f"labelling.{name} is negative or not a number", value, "give 0 or more")
        if self.neck > 1:
            raise UserError("labelling.neck is not a fraction", self.neck, "give a number from 0 to 1")

    def spacing(self, voxel_size: Sequence[float] | None) -> Sequence[float]:
        """The voxel size (z, y, x) in nm, or ones where it is neither known nor needed."""
        return known_spacing(voxel_size, [f"labelling.{n}" for n in ("split", "min_volume") if getattr(self, n)])


class InstanceVolume(Volume):
    """Ids from 1 to N, uint32, 0 for background, computed block by block where they are read; see `label_volume`.

    Reading along the grid of ``block`` computes each block once.
    """

    def __init__(
        self,
        info: VolumeInfo,
        mask: Volume,
        connectivity: int,
        block: tuple[int, int, int],
        components: Objects,
        tables: Mapping[Box, Ids],
        cut: Mapping[int, Parts],
        least: int,
    ) -> None:
        super().__init__(info)
        self._mask, self.block, self._connectivity = mask, block, connectivity
        rows = sorted(cut)
        everything = np.concatenate([components, *(cut[row].objects for row in rows)])
        kept = everything["voxels"] >= least
        kept[rows] = False
        order = np.flatnonzero(kept)
        order = order[np.argsort(everything["first"][order])]
        if len(order) > np.iinfo(np.uint32).max:
            remedy = "leave out small ones with labelling.min_volume="
            raise UserError("too many objects for 32 bits", len(order), remedy)
        self.objects = everything[order]
        ids = np.zeros(len(everything), np.uint32)
        ids[order] = np.arange(1, len(order) + 1)
        ends = np.cumsum([len(components), *(len(cut[row].objects) for row in rows)])
        whole = np.concatenate([[0], ids[: ends[0]]]).astype(np.uint32)
        self._tables = {part: whole[table] for part, table in tables.items()}
        self._parts: dict[Box, list[tuple[Parts, Ids]]] = {}
        for row, a, b in zip(rows, ends[:-1], ends[1:], strict=True):
            of_parts = np.concatenate([[0], ids[a:b]]).astype(np.uint32)
            for there in meeting(self.box, block, cut[row].box):
                self._parts.setdefault(there, []).append((cut[row], of_parts))

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def touches_border(self) -> npt.NDArray[np.bool_]:
        """(N,) which objects the volume's border cuts."""
        return touches_border(self.objects, self.shape)

    def part(self, box: Box) -> InstanceVolume:
        """The same volume as far as a box needs it, without the table of objects; see `Volume.part`."""
        blocks, small = list(meeting(self.box, self.block, box)), copy(self)
        small.objects = self.objects[:0].copy()
        small._tables = {block: self._tables[block] for block in blocks}
        small._parts = {block: self._parts[block] for block in blocks if block in self._parts}
        return small

    def _read(self, box: Box) -> Ids:
        id_zyx = np.zeros(box.shape, np.uint32)
        for block in meeting(self.box, self.block, box):
            common = block.clip(box)
            id_zyx[common.inside(box).slices] = self._compute(block)[common.inside(block).slices]
        return id_zyx

    def _compute(self, block: Box) -> Ids:
        id_zyx = relabel_block(self._mask, block, self._tables[block], self._connectivity)
        for parts, ids in self._parts.get(block, ()):
            common = parts.box.clip(block)
            part_zyx = unpack(parts.packed)[common.inside(parts.box).slices]
            there = part_zyx > 0
            id_zyx[common.inside(block).slices][there] = ids[part_zyx[there]]
        return id_zyx


BYTES = 40  # memory that a voxel of a bounding box takes while its component is cut


@dataclass(frozen=True)
class Parts:
    """Two or more parts of one component."""

    box: Box  # the component's
    objects: Objects  # row ``i`` is the part of value ``i + 1``
    packed: Packed  # ``part_zyx`` of the box, int32, 0 outside the component


def _split(
    item: tuple[int, Objects], *, mask: Volume, labelling: Labelling, voxel_size: Sequence[float]
) -> Parts | None:
    """Cut one component; None where it has no neck or (with a warning) does not fit into memory."""
    (component,) = item[1]
    box = Box(tuple(component["start"].tolist()), tuple(component["stop"].tolist()))
    if box.size * BYTES > memory_available():
        log.warning("the component in %s is too large for memory and is not split", box)
        return None
    mask_zyx = mask.read(box)
    with one_at_a_time():
        label_zyx, _ = label_components(mask_zyx, labelling.connectivity)
        first = np.unravel_index(int(component["first"]), mask.shape)
        own = label_zyx[tuple(int(f) - a for f, a in zip(first, box.start, strict=True))]
        part_zyx = split_object(label_zyx == own, box, mask.shape, labelling, voxel_size)
        count = int(part_zyx.max())
        if count < 2:
            return None
        return Parts(box, measure_objects(part_zyx, count, box.start, mask.shape), pack(part_zyx))


def split_object(
    mask_zyx: Mask, box: Box, shape: Sequence[int], labelling: Labelling, voxel_size: Sequence[float]
) -> npt.NDArray[np.int32]:
    """Cut one component, given in its box of a volume of this shape, into parts from 1 on, in no stated order.

    Beyond the border of the volume the component is taken to go on.
    """
    edges = tuple((int(a > 0), int(b < n)) for a, b, n in zip(box.start, box.stop, shape, strict=True))
    inner = tuple(slice(a, n + a) for (a, _), n in zip(edges, mask_zyx.shape, strict=True))
    padded_zyx = np.pad(mask_zyx, edges)
    height_zyx = _heights(padded_zyx, voxel_size, labelling.smoothing)
    basins_zyx: npt.NDArray[np.int32] = watershed(  # type: ignore[no-untyped-call]
        -height_zyx, mask=padded_zyx, connectivity=RINGS[labelling.connectivity]
    )
    count = int(basins_zyx.max())
    place = np.array(maximum_position(height_zyx, basins_zyx, np.arange(1, count + 1))).reshape(-1, 3)
    peaks = height_zyx[tuple(place.T.astype(int))].astype(float)
    voxels = np.bincount(basins_zyx.ravel(), minlength=count + 1)[1:]
    parts = _Basins(voxels.tolist(), peaks.tolist(), place * np.asarray(voxel_size))
    # joined from the highest saddle on
    pairs, saddles = _saddles(basins_zyx, height_zyx, labelling.connectivity)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -saddles))
    contacts = [(int(pairs[i, 0]), int(pairs[i, 1]), float(saddles[i])) for i in order]
    for first, second, saddle in contacts:
        a, b = parts.root(first), parts.root(second)
        if a == b:
            continue
        peak = min(parts.peak(a), parts.peak(b))
        wide = saddle >= labelling.neck * peak or peak - saddle < labelling.depth
        if wide or parts.distance(a, b) < labelling.seed_distance:
            parts.join(a, b)
    least = labelling.fragment / float(np.prod(voxel_size))
    while True:  # each part that is too small joins the neighbour with the highest saddle, the smallest part first
        between = [(parts.root(a), parts.root(b)) for a, b, _ in contacts]  # from the highest saddle on
        between = [(a, b) for a, b in between if a != b]
        small = {root for pair in between for root in pair if parts.voxels[root] < least - 1e-9}
        if not small:
            break
        smallest = min(small, key=lambda root: (parts.voxels[root], root))
        parts.join(*next(pair for pair in between if smallest in pair))
    roots = [parts.root(i) for i in range(count)]
    number = {root: i for i, root in enumerate(dict.fromkeys(roots), 1)}
    return np.array([0, *(number[root] for root in roots)], np.int32)[basins_zyx[inner]]


def split_at_seeds(
    mask_zyx: Mask, seeds_zyx: npt.NDArray[np.integer], voxel_size: Sequence[float], *, smoothing: float = 20.0
) -> npt.NDArray[np.int32]:
    """Cut one object into as many parts as it has seeds: a watershed of the distance to its border, from the seeds.

    Part ``i + 1`` grows from ``seeds_zyx[i]``, voxels (n, 3) of the mask; pieces of the object without a seed are 0.
    ``smoothing`` is the standard deviation of the distance's filter in nm.
    """
    height_zyx = _heights(np.pad(mask_zyx, 1), voxel_size, smoothing)[1:-1, 1:-1, 1:-1]
    markers_zyx = np.zeros(mask_zyx.shape, np.int32)
    markers_zyx[tuple(np.asarray(seeds_zyx).T)] = np.arange(1, len(seeds_zyx) + 1)
    part_zyx: npt.NDArray[np.int32] = watershed(-height_zyx, markers_zyx, mask=mask_zyx)  # type: ignore[no-untyped-call]
    return part_zyx


def _heights(mask_zyx: Mask, voxel_size: Sequence[float], smoothing: float) -> Heights:
    """The distance to the background in nm, smoothed; 0 outside."""
    options: dict[str, Any] = {"anisotropy": tuple(voxel_size), "black_border": False, "parallel": 1}
    height_zyx: Heights = edt.edt(np.ascontiguousarray(mask_zyx), **options)
    longest = float(np.linalg.norm([n * v for n, v in zip(mask_zyx.shape, voxel_size, strict=True)]))
    np.minimum(height_zyx, longest, out=height_zyx)  # infinite where nothing is outside
    if smoothing:
        height_zyx = gaussian_filter(height_zyx, [smoothing / v for v in voxel_size], mode="nearest", truncate=3)
    height_zyx[~mask_zyx] = 0
    return height_zyx


def _saddles(
    basins_zyx: npt.NDArray[np.int32], height_zyx: Heights, connectivity: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pairs of basins that touch (from 0), and the height of the highest contact of each."""
    count = int(basins_zyx.max()) + 1
    codes, heights = [], []
    for offset in product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0) or sum(map(abs, offset)) > RINGS[connectivity]:
            continue
        here = tuple(slice(max(-o, 0), min(-o, 0) or None) for o in offset)
        there = tuple(slice(max(o, 0), min(o, 0) or None) for o in offset)
        a, b = basins_zyx[here], basins_zyx[there]
        touch = (a != b) & (a > 0) & (b > 0)
        low, high = np.minimum(a[touch], b[touch]), np.maximum(a[touch], b[touch])
        codes.append(low.astype(np.int64) * count + high)
        heights.append(np.minimum(height_zyx[here][touch], height_zyx[there][touch]))
    code, group = np.unique(np.concatenate(codes), return_inverse=True)
    saddles = np.zeros(len(code))
    np.maximum.at(saddles, group, np.concatenate(heights))
    return np.stack([code // count - 1, code % count - 1], -1), saddles


class _Basins:
    """Basins from 0 to n - 1 as they are joined; the peak of a part is the highest of its basins."""

    def __init__(self, voxels: Sequence[int], peaks: Sequence[float], places: npt.NDArray[np.float64]) -> None:
        self.voxels, self._peaks, self._places = list(voxels), peaks, places  # peaks in nm, places (n, 3) in nm
        self._sets, self._highest = DisjointSet(range(len(peaks))), list(range(len(peaks)))

    def root(self, basin: int) -> int:
        return int(self._sets[basin])

    def peak(self, root: int) -> float:
        return self._peaks[self._highest[root]]

    def distance(self, a: int, b: int) -> float:
        return float(np.linalg.norm(self._places[self._highest[a]] - self._places[self._highest[b]]))

    def join(self, a: int, b: int) -> None:
        highest = min((self._highest[a], self._highest[b]), key=lambda i: (-self._peaks[i], i))
        voxels = self.voxels[a] + self.voxels[b]
        self._sets.merge(a, b)
        root = self.root(a)
        self._highest[root], self.voxels[root] = highest, voxels
