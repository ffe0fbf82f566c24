r"""From an image to its supervoxels, what each looks like, and which touch: what both supervoxel methods start from.

A perceptron on Gaussian derivatives says of every voxel: outside (0), boundary (1) or inside (2), where the boundary
lies within `band` nm of a change of the label. Lucchi et al. (IEEE TMI 31(2), 2012) learn a boundary map too, with
steerable features; the third class costs nothing and tells the two sides of a boundary apart. These maps guide SLIC
(Achanta et al., IEEE TPAMI 34(11), 2012), which is k-means on position and colour: on grey values alone its
supervoxels cross membranes that are faint. Memory: the features of one block, and 6 bytes for every voxel of the image
(its supervoxel's number, both maps). A supervoxel lies in one block.

Rays go from a supervoxel's centre to the first boundary around it, where the boundary map reaches a level, or to where
the volume or their reach ends. They are features of shape (Smith, Carleton, Lepetit, "Fast ray features for learning
irregular shapes", ICCV 2009; in 3D for supervoxels Lucchi et al., IEEE TMI 31(2), 2012). There a supervoxel's rays are
ordered from its longest axis on; here they are cast twice. The first 26 directions are fixed, and their end points
have moments

    M = sum_r d_r^2 u_r u_r^T / R

whose eigenvectors are the body's own axes. The second 26 directions are the face, edge and corner directions of that
frame; an eigenvector's sign is chance, so lengths of directions that differ in signs alone are pooled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array
from skimage.segmentation import slic

from mitoseg.classical.features import (
    FloatArray,
    ImageLike,
    VoxelFeatures,
    as_volume,
    crop,
    even_blocks,
    grey_range,
    read_with_halo,
    scaled,
)
from mitoseg.errors import UserError, import_extra
from mitoseg.geometry import Box
from mitoseg.volumes import Volume, check_same_shape
from mitoseg.volumes.labels import IGNORED

Regions = npt.NDArray[np.int32]
GREY, BOUNDARY, INSIDE = 0, 1, 2  # the first columns of a supervoxel's features: the means of these
HIDDEN = 32  # units of the perceptron
SHARES = (0.5, 0.25, 0.25)  # of the classes among the samples: outside is the most varied
SAMPLE_BLOCK = 1_200_000  # voxels of the blocks that samples are drawn from
CHUNK = 1 << 18  # voxels that go through the perceptron together: its activations stay in the cache's reach
BINS = 12  # of a histogram of grey values, from the first to the last percentile of the training image
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
RAYS = 40_000  # centres whose rays are cast together
LEVEL = 128  # of the boundary map, at which a ray ends
RAY_FEATURES = len(QUANTILES) + 3 + 3 + 2 + 14 + 3  # numbers that `ray_features` gives for a centre
ITERATIONS = 5  # of k-means


@dataclass(frozen=True)
class Description:
    """An image as supervoxels."""

    region_zyx: Regions  # (Z, Y, X), the supervoxel of each voxel, from 0
    size: npt.NDArray[np.int64]  # (N,) voxels
    features: FloatArray  # (N, F)
    graph: RegionGraph  # which touch
    pair_features: FloatArray  # (E, Q), of each pair in the graph


@dataclass
class RegionDescriber:
    """Cuts images into supervoxels and describes them; one that is fitted can serve several methods."""

    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)  # (z, y, x) in nm
    region_size: float = 35.0  # edge in nm of a cube as large as a supervoxel is on average
    sigmas: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)  # scales of the voxels' features in nm
    compactness: float = 0.05  # of supervoxels: the weight of position against colour
    band: float = 12.0  # half the width in nm of what counts as a boundary when the maps are learned
    reach: float = 400.0  # of rays, in nm
    samples: int = 240_000  # voxels that the maps are learned from
    seed: int = 0
    grey_: tuple[float, float] | None = field(default=None, init=False, repr=False)  # greys that are 0 and 1
    maps_: VoxelMaps | None = field(default=None, init=False, repr=False)  # once fitted

    def __post_init__(self) -> None:
        self.voxel_size = tuple(float(v) for v in self.voxel_size)  # type: ignore[assignment]
        self.sigmas = tuple(float(s) for s in self.sigmas)
        VoxelFeatures(self.sigmas, self.voxel_size)
        for name in ("region_size", "compactness", "band", "reach", "samples"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is not above zero", getattr(self, name), "give a larger number")

    def fit(self, image_zyx: ImageLike, label_zyx: ImageLike) -> RegionDescriber:
        """Learn the grey range and the maps."""
        image, label = as_volume(image_zyx), as_volume(label_zyx)
        check_same_shape(image, label)
        grey = grey_range(image, self.seed)
        voxel = VoxelFeatures(self.sigmas, self.voxel_size)
        self.maps_ = train_maps(image, label, voxel, grey, band=self.band, samples=self.samples, seed=self.seed)
        self.grey_ = grey
        return self

    def describe(self, image_zyx: ImageLike) -> Description:
        """Supervoxels of an image with their features and neighbours."""
        image = as_volume(image_zyx)
        region_zyx = np.empty(image.shape, np.int32)
        boundary_zyx = np.empty(image.shape, np.uint8)
        count, tables, places = 0, [], []
        for box in even_blocks(image.shape):
            part_zyx, map_zyx, table, place = self._block(image, box)
            region_zyx[box.slices] = part_zyx + np.int32(count)
            boundary_zyx[box.slices] = map_zyx
            count += len(table)
            tables.append(table)
            places.append(place + np.array(box.start, np.float32))
        graph = region_graph(region_zyx, boundary_zyx, self.voxel_size)
        rays = ray_features(boundary_zyx, np.concatenate(places), self.voxel_size, reach=self.reach)
        own = np.concatenate(tables)
        near = graph.neighbour_means(own)
        further = graph.neighbour_means(near[:, : INSIDE + 1])
        size = np.bincount(region_zyx.ravel(), minlength=count)
        everything = np.concatenate([own, near, further, rays], axis=1)
        return Description(region_zyx, size, everything, graph, pair_features(own, graph))

    def _block(self, image: Volume, box: Box) -> tuple[Regions, npt.NDArray[np.uint8], FloatArray, FloatArray]:
        """Supervoxels, boundary map, own features and centres of one block."""
        if self.maps_ is None or self.grey_ is None:
            raise UserError("the classical method is not fitted", None, "call fit first")
        voxel = VoxelFeatures(self.sigmas, self.voxel_size)
        padded = scaled(read_with_halo(image, box, voxel.halo), self.grey_)
        features_fzyx = voxel.inside(padded)
        maps = self.maps_(features_fzyx)
        unit_zyx = crop(padded, voxel.halo)
        # inside 1, boundary a half: steepest where the label changes
        guide_zyx = (maps[1] + np.float32(0.5) * maps[0]) * np.float32(1 / 255)
        colour = np.stack([unit_zyx, guide_zyx], axis=-1)
        region_zyx = supervoxels(colour, self.region_size, self.voxel_size, compactness=self.compactness)
        flat, count = region_zyx.ravel(), int(region_zyx.max()) + 1
        grey = unit_zyx.ravel()
        bytes_ = maps.reshape(2, -1).astype(np.float32) / 255
        first = means(flat, np.stack([grey, *bytes_, grey * grey, *(bytes_ * bytes_)]), count)
        first[:, 3:] = np.sqrt(np.maximum(first[:, 3:] - first[:, :3] ** 2, 0))
        centre, spread = centres(region_zyx, count, self.voxel_size)
        table = [
            first,
            means(flat, features_fzyx.reshape(len(features_fzyx), -1), count),
            histograms(flat, grey, count),
            spread / np.float32(self.region_size),
        ]
        return region_zyx, maps[0], np.concatenate(table, axis=1), centre


def pair_features(own: FloatArray, graph: RegionGraph) -> FloatArray:
    """(E, 9) what tells whether neighbours lie on two sides of a mitochondrion's boundary, whichever comes first.

    The boundary map between them (mean, largest), of grey value, boundary and inside the sum and the absolute
    difference, and the largest inside.
    """
    one, two = (own[graph.pairs[:, k], : INSIDE + 1] for k in (0, 1))
    columns = [graph.boundary[:, None] / 255, graph.crest[:, None] / 255, one + two, np.abs(one - two)]
    return np.concatenate([*columns, np.maximum(one, two)[:, INSIDE:]], axis=1).astype(np.float32)


def directions() -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Unit vectors to the 26 neighbours of a voxel, and the group of each: axes that differ in signs alone.

    Of the (26, 3), row 25 - r is opposite to row r; the (26,) groups are 0 ... 6.
    """
    grid = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.abs(grid).any(1)]
    _, group = np.unique(np.abs(grid) @ [1, 2, 4], return_inverse=True)
    return (grid / np.linalg.norm(grid, axis=1, keepdims=True)).astype(np.float32), group.astype(np.intp)


