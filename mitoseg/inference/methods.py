r"""The ways to turn a network into a map of log-odds, by name.

dense     the window's score at every pixel, in one pass                    block networks
strided   one pass, a score every ``stride`` pixels, linear in between      block networks
window    each window cut out and put through alone; the reference          block networks
blend     overlapping tiles, averaged with Gaussian weights                 networks that score a whole tile

A score belongs to the pixel at its window's anchor. For the voxels of a box a method also reads a halo, which is
reflected beyond the image. Reading starts ``anchor(window)`` pixels before the first pixel, so that output i is the
score of pixel ``stride * i``:

    slice                     |0 . . . . . . . 8 . . . . . . . 16 ...            L-1|
    read        <spill|anchor>|0                                                 L-1|<reflected>
    windows           |--- scores 0 ----|
                              |--- scores 8 ----|

The grid of scored pixels starts at the origin of the volume, and a box takes all scores around it, so that a
pixel's value depends, to the last bit, on its place in the volume alone. So do the tiles of ``blend``; the last along
an axis ends where the volume ends. A voxel gets the mean log-odds of the tiles that cover it, weighted by a Gaussian
around each tile's centre with a standard deviation of an eighth of the tile (Isensee et al., 2021, Nature Methods 18,
the nnU-Net).
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.signal.windows import gaussian
from torch import Tensor, nn
from torch.nn import functional

from mitoseg.errors import UserError
from mitoseg.geometry import Box, anchor, reflect
from mitoseg.inference.prepare import Options, is_tile
from mitoseg.networks import DenseForm, Ensemble
from mitoseg.networks.ensemble import log_odds
from mitoseg.networks.kinds import BlockNetwork, dimensions, per_axis

METHODS = ("dense", "strided", "window", "blend")
BLEND_TILES = {2: (1, 256, 256), 3: (32, 128, 128)}
"""(z, y, x) voxels that a network on slices or on volumes takes at once, unless it or the user says otherwise."""
OVERLAP = 0.25
"""Share of a tile that the next one covers again, along each axis, unless the user says otherwise."""


def choose_method(name: str, network: nn.Module) -> str:
    """The method that a name stands for; ``auto`` takes dense for block networks, blend for others."""
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
        raise UserError(f"method blend does not fit a block network, {kind}", name, "use method=dense")
    if chosen != "blend" and not is_block:
        raise UserError(f"method {chosen} needs a block network, not {kind}", name, "use method=blend")
    return chosen


def make_method(network: nn.Module, shape: tuple[int, int, int], options: Options) -> Method:
    """A method for a network in eval mode, on its device, and a volume of a shape (z, y, x)."""
    chosen, ndim = choose_method(options.method, network), dimensions(network)
    if isinstance(network, Ensemble):
        return Members(network, ndim, tuple(make_method(member.network, shape, options) for member in network.parts))
    if not isinstance(network, BlockNetwork):
        own = getattr(network, "tile", None)
        if own is not None and not is_tile(own):
            raise UserError("the network's own tile is not a size", own, "give tile=[z,y,x]")
        z, y, x = options.tile or own or BLEND_TILES[ndim]
        global_norm = any(isinstance(part, nn.InstanceNorm2d | nn.GroupNorm) for part in network.modules())
        if (
            ndim == 2 and own and not options.tile and not global_norm
        ):  # a slice that fits into a tile is predicted whole
            y, x = (min(side, -(-n // 64) * 64) for side, n in zip((y, x), shape[1:], strict=True))
        if ndim == 3 and shape[0] == 1:
            raise UserError("the network is 3D, the image is one slice", shape, "use a 2D network")
        overlap = OVERLAP if options.overlap is None else options.overlap
        return Blend(network, ndim, shape, (1 if ndim == 2 else z, y, x), overlap, options.slices)
    window = per_axis(network.window, ndim)
    if any(n < w for n, w in zip(shape[3 - ndim :], window, strict=True)):
        what = f"the {'slice' if ndim == 2 else 'volume'} is smaller than the network's window"
        raise UserError(what, shape[3 - ndim :], f"it takes {' x '.join(map(str, window))} voxels")
    if chosen == "strided":
        return Strided(network, ndim, per_axis(network.stride, ndim), network.spill, options.slices)
    if chosen == "window":
        return Window(network, ndim, (options.window_stride,) * ndim, (0, 0), options.slices)
    on_cpu = next(network.parameters()).device.type == "cpu"
    return Dense(DenseForm(network, depth_first=on_cpu).eval(), ndim, window, options.slices)


def log_odds_in_memory(name: str, network: nn.Module, image: Tensor) -> Tensor:
    """Log-odds, float32 (B, Y, X) or (Z, Y, X), of an image in memory, with a network in eval mode on its device.

    ``image`` is normalised: slices (B, C, Y, X), or a volume (1, C, Z, Y, X) for a network on volumes.
    """
    ndim = dimensions(network)
    shape = (image.shape[0] if ndim == 2 else image.shape[2], image.shape[-2], image.shape[-1])
    method = make_method(network, shape, Options(method=name))
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


class Method(ABC):
    """A way to turn a network of ``ndim`` axes, 2 or 3, into a map of log-odds."""

    network: Any
    ndim: int

    @abstractmethod
    def reads(self, write: Box) -> Box:
        """The voxels of a box with their halo, as they must be read; beyond its border the volume is reflected."""

    @abstractmethod
    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds (z, y, x) of a box from what `reads` asks for: slices (z, C, Y, X), or (1, C, Z, Y, X)."""

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods of an ensemble's members, or this one of a single network."""
        return (self,)

    def each(self, image: Tensor, write: Box) -> Iterator[Tensor]:
        """Log-odds (z, y, x) of a box from each network, one after the other."""
        yield self(image, write)


