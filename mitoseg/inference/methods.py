r"""The ways to turn a network into a map, by name.

dense     the window's answer at every pixel, in one pass          block networks
strided   one pass, an answer every ``stride`` pixels, lines between them   block networks
window    each window cut out and put through alone; the reference          block networks
blend     overlapping tiles, averaged with Gaussian weights                 networks that answer a whole tile

The dense form of a block network: the window's answer at every pixel, in one pass.

The whole slice through a block network once: one score every ``stride`` pixels, placed where its window is.

Output i of a padded slice stands for the window that starts at ``stride * i``; reading from ``anchor(window)`` pixels
before the first pixel makes that window answer pixel ``stride * i`` of the slice itself:

    slice                     |0 . . . . . . . 8 . . . . . . . 16 ...            L-1|
    read        <spill|anchor>|0                                                 L-1|<reflected>
    windows           |--- answers 0 ---|
                              |--- answers 8 ---|

Between the answered pixels the log-odds are interpolated linearly. Nothing is stretched: a score stays on the pixel
that its window answers, and the margins come from reflecting the image, never from resizing the map.

The literal sliding window: each window cut out and put through the network alone. Slow; the reference.

Scores on a regular grid of pixels, and what lies between them.

A network with a stride answers every ``stride``-th pixel, counted from the origin of the volume. To fill the pixels
``start <= p < stop`` it takes the answers around them:

    pixels         . . . [a . . . . . . . . . . b) . .
    answered   0       8       16      24      32         first = a // 8, last = ceil((b - 1) / 8)

Between answers the log-odds are linear. A pixel's value depends on its place in the volume alone, never on the box
that it was computed with, down to the last bit.

What prediction asks of a network, and what a method of prediction is.

Overlapping tiles whose answers are averaged with Gaussian weights: for networks that see a whole tile at once.

The tiles lie on one grid, counted from the origin of the volume; the last along an axis ends where the volume ends:

    axis of 10, tiles of 4, half overlapping     [0 1 2 3]
                                                     [2 3 4 5]
                                                         [4 5 6 7]
                                                             [6 7 8 9]

A voxel gets the mean log-odds of the tiles that cover it, weighted by a Gaussian around each tile's centre with a
standard deviation of an eighth of the tile (Isensee et al., 2021, Nature Methods 18, the nnU-Net).

An ensemble's members, each by a method of its own, and what concerns them one by one.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from scipy.signal.windows import gaussian
from torch import Tensor, nn
from torch.nn import functional

from mitoseg.errors import UserError
from mitoseg.geometry import Box, anchor, reflect
from mitoseg.networks import DenseForm, Ensemble
from mitoseg.networks.ensemble import log_odds
from mitoseg.networks.kinds import BlockNetwork, dimensions, input_channels, per_axis

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


def answered(start: int, stop: int, stride: int) -> range:
    """Numbers of the grid's answers that the pixels of an axis need.

    >>> answered(0, 33, 8), answered(5, 8, 8), answered(8, 9, 8)
    (range(0, 5), range(0, 2), range(1, 2))
    """
    return range(start // stride, -(-(stop - 1) // stride) + 1)


def fill(coarse: Tensor, axis: int, start: int, stop: int, stride: int) -> Tensor:
    """Linear interpolation along one axis from the answers `answered` to every pixel of the axis.

    Args:
        coarse: The answers, float.
        axis: Which axis to fill.
        start: First pixel.
        stop: Last pixel + 1.
        stride: Pixels between answers.

    >>> fill(torch.tensor([0.0, 8.0, 0.0]), 0, 6, 11, 8).tolist()
    [6.0, 7.0, 8.0, 7.0, 6.0]
    """
    if stride == 1:
        return coarse
    pixel = torch.arange(start, stop, device=coarse.device)
    below = pixel // stride - start // stride
    above = (below + 1).clamp(max=coarse.shape[axis] - 1)
    weight = (pixel % stride).to(coarse.dtype) / stride
    weight = weight.view([-1 if i == axis % coarse.ndim else 1 for i in range(coarse.ndim)])
    low = coarse.index_select(axis, below)
    return low + weight * (coarse.index_select(axis, above) - low)


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


@dataclass(frozen=True)
class Members:
    """A `mitoseg.inference.methods.Method`: the mean of the members' calibrated log-odds.

    Attributes:
        network: In eval mode.
        methods: One for each member, in order. They may read more or less around a box than one another.
    """

    network: Ensemble
    methods: tuple[Method, ...]

    @property
    def ndim(self) -> int:
        """2 or 3, the axes of all members."""
        return self.methods[0].ndim

    def reads(self, write: Box) -> Box:
        """What must be read for the voxels of a box: all that any member needs."""
        boxes = [method.reads(write) for method in self.methods]
        start = tuple(min(ends) for ends in zip(*(box.start for box in boxes), strict=True))
        return Box(start, tuple(max(ends) for ends in zip(*(box.stop for box in boxes), strict=True)))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from the image that `reads` asks for: (z, C, Y, X) or (1, C, Z, Y, X)."""
        return torch.stack(list(self.each(image, write))).mean(0)

    def each(self, image: Tensor, write: Box) -> Iterator[Tensor]:
        """The same of each member."""
        read = self.reads(write)
        for member, method in zip(self.network.parts, self.methods, strict=True):
            inner = method.reads(write).inside(read)
            index: tuple[Any, ...] = (..., *inner.slices[3 - self.ndim :])
            yield member.calibrate(method(member.normalize(image[index]), write))


def parts(method: Method) -> tuple[Method, ...]:
    """The methods of an ensemble's members, or the one method of a single network."""
    return method.methods if isinstance(method, Members) else (method,)


def answers(method: Method, image: Tensor, write: Box) -> Iterator[Tensor]:
    """Log-odds (z, y, x) of a box as each network gives them, one after the other."""
    if isinstance(method, Members):
        yield from method.each(image, write)
    else:
        yield method(image, write)


def on_meta(method: Any, dtype: torch.dtype, wrap: Callable[[Any], Any]) -> Any:  # noqa: ANN401 (a frozen dataclass, whose type it keeps)
    """The same method with a network of tensors that have a shape but no voxels; what answers one tile is wrapped."""
    if isinstance(method, Members):
        return replace(method, methods=tuple(on_meta(part, dtype, wrap) for part in method.methods))
    network = copy.deepcopy(method.network).to(device="meta", dtype=dtype)
    network.forward = wrap(network.forward)
    method = replace(method, network=network)
    if isinstance(method, Blend):
        object.__setattr__(method, "answer", wrap(method.answer))
    return method
