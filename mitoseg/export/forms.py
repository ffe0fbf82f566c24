r"""The forms in which a network can be exported, and what each takes in and gives.

block     one window, 32x32 of the abstract's network     -> background, mitochondrion      block networks
strided   an image                                        -> every 8th pixel                block networks
dense     an image                                        -> every pixel                    block networks
tile      a tile                                          -> every pixel of the tile        networks that answer tiles
volume    a volume, a piece of a stack                    -> every voxel                    all

The channels of an image are slices; a volume has one channel, and its slices become channels inside.

Each is a module that can be traced into one file:

    grey values -> (grey - mean) / std -> log-odds by the network -> calibration -> probability

Edges are those of prediction: a block network's image is reflected at its border before it goes through, so that the
map has an answer for every pixel and nothing has to be cut; a network that answers whole tiles gets the tile as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.geometry import anchor
from mitoseg.inference import choose_method
from mitoseg.inference.methods import BLEND_TILES
from mitoseg.inference.prepare import is_tile
from mitoseg.metrics import Calibration
from mitoseg.networks import DenseForm, Ensemble
from mitoseg.networks.checkpoint import Model
from mitoseg.networks.ensemble import Member, log_odds
from mitoseg.networks.kinds import BlockNetwork, dimensions, input_channels, per_axis
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization

FORMS = ("auto", "block", "strided", "dense", "tile", "volume")

HALO = 32
"""Pixels along y and x that are cut on each side where tiles are put together, or the next multiple that fits."""


@dataclass(frozen=True)
class Sizes:
    """What the sides of an input may be, for each axis after the channels."""

    least: tuple[int, ...]  # the smallest size that is vouched for
    step: tuple[int, ...]  # sizes are the smallest plus multiples of this; 0 where the size is fixed
    halo: tuple[int, ...]  # voxels on either side whose answers lack context, to be cut where pieces are put together

    @property
    def piece(self) -> tuple[int, ...]:
        """The smallest piece of a larger image of which something is left when the halo is cut."""
        found = []
        for least, step, halo in zip(self.least, self.step, self.halo, strict=True):
            missing = max(0, 2 * halo + max(1, step) - least)
            found.append(least + (-(-missing // step) * step if step else 0))
        return tuple(found)


@dataclass(frozen=True)
class Form:
    """A network ready to be traced."""

    name: str  # one of `FORMS`, not auto
    inner: str  # the form of the network inside ``volume``; else the same as the name
    module: nn.Module  # grey values in, probabilities out
    axes: str  # of the input, such as bcyx
    channels: int  # of the input
    sizes: Sizes  # that the input may have
    stride: tuple[int, ...]  # pixels between answers, for each axis after the channels

    def example(self, steps: Sequence[int], batch: int = 1) -> tuple[int, ...]:
        """The shape of an input, so many steps along each axis larger than the smallest."""
        sides = [a + n * s for a, n, s in zip(self.sizes.least, steps, self.sizes.step, strict=True)]
        return (batch, self.channels, *sides)


def networks_of(network: nn.Module) -> list[nn.Module]:
    """The members of an ensemble, or the network alone."""
    return [member.network for member in network.parts] if isinstance(network, Ensemble) else [network]


def choose_form(name: str, network: nn.Module) -> tuple[str, str]:
    """The form that a name stands for, and the network's own form inside it."""
    if name not in FORMS:
        raise UserError("no such form", name, f"choose one of {', '.join(FORMS)}")
    kind = type(network).__name__
    own = "tile" if choose_method("auto", network) == "blend" else "dense"
    chosen = own if name == "auto" else name
    if own == "tile" and chosen in ("block", "strided", "dense"):
        raise UserError(f"form {chosen} is for block networks, not {kind}", name, "use form=tile")
    if own == "dense" and chosen == "tile":
        raise UserError(f"form tile is for networks that predict whole tiles, not {kind}", name, "use form=dense")
    return chosen, own if chosen == "volume" else chosen


