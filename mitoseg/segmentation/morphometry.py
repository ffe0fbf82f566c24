"""What each mitochondrion of a volume measures: instances in, one row an instance out.

counting      blocks -> ids, voxels, boxes
objects       groups of neighbouring boxes, each read once -> shape, grey values, probability of every object
surfaces      blocks -> points on surfaces, in files
neighbours    tiles, from the points within reach -> distances from surface to surface

Parts may go to other processes. Memory holds a block, a group or the largest object, and surface points near one tile.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import edt
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.errors import UserError, is_number
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.blockwise import BLOCK, STARTS, STOPS, VOXEL_BYTES, count_instances
from mitoseg.segmentation.centreline import Centreline, shape_centreline
from mitoseg.segmentation.labelling import Labelling, label_volume
from mitoseg.segmentation.smooth_shape import (
    PIECE,
    Floats,
    Mask,
    SurfacePoints,
    VoxelPoints,
    ball_area,
    blur,
    mesh_area,
    shape_mesh,
    smooth_shape,
)
from mitoseg.volumes import Array, Volume, VoxelSize
from mitoseg.volumes.base import CroppedVolume

log = logging.getLogger(__name__)
REACH = 1000.0  # in nm, how far a neighbour is looked for
TILE = (128, 512, 512)  # neighbours are looked for at once
GROUP = (64, 256, 256)  # objects whose boxes start in the same part of this size are read together
_GROUP_VOXELS = 2**25
_VOXEL_BYTES = {"group": 24, "object": 64, "piece": 24, "tile": 8}
"""Memory for each voxel of what is held at once, at most."""


@dataclass(frozen=True)
class Sources:
    """The volumes of one measurement, of one shape."""

    labels: Volume  # instance numbers, 0 is background
    voxel_size: VoxelSize  # (z, y, x) in nm
    image: Volume | None = None  # grey values
    probability: Volume | None = None  # of mitochondrion, stored times ``scale``
    uncertainty: Volume | None = None  # one of its own, in place of the binary entropy of the probability
    scale: float = 1.0  # the stored value of probability 1

    def read(self, box: Box) -> dict[str, Array]:
        """All volumes in a box, by their names."""
        given = {name: getattr(self, name) for name in ("labels", "image", "probability", "uncertainty")}
        arrays = {name: volume.read(box) for name, volume in given.items() if volume is not None}
        if "probability" in arrays:
            arrays["probability"] = arrays["probability"].astype(np.float32) / np.float32(self.scale)
        return arrays


def measure_instances(
    sources: Sources,
    *,
    min_volume: float | None = None,
    reach: float = REACH,
    engine: Engine | None = None,
    block: tuple[int, int, int] = BLOCK,
    tile: tuple[int, int, int] = TILE,
    scratch: Path | None = None,
    on_part: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """Measure every instance of a volume: one row each, in order of the ids, with the columns of docs/MEASURING.md.

    Instances below ``min_volume`` nm3 get no row (they still count as neighbours). `neighbour_distance_nm` is NaN
    where no other instance is within ``reach`` nm; 0 leaves it out. ``block`` and ``tile`` (z, y, x) are read at once
    in the first pass and for neighbours; ``scratch`` is a folder, which the engine's processes must see, for points on
    surfaces (None: the system's own); ``on_part`` takes the share of the work that is done, from 0 to 1.
    """
    for name in ("image", "probability", "uncertainty"):
        volume = getattr(sources, name)
        if volume is not None and volume.shape != sources.labels.shape:
            shapes = {"labels": sources.labels.shape, name: volume.shape}
            what = f"labels and {name} differ in shape (z, y, x)"
            raise UserError(what, shapes, "give volumes over the same voxels")
    if min_volume is not None and not (is_number(min_volume) and min_volume > 0):
        raise UserError("min_volume is not above zero", min_volume, "give a volume in nm3, or null")
    if not (is_number(reach) and 0 <= reach < math.inf):
        raise UserError("reach is not a distance", reach, "give nm, or 0 for no distances")
    size, engine = sources.voxel_size, engine or LocalEngine()
    tell = on_part or (lambda share: None)
    block = engine.fit(block, VOXEL_BYTES)
    boxes = list(tiles(sources.labels.box, block))
    count = iter(range(1, len(boxes) + 1))
    found = count_instances(
        sources.labels, block=block, on_block=lambda _: tell(0.1 * next(count) / len(boxes)), engine=engine
    )
    if len(found) == 1:  # of several separate objects it is a mask
        start, stop = (tuple(map(int, found.iloc[0][corner])) for corner in (STARTS, STOPS))
        crop = CroppedVolume(sources.labels, Box(start, stop))
        if (several := len(label_volume(crop, Labelling(connectivity=26), engine=engine))) > 1:
            remedy = "number the objects first: kind=mask, in Python mitoseg.label(mask)"
            log.warning("%s: all %d objects have one number, as in a mask; %s", sources.labels.path, several, remedy)
    if min_volume is not None:
        found = found[found["voxels"] * math.prod(size) >= min_volume].reset_index(drop=True)
    keys = [found[name] // n for name, n in zip(STARTS, GROUP, strict=True)]
    groups = [group for _, group in found.groupby(keys, sort=True)] if len(found) else []
    rows: list[list[dict[str, object]]] = []

    def take_rows(_: pd.DataFrame, part: list[dict[str, object]]) -> None:
        rows.append(part)
        tell(0.1 + 0.7 * len(rows) / len(groups))

    engine.map(partial(measure_group, sources, memory=engine.item_bytes), groups, take_rows)
    distances = []
    if reach > 0 and len(found):
        distances = measure_distances(sources, reach, engine, tile, scratch, lambda share: tell(0.8 + 0.2 * share))
    names = column_names(image=sources.image is not None, probability=sources.probability is not None,
                         uncertainty=sources.uncertainty is not None)  # fmt: skip
    table = pd.DataFrame([row for part in rows for row in part], columns=names)
    table = table.astype({**dict.fromkeys(names, float), **TYPES})
    if reach > 0:
        empty = pd.DataFrame({"instance": np.array([], np.uint64), DISTANCE: np.array([])})
        least = pd.concat([empty, *distances]).groupby("instance", sort=True)[[DISTANCE]].min().reset_index()
        table = table.merge(least, on="instance", how="left").astype({DISTANCE: float})
    tell(1.0)
    return table.sort_values("instance", ignore_index=True)


def measure_group(sources: Sources, group: pd.DataFrame, *, memory: float = math.inf) -> list[dict[str, object]]:
    """Rows (`column_names`) of some objects, read at once if their common box is small, else one by one.

    Objects that need more than so many bytes of memory are refused. One that touches the volume's faces is cut there.
    """
    around = margin(sources.voxel_size) if sources.image is not None else (0, 0, 0)
    whole = Box(tuple(map(int, group[STARTS].min())), tuple(map(int, group[STOPS].max())))
    whole = whole.grow(around).clip(sources.labels.box)
    together = min(_GROUP_VOXELS, memory / 2 / _VOXEL_BYTES["group"])
    arrays = sources.read(whole) if whole.size <= together else None
    rows = []
    ids = group["instance"].to_numpy()
    corners = zip(ids, group[STARTS].to_numpy().tolist(), group[STOPS].to_numpy().tolist(), strict=True)
    for instance, start, stop in corners:
        box = Box(tuple(start), tuple(stop))
        outer = box.grow(around).clip(sources.labels.box)
        if (needed := outer.size * _VOXEL_BYTES["object"]) > memory:
            what = f"object {instance} in {box} needs {needed / 1e9:.1f} GB to be measured"
            raise UserError(what, f"{memory / 1e9:.1f} GB are left for it", "give more memory=, or fewer workers")
        if arrays is None:
            crop = sources.read(outer)
        else:
            crop = {name: array[outer.inside(whole).slices] for name, array in arrays.items()}
        around_zyx, inner = crop["labels"] == instance, box.inside(outer).slices
        mask_zyx = np.ascontiguousarray(around_zyx[inner])
        shape = shape_measures(mask_zyx, box, sources.labels.shape, sources.voxel_size)
        row: dict[str, object] = dict(zip(SHAPE, (instance, *shape), strict=True))
        if "image" in crop:
            grey = crop["image"][inner][mask_zyx].astype(np.float64)
            texture = cristae_texture(crop["image"], around_zyx, sources.voxel_size)
            row |= dict(zip(IMAGE, (float(grey.mean()), float(grey.std()), *texture), strict=True))
        if "probability" in crop:
            p = crop["probability"][inner][mask_zyx].astype(np.float64)
            q = np.stack([p, 1 - p]).clip(0, 1)
            terms = -q * np.log2(q, where=q > 0, out=np.zeros_like(q))
            # in bits: 0 where the network is sure, 1 where it says 0.5
            row |= {"probability_mean": float(p.mean()), "uncertainty": float(terms.sum(axis=0).mean())}
        if "uncertainty" in crop:
            row["uncertainty"] = float(crop["uncertainty"][inner][mask_zyx].mean(dtype=np.float64))
        rows.append(row)
    return rows


def measure_distances(
    sources: Sources,
    reach: float,
    engine: Engine,
    tile: tuple[int, int, int],
    scratch: Path | None,
    tell: Callable[[float], None],
) -> list[pd.DataFrame]:
    """Distances of the objects in each tile to their neighbours within ``reach`` nm; see `measure_instances`."""
    whole, distances = sources.labels.box, list[pd.DataFrame]()
    piece, tile = engine.fit(PIECE, _VOXEL_BYTES["piece"]), engine.fit(tile, _VOXEL_BYTES["tile"])
    pieces, areas = sum(1 for _ in tiles(whole, piece)), sum(1 for _ in tiles(whole, tile))
    count = iter(range(1, pieces + 1))

    def take(_: Box, near: pd.DataFrame) -> None:
        distances.append(near)
        tell(0.5 + 0.5 * len(distances) / areas)

    with TemporaryDirectory(dir=scratch, prefix="surfaces.", ignore_cleanup_errors=True) as folder:
        surfaces = SurfacePoints(sources.labels, Path(folder), piece)
        engine.map(surfaces.store, tiles(whole, piece), lambda *_: tell(0.5 * next(count) / pieces))
        function = partial(nearest_neighbours, surfaces, voxel_size=sources.voxel_size, reach=reach)
        engine.map(function, tiles(whole, tile), take)
    return distances


FEW_VOXELS = 30  # objects of fewer have no centreline: their length and diameter are those of a box
THIN = 2.0  # so have those whose middle axis is shorter than this many standard deviations of the surface's blur
SHAPE = [
    *("instance", "voxels", "volume_nm3", "surface_nm2", "sphericity"),
    *("axis_long_nm", "axis_middle_nm", "axis_short_nm"),
    *("length_nm", "diameter_mean_nm", "diameter_max_nm", "tortuosity", "branches", "complexity"),
    *("centroid_z_nm", "centroid_y_nm", "centroid_x_nm"),
    *(*STARTS, *STOPS, "touches_border"),
]
"""Columns that need the labels alone."""
TYPES: dict[str, type] = {
    **dict.fromkeys(["voxels", "branches", *STARTS, *STOPS], np.int64),
    **{"instance": np.uint64, "touches_border": bool},
}
"""Of the columns that are not floats."""
IMAGE = ["grey_mean", "grey_sd", "cristae_sd", "cristae_share"]


def column_names(*, image: bool, probability: bool, uncertainty: bool = False) -> list[str]:
    """The columns of a row, given what is measured beside the shape."""
    more = (["probability_mean"] if probability else []) + (["uncertainty"] if probability or uncertainty else [])
    return SHAPE + (IMAGE if image else []) + more


def shape_measures(mask_zyx: Mask, box: Box, shape: Sequence[int], voxel_size: Sequence[float]) -> tuple[object, ...]:
    """The columns of `SHAPE` but the first, of an object's mask in its bounding box."""
    cut = [(a == 0, b == n) for a, b, n in zip(box.start, box.stop, shape, strict=True)]
    cut_off = any(map(any, cut))
    voxels = int(np.count_nonzero(mask_zyx))
    volume = voxels * math.prod(voxel_size)
    smooth = smooth_shape(mask_zyx, voxel_size, cut)
    mesh = shape_mesh(smooth)
    surface = mesh_area(smooth, *mesh)
    centroid, axes = moments(mask_zyx, voxel_size)
    if voxels < FEW_VOXELS or axes[1] < THIN * blur(voxel_size):
        # the longest side of the box of the same moments, and the mean of the other two
        length, *others = (axis * math.sqrt(12 / 20) for axis in axes)
        across = sum(others) / 2
        line = Centreline(length, length, across, across, 0)
    else:
        line = shape_centreline(smooth, mesh[0])
    return (
        voxels,
        volume,
        surface,
        math.nan if cut_off else ball_area(volume) / surface,
        *axes,
        line.length,
        line.diameter_mean,
        line.diameter_max,
        line.tortuosity,
        line.branches,
        math.nan if cut_off else surface**3 / (16 * math.pi**2 * volume**2),
        *(m + a * v for m, a, v in zip(centroid, box.start, voxel_size, strict=True)),
        *(*box.start, *box.stop),
        cut_off,
    )


def moments(mask_zyx: Mask, voxel_size: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centre (z, y, x) of an object's voxels from the crop's first one, and its full axes, longest first; both in nm.

    A solid ellipsoid with half axes a, b, c has variances a^2/5, b^2/5, c^2/5 along them, so a full axis is
    ``2 sqrt(5 eigenvalue)`` of the covariance. To this each voxel, which is a box and no point, adds its own variance,
    the square of the voxel size over 12 (which `skimage.measure.regionprops` leaves out).

    >>> [round(a, 2) for a in moments(np.ones((1, 1, 1), bool), (5, 5, 5))[1]]
    [6.45, 6.45, 6.45]
    """
    size = np.asarray(voxel_size, float)
    at = np.argwhere(mask_zyx) * size
    mean = at.mean(axis=0)
    away = at - mean
    covariance = away.T @ away / len(at) + np.diag(size**2 / 12)
    axes = 2 * np.sqrt(5 * np.linalg.eigvalsh(covariance))[::-1]
    return tuple(map(float, mean)), tuple(map(float, axes))


FINE, COARSE = 6.0, 18.0
"""Standard deviations in nm of the two Gaussians: structures of about 15 to 40 nm remain, as cristae are."""
MEMBRANE = 20.0  # depth in nm of what is left out at the surface: the two outer membranes


def cristae_texture(
    image_zyx: npt.NDArray[np.generic], mask_zyx: Mask, voxel_size: Sequence[float]
) -> tuple[float, float]:
    """Standard deviation of a difference of Gaussians within the eroded object, and its share of the variance there.

    The filter looks the same from all sides, so turning an object changes nothing. Along an axis whose voxels are
    coarser than the Gaussian there is next to no smoothing, and what remains is texture within the section.

    In grey values, of a crop with `margin` voxels round the object, and as a share, which does not change with
    contrast; NaN where erosion leaves nothing.
    """
    depth = edt.edt(np.ascontiguousarray(mask_zyx), anisotropy=tuple(voxel_size), black_border=False, parallel=1)
    inner = depth > MEMBRANE
    if not inner.any():
        return np.nan, np.nan
    image = image_zyx.astype(np.float32)
    fine, coarse = (gaussian_filter(image, [s / v for v in voxel_size], truncate=3) for s in (FINE, COARSE))
    band, plain = float((fine - coarse)[inner].std()), float(image[inner].std())
    return band, (band / plain) ** 2 if plain > 0 else np.nan


def margin(voxel_size: Sequence[float]) -> tuple[int, ...]:
    """Voxels round an object that the filter reaches to."""
    return tuple(int(3 * COARSE / v + 0.5) for v in voxel_size)


DISTANCE = "neighbour_distance_nm"
_FEW = 8  # one in so many points is looked at first, for a bound


def nearest_neighbours(
    surfaces: SurfacePoints, tile: Box, *, voxel_size: Sequence[float], reach: float
) -> pd.DataFrame:
    """Distance to the nearest other instance within ``reach`` nm, for each instance with a surface in the tile.

    In `DISTANCE` it is the gap between the nearest two voxels (their centres' distance less a voxel on each axis), 0
    where they touch, NaN where there is nothing within reach.
    """
    halo = tile.grow([math.ceil(reach / v) + 2 for v in voxel_size]).clip(surfaces.labels.box)
    points, ids = surfaces.read(halo)
    inside = np.asarray(((points >= tile.start) & (points < tile.stop)).all(axis=1))
    size = np.asarray(voxel_size, float)
    order = np.argsort(ids, kind="stable")
    keys, starts = np.unique(ids[order], return_index=True)
    places = np.split(points[order], starts)[1:]  # in nm only where they are looked at, which takes less memory
    chosen = np.split(inside[order], starts)[1:]
    lows, highs = (np.array([getattr(p, f)(axis=0) for p in places]).reshape(-1, 3) * size for f in ("min", "max"))
    rows = []
    with one_at_a_time():
        for i in [i for i, own_inside in enumerate(chosen) if own_inside.any()]:
            own = places[i][chosen[i]] * size
            gap = np.maximum(np.maximum(own.min(axis=0) - highs, lows - own.max(axis=0)), 0)
            away = np.linalg.norm(gap, axis=1)
            away[i] = math.inf
            others = [(float(away[j]), places[j]) for j in np.argsort(away) if away[j] <= reach + size.max()]
            rows.append((keys[i], _gap(own, others, size, reach)))
    table = pd.DataFrame(rows, columns=["instance", DISTANCE])
    return table.astype({"instance": np.uint64, DISTANCE: float})


def _gap(own: Floats, others: Sequence[tuple[float, VoxelPoints]], size: Floats, reach: float) -> float:
    """Least gap in nm from own points to the others', in voxels, that come with their boxes' distances, in order."""
    tree, best = cKDTree(own), reach + float(np.linalg.norm(size))
    nearest = None
    low, high = own.min(axis=0), own.max(axis=0)
    for (away, other), every in itertools.product(others, (_FEW, 1)):
        if away > best * (1 + 1e-9):
            break
        near = other[::every] * size
        near = near[((near >= low - best) & (near <= high + best)).all(axis=1)]
        if not len(near):
            continue
        distance, at = tree.query(near, distance_upper_bound=best * (1 + 1e-9))
        first = int(distance.argmin())
        if distance[first] <= best:
            best, nearest = float(distance[first]), np.abs(near[first] - own[at[first]])
    if nearest is None:
        return math.nan
    gap = float(np.linalg.norm(np.maximum(nearest - size, 0)))
    return gap if gap <= reach else math.nan


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DISTRIBUTIONS = ("volume_nm3", "length_nm", "diameter_mean_nm")


def summarise(
    table: pd.DataFrame, shape: Sequence[int], voxel_size: Sequence[float], padding: int = 0
) -> dict[str, float]:
    """Counts, densities, and of whole objects the distributions of size; NaN where there is too little for a number.

    ``padding`` voxels of the volume are not tissue, see `mitoseg.volumes.padding`.
    """
    voxels = math.prod(shape) - padding
    tissue = voxels * math.prod(voxel_size) / 1e9
    whole = table[~table["touches_border"].astype(bool)]
    result: dict[str, float] = {
        "count": len(table),
        "count_whole": len(whole),  # those that touch no face of the volume
        "tissue_um3": tissue,
        "padding_fraction": padding / math.prod(shape),
        # an object at a face lies in two volumes that share that face
        "density_per_um3": (len(whole) + 0.5 * (len(table) - len(whole))) / tissue if voxels else math.nan,
        "volume_fraction": float(table["voxels"].sum()) / voxels if voxels else math.nan,
    }
    for name in DISTRIBUTIONS:
        values = whole[name].to_numpy(float)
        result[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
        result[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        for q in QUANTILES:
            result[f"{name}_q{100 * q:02.0f}"] = float(np.quantile(values, q)) if len(values) else math.nan
    return result
