r"""The whole slice through a block network once: one score every ``stride`` pixels, placed where its window is.

Output i of a padded slice stands for the window that starts at ``stride * i``; reading from ``anchor(window)`` pixels
before the first pixel makes that window answer pixel ``stride * i`` of the slice itself:

    slice                     |0 . . . . . . . 8 . . . . . . . 16 ...            L-1|
    read        <spill|anchor>|0                                                 L-1|<reflected>
    windows           |--- answers 0 ---|
                              |--- answers 8 ---|

Between the answered pixels the log-odds are interpolated linearly. Nothing is stretched: a score stays on the pixel
that its window answers, and the margins come from reflecting the image, never from resizing the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mitoseg.geometry import Box, anchor
from mitoseg.inference.grid import answered, fill
from mitoseg.inference.protocol import BlockNetwork, per_axis
from mitoseg.networks.scores import log_odds


@dataclass(frozen=True)
class Strided:
    """See the module; a `mitoseg.inference.methods.Method`.

    Attributes:
        network: In eval mode.
        ndim: 2 or 3, the network's axes.
        slices: Slices that go through the network together.
    """

    network: BlockNetwork
    ndim: int
    slices: int = 1

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box; it may leave the volume."""
        start, stop = list(write.start), list(write.stop)
        for axis, window, stride in self._axes():
            wanted = answered(write.start[axis], write.stop[axis], stride)
            before, after = (-(-spill // stride) * stride for spill in self.network.spill)
            start[axis] = stride * wanted[0] - anchor(window) - before
            stop[axis] = stride * wanted[-1] - anchor(window) + window + after
        return Box(tuple(start), tuple(stop))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from the image that `reads` asks for: (z, C, Y, X) or (1, C, Z, Y, X)."""
        coarse = torch.cat([log_odds(self.network(part)) for part in torch.split(image, self.slices)])
        coarse = coarse if self.ndim == 2 else coarse[0]
        for axis, _, stride in self._axes():
            wanted = answered(write.start[axis], write.stop[axis], stride)
            coarse = coarse.narrow(axis, -(-self.network.spill[0] // stride), len(wanted))
            coarse = fill(coarse, axis, write.start[axis], write.stop[axis], stride)
        return coarse

    def _axes(self) -> list[tuple[int, int, int]]:
        """Axis of the volume, window and stride, for each axis of the network."""
        windows, strides = per_axis(self.network.window, self.ndim), per_axis(self.network.stride, self.ndim)
        return list(zip(range(3 - self.ndim, 3), windows, strides, strict=True))