def cast_rays(
    boundary_zyx: npt.NDArray[np.uint8],
    centre: FloatArray,
    unit: FloatArray,
    voxel_size: Sequence[float],
    *,
    reach: float,
) -> tuple[FloatArray, npt.NDArray[np.uint8]]:
    """Lengths (N, R) in nm of rays from every centre, and what the map says where each ended: 0 beyond the volume.

    Centres (N, 3) are in voxels, unit vectors (1 or N, R, 3) and ``reach`` in nm; steps are of the smallest spacing.
    """
    step = float(min(voxel_size))
    count = int(reach / step)
    size = np.asarray(voxel_size, np.float32)
    rays = (len(centre), unit.shape[1])
    move = np.broadcast_to(unit * (step / size), (*rays, 3)).reshape(-1, 3)
    position = np.repeat(centre.astype(np.float32), rays[1], axis=0)
    length = np.full(rays[0] * rays[1], count, np.int32)
    found = np.zeros(len(length), np.uint8)
    alive = np.arange(len(length))
    for k in range(count + 1):
        at = np.rint(position[alive] + np.float32(k) * move[alive]).astype(np.int32)
        inside = ((at >= 0) & (at < boundary_zyx.shape)).all(1)
        value = np.zeros(len(at), np.uint8)
        value[inside] = boundary_zyx[tuple(at[inside].T)]
        ended = ~inside | (value >= LEVEL)
        length[alive[ended]] = k
        found[alive] = value
        alive = alive[~ended]
        if not len(alive):
            break
    return (length * np.float32(step)).reshape(rays), found.reshape(rays)


