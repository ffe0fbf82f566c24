r"""Scores on a regular grid of pixels, and what lies between them.

A network with a stride answers every ``stride``-th pixel, counted from the origin of the volume. To fill the pixels
``start <= p < stop`` it takes the answers around them:

    pixels         . . . [a . . . . . . . . . . b) . .
    answered   0       8       16      24      32         first = a // 8, last = ceil((b - 1) / 8)

Between answers the log-odds are linear. A pixel's value depends on its place in the volume alone, never on the box
that it was computed with, down to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
