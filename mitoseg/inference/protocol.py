"""What prediction asks of a block network."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class BlockNetwork(Protocol):
    """A network whose outputs stand for windows of a regular grid.

    Attributes:
        window: Pixels along y and x of the window that one output stands for.
        stride: Pixels between neighbouring outputs.
        spill: Pixels that an output sees (before, after) its window when a whole image goes through.
        in_channels: Input channels.
    """

    window: int
    stride: int
    spill: tuple[int, int]
    in_channels: int

    def __call__(self, image_bcyx: Tensor) -> Tensor:
        """Scores (B, 2, y, x): background, mitochondrion."""
        ...
