r"""Turns by any angle, scaling and elastic deformation of a stack of sections, in one resampling.

    voxel of the result  --turn, scale, tilt about the centre-->  --plus the deformation-->  where it is read

The deformation is a free-form one: cubic B-splines on a coarse grid of random displacements (Rueckert et al., IEEE TMI
18(8), 1999), smooth and cheap. MONAI's elastic transforms resize the whole field in 2D, which takes five times as
long, or smooth noise at every voxel in 3D; and they cannot mark what lies outside of the tile.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from mitoseg.blocks.sections import IMAGE, LABEL
from mitoseg.datasets.base import IGNORE

OUTSIDE = ("ignore", "reflect")
"""What the label of voxels from outside of the tile is: none, or mirrored like the image."""

_SPACING = 32
"""Voxels between nodes of the deformation."""


class Warpd(RandomizableTransform, MapTransform):
    """Turn, scale and deform a stack; the image linearly, the label by the nearest voxel.

    All sections are moved alike, unless ``tilt`` is given. The image goes on outside of the tile as its reflection.

    Args:
        prob: Probability that it strikes a stack.
        magnitude: Standard deviation of the displacements of the nodes, in voxels.
        scale: Largest change of scale, as a share: from 1 / (1 + scale) to 1 + scale.
        stretch: Largest ratio of the scales along y and x.
        rotation: Largest turn, in degrees, either way.
        tilt: Largest angle about the axes y and x, in degrees, either way, for stacks with a label for each section,
            of cubic voxels; the deformation then goes through z as well. 0 stays in the plane.
        outside: See `OUTSIDE`.
    """

    def __init__(
        self,
        prob: float = 0.2,
        magnitude: float = 3.0,
        scale: float = 0.25,
        stretch: float = 1.1,
        rotation: float = 180.0,
        tilt: float = 0.0,
        outside: str = "ignore",
    ) -> None:
        MapTransform.__init__(self, [IMAGE, LABEL])
        RandomizableTransform.__init__(self, prob)
        self.magnitude, self.scale, self.stretch = magnitude, math.log1p(scale), math.log(stretch)
        self.rotation, self.tilt, self.outside = math.radians(rotation), math.radians(tilt), outside

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Warp a sample."""
        sample = dict(data)
        self.randomize(None)
        if self._do_transform:
            image, label = sample[IMAGE], sample[LABEL]
            deep = self.tilt > 0 and len(label) == len(image) > 1
            if deep:
                image, label = image[None], label[None]
            grid = self.grid(image.shape[1:], image.device)
            sample[IMAGE] = _read(image, grid, "bilinear").reshape(sample[IMAGE].shape)
            sample[LABEL] = self._labels(label, grid).reshape(sample[LABEL].shape)
        return sample

    def _labels(self, label: Tensor, grid: Tensor) -> Tensor:
        """Labels (C, *size) at the nearest voxels."""
        moved = _read(label.float(), grid, "nearest").to(label.dtype)
        return moved if self.outside == "reflect" else moved.masked_fill((grid[0].abs() > 1).any(-1), IGNORE)

    def grid(self, size: Sequence[int], device: torch.device) -> Tensor:
        """Where each voxel is read: (1, *size, dimensions), x first, from -1 to 1 over the tile's extent."""
        half = np.array(size[::-1]) / 2
        matrix = torch.from_numpy(self.matrix(len(size)) * half / half[:, None])
        theta = torch.cat([matrix, torch.zeros(len(size), 1)], dim=1).float().to(device)
        grid = affine_grid(theta[None], [1, 1, *size], align_corners=False)
        return grid + self.deformation(size, device) / torch.tensor(half, dtype=torch.float32, device=device)

    def matrix(self, ndim: int) -> npt.NDArray[np.float64]:
        """From the result to the tile, in voxels about the centre, x first."""
        turn, about_y, about_x = (self.R.uniform(-1, 1, 3) * (self.rotation, self.tilt, self.tilt)).tolist()
        zoom, stretch = self.R.uniform(-1, 1) * self.scale, self.R.uniform(-0.5, 0.5) * self.stretch
        matrix = _rotation(ndim, 0, 1, turn)
        if ndim == 3:
            matrix = _rotation(3, 0, 2, about_y) @ _rotation(3, 1, 2, about_x) @ matrix
        inverse: npt.NDArray[np.float64] = matrix / np.exp([zoom + stretch, zoom - stretch, zoom])[:ndim]
        return inverse

    def deformation(self, size: Sequence[int], device: torch.device) -> Tensor:
        """Displacement of each voxel, in voxels: (*size, dimensions), x first."""
        weights = [spline_weights(length, _SPACING).to(device) for length in size]
        nodes = self.R.normal(0, self.magnitude, (*(w.shape[1] for w in weights), len(size)))
        field = torch.from_numpy(nodes).float().to(device)
        for axis, weight in enumerate(weights):
            field = torch.tensordot(weight, field, dims=([1], [axis])).movedim(0, axis)
        return field


def _read(tile: Tensor, grid: Tensor, mode: str) -> Tensor:
    """A tile (C, *size) at the places of a grid."""
    return grid_sample(tile[None], grid, mode, "reflection", align_corners=False)[0]


def _rotation(ndim: int, a: int, b: int, angle: float) -> npt.NDArray[np.float64]:
    """Rotation in the plane of two axes."""
    matrix = np.eye(ndim)
    matrix[[a, a, b, b], [a, b, a, b]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    return matrix


def spline_weights(length: int, spacing: float) -> Tensor:
    """Cubic B-splines: the weight of each node at each voxel, (length, nodes); rows add up to 1."""
    at = (torch.arange(length) + 0.5) / spacing
    away = (at[:, None] - torch.arange(-1, math.ceil(length / spacing) + 2)).abs()
    near, far = 2 / 3 - away**2 + away**3 / 2, (2 - away).clamp(min=0) ** 3 / 6
    return torch.where(away < 1, near, far)
