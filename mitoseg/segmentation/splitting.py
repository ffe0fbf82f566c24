r"""Mitochondria that touch are cut at their necks: a watershed of the distance to the border, its basins then joined.

Every maximum of the (smoothed) distance seeds a basin. Two basins meet at a saddle, whose height is the radius of the
neck between them. From the highest saddle on, basins are joined unless the neck is narrow compared with the thinner of
the two bodies. That is the h-maxima transform with a depth relative to the peak, and costs one watershed, whatever the
criterion (dynamics of Grimaud, Proc. SPIE 1769, 1992; persistence).

    distance    peak 90 nm          peak 70 nm
                  /\                 /\
                 /  \_______________/  \        joined if saddle >= neck * 70 nm, or 70 nm - saddle < depth
                /      saddle 40 nm     \
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import DisjointSet
from scipy.ndimage import gaussian_filter, maximum_position
from skimage.segmentation import watershed

Floats = npt.NDArray[np.float64]
Heights = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
RINGS = {6: 1, 18: 2, 26: 3}  # axes along which neighbours differ at most, by connectivity


@dataclass(frozen=True)
class Criterion:
    """When two basins are one object: if one of these holds."""

    neck: float = 0.5  # the saddle is at least this share of the lower peak
    depth: float = 0.0  # the lower peak rises above the saddle by less, in nm
    seed_distance: float = 0.0  # their peaks lie closer together, in nm
    fragment: float = 0.0  # one is a part below so many nm3: it joins the neighbour with the highest saddle


def split_mask(
    mask_zyx: Mask,
    voxel_size: Sequence[float],
    criterion: Criterion,
    *,
    smoothing: float = 0.0,
    connectivity: int = 6,
    closed: Sequence[tuple[bool, bool]] = ((True, True),) * 3,
) -> npt.NDArray[np.int32]:
    """Cut one component, given in its bounding box, into parts from 1 on, in no stated order.

    ``smoothing`` is the standard deviation of the distance's filter in nm. ``closed`` says for both sides of each axis
    whether background follows; where not, the mask is taken to go on.
    """
    edges = tuple((int(a), int(b)) for a, b in closed)
    inner = tuple(slice(a, n + a) for (a, _), n in zip(edges, mask_zyx.shape, strict=True))
    basins_zyx, basins = find_basins(np.pad(mask_zyx, edges), voxel_size, smoothing, connectivity)
    return join_basins(basins, criterion)[basins_zyx[inner]]


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


@dataclass(frozen=True)
class Basins:
    """Basins from 0 to n - 1 and their m contacts."""

    voxels: npt.NDArray[np.integer]  # (n,)
    volume: float  # of a voxel, in nm3
    peaks: Floats  # (n,), height in nm: the distance from the basin's middle to the border
    places: Floats  # (n, 3), of the peaks, in nm
    pairs: npt.NDArray[np.int64]  # (m, 2), basins that touch
    saddles: Floats  # (m,), height of the highest contact of each pair, in nm


def find_basins(
    mask_zyx: Mask, voxel_size: Sequence[float], smoothing: float, connectivity: int
) -> tuple[npt.NDArray[np.int32], Basins]:
    """The basin of each maximum of the distance, and where they meet; heights are in nm."""
    height_zyx = _heights(mask_zyx, voxel_size, smoothing)
    basins_zyx: npt.NDArray[np.int32] = watershed(  # type: ignore[no-untyped-call]
        -height_zyx, mask=mask_zyx, connectivity=RINGS[connectivity]
    )
    count = int(basins_zyx.max())
    place = np.array(maximum_position(height_zyx, basins_zyx, np.arange(1, count + 1))).reshape(-1, 3)
    pairs, saddles = _saddles(basins_zyx, height_zyx, connectivity)
    return basins_zyx, Basins(
        voxels=np.bincount(basins_zyx.ravel(), minlength=count + 1)[1:],
        volume=float(np.prod(voxel_size)),
        peaks=height_zyx[tuple(place.T.astype(int))].astype(float),
        places=place * np.asarray(voxel_size),
        pairs=pairs,
        saddles=saddles,
    )


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
) -> tuple[npt.NDArray[np.int64], Floats]:
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


class _Parts:
    """Basins as they are joined; the peak of a part is the highest of its basins."""

    def __init__(self, basins: Basins) -> None:
        self._sets = DisjointSet(range(len(basins.peaks)))
        self._basins = basins
        self._highest = list(range(len(basins.peaks)))
        self.voxels = [int(n) for n in basins.voxels]

    def root(self, basin: int) -> int:
        return int(self._sets[basin])

    def peak(self, root: int) -> float:
        return float(self._basins.peaks[self._highest[root]])

    def distance(self, a: int, b: int) -> float:
        places = self._basins.places
        return float(np.linalg.norm(places[self._highest[a]] - places[self._highest[b]]))

    def join(self, a: int, b: int) -> None:
        highest = min((self._highest[a], self._highest[b]), key=lambda i: (-self._basins.peaks[i], i))
        voxels = self.voxels[a] + self.voxels[b]
        self._sets.merge(a, b)
        root = self.root(a)
        self._highest[root], self.voxels[root] = highest, voxels


def join_basins(basins: Basins, criterion: Criterion) -> npt.NDArray[np.int32]:
    """Join basins from the highest saddle on: (n + 1,), 0 and then the part of each basin, from 1 on."""
    parts = _Parts(basins)
    order = np.lexsort((basins.pairs[:, 1], basins.pairs[:, 0], -basins.saddles))
    contacts = [(int(basins.pairs[i, 0]), int(basins.pairs[i, 1]), float(basins.saddles[i])) for i in order]
    for first, second, saddle in contacts:
        a, b = parts.root(first), parts.root(second)
        if a == b:
            continue
        peak = min(parts.peak(a), parts.peak(b))
        wide = saddle >= criterion.neck * peak or peak - saddle < criterion.depth
        if wide or parts.distance(a, b) < criterion.seed_distance:
            parts.join(a, b)
    least = criterion.fragment / basins.volume
    while True:  # each part that is too small joins the neighbour with the highest saddle, the smallest part first
        between = [(parts.root(a), parts.root(b)) for a, b, _ in contacts]  # from the highest saddle on
        between = [(a, b) for a, b in between if a != b]
        small = {root for pair in between for root in pair if parts.voxels[root] < least - 1e-9}
        if not small:
            break
        smallest = min(small, key=lambda root: (parts.voxels[root], root))
        parts.join(*next(pair for pair in between if smallest in pair))
    roots = [parts.root(i) for i in range(len(basins.peaks))]
    number = {root: i for i, root in enumerate(dict.fromkeys(roots), 1)}
    return np.array([0, *(number[root] for root in roots)], np.int32)
