r"""U-Nets that score a whole tile, on slices, on neighbouring slices as channels, or on volumes.

The body is MONAI's DynUNet, the architecture of nnU-Net (Isensee et al., Nature Methods 18, 2021). With a ``stem`` of
s > 1 it works on a coarser grid without losing a voxel: s x s (x s) voxels become channels before the first
convolution, and each of its positions gives the scores of as many voxels (Shi et al., CVPR 2016):

    image      a b c d e f g h         1 channel,  8 voxels
    stem 2     a c e g / b d f h       2 channels, 4 positions      1/2 of the work, 1/4 in 2D, 1/8 in 3D
    scores     A C E G / B D F H       -> A B C D E F G H
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.networks.kinds import per_axis

NORMS = {"instance_affine": ("instance", {"affine": True}), "group": ("group", {"num_groups": 8})}
"""Normalisations besides those that MONAI knows by name alone."""

Sizes = Sequence[int | Sequence[int]]


class UNet(nn.Module):
    """A U-Net whose scores have the size of its input.

    ``filters`` and ``kernels`` (None: 3 along all axes) are those of each level, the finest first; ``strides`` lie
    between the levels; these and the ``stem`` are numbers for all axes, or one each. ``norm`` is one of `NORMS`, or
    one that MONAI knows; batch keeps a voxel's score from depending on the rest of its tile. ``deep_supervision`` is
    the number of coarser levels that are scored in training as well, ``tile`` the (z, y, x) voxels that are predicted
    at once, unless the user says otherwise. The attribute ``multiple`` says what the sides of an image must be
    multiples of.

    Raises:
        UserError: The sizes do not fit together.

    >>> UNet(3, filters=[4, 8, 16], strides=[2, 2])(torch.zeros(1, 1, 16, 32, 32)).shape
    torch.Size([1, 2, 16, 32, 32])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        classes: int = 2,
        filters: Sequence[int] = (32, 64, 128, 256),
        stem: int | Sequence[int] = 2,
        strides: Sizes = (2, 2, 2),
        kernels: Sizes | None = None,
        norm: str = "batch",
        residual: bool = False,
        deep_supervision: int = 0,
        dropout: float | None = None,
        tile: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        self.stem = _per_axis(stem, spatial_dims)
        steps = [_per_axis(stride, spatial_dims) for stride in strides]
        if len(filters) != len(steps) + 1 or len(filters) < 3:
            remedy = "give three levels or more, and strides for each after the first"
            raise UserError("filters and strides do not fit together", [list(filters), list(strides)], remedy)
        self.multiple = tuple(s * math.prod(step[i] for step in steps) for i, s in enumerate(self.stem))
        self.tile = None if tile is None else tuple(tile)
        fold = math.prod(self.stem)
        body: dict[str, Any] = {
            "kernel_size": [_per_axis(k, spatial_dims) for k in kernels or [3] * len(filters)],
            "strides": [(1,) * spatial_dims, *steps],
            "upsample_kernel_size": steps,
            "filters": list(filters),
            "norm_name": NORMS.get(norm, norm),
            "res_block": residual,
            "dropout": dropout,
            "deep_supervision": deep_supervision > 0,
            "deep_supr_num": max(1, deep_supervision),
        }
        from monai.networks.nets.dynunet import DynUNet  # half a second, for whoever builds one

        self.body = DynUNet(spatial_dims, in_channels * fold, classes * fold, **body)

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, classes, [Z,] Y, X) before the softmax, of normalised float images (B, in_channels, [Z,] Y, X).

        In training with deep supervision they are (B, levels, classes, [Z,] Y, X), finest first.
        """
        if any(n % m for n, m in zip(image.shape[2:], self.multiple, strict=True)):
            what = f"the sides of a tile must be multiples of {list(self.multiple)}"
            raise UserError(what, tuple(image.shape[2:]), "choose another tile=[z,y,x]")
        if math.prod(self.stem) == 1:
            scores: Tensor = self.body(image)
            return scores
        scores = self.body(fold(image, self.stem))
        if scores.ndim == image.ndim:
            return unfold(scores, self.stem)
        return torch.stack([unfold(level, self.stem) for level in scores.unbind(1)], dim=1)


def _per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    sizes = per_axis(value, ndim)
    if len(sizes) != ndim or min(sizes) < 1:
        raise UserError(f"not a size for {ndim} axes", list(sizes), "give a number, or one for each axis")
    return sizes


def fold(image: Tensor, factor: Sequence[int]) -> Tensor:
    """Voxels to channels: (B, C, s Y, t X) to (B, C s t, Y, X), and the same with three axes."""
    B, C, *sides = image.shape
    cells = [n // f for n, f in zip(sides, factor, strict=True)]
    split = image.reshape(B, C, *(size for pair in zip(cells, factor, strict=True) for size in pair))
    d = len(sides)
    order = [0, 1, *range(3, 2 * d + 2, 2), *range(2, 2 * d + 2, 2)]
    return _channels_last(split.permute(order).reshape(B, C * math.prod(factor), *cells))


def unfold(scores: Tensor, factor: Sequence[int]) -> Tensor:
    """Channels to voxels, the opposite of `fold`."""
    B, C, *cells = scores.shape
    d, kinds = len(cells), C // math.prod(factor)
    split = scores.reshape(B, kinds, *factor, *cells)
    order = [0, 1, *(axis for i in range(d) for axis in (2 + d + i, 2 + i))]
    return split.permute(order).reshape(B, kinds, *(n * f for n, f in zip(cells, factor, strict=True)))


def _channels_last(image: Tensor) -> Tensor:
    if torch._C._get_tracing_state() is not None:  # files for other runtimes know no memory format
        return image
    return image.contiguous(memory_format=torch.channels_last if image.ndim == 4 else torch.channels_last_3d)
