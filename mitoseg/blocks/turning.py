r"""Squares of pixels about a pivot, turned counter-clockwise and mirrored in x into windows.

A square is as large as any turn of the window about the pivot needs; the pivot is its centre, which lies on a pixel or
between four of them:

    window of 4, pivot 1.5        window of 4, pivot 2          any angle: the circle about
       [. . . .]                     [. . . .] .                the window's corners, and the
       [. . . .]                     [. . . .] .                whole pixels around that
       [. . . .]                     [. . p .] .
       [. . . .]                     [. . . .] .
      square of 4                     . . . . .   square of 5

Output (i, j) reads the pivot plus R (i - pivot, j - pivot), where j - pivot is negated first under a mirror, with

    R = [[cos, sin], [-sin, cos]]   (rows: y, x)
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

_TURNS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of 0..3 quarter turns


def half_side(window: int, pivot: float, *, any_angle: bool) -> float:
    """Pixels from the pivot to the outermost pixels of its square, a multiple of 0.5 as the pivot is.

    >>> half_side(32, 15.5, any_angle=False), half_side(32, 16.0, any_angle=False), half_side(32, 15.5, any_angle=True)
    (15.5, 16.0, 22.5)
    """
    longest = max(pivot, window - 1 - pivot)
    if not any_angle:
        return longest
    rest = pivot % 1
    return math.ceil(math.sqrt(2) * longest - rest) + rest


@lru_cache(maxsize=32)
def turn_table(window: int, pivot: float, channels: int, device: torch.device) -> Tensor:
    """Where the voxels of a turned block lie in its square, for the four turns, then for the four with a mirror.

    Returns:
        int64 (8, window * window * channels): indices into a square (C, y, x), in the order y, x, C of the output.
    """
    half = half_side(window, pivot, any_angle=False)
    size = int(2 * half) + 1
    across = np.arange(window) - pivot
    tables = []
    for along in (across, -across):
        for cos, sin in _TURNS:
            row_yx = (cos * across[:, None] + sin * along + half).astype(np.int64)
            column_yx = (cos * along - sin * across[:, None] + half).astype(np.int64)
            place_yx = row_yx * size + column_yx
            tables.append((place_yx[..., None] + size**2 * np.arange(channels)).reshape(-1))
    return torch.from_numpy(np.stack(tables)).to(device)


def turn(square_bcyx: Tensor, angle_b: Tensor, flip_b: Tensor, window: int, pivot: float) -> Tensor:
    """Turn by multiples of 90 degrees and mirror, voxel by voxel.

    Args:
        square_bcyx: Squares of `half_side` with ``any_angle=False``.
        angle_b: Degrees, multiples of 90.
        flip_b: bool, which blocks are mirrored.
        window: Pixels along y and x of the output.
        pivot: Index inside the window that stays in place.

    Returns:
        (B, C, window, window), of the same type, in channels-last layout.
    """
    B, C = square_bcyx.shape[:2]
    table = turn_table(window, pivot, C, square_bcyx.device)
    code_b = (angle_b / 90).round().to(torch.int64) % 4 + 4 * flip_b
    turned = square_bcyx.flatten(1).gather(1, table.index_select(0, code_b))
    return turned.view(B, window, window, C).permute(0, 3, 1, 2)


def rotate(
    square_bcyx: Tensor, angle_b: Tensor, flip_b: Tensor, window: int, pivot: float, interpolation: str
) -> Tensor:
    """Turn by any angles and mirror, by sampling.

    Args:
        square_bcyx: float32, squares of `half_side` with ``any_angle=True``.
        angle_b: Degrees.
        flip_b: bool, which blocks are mirrored.
        window: Pixels along y and x of the output.
        pivot: Index inside the window that stays in place.
        interpolation: "bilinear" or "nearest".

    Returns:
        float32 (B, C, window, window), in channels-last layout.
    """
    half = half_side(window, pivot, any_angle=True)  # grid_sample counts from -1 to 1, which is from -half to half
    across = (torch.arange(window, dtype=torch.float32, device=square_bcyx.device) - pivot) / half
    radians = torch.deg2rad(angle_b.float())[:, None]
    cos, sin = torch.cos(radians), torch.sin(radians)
    along = across * (1 - 2 * flip_b.float())[:, None]
    grid_byx2 = torch.empty((len(angle_b), window, window, 2), device=square_bcyx.device)
    torch.sub((cos * along)[:, None], (sin * across)[..., None], out=grid_byx2[..., 0])
    torch.add((sin * along)[:, None], (cos * across)[..., None], out=grid_byx2[..., 1])
    turned_bcyx = grid_sample(square_bcyx, grid_byx2, mode=interpolation, align_corners=True)
    return turned_bcyx.contiguous(memory_format=torch.channels_last)