def make_form(model: Model, name: str = "auto", tile: Sequence[int] | None = None) -> Form:
    """A model in a form; auto is dense for block networks and tile for others.

    ``tile`` (z, y, x) is for a network that does not say itself what sizes it takes.
    """
    network = model.network
    chosen, inner = choose_form(name, network)
    ndim = dimensions(network)
    taken, made = input_channels(network), len(CHANNEL_OFFSETS[model.channels])
    if taken != made:
        raise UserError(f"the network takes {taken} channels, channels={model.channels} make", made, "use another")
    maps = Probability(network, model.normalization, model.calibration, inner, ndim)
    sizes = _sizes(network, inner, ndim, tile)
    first: Any = networks_of(network)[0]
    stride = per_axis(first.stride, ndim) if inner == "strided" else (1,) * ndim
    if chosen != "volume" or ndim == 3:
        return Form(chosen, inner, maps.eval(), "bcyx" if ndim == 2 else "bczyx", taken, sizes, stride)
    reach = max(map(abs, CHANNEL_OFFSETS[model.channels]))
    deep = Sizes((1, *sizes.least), (1, *sizes.step), (reach, *sizes.halo))
    return Form(chosen, inner, OfVolume(maps, model.channels).eval(), "bczyx", 1, deep, (1, *stride))