def ray_features(
    boundary_zyx: npt.NDArray[np.uint8], centre: FloatArray, voxel_size: Sequence[float], *, reach: float
) -> FloatArray:
    """Rotation-invariant descriptors (N, `RAY_FEATURES`) of what surrounds the centres, lengths as shares of reach."""
    unit, group = directions()
    parts = [np.zeros((0, RAY_FEATURES), np.float32)]
    for some in (centre[a : a + RAYS] for a in range(0, len(centre), RAYS)):
        length, found = cast_rays(boundary_zyx, some, unit[None], voxel_size, reach=reach)
        share = length / np.float32(reach)
        moments = np.einsum("nr,ri,rj->nij", share * share, unit, unit) / np.float32(len(unit))
        value, vector = np.linalg.eigh(moments)
        own = np.einsum("rk,nik->nri", unit, vector).astype(np.float32)
        turned, turned_found = cast_rays(boundary_zyx, some, own, voxel_size, reach=reach)
        turned /= np.float32(reach)
        axes = np.sqrt(np.maximum(value, 0))
        columns = [
            *np.quantile(share, QUANTILES, axis=1),
            *np.quantile(share + share[:, ::-1], (0.0, 0.25, 0.5), axis=1),
            *axes.T,
            axes[:, 0] / (axes[:, 2] + 1e-3),
            axes[:, 1] / (axes[:, 2] + 1e-3),
            *(f(turned[:, group == g], axis=1) for g in range(group.max() + 1) for f in (np.mean, np.min)),
            (found >= LEVEL).mean(1),
            found.mean(1) / 255,
            turned_found.std(1) / 255,
        ]
        parts.append(np.stack(columns, axis=1).astype(np.float32))
    return np.concatenate(parts)


def supervoxels(
    colour_zyxc: npt.NDArray[np.float32],
    size: float,
    voxel_size: Sequence[float],
    *,
    compactness: float = 0.05,
    blur: float = 5.0,
) -> Regions:
    """Cut a block into connected supervoxels, numbered from 0 without a gap; see `RegionDescriber`.

    The colour's channels are 0 ... 1, weighted as they shall count. A Gaussian filter of ``blur`` nm comes first.
    """
    smooth = gaussian_filter(colour_zyxc, [*(blur / v for v in voxel_size), 0], mode="nearest", truncate=2)
    shape = colour_zyxc.shape[:3]
    count = max(1, round(math.prod(shape) * math.prod(voxel_size) / size**3))
    if count == 1:
        return np.zeros(shape, np.int32)
    least = min(voxel_size)
    label = slic(
        smooth,
        n_segments=count,
        compactness=compactness,
        max_num_iter=ITERATIONS,
        sigma=0,
        spacing=[v / least for v in voxel_size],
        convert2lab=False,
        start_label=0,
        channel_axis=-1,
    )
    _, dense = np.unique(label, return_inverse=True)
    return dense.reshape(shape).astype(np.int32)


