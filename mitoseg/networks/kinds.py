"""What may be asked of any network: whether it classifies windows, its number of axes, its input channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.networks.ensemble import Ensemble


@runtime_checkable
class BlockNetwork(Protocol):
    """A network whose outputs stand for windows of a regular grid.

    An output stands for a ``window`` of pixels along each axis (one number for all axes, or one each), the next one
    for that ``stride`` pixels on; ``spill`` is what it sees (before, after) its window in a whole image.
    """

    window: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    spill: tuple[int, int]
    in_channels: int

    def __call__(self, image: Tensor) -> Tensor:
        """Scores (B, 2, y, x) or (B, 2, z, y, x): background, mitochondrion."""
        ...


def per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """One number for each axis.

    >>> per_axis(8, 2), per_axis((1, 8, 8), 3)
    ((8, 8), (1, 8, 8))
    """
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def dimensions(network: nn.Module) -> int:
    """Whether a network works on slices (2) or on volumes (3), by its first convolution."""
    return _shared(network, "axes", lambda one: 3 if isinstance(_first_layer(one), nn.Conv3d) else 2)


def input_channels(network: nn.Module) -> int:
    """Channels that a network takes: its attribute ``in_channels``, else those of its first convolution."""

    def taken(one: nn.Module) -> int:
        stated = getattr(one, "in_channels", None)
        return stated if isinstance(stated, int) else _first_layer(one).in_channels

    return _shared(network, "input channels", taken)


def _shared(network: nn.Module, what: str, ask: Callable[[nn.Module], int]) -> int:
    if not isinstance(network, Ensemble):
        return ask(network)
    found = [ask(member.network) for member in network.parts]
    if len(set(found)) > 1:
        raise UserError(f"the members of the ensemble differ in {what}", found, "combine networks of one kind")
    return found[0]


def _first_layer(network: nn.Module) -> nn.Conv2d | nn.Conv3d:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return layer
    raise UserError("the network has no convolution", type(network).__name__, "use a convolutional network")