def _sizes(network: nn.Module, inner: str, ndim: int, tile: Sequence[int] | None) -> Sizes:
    each = [(_tile_sizes if inner == "tile" else _block_sizes)(one, inner, ndim, tile) for one in networks_of(network)]
    if any(0 in one.step for one in each):
        if len({one.least for one in each}) > 1:
            raise UserError("the members take tiles of different sizes", [e.least for e in each], "export the members")
        return each[0]
    step = tuple(math.lcm(*(one.step[i] for one in each)) for i in range(ndim))
    least = tuple(-(-max(one.least[i] for one in each) // s) * s for i, s in enumerate(step))
    return Sizes(least, step, tuple(max(one.halo[i] for one in each) for i in range(ndim)))


def _block_sizes(network: Any, inner: str, ndim: int, _: object) -> Sizes:  # noqa: ANN401 (a block network)
    window = per_axis(network.window, ndim)
    if inner == "block":
        return Sizes(window, (0,) * ndim, (0,) * ndim)
    dense = DenseForm(network)
    before = [anchor(w) + p for w, p in zip(window, dense.padding, strict=True)]
    stride = dense.stride if inner == "strided" else (1,) * ndim
    reach = [max(b, f - 1 - b) for b, f in zip(before, dense.field, strict=True)]
    return Sizes(window, (1,) * ndim, tuple(-(-n // s) * s for n, s in zip(reach, stride, strict=True)))


def _tile_sizes(network: nn.Module, _: str, ndim: int, tile: Sequence[int] | None) -> Sizes:
    """Multiples of what the network says; else one size alone."""
    own = tile or getattr(network, "tile", None) or BLEND_TILES[ndim]
    if not is_tile(own):
        raise UserError("tile is not a size", list(own), "give tile=[z,y,x], each at least 1")
    multiple = getattr(network, "multiple", None)
    if multiple is None:
        sides = tuple(own[3 - ndim :])
        return Sizes(sides, (0,) * ndim, tuple(n // 4 for n in sides))
    halo = [-(-HALO // n) * n if i >= ndim - 2 else n for i, n in enumerate(multiple)]
    return Sizes(tuple(2 * n for n in multiple), tuple(multiple), tuple(halo))


def reflected(image: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """The positions ``start <= p < stop`` of an axis; those outside are folded back as by `mitoseg.geometry.reflect`.

    Sizes are tensors while this is traced, so they stay free in the file.
    """
    last = image.shape[axis] - 1
    index = torch.arange(start, stop)
    period = torch.zeros(1, dtype=torch.int64) + 2 * last
    return image.index_select(axis, last - (last - index % period.clamp(min=1)).abs())


class Strided(nn.Module):
    """The score of every ``stride``-th pixel, counted from the first; see `mitoseg.inference.methods`."""

    def __init__(self, network: nn.Module, ndim: int) -> None:
        super().__init__()
        assert isinstance(network, BlockNetwork)
        self.network = network
        self.windows, self.strides = per_axis(network.window, ndim), per_axis(network.stride, ndim)
        self.before, self.after = network.spill

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, classes, [z,] y, x) of an image (B, C, [Z,] Y, X); y is Y / stride, rounded up."""
        counts = []
        for axis, (window, stride) in enumerate(zip(self.windows, self.strides, strict=True), 2):
            count = (image.shape[axis] + stride - 1) // stride
            before, after = (-(-spill // stride) * stride for spill in (self.before, self.after))
            first = -anchor(window)
            image = reflected(image, axis, first - before, first + stride * (count - 1) + window + after)
            counts.append(count)
        scores: Tensor = self.network(image)
        for axis, (count, stride) in enumerate(zip(counts, self.strides, strict=True), 2):
            scores = scores.narrow(axis, -(-self.before // stride), count)
        return scores


class Dense(nn.Module):
    """The score of every pixel; see `mitoseg.inference.methods`.

    The image is extended to a whole number of strides, so that no branch of `DenseForm` depends on its size.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        assert isinstance(network, BlockNetwork)
        self.network = DenseForm(network, depth_first=False)
        self.windows = per_axis(network.window, self.network.ndim)

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, classes, [Z,] Y, X) of an image (B, C, [Z,] Y, X)."""
        dense, sizes = self.network, image.shape[2:]
        for i, stride in enumerate(dense.stride):
            outputs = (sizes[i] + stride - 1) // stride * stride
            first = -anchor(self.windows[i]) - dense.padding[i]
            image = reflected(image, i + 2, first, first + outputs + dense.field[i] - 1)
        scores: Tensor = dense(image)
        for i, size in enumerate(sizes):
            scores = scores.narrow(i + 2, 0, size)
        return scores


class Probability(nn.Module):
    """Calibrated probabilities of grey values as they are stored; of an ensemble, from the mean of its members."""

    def __init__(
        self,
        network: nn.Module,
        normalization: Mapping[str, float],
        calibration: Mapping[str, float],
        form: str,
        ndim: int,
    ) -> None:
        super().__init__()
        self.mean, self.std = normalization["mean"], normalization["std"]
        self.limit = Normalization(self.mean, self.std).limit
        self.calibration, self.block = Calibration(**calibration), form == "block"
        self.members: Sequence[Member | None] = network.parts if isinstance(network, Ensemble) else (None,)
        networks = networks_of(network)
        if form == "strided":
            networks = [Strided(one, ndim) for one in networks]
        elif form == "dense":
            networks = [Dense(one) for one in networks]
        self.maps = nn.ModuleList(networks)

    def forward(self, grey: Tensor) -> Tensor:
        """Probability (B, 1, [Z,] Y, X) of grey values (B, C, [Z,] Y, X); of a block (B, 2): background first."""
        image = ((grey - self.mean) / self.std).clamp(-self.limit, self.limit)
        answers = []
        for scores, member in zip(self.maps, self.members, strict=True):
            seen = image if member is None else member.normalize(image)
            odds = log_odds(scores(seen))
            answers.append(odds if member is None else member.calibrate(odds))
        raw = answers[0] if len(answers) == 1 else torch.stack(answers).mean(0)
        odds = self.calibration.apply(raw)
        if self.block:
            flat = odds.flatten(1)
            return torch.cat([torch.sigmoid(-flat), torch.sigmoid(flat)], 1)
        return torch.sigmoid(odds)[:, None]


class OfVolume(nn.Module):
    """A map of slices as one of volumes: each slice with the neighbours that are its channels.

    A missing neighbour is the slice itself, see `mitoseg.volumes.channel_slices`.
    """

    def __init__(self, maps: Probability, channels: str) -> None:
        super().__init__()
        self.maps, self.offsets = maps, CHANNEL_OFFSETS[channels]

    def forward(self, grey: Tensor) -> Tensor:
        """Probability (B, 1, Z, Y, X) of grey values (B, 1, Z, Y, X)."""
        B, _, Z, Y, X = grey.shape
        own = torch.arange(Z)[:, None]
        wanted = own + torch.tensor(self.offsets)
        rows = torch.where((wanted >= 0) & (wanted < Z), wanted, own)
        stacked = grey[:, 0].index_select(1, rows.flatten())
        slices = stacked.reshape(B * Z, len(self.offsets), Y, X)
        found: Tensor = self.maps(slices)
        return found.reshape(B, 1, Z, Y, X)