@dataclass(frozen=True)
class RegionGraph:
    """Pairs of supervoxels that share a face."""

    pairs: npt.NDArray[np.int64]  # (E, 2), the smaller number first, in order, each pair once
    area: FloatArray  # (E,) nm2
    boundary: FloatArray  # (E,) mean of the boundary map over the faces, 0 ... 255
    crest: FloatArray  # (E,) its largest value there

    def neighbour_means(self, values: FloatArray) -> FloatArray:
        """Mean (N, F) of the values of a supervoxel's neighbours, weighted by shared area; without any, its own."""
        i, j = self.pairs.T
        ends = (np.concatenate([i, j]), np.concatenate([j, i]))
        weights = csr_array((np.concatenate([self.area, self.area]), ends), shape=(len(values),) * 2)
        total = weights.sum(1)
        mean = (weights @ values) / np.maximum(total, 1e-9)[:, None]
        return np.where((total > 0)[:, None], mean, values).astype(np.float32)


def region_graph(
    region_zyx: Regions, boundary_zyx: npt.NDArray[np.uint8], voxel_size: Sequence[float], depth: int = 16
) -> RegionGraph:
    """The graph of supervoxels numbered from 0, gathered by slabs of ``depth`` slices, which bounds the memory."""
    count = np.int64(region_zyx.max()) + 1
    faces = [float(np.prod(voxel_size) / v) for v in voxel_size]
    tables = []
    for z in range(0, len(region_zyx), depth):
        for axis in range(3):
            stop = z + depth + (axis == 0)
            low, high = ([slice(None)] * axis + [ends] for ends in (slice(None, -1), slice(1, None)))
            (a, b), (near, far) = ((part[z:stop][*low], part[z:stop][*high]) for part in (region_zyx, boundary_zyx))
            differ = a != b
            one, other = a[differ].astype(np.int64), b[differ].astype(np.int64)
            crest = np.maximum(near[differ], far[differ]).astype(np.float64)
            key, area = np.minimum(one, other) * count + np.maximum(one, other), np.full(len(one), faces[axis])
            tables.append(_merged([key, area, crest * faces[axis], crest]))
    key, area, weighted, crest = _merged([np.concatenate(column) for column in zip(*tables, strict=True)])
    pairs = np.stack([key // count, key % count], 1)
    return RegionGraph(pairs, area.astype(np.float32), (weighted / area).astype(np.float32), crest.astype(np.float32))


def _merged(columns: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Rows of the same key as one: areas and weighted values are added, of the crests the largest stays."""
    key, area, weighted, crest = columns
    if not len(key):
        return columns
    order = np.argsort(key, kind="stable")
    key = key[order]
    start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return [
        key[start],
        np.add.reduceat(area[order], start),
        np.add.reduceat(weighted[order], start),
        np.maximum.reduceat(crest[order], start),
    ]


@dataclass(frozen=True)
class VoxelMaps:
    """The perceptron, with the standardisation of its features in the weights."""

    hidden: FloatArray  # (HIDDEN, F), on features
    hidden_bias: FloatArray  # (HIDDEN,)
    output: FloatArray  # (3, HIDDEN)
    output_bias: FloatArray  # (3,)

    def __call__(self, features_fzyx: FloatArray) -> npt.NDArray[np.uint8]:
        """Probabilities (2, Z, Y, X) of boundary and of inside, uint8, 255 for certain."""
        shape = features_fzyx.shape[1:]
        flat = features_fzyx.reshape(len(features_fzyx), -1)
        out = np.empty((2, flat.shape[1]), np.uint8)
        for start in range(0, flat.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            active = np.maximum(self.hidden @ flat[:, part] + self.hidden_bias[:, None], 0)
            score = self.output @ active + self.output_bias[:, None]
            score = np.exp(score - score.max(0))
            out[:, part] = np.rint(score[1:] * (255 / score.sum(0)))
        return out.reshape(2, *shape)


def voxel_classes(
    label_zyx: npt.NDArray[np.generic], band: float, voxel_size: tuple[float, float, float]
) -> npt.NDArray[np.uint8]:
    """0 outside, 1 within ``band`` nm of a change of label, 2 inside, 255 ignored."""
    inside = (label_zyx != 0) & (label_zyx != IGNORED)
    spacing: dict[str, Any] = {"anisotropy": voxel_size, "black_border": False, "parallel": 1}
    near = np.minimum(*(np.where(m, edt.edt(np.ascontiguousarray(m), **spacing), np.inf) for m in (inside, ~inside)))
    classes = np.where(near <= band, 1, np.where(inside, 2, 0)).astype(np.uint8)
    classes[label_zyx == IGNORED] = IGNORED
    return classes


def train_maps(
    image: Volume,
    label: Volume,
    features: VoxelFeatures,
    grey: tuple[float, float],
    *,
    band: float,
    samples: int,
    seed: int,
) -> VoxelMaps:
    """Train the perceptron on voxels drawn from a few blocks, most of which hold mitochondria.

    ``grey`` holds the grey values that are 0 and 1; for the other arguments see `RegionDescriber`.
    """
    rng = np.random.default_rng(seed)
    boxes = _choose_boxes(label, rng)
    drawn, classes_of = [], []
    for box in boxes:
        classes_n = voxel_classes(label.read(box), band, features.voxel_size).ravel()
        index = []
        for kind, share in enumerate(SHARES):
            there = np.flatnonzero(classes_n == kind)
            index.append(rng.choice(there, min(len(there), int(samples // len(boxes) * share)), replace=False))
        chosen = np.concatenate(index)
        found = features.inside(scaled(read_with_halo(image, box, features.halo), grey))
        drawn.append(np.ascontiguousarray(found.reshape(len(found), -1)[:, chosen].T))
        classes_of.append(classes_n[chosen])
    values, classes = np.concatenate(drawn), np.concatenate(classes_of)
    if len(np.unique(classes)) < 3:
        what = "the labels show no mitochondrion with tissue around it"
        raise UserError(what, label.path, "give more of the volume")
    mean, deviation = values.mean(0), values.std(0) + 1e-6
    perceptron = import_extra("sklearn.neural_network", "scikit-learn", "classical").MLPClassifier(
        (HIDDEN,), batch_size=512, early_stopping=True, n_iter_no_change=4, max_iter=30, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that thirty rounds are not the end of it is meant
        perceptron.fit((values - mean) / deviation, classes)
    (first, last), (first_bias, last_bias) = perceptron.coefs_, perceptron.intercepts_
    hidden = first.T / deviation
    arrays = (hidden, first_bias - hidden @ mean, last.T, last_bias)
    return VoxelMaps(*(np.ascontiguousarray(a, np.float32) for a in arrays))


def _choose_boxes(label: Volume, rng: np.random.Generator, most: int = 24) -> list[Box]:
    """Boxes to draw from, those with foreground the more likely the more of it they hold."""
    boxes = even_blocks(label.shape, SAMPLE_BLOCK)
    if len(boxes) <= most:
        return boxes
    share = []
    for box in boxes:
        part = label.read(box)
        share.append(float(np.mean((part != 0) & (part != IGNORED))) + 0.01 * float(np.mean(part != IGNORED)) + 1e-9)
    chosen = rng.choice(len(boxes), most, replace=False, p=np.array(share) / sum(share))
    return [boxes[i] for i in sorted(chosen)]


def means(region: Regions, values: FloatArray, count: int) -> FloatArray:
    """Mean (count, F) of each row of values (F, V) in each region (V,), none of them empty."""
    size = np.bincount(region, minlength=count)
    sums = [np.bincount(region, weights=row, minlength=count) for row in values]
    return (np.stack(sums, 1) / size[:, None]).astype(np.float32)


def histograms(region: Regions, unit: FloatArray, count: int, bins: int = BINS) -> FloatArray:
    """Share (count, bins) of each region's voxels in each bin of 0 ... 1."""
    code = np.minimum((unit * bins).astype(np.int64), bins - 1)
    table = np.bincount(region.astype(np.int64) * bins + code, minlength=count * bins).reshape(count, bins)
    shares: FloatArray = (table / table.sum(1, keepdims=True)).astype(np.float32)
    return shares


def centres(region_zyx: Regions, count: int, voxel_size: Sequence[float]) -> tuple[FloatArray, FloatArray]:
    """Centres of gravity (count, 3) in voxels, and ascending standard deviations along the regions' axes in nm."""
    flat = region_zyx.ravel()
    grid = np.indices(region_zyx.shape, np.float32).reshape(3, -1)
    centre = means(flat, grid, count)
    away = [(g - c[flat]) * np.float32(v) for g, c, v in zip(grid, centre.T, voxel_size, strict=True)]
    products = np.stack([away[i] * away[j] for i in range(3) for j in range(i, 3)])
    covariance = means(flat, products, count)[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(count, 3, 3)
    return centre, np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0)).astype(np.float32)
