"""The dense form of a block network: the window's answer at every pixel, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mitoseg.geometry import Box, anchor
from mitoseg.networks import DenseForm
from mitoseg.networks.scores import log_odds


@dataclass(frozen=True)
class Dense:
    """See `mitoseg.networks.DenseForm`; a `mitoseg.inference.methods.Method`.

    Attributes:
        network: The dense form, in eval mode.
        window: Of the block network, along each of its axes.
        slices: Slices that go through a network on slices together.
    """

    network: DenseForm
    window: tuple[int, ...]
    slices: int = 1

    @property
    def ndim(self) -> int:
        """2 or 3, the network's axes."""
        return self.network.ndim

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box; it may leave the volume."""
        start, stop = list(write.start), list(write.stop)
        for i, axis in enumerate(range(3 - self.ndim, 3)):
            start[axis] -= anchor(self.window[i]) + self.network.padding[i]
            stop[axis] += self.network.field[i] - 1 - anchor(self.window[i]) - self.network.padding[i]
        return Box(tuple(start), tuple(stop))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from the image that `reads` asks for: (z, C, Y, X) or (1, C, Z, Y, X)."""
        dense = torch.cat([log_odds(self.network(part)) for part in torch.split(image, self.slices)])
        return dense if self.ndim == 2 else dense[0]
