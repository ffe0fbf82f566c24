"""The literal sliding window: each window cut out and put through the network alone. Slow; the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mitoseg.geometry import Box, anchor
from mitoseg.inference.grid import answered, fill
from mitoseg.inference.protocol import BlockNetwork, per_axis
from mitoseg.networks.scores import log_odds

BATCH = 512
"""Windows that go through the network together; always as many, so that a score does not depend on the tile."""


@dataclass(frozen=True)
class Window:
    """A `mitoseg.inference.methods.Method`.

    Attributes:
        network: In eval mode.
        ndim: 2 or 3, the network's axes.
        stride: Every how many pixels a window is answered along each axis; linear in between.
        batch: Windows that go through the network together.
    """

    network: BlockNetwork
    ndim: int
    stride: int = 1
    batch: int = BATCH

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box; it may leave the volume."""
        start, stop = list(write.start), list(write.stop)
        for axis, window in self._axes():
            wanted = answered(write.start[axis], write.stop[axis], self.stride)
            start[axis] = self.stride * wanted[0] - anchor(window)
            stop[axis] = self.stride * wanted[-1] - anchor(window) + window
        return Box(tuple(start), tuple(stop))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from the image that `reads` asks for: (z, C, Y, X) or (1, C, Z, Y, X)."""
        windows = image
        for i, (_, window) in enumerate(self._axes()):
            windows = windows.unfold(i + 2, window, self.stride)  # B, C, places..., window...
        places = [windows.shape[0], *windows.shape[2 : 2 + self.ndim]]
        windows = windows.movedim(1, 1 + self.ndim)  # B, places..., C, window...
        coarse = self._answers(windows, places).view(places)
        coarse = coarse if self.ndim == 2 else coarse[0]
        for axis, _ in self._axes():
            coarse = fill(coarse, axis, write.start[axis], write.stop[axis], self.stride)
        return coarse

    def _answers(self, windows: Tensor, places: list[int]) -> Tensor:
        """Log-odds of the windows in the order of their places, batch by batch."""
        count = torch.Size(places).numel()
        found = []
        for first in range(0, count, self.batch):
            number = torch.arange(first, min(first + self.batch, count), device=windows.device)
            cut = windows[torch.unravel_index(number, places)]
            missing = self.batch - len(cut)
            if missing:
                cut = functional.pad(cut, (0, 0) * (cut.ndim - 1) + (0, missing))
            layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
            scores = self.network(cut.contiguous(memory_format=layout))
            found.append(log_odds(scores).flatten()[: self.batch - missing])
        return torch.cat(found)

    def _axes(self) -> list[tuple[int, int]]:
        """Axis of the volume and window, for each axis of the network."""
        return list(zip(range(3 - self.ndim, 3), per_axis(self.network.window, self.ndim), strict=True))
