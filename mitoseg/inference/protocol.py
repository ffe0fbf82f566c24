"""What prediction asks of a network, and what a method of prediction is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mitoseg.geometry import Box
from mitoseg.networks.kinds import BlockNetwork, dimensions, input_channels, per_axis

__all__ = ["BlockNetwork", "Method", "dimensions", "input_channels", "per_axis"]


class Method(Protocol):
    """A way to turn a network into a map of log-odds."""

    @property
    def ndim(self) -> int:
        """2 or 3, the network's axes."""
        ...

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box; it may leave the volume, which is reflected there."""
        ...

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box.

        Args:
            image: What `reads` asks for: slices with their channels (z, C, Y, X), or (1, C, Z, Y, X).
            write: The box.
        """
        ...
