r"""The training voxels in one flat tensor, and whole batches of turned blocks out of it.

A window of ``w`` pixels that answers pixel p starts at ``p - w // 2`` (see `mitoseg.geometry.anchor`). The labelled
block is always ``[p - 16, p + 15]``, so a window of 67 sees context around it:

    window of 67:   p-33 ............ p-16 ....... p ....... p+15 ............ p+33
                     |<-- context -->|<---- labelled block --->|<-- context -->|

A block is turned about its pivot, an index inside the window: the centre of the labelled block (``w // 2 - 0.5``)
where the label speaks of the block, so that a quarter turn gives the same 32x32 pixels; the answered pixel
(``w // 2``) where it speaks of that pixel.

Each slice of a region is kept with as much around it as any block may read. A square about a pivot then is some runs
of neighbouring voxels, one for each row, and the squares of a batch are one index into all runs that there are, which
overlap (`torch.as_strided`):

    voxels_n   0 1 2 3 4 5 ...        runs of 3   [0 1 2] [1 2 3] [2 3 4] [3 4 5] ...

So much around a region is kept that any block of it can be cut and turned without looking for the border. The squares
are turned counter-clockwise about their pivot and mirrored in x into windows. A square is as large as any turn of the
window about the pivot needs; the pivot is its centre, which lies on a pixel or between four of them:

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from mitoseg.datasets.base import Region
from mitoseg.geometry import Box, anchor, slabs
from mitoseg.sampling.positions import INTERPOLATIONS, check_choice
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, check_image_values

_CACHED = 2**19  # voxels that are gathered together on a CPU, whose caches hold them until they are normalised


@lru_cache
def _offsets(channels: str, device: torch.device) -> Tensor:
    """`CHANNEL_OFFSETS` on a device."""
    return torch.tensor(CHANNEL_OFFSETS[channels], device=device)


@dataclass(frozen=True)
class _Blocks:
    """What `VolumeBank.gather` is asked for."""

    position_b4: Tensor
    angle_b: Tensor
    flip_b: Tensor
    window: int
    channels: str
    pivot: float

    def take(self, index: Tensor | slice) -> _Blocks:
        """Some of the blocks."""
        columns = self.position_b4[index], self.angle_b[index], self.flip_b[index]
        return _Blocks(*columns, self.window, self.channels, self.pivot)


class VolumeBank(nn.Module):
    """The image voxels of some regions, with the real tissue around them, on one device.

    uint8 voxels stay as they are until they are gathered, any others are kept as normalised float32. Context comes
    from the whole volume around a region's box; beyond the volume y and x are reflected, and a missing neighbour slice
    is the slice itself.

    Args:
        regions: What positions refer to, by their place in this sequence.
        normalization: Mean and standard deviation that blocks are normalised with.
        window: The largest window that will be gathered, in pixels.

    Attributes:
        voxels_n: All that is kept, region after region, slice after slice, row after row.
        places_r5: int64, for each region: the place of its voxel (0, 0, 0) in ``voxels_n``, the steps from slice to
            slice and from row to row, the first z that is kept and the one after the last, in its own coordinates.
    """

    voxels_n: Tensor
    places_r5: Tensor
    _scale_2: Tensor

    def __init__(self, regions: Sequence[Region], normalization: Normalization, window: int = 32) -> None:
        super().__init__()
        self.window, self.normalization = window, normalization
        self.raw = all(region.image.dtype == np.uint8 for region in regions)
        kept = [KeptRegion(region, reach(window)) for region in regions]
        ends = np.cumsum([math.prod(k.shape) for k in kept], dtype=np.int64).tolist()
        starts = [0, *ends[:-1]]
        voxels_n = np.empty(ends[-1], np.uint8 if self.raw else np.float32)  # on large pages, unlike torch.empty
        self.register_buffer("voxels_n", torch.from_numpy(voxels_n))
        self.register_buffer("places_r5", torch.tensor([k.places(n) for k, n in zip(kept, starts, strict=True)]))
        self.register_buffer("_scale_2", torch.tensor([normalization.mean, normalization.std], dtype=torch.float32))
        for k, start, end in zip(kept, starts, ends, strict=True):
            k.fill(voxels_n[start:end].reshape(k.shape), None if self.raw else normalization)

    @property
    def device(self) -> torch.device:
        """Where the voxels are, and where gathered blocks come out."""
        return self.voxels_n.device

    def gather(
        self,
        position_b4: Tensor,
        angle_b: Tensor,
        flip_b: Tensor,
        *,
        window: int,
        channels: str = "adjacent",
        pivot: float | None = None,
        interpolation: str = "bilinear",
        exact: bool | None = None,
    ) -> Tensor:
        """A batch of normalised blocks, each turned counter-clockwise by its angle, then mirrored in x where asked.

        Multiples of 90 degrees are copied voxel by voxel, as ``torch.rot90`` and ``torch.flip`` would; any other angle
        is sampled from the tissue around the block, so that no corner is ever black.

        Args:
            position_b4: int64 (B, 4): region, z, y, x of the answered pixel in the region's own coordinates.
            angle_b: float (B,), degrees.
            flip_b: bool (B,).
            window: Pixels along y and x; at most the bank's.
            channels: A key of `CHANNEL_OFFSETS`.
            pivot: Index inside the window that stays in place, a multiple of 0.5 no further than 0.5 from the answered
                pixel's; None: the centre of the labelled block.
            interpolation: "bilinear" or "nearest", for angles that are no multiples of 90.
            exact: Whether all angles are multiples of 90; None: look, which makes the host wait for a GPU.

        Returns:
            float32 (B, C, window, window), in channels-last layout.

        Raises:
            ValueError: The window is larger than the bank's, or the pivot is none of the three places allowed.
            UserError: The interpolation is not known.
        """
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        pivot = anchor(window) - 0.5 if pivot is None else pivot
        if window > self.window or abs(pivot - anchor(window)) not in (0.0, 0.5):
            raise ValueError(f"cannot gather a window of {window} about {pivot} from a bank built for {self.window}")
        blocks = _Blocks(position_b4, angle_b, flip_b, window, channels, pivot)
        portion = max(1, _CACHED // (len(CHANNEL_OFFSETS[channels]) * window**2))
        if self.device.type != "cpu" or len(angle_b) <= portion:
            return self._gather(blocks, interpolation, exact)
        shape = len(angle_b), len(CHANNEL_OFFSETS[channels]), window, window
        image_bcyx = torch.empty(shape, memory_format=torch.channels_last)
        for start in range(0, len(angle_b), portion):
            some = slice(start, start + portion)
            image_bcyx[some] = self._gather(blocks.take(some), interpolation, exact)
        return image_bcyx

    def _gather(self, blocks: _Blocks, interpolation: str, exact: bool | None) -> Tensor:
        """All blocks at once."""
        exact_b = blocks.angle_b % 90 == 0
        if bool(exact_b.all()) if exact is None else exact:
            return self._normalize(self._turn(blocks))
        if self.device.type != "cpu":  # both for all blocks, rather than wait for the number of each kind
            chosen = torch.where(exact_b[:, None, None, None], self._turn(blocks), self._rotate(blocks, interpolation))
            return self._normalize(chosen)
        rotated = (~exact_b).nonzero()[:, 0]
        if len(rotated) == len(exact_b):
            return self._normalize(self._rotate(blocks, interpolation))
        turned = exact_b.nonzero()[:, 0]
        shape = len(exact_b), len(CHANNEL_OFFSETS[blocks.channels]), blocks.window, blocks.window
        image_bcyx = torch.empty(shape, memory_format=torch.channels_last)
        image_bcyx[turned] = self._turn(blocks.take(turned))
        image_bcyx[rotated] = self._rotate(blocks.take(rotated), interpolation)
        return self._normalize(image_bcyx)

    def _turn(self, blocks: _Blocks) -> Tensor:
        """Quarter turns."""
        half = half_side(blocks.window, blocks.pivot, any_angle=False)
        square_bcyx = self._squares(blocks, half)
        return turn(square_bcyx, blocks.angle_b, blocks.flip_b, blocks.window, blocks.pivot).float()

    def _rotate(self, blocks: _Blocks, interpolation: str) -> Tensor:
        """Any angles."""
        half = half_side(blocks.window, blocks.pivot, any_angle=True)
        square_bcyx = self._squares(blocks, half).float()
        return rotate(square_bcyx, blocks.angle_b, blocks.flip_b, blocks.window, blocks.pivot, interpolation)

    def _squares(self, blocks: _Blocks, half: float) -> Tensor:
        """(B, C, s, s), ``half`` pixels and no more to each side of the pivot, as they are stored."""
        size, first = int(2 * half) + 1, int(blocks.pivot - half) - anchor(blocks.window)
        region_b, z_b, y_b, x_b = blocks.position_b4.unbind(1)
        start_b, plane_b, row_b, first_b, end_b = self.places_r5.index_select(0, region_b).unbind(1)
        start_b = start_b + z_b * plane_b + (y_b + first) * row_b + (x_b + first)
        offset_c = _offsets(blocks.channels, self.device)
        z_bc = z_b[:, None] + offset_c
        there_bc = (z_bc >= first_b[:, None]) & (z_bc < end_b[:, None])
        start_bc = start_b[:, None] + offset_c * there_bc * plane_b[:, None]
        down_bs = torch.arange(size, device=self.device) * row_b[:, None]
        runs = self.voxels_n.as_strided((len(self.voxels_n) - size + 1, size), (1, 1))
        run_bcs = start_bc[:, :, None] + down_bs[:, None]
        return runs.index_select(0, run_bcs.view(-1)).view(*start_bc.shape, size, size)

    def _normalize(self, image_bcyx: Tensor) -> Tensor:
        """In place, unless that was done when the voxels were read."""
        (mean, std), limit = self._scale_2.unbind(), self.normalization.limit
        return image_bcyx.sub_(mean).div_(std).clamp_(-limit, limit) if self.raw else image_bcyx


NEIGHBOURS = max(abs(offset) for offsets in CHANNEL_OFFSETS.values() for offset in offsets)
"""Slices before and after that channels are made of."""


def reach(window: int) -> int:
    """Pixels around the answered one that any rotation and flip of a window may read.

    >>> reach(32), reach(67)
    (25, 49)
    """
    return math.ceil(math.sqrt(2) * (anchor(window) + 0.5)) + 1


@dataclass(frozen=True)
class KeptRegion:
    """A region and the margin that is kept around it: tissue in z, y and x, then in y and x also its reflection."""

    region: Region
    margin: int

    @property
    def wanted(self) -> Box:
        """The box with its whole margin."""
        return self.region.box.grow((NEIGHBOURS, self.margin, self.margin))

    @property
    def tissue(self) -> Box:
        """What of it lies in the volume."""
        return self.wanted.clip(self.region.image.box)

    @property
    def reflected(self) -> list[tuple[int, int]]:
        """Pixels to reflect before and after, in y and x."""
        ends = zip(self.wanted.start, self.tissue.start, self.tissue.stop, self.wanted.stop, strict=True)
        return [(start - wanted, last - stop) for wanted, start, stop, last in ends][1:]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is kept."""
        return self.tissue.shape[0], self.wanted.shape[1], self.wanted.shape[2]

    def fill(self, voxels_zyx: npt.NDArray[Any], normalization: Normalization | None) -> None:
        """Read it slab by slab into an array of its shape, normalised if asked to."""
        image, z = self.region.image, 0
        for slab in slabs(self.tissue, 16):
            image_zyx = image.read(slab)
            check_image_values(image_zyx, image.path)
            image_zyx = image_zyx if normalization is None else normalization.apply(image_zyx)
            voxels_zyx[z : z + len(image_zyx)] = np.pad(image_zyx, ((0, 0), *self.reflected), mode="reflect")
            z += len(image_zyx)

    def places(self, start: int) -> list[int]:
        """What finds a voxel, if this lies from ``start`` on: see `VolumeBank.places_r5`."""
        Z, Y, X = self.shape
        first = self.tissue.start[0] - self.region.box.start[0]
        return [start - first * Y * X + self.margin * (X + 1), Y * X, X, first, first + Z]


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
