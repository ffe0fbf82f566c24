r"""From stored grey values to calibrated probabilities, as modules that can be traced into one file.

    grey values -> (grey - mean) / std -> log-odds by the network -> calibration -> probability

Edges are those of prediction: a block network's image is reflected at its border before it goes through, so that the
map has an answer for every pixel and nothing has to be cut; a network that answers whole tiles gets the tile as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mitoseg.geometry import anchor
from mitoseg.networks import DenseForm, Ensemble
from mitoseg.networks.ensemble import Member
from mitoseg.networks.kinds import BlockNetwork, per_axis
from mitoseg.networks.scores import log_odds
from mitoseg.volumes import CHANNEL_OFFSETS


def reflected(image: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """The positions ``start <= p < stop`` of an axis; those outside are folded back as by `mitoseg.geometry.reflect`.

    Sizes are tensors while this is traced, so they stay free in the file.
    """
    last = image.shape[axis] - 1
    index = torch.arange(start, stop)
    period = torch.zeros(1, dtype=torch.int64) + 2 * last
    return image.index_select(axis, last - (last - index % period.clamp(min=1)).abs())


class Strided(nn.Module):
    """The score of every ``stride``-th pixel, counted from the first; see `mitoseg.inference.strided`."""

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
    """The score of every pixel; see `mitoseg.inference.dense`.

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


def scores_of(network: nn.Module, form: str, ndim: int) -> nn.Module:
    """A module that gives the scores of one network in a form: block, strided, dense or tile."""
    if form == "strided":
        return Strided(network, ndim)
    return Dense(network) if form == "dense" else network


class Probability(nn.Module):
    """Calibrated probabilities of grey values as they are stored.

    Args:
        network: Or an ensemble, whose members' calibrated log-odds are averaged.
        normalization: ``mean`` and ``std`` of the training voxels.
        calibration: ``prior_shift``, ``temperature`` and ``bias``.
        form: block, strided, dense or tile.
        ndim: 2 or 3, the network's axes.
    """

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
        self.calibration, self.block = dict(calibration), form == "block"
        self.members: Sequence[Member | None] = network.parts if isinstance(network, Ensemble) else (None,)
        networks = [network if member is None else member.network for member in self.members]
        self.maps = nn.ModuleList(scores_of(one, form, ndim) for one in networks)

    def forward(self, grey: Tensor) -> Tensor:
        """Probability (B, 1, [Z,] Y, X) of grey values (B, C, [Z,] Y, X); of a block (B, 2): background first."""
        image = (grey - self.mean) / self.std
        answers = []
        for scores, member in zip(self.maps, self.members, strict=True):
            seen = image if member is None else member.normalize(image)
            odds = log_odds(scores(seen))
            answers.append(odds if member is None else member.calibrate(odds))
        raw = answers[0] if len(answers) == 1 else torch.stack(answers).mean(0)
        known = self.calibration
        odds = (raw + known["prior_shift"]) / known["temperature"] + known["bias"]
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
