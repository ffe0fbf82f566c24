"""The ways to turn a network into a map, by name.

dense     the window's answer at every pixel, in one pass          block networks
strided   one pass, an answer every ``stride`` pixels, lines between them   block networks
window    each window cut out and put through alone; the reference          block networks
blend     overlapping tiles, averaged with Gaussian weights                 networks that answer a whole tile
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.geometry import Box, reflect
from mitoseg.inference.blend import Blend
from mitoseg.inference.dense import Dense
from mitoseg.inference.members import Members
from mitoseg.inference.protocol import BlockNetwork, Method, dimensions, per_axis
from mitoseg.inference.strided import Strided
from mitoseg.inference.window import Window
from mitoseg.networks import DenseForm, Ensemble

METHODS = ("dense", "strided", "window", "blend")
BLEND_TILES = {2: (1, 256, 256), 3: (32, 128, 128)}
"""(z, y, x) voxels that a network on slices or on volumes takes at once, unless it or the user says otherwise."""
OVERLAPS = {2: 0.5, 3: 0.25}
"""Share of a tile that the next one covers again, along each axis, unless the user says otherwise."""


@dataclass(frozen=True)
class Options:
    """What the methods can be told.

    Attributes:
        window_stride: Of the method ``window``: every how many pixels one is answered.
        tile: (z, y, x) voxels computed at once; None: by the memory at hand, for ``blend`` the network's own attribute
            ``tile``, else `BLEND_TILES`.
        overlap: Of the tiles of ``blend``; None: `OVERLAPS`.
        slices: Slices that go through a network on slices together.

    Raises:
        UserError: A number is out of range.
    """

    window_stride: int = 1
    tile: tuple[int, int, int] | None = None
    overlap: float | None = None
    slices: int = 1

    def __post_init__(self) -> None:
        if type(self.window_stride) is not int or self.window_stride < 1:
            raise UserError("window_stride is not a number of pixels", self.window_stride, "give 1 or more")
        if self.overlap is not None and (not isinstance(self.overlap, int | float) or not 0 <= self.overlap < 1):
            raise UserError("the overlap is not a share of a tile", self.overlap, "give a number from 0 to below 1")
        if self.tile is not None and (len(self.tile) != 3 or min(self.tile) < 1):
            raise UserError("tile is not a size", self.tile, "give tile=[z,y,x], each at least 1")


def choose_method(name: str, network: nn.Module) -> str:
    """The method that a name stands for; ``auto`` takes dense for block networks, blend for others.

    Raises:
        UserError: There is no such method, or it does not fit the network, or not all members of an ensemble.
    """
    if isinstance(network, Ensemble):
        found = {choose_method(name, member.network) for member in network.parts}
        if len(found) > 1:
            kinds = [type(member.network).__name__ for member in network.parts]
            raise UserError("an ensemble of blocks and of whole tiles", kinds, "combine networks of one kind")
        return found.pop()
    is_block = isinstance(network, BlockNetwork)
    chosen = ("dense" if is_block else "blend") if name == "auto" else name
    if chosen not in METHODS:
        raise UserError("no such method", name, f"choose one of auto, {', '.join(METHODS)}")
    kind = type(network).__name__
    if chosen == "blend" and is_block:
        raise UserError(f"method blend does not fit a network that answers blocks, {kind}", name, "use method=dense")
    if chosen != "blend" and not is_block:
        raise UserError(f"method {chosen} needs a block network, not {kind}", name, "use method=blend")
    return chosen


def make_method(name: str, network: nn.Module, shape: tuple[int, int, int], options: Options | None = None) -> Method:
    """A method for one volume.

    Args:
        name: ``auto`` or one of `METHODS`.
        network: In eval mode, on its device.
        shape: Of the volume (z, y, x).
        options: What to tell it.

    Raises:
        UserError: No such method, it does not fit the network, or the volume is smaller than the window.
    """
    options = options or Options()
    chosen, ndim = choose_method(name, network), dimensions(network)
    if isinstance(network, Ensemble):
        each = tuple(make_method(chosen, member.network, shape, options) for member in network.parts)
        return Members(network, each)
    if not isinstance(network, BlockNetwork):
        tile = options.tile or _own_tile(network) or BLEND_TILES[ndim]
        if ndim == 3 and shape[0] == 1:
            raise UserError("the network works on volumes, the image is one slice", shape, "use a network on slices")
        overlap = OVERLAPS[ndim] if options.overlap is None else options.overlap
        return Blend(network, ndim, shape, (1, *tile[1:]) if ndim == 2 else tile, overlap, options.slices)
    window = per_axis(network.window, ndim)
    if any(n < w for n, w in zip(shape[3 - ndim :], window, strict=True)):
        what = (
            "the slice is smaller than the network's window" if ndim == 2 else "the volume is smaller than the window"
        )
        raise UserError(what, shape[3 - ndim :], f"it takes {' x '.join(map(str, window))} voxels")
    if chosen == "strided":
        return Strided(network, ndim, options.slices)
    if chosen == "window":
        return Window(network, ndim, options.window_stride)
    on_cpu = next(network.parameters()).device.type == "cpu"
    return Dense(DenseForm(network, depth_first=on_cpu).eval(), window, options.slices)


def _own_tile(network: nn.Module) -> tuple[int, int, int] | None:
    """The tile that a network wants to be predicted in, its attribute ``tile``.

    Raises:
        UserError: It is no size.
    """
    tile = getattr(network, "tile", None)
    if tile is None:
        return None
    if not isinstance(tile, list | tuple) or len(tile) != 3 or not all(type(n) is int and n >= 1 for n in tile):
        raise UserError("the network's own tile is not a size", tile, "give tile=[z,y,x]")
    return (tile[0], tile[1], tile[2])


def log_odds_in_memory(name: str, network: nn.Module, image: Tensor) -> Tensor:
    """Log-odds of "mitochondrion" for every voxel of whole slices, or of a volume, that are in memory.

    Args:
        name: ``auto`` or one of `METHODS`.
        network: In eval mode, on the device of the image.
        image: Normalised, float: slices (B, C, Y, X), or a volume (1, C, Z, Y, X) for a network on volumes.

    Returns:
        float32 (B, Y, X) or (Z, Y, X).

    Raises:
        UserError: As `make_method`.
    """
    ndim = dimensions(network)
    shape = (image.shape[0] if ndim == 2 else image.shape[2], image.shape[-2], image.shape[-1])
    method = make_method(name, network, shape)
    whole = Box.of_shape(shape)
    read = method.reads(whole)
    padded = image
    for axis in range(3 - ndim, 3):
        index = reflect(torch.arange(read.start[axis], read.stop[axis]).numpy(), shape[axis])
        padded = padded.index_select(axis + ndim - 1, torch.from_numpy(index).to(image.device))
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    if image.is_contiguous(memory_format=layout):
        padded = padded.contiguous(memory_format=layout)
    return method(padded, whole)