def _in_parts(network: Callable[[Tensor], Tensor], image: Tensor, slices: int) -> Tensor:
    """Log-odds of slices, some at a time, or of one volume, without its batch axis."""
    odds = torch.cat([log_odds(network(part)) for part in torch.split(image, slices)])
    return odds if image.ndim == 4 else odds[0]


@dataclass(frozen=True)
class Dense(Method):
    """See `mitoseg.networks.DenseForm`; ``window`` is that of the block network, along each of its axes."""

    network: DenseForm
    ndim: int
    window: tuple[int, ...]
    slices: int

    def reads(self, write: Box) -> Box:
        """See `Method.reads`."""
        start, stop = list(write.start), list(write.stop)
        for i, axis in enumerate(range(3 - self.ndim, 3)):
            before = anchor(self.window[i]) + self.network.padding[i]
            start[axis] -= before
            stop[axis] += self.network.field[i] - 1 - before
        return Box(tuple(start), tuple(stop))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds of a box; see `Method`."""
        return _in_parts(self.network, image, self.slices)


@dataclass(frozen=True)
class Strided(Method):
    """The whole slice or volume once: one score every stride, with outputs that see pixels around their window."""

    network: BlockNetwork
    ndim: int
    strides: tuple[int, ...]
    spill: tuple[int, int]
    slices: int

    def _axes(self) -> list[tuple[int, int, int]]:
        return list(zip(range(3 - self.ndim, 3), per_axis(self.network.window, self.ndim), self.strides, strict=True))

    def reads(self, write: Box) -> Box:
        """See `Method.reads`."""
        start, stop = list(write.start), list(write.stop)
        for axis, window, stride in self._axes():
            wanted = answered(write.start[axis], write.stop[axis], stride)
            before, after = (-(-spill // stride) * stride for spill in self.spill)
            start[axis] = stride * wanted[0] - anchor(window) - before
            stop[axis] = stride * wanted[-1] - anchor(window) + window + after
        return Box(tuple(start), tuple(stop))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds of a box; see `Method`."""
        odds = self._answers(image)
        for axis, _, stride in self._axes():
            wanted = answered(write.start[axis], write.stop[axis], stride)
            odds = odds.narrow(axis, -(-self.spill[0] // stride), len(wanted))
            odds = fill(odds, axis, write.start[axis], write.stop[axis], stride)
        return odds

    def _answers(self, image: Tensor) -> Tensor:
        """Log-odds (z, y, x) of every window of the image."""
        return _in_parts(self.network, image, self.slices)


BATCH = 512  # windows that go through a network together; always as many, so that a score does not depend on the tile


class Window(Strided):
    """Each window cut out and put through alone."""

    def _answers(self, image: Tensor) -> Tensor:
        windows = image
        for i, (_, window, stride) in enumerate(self._axes()):
            windows = windows.unfold(i + 2, window, stride)  # B, C, places..., window...
        places = [windows.shape[0], *windows.shape[2 : 2 + self.ndim]]
        windows = windows.movedim(1, 1 + self.ndim)  # B, places..., C, window...
        layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        count, found = math.prod(places), []
        for first in range(0, count, BATCH):
            number = torch.arange(first, min(first + BATCH, count), device=windows.device)
            cut = windows[torch.unravel_index(number, places)]
            missing = BATCH - len(cut)
            if missing:
                cut = functional.pad(cut, (0, 0) * (cut.ndim - 1) + (0, missing))
            scores = self.network(cut.contiguous(memory_format=layout))
            found.append(log_odds(scores).flatten()[: BATCH - missing])
        odds = torch.cat(found).view(places)
        return odds if self.ndim == 2 else odds[0]


def answered(start: int, stop: int, stride: int) -> range:
    """Numbers of the grid's scores that the pixels of an axis need.

    >>> answered(0, 33, 8), answered(5, 8, 8), answered(8, 9, 8)
    (range(0, 5), range(0, 2), range(1, 2))
    """
    return range(start // stride, -(-(stop - 1) // stride) + 1)


def fill(coarse: Tensor, axis: int, start: int, stop: int, stride: int) -> Tensor:
    """Linear interpolation along one axis from the scores of `answered` to the pixels from start to before stop.

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


@dataclass(frozen=True)
class Blend(Method):
    """Overlapping tiles, for a network whose scores have the size of its input."""

    network: nn.Module
    ndim: int
    shape: tuple[int, int, int]  # of the volume (z, y, x)
    tile: tuple[int, int, int]  # (z, y, x) voxels; z is 1 for networks on slices
    overlap: float
    slices: int

    def reads(self, write: Box) -> Box:
        """See `Method.reads`."""
        tiles = list(self._tiles(write))
        return Box(tiles[0].start, tiles[-1].stop)

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds of a box; see `Method`."""
        read = self.reads(write)
        weight = self._weights().to(image.device)
        total = torch.zeros(write.shape, device=image.device)
        cover = torch.zeros(write.shape[3 - self.ndim :], device=image.device)
        for tile in self._tiles(write):
            kept = tile.clip(write)
            seen, place, inner = self._index(tile, read), self._index(kept, write), self._index(kept, tile)
            total[place] += self.answer(image[seen])[inner] * weight[inner]
            cover[place] += weight[inner]
        return total / cover

    def answer(self, image: Tensor) -> Tensor:
        """Log-odds (z, y, x) of one tile, or of the same tile of several slices."""
        odds = _in_parts(self.network, image, self.slices)
        if odds.shape[-self.ndim :] != image.shape[-self.ndim :]:
            sizes = (tuple(image.shape[-self.ndim :]), tuple(odds.shape[-self.ndim :]))
            what = "method blend needs scores of the size of the tile"
            raise UserError(what, sizes, "choose tile= or another method")
        return odds

    def _tiles(self, write: Box) -> Iterator[Box]:
        """The tiles that touch a box, in order; a network on slices takes all slices of the box."""
        sizes = (write.shape[0], *self.tile[1:]) if self.ndim == 2 else self.tile
        places = [[write.start[0]]] if self.ndim == 2 else []
        for axis in range(3 - self.ndim, 3):
            first, last = write.start[axis] - self.tile[axis] + 1, write.stop[axis]
            every = starts(self.shape[axis], self.tile[axis], self.overlap)
            places.append([start for start in every if first <= start < last])
        for start in itertools.product(*places):
            yield Box(start, tuple(a + n for a, n in zip(start, sizes, strict=True)))

    def _index(self, box: Box, other: Box) -> tuple[Any, ...]:
        """A box as an index of the network's axes into the array of another box."""
        return (..., *box.inside(other).slices[3 - self.ndim :])

    def _weights(self) -> Tensor:
        weight = np.ones(())
        for size in self.tile[3 - self.ndim :]:
            weight = np.multiply.outer(weight, gaussian(size, size / 8))
        return torch.from_numpy(weight).float()


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where the tiles of an axis start, the last so that it ends where the axis ends."""
    step = max(1, math.floor(size * (1 - overlap)))
    last = max(length - size, 0)
    return [*range(0, last, step), last]


@dataclass(frozen=True)
class Members(Method):
    """The mean of the members' calibrated log-odds; their methods may read more or less around a box."""

    network: Ensemble
    ndim: int
    methods: tuple[Method, ...]

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods of the members."""
        return self.methods

    def reads(self, write: Box) -> Box:
        """All that any member needs; see `Method.reads`."""
        boxes = [method.reads(write) for method in self.methods]
        start = tuple(min(ends) for ends in zip(*(box.start for box in boxes), strict=True))
        return Box(start, tuple(max(ends) for ends in zip(*(box.stop for box in boxes), strict=True)))

    def __call__(self, image: Tensor, write: Box) -> Tensor:
        """Log-odds of a box; see `Method`."""
        return torch.stack(list(self.each(image, write))).mean(0)

    def each(self, image: Tensor, write: Box) -> Iterator[Tensor]:
        """See `Method.each`."""
        read = self.reads(write)
        for member, method in zip(self.network.parts, self.methods, strict=True):
            inner = method.reads(write).inside(read)
            index: tuple[Any, ...] = (..., *inner.slices[3 - self.ndim :])
            yield member.calibrate(method(member.normalize(image[index]), write))


def on_meta(method: Any, dtype: torch.dtype, wrap: Callable[[Any], Any]) -> Any:  # noqa: ANN401 (a frozen dataclass, whose type it keeps)
    """The same method with a network of tensors that have a shape but no voxels; what scores one tile is wrapped."""
    if isinstance(method, Members):
        return replace(method, methods=tuple(on_meta(part, dtype, wrap) for part in method.methods))
    network = copy.deepcopy(method.network).to(device="meta", dtype=dtype)
    network.forward = wrap(network.forward)
    method = replace(method, network=network)
    if isinstance(method, Blend):
        object.__setattr__(method, "answer", wrap(method.answer))
    return method
