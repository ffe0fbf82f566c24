r"""Overlapping tiles whose answers are averaged with Gaussian weights: for networks that see a whole tile at once.

The tiles lie on one grid, counted from the origin of the volume; the last along an axis ends where the volume ends:

    axis of 10, tiles of 4, half overlapping     [0 1 2 3]
                                                     [2 3 4 5]
                                                         [4 5 6 7]
                                                             [6 7 8 9]

A voxel gets the mean log-odds of the tiles that cover it, weighted by a Gaussian around each tile's centre with a
standard deviation of an eighth of the tile (Isensee et al., 2021, Nature Methods 18, the nnU-Net).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.signal.windows import gaussian
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.networks.scores import log_odds

SIGMA = 1 / 8
"""Standard deviation of the weights, in tiles."""


@dataclass(frozen=True)
class Blend:
    """See the module; a `mitoseg.inference.methods.Method`.

    Attributes:
        network: In eval mode; its scores have the size of its input.
        ndim: 2 or 3, the network's axes.
        shape: Of the volume (z, y, x).
        tile: (z, y, x) voxels that go through the network at once; z is 1 for networks on slices.
        overlap: Share of a tile that the next one covers again, from 0 up to but not including 1.
        slices: Slices that go through a network on slices together.
    """

    network: nn.Module
    ndim: int
    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    overlap: float = 0.5
    slices: int = 1

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box; it may leave the volume."""
        spans = [self._starts(write, axis) for axis in range(3)]
        start = tuple(span[0] for span in spans)
        return Box(start, tuple(span[-1] + n for span, n in zip(spans, self._sizes(write), strict=True)))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from the image that `reads` asks for: (z, C, Y, X) or (1, C, Z, Y, X)."""
        read = self.reads(write)
        weight = self._weights().to(image.device)
        total = torch.zeros(write.shape, device=image.device)
        cover = torch.zeros(write.shape[3 - self.ndim :], device=image.device)
        for tile in self._tiles(write):
            kept = tile.clip(write)
            seen, place, inner = (self._index(tile, read), self._index(kept, write), self._index(kept, tile))
            total[place] += self.answer(image[seen])[inner] * weight[inner]
            cover[place] += weight[inner]
        return total / cover

    def answer(self, image: Tensor) -> Tensor:
        """Log-odds (z, y, x) of one tile, or of the same tile of several slices."""
        odds = torch.cat([log_odds(self.network(part)) for part in torch.split(image, self.slices)])
        odds = odds if self.ndim == 2 else odds[0]
        if odds.shape[-self.ndim :] != image.shape[-self.ndim :]:
            sizes = (tuple(image.shape[-self.ndim :]), tuple(odds.shape[-self.ndim :]))
            raise UserError(
                "method blend needs scores of the size of the tile", sizes, "choose tile= or another method"
            )
        return odds

    def _tiles(self, write: Box) -> Iterator[Box]:
        """The tiles that touch a box, in order."""
        sizes = self._sizes(write)
        for start in itertools.product(*(self._starts(write, axis) for axis in range(3))):
            yield Box(start, tuple(a + n for a, n in zip(start, sizes, strict=True)))

    def _index(self, box: Box, other: Box) -> tuple[Any, ...]:
        """A box as an index of the network's axes into the array of another box."""
        return (..., *box.inside(other).slices[3 - self.ndim :])

    def _sizes(self, write: Box) -> tuple[int, ...]:
        """Voxels of a tile; a network on slices takes all slices of the box."""
        return (write.shape[0], *self.tile[1:]) if self.ndim == 2 else self.tile

    def _starts(self, write: Box, axis: int) -> list[int]:
        """Where the tiles that touch a box start on one axis."""
        if axis < 3 - self.ndim:
            return [write.start[axis]]
        size = self.tile[axis]
        return [
            s for s in starts(self.shape[axis], size, self.overlap) if write.start[axis] - size < s < write.stop[axis]
        ]

    def _weights(self) -> Tensor:
        """Gaussian weights of one tile, over the network's axes."""
        weight = np.ones(())
        for size in self.tile[3 - self.ndim :]:
            weight = np.multiply.outer(weight, gaussian(size, size * SIGMA))
        return torch.from_numpy(weight).float()


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where the tiles of an axis start; a tile longer than the axis starts with it.

    >>> starts(10, 4, 0.5), starts(9, 4, 0.5), starts(3, 4, 0.5)
    ([0, 2, 4, 6], [0, 2, 4, 5], [0])
    """
    step = max(1, math.floor(size * (1 - overlap)))
    last = max(length - size, 0)
    return [*range(0, last, step), last]
