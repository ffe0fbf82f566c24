"""From an image to its supervoxels, what each looks like, and which touch: what both supervoxel methods start from.

    image --features--> maps (boundary, inside) --SLIC--> supervoxels --+-- histograms, means, spreads
      |                  |                                              +-- rays on the boundary map
      by blocks          one byte a voxel each                          +-- graph, neighbours' means

Memory: the features of one block, and 6 bytes for every voxel of the image (its supervoxel's number, both maps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.classical.features import VoxelFeatures, crop
from mitoseg.classical.rays import ray_features
from mitoseg.classical.reading import even_blocks, grey_range, scaled
from mitoseg.classical.region_graph import RegionGraph, region_graph
from mitoseg.classical.region_statistics import centres, histograms, means, spreads
from mitoseg.classical.slic import supervoxels
from mitoseg.classical.streaming import as_volume, read_with_halo
from mitoseg.classical.voxel_maps import VoxelMaps, train_maps
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import Array, Volume, check_same_shape

FloatArray = npt.NDArray[np.float32]

Block = tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], FloatArray, FloatArray]

GREY, BOUNDARY, INSIDE = 0, 1, 2
"""The first columns of a supervoxel's features: the means of these."""


@dataclass(frozen=True)
class Description:
    """An image as supervoxels.

    Attributes:
        region_zyx: (Z, Y, X) int32, the supervoxel of each voxel, from 0.
        size: (N,) voxels of each.
        features: (N, F) float32.
        graph: Which touch.
        pair_features: (E, Q) float32, of each pair in the graph.
    """

    region_zyx: npt.NDArray[np.int32]
    size: npt.NDArray[np.int64]
    features: FloatArray
    graph: RegionGraph
    pair_features: FloatArray


@dataclass
class RegionDescriber:
    """Cuts images into supervoxels and describes them; one that is fitted can serve several methods.

    Attributes:
        voxel_size: (z, y, x) in nm.
        region_size: Edge in nm of a cube as large as a supervoxel is on average.
        sigmas: Scales of the voxels' features in nm.
        compactness: Of supervoxels; see `mitoseg.classical.slic.supervoxels`.
        guidance: Weight in SLIC of the learned maps against the grey value; 0 is plain SLIC.
        band: Half the width in nm of what counts as a boundary when the maps are learned.
        reach: Of rays, in nm.
        samples: Voxels that the maps are learned from.
        seed: Of all chance.
        grey_: Grey values that are 0 and 1, once fitted.
        maps_: The learned maps, once fitted.
    """

    voxel_size: tuple[float, float, float] = (5.0, 5.0, 5.0)
    region_size: float = 35.0
    sigmas: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)
    compactness: float = 0.05
    guidance: float = 1.0
    band: float = 12.0
    reach: float = 400.0
    samples: int = 240_000
    seed: int = 0
    grey_: tuple[float, float] | None = field(default=None, repr=False)
    maps_: VoxelMaps | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.voxel_size = tuple(float(v) for v in self.voxel_size)  # type: ignore[assignment]
        self.sigmas = tuple(float(s) for s in self.sigmas)
        VoxelFeatures(self.sigmas, self.voxel_size)
        for name in ("region_size", "compactness", "band", "reach", "samples"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is not above zero", getattr(self, name), "give a larger number")

    def fit(self, image_zyx: Array | Volume, label_zyx: Array | Volume) -> RegionDescriber:
        """Learn the grey range and the maps.

        Raises:
            UserError: Image and labels do not match, or the labels lack one of the classes.
        """
        image, label = as_volume(image_zyx), as_volume(label_zyx)
        check_same_shape(image, label)
        grey = grey_range(image, self.seed)
        voxel = VoxelFeatures(self.sigmas, self.voxel_size)
        self.maps_ = train_maps(image, label, voxel, grey, band=self.band, samples=self.samples, seed=self.seed)
        self.grey_ = grey
        return self

    def describe(self, image_zyx: Array | Volume) -> Description:
        """Supervoxels of an image with their features and neighbours.

        Raises:
            UserError: Nothing was fitted.
        """
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

    def _block(self, image: Volume, box: Box) -> Block:
        """Supervoxels, boundary map, own features and centres of one block."""
        if self.maps_ is None or self.grey_ is None:
            raise UserError("the classical method is not fitted", None, "call fit first, or load one that is")
        voxel = VoxelFeatures(self.sigmas, self.voxel_size)
        padded = scaled(read_with_halo(image, box, voxel.halo), self.grey_)
        features_fzyx = voxel.inside(padded)
        maps = self.maps_(features_fzyx)
        unit_zyx = crop(padded, voxel.halo)
        colour = unit_zyx[..., None]
        if self.guidance:  # inside 1, boundary a half: steepest where the label changes
            guide_zyx = (maps[1] + np.float32(0.5) * maps[0]) * np.float32(self.guidance / 255)
            colour = np.stack([unit_zyx, guide_zyx], axis=-1)
        region_zyx = supervoxels(colour, self.region_size, self.voxel_size, compactness=self.compactness)
        flat, count = region_zyx.ravel(), int(region_zyx.max()) + 1
        grey = unit_zyx.ravel()
        bytes_ = maps.reshape(2, -1).astype(np.float32) / 255
        first = means(flat, np.stack([grey, *bytes_, grey * grey, *(bytes_ * bytes_)]), count)
        first[:, 3:] = np.sqrt(np.maximum(first[:, 3:] - first[:, :3] ** 2, 0))
        table = [
            first,
            means(flat, features_fzyx.reshape(len(features_fzyx), -1), count),
            histograms(flat, grey, count),
            spreads(region_zyx, count, self.voxel_size) / np.float32(self.region_size),
        ]
        return region_zyx, maps[0], np.concatenate(table, axis=1), centres(region_zyx, count)

    def settings(self) -> dict[str, Any]:
        """What the constructor was given, as plain data."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.endswith("_")}
        return {**plain, "grey": self.grey_}

    def arrays(self) -> dict[str, FloatArray]:
        """What was learned, as arrays."""
        return {} if self.maps_ is None else asdict(self.maps_)

    @classmethod
    def restored(cls, settings: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> RegionDescriber:
        """The describer that had these settings and arrays."""
        own = dict(settings)
        low, high = own.pop("grey")
        maps = VoxelMaps(**{f.name: arrays[f.name] for f in fields(VoxelMaps)})
        return cls(**own, grey_=(float(low), float(high)), maps_=maps)


def pair_features(own: FloatArray, graph: RegionGraph) -> FloatArray:
    """What tells whether two neighbours lie on two sides of a mitochondrion's boundary, whichever comes first.

    Returns:
        (E, 9): the boundary map between them (mean, largest), and of grey value, boundary and inside the sum and the
        absolute difference; and the largest inside.
    """
    one, two = (own[graph.pairs[:, k], : INSIDE + 1] for k in (0, 1))
    columns = [graph.boundary[:, None] / 255, graph.crest[:, None] / 255, one + two, np.abs(one - two)]
    return np.concatenate([*columns, np.maximum(one, two)[:, INSIDE:]], axis=1).astype(np.float32)
