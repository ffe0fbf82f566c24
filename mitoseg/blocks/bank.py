r"""The training voxels in one flat tensor, and whole batches of rotated blocks out of it with one index.

A window of ``w`` pixels that answers pixel p starts at ``p - w // 2`` (see `mitoseg.geometry.anchor`). The labelled
block is always ``[p - 16, p + 15]``, so a window of 67 sees context around it:

    window of 67:   p-33 ............ p-16 ....... p ....... p+15 ............ p+33
                     |<-- context -->|<---- labelled block --->|<-- context -->|

A block is turned about its pivot, an index inside the window: the centre of the labelled block (``w // 2 - 0.5``)
where the label speaks of the block, so that a quarter turn gives the same 32x32 pixels; the answered pixel
(``w // 2``) where it speaks of that pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from mitoseg.blocks.options import INTERPOLATIONS, check_choice
from mitoseg.datasets.base import Region
from mitoseg.geometry import Box, anchor, slabs
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, check_image_values

_SIGNS = ((1, 1, -1, -1), (1, -1, -1, 1))  # of the row and the column that 0..3 quarter turns read
_NEIGHBOURS = max(abs(offset) for offsets in CHANNEL_OFFSETS.values() for offset in offsets)


def reach(window: int) -> int:
    """Pixels around the answered one that any rotation and flip of a window may read.

    >>> reach(32), reach(67)
    (25, 49)
    """
    return math.ceil(math.sqrt(2) * (anchor(window) + 0.5)) + 1


def reflect(index: Tensor, length: Tensor) -> Tensor:
    """Fold indices into ``[0, length)`` as ``numpy.pad(mode="reflect")`` does, as often as needed.

    >>> reflect(torch.arange(-3, 6), torch.tensor(3)).tolist()
    [1, 2, 1, 0, 1, 2, 1, 0, 1]
    """
    period = (2 * (length - 1)).clamp_min(1)
    folded = index.abs() % period
    return torch.minimum(folded, period - folded)


@dataclass(frozen=True)
class _Blocks:
    """What `VolumeBank.gather` is asked for."""

    position_b4: Tensor
    angle_b: Tensor
    flip_b: Tensor
    window: int
    channels: str
    pivot: float

    def take(self, index: Tensor) -> _Blocks:
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
    """

    voxels_n: Tensor
    shape_r3: Tensor
    origin_r3: Tensor
    offset_r: Tensor

    def __init__(self, regions: Sequence[Region], normalization: Normalization, window: int = 32) -> None:
        super().__init__()
        self.window, self.normalization = window, normalization
        margin = (_NEIGHBOURS, reach(window), reach(window))
        boxes = [region.box.grow(margin).clip(region.image.box) for region in regions]
        ends = np.cumsum([box.size for box in boxes], dtype=np.int64)
        self.raw = all(region.image.dtype == np.uint8 for region in regions)
        index_type = torch.int32 if ends[-1] < 2**31 else torch.int64
        self.register_buffer("voxels_n", torch.empty(int(ends[-1]), dtype=torch.uint8 if self.raw else torch.float32))
        self.register_buffer("shape_r3", torch.tensor([box.shape for box in boxes], dtype=index_type))
        origins = [region.box.inside(box).start for region, box in zip(regions, boxes, strict=True)]
        self.register_buffer("origin_r3", torch.tensor(origins, dtype=index_type))
        self.register_buffer("offset_r", torch.tensor([0, *ends[:-1]]).to(index_type))
        for region, box, end in zip(regions, boxes, ends, strict=True):
            self._fill(region, box, int(end) - box.size)

    def _fill(self, region: Region, box: Box, start: int) -> None:
        """Copy one region slab by slab, so that no second copy of it is held."""
        voxels_n = self.voxels_n.numpy()
        for slab in slabs(box, 16):
            image_zyx = region.image.read(slab)
            check_image_values(image_zyx, region.image.path)
            image_zyx = image_zyx if self.raw else self.normalization.apply(image_zyx)
            voxels_n[start : start + slab.size] = image_zyx.reshape(-1)
            start += slab.size

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

        Returns:
            float32 (B, C, window, window).

        Raises:
            ValueError: The window is larger than the bank's, or the pivot is none of the three places allowed.
            UserError: The interpolation is not known.
        """
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        pivot = anchor(window) - 0.5 if pivot is None else pivot
        if window > self.window or abs(pivot - anchor(window)) not in (0.0, 0.5):
            raise ValueError(f"cannot gather a window of {window} about {pivot} from a bank built for {self.window}")
        blocks = _Blocks(position_b4, angle_b, flip_b, window, channels, pivot)
        exact_b = angle_b % 90 == 0
        if bool(exact_b.all()):
            image_bcyx = self._copy(blocks)
        else:
            copied, sampled = exact_b.nonzero()[:, 0], (~exact_b).nonzero()[:, 0]
            shape = len(angle_b), len(CHANNEL_OFFSETS[channels]), window, window
            image_bcyx = torch.empty(shape, dtype=torch.float32, device=self.device)
            image_bcyx[copied] = self._copy(blocks.take(copied))
            image_bcyx[sampled] = self._sample(blocks.take(sampled), interpolation)
        return image_bcyx.sub_(self.normalization.mean).div_(self.normalization.std) if self.raw else image_bcyx

    def _copy(self, blocks: _Blocks, margin: int = 0) -> Tensor:
        """Quarter turns in integers, with ``margin`` pixels more on each side; not normalised yet.

        A source row follows from the output's row alone, or after an odd turn from its column alone; so does a column.
        """
        plane_bc, y_b1, x_b1, size_y_b1, size_x_b1 = self._place(blocks)
        turn_b1 = (blocks.angle_b / 90).round().to(torch.int64)[:, None] % 4
        odd_b1 = turn_b1 % 2 == 1
        center = round(2 * blocks.pivot)  # everything is doubled, so that half pixels are integers
        index = torch.arange(-margin, blocks.window + margin, device=self.device, dtype=plane_bc.dtype)
        across = 2 * index - center
        along = torch.where(blocks.flip_b[:, None], -across, across)
        row_sign, column_sign = (torch.tensor(s, device=self.device, dtype=across.dtype)[turn_b1] for s in _SIGNS)
        row = (torch.where(odd_b1, along, across) * row_sign + center) // 2
        column = (torch.where(odd_b1, across, along) * column_sign + center) // 2
        row, column = reflect(y_b1 + row, size_y_b1) * size_x_b1, reflect(x_b1 + column, size_x_b1)
        index_by, index_bx = torch.where(odd_b1, column, row), torch.where(odd_b1, row, column)
        index_bcyx = plane_bc[..., None, None] + (index_by[:, :, None] + index_bx[:, None, :])[:, None]
        return self.voxels_n.index_select(0, index_bcyx.view(-1)).view(index_bcyx.shape).float()

    def _sample(self, blocks: _Blocks, interpolation: str) -> Tensor:
        """Any angle: copy the window with all that its corners sweep over, then sample that patch.

        Output (i, j) reads the window at ``pivot + R (i - pivot, j - pivot)``, j mirrored first where asked, with

            R = [[cos, sin], [-sin, cos]]   (rows: y, x)
        """
        window, pivot = blocks.window, blocks.pivot
        radius = math.sqrt(2) * max(pivot, window - 1 - pivot)
        margin = math.floor(max(radius - pivot, radius + pivot - (window - 1))) + 1
        still = replace(blocks, angle_b=torch.zeros_like(blocks.angle_b), flip_b=torch.zeros_like(blocks.flip_b))
        patch_bcyx = self._copy(still, margin)
        across = torch.arange(window, device=self.device, dtype=torch.float32) - pivot
        along = torch.where(blocks.flip_b[:, None], -across, across)[:, None, :]
        across = across[:, None]
        radians = torch.deg2rad(blocks.angle_b.float())[:, None, None]
        cos, sin = torch.cos(radians), torch.sin(radians)
        place_byx2 = torch.empty((len(radians), window, window, 2), device=self.device)
        place_byx2[..., 0] = cos * along - sin * across
        place_byx2[..., 1] = cos * across + sin * along
        scale = 2 / (window + 2 * margin - 1)  # grid_sample counts from -1 to 1
        grid_byx2 = place_byx2.mul_(scale).add_((pivot + margin) * scale - 1)
        return grid_sample(patch_bcyx, grid_byx2, mode=interpolation, align_corners=True)

    def _place(self, blocks: _Blocks) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Where each channel's slice begins (B, C), then the window's first y and x and the slice's size, (B, 1)."""
        region_b = blocks.position_b4[:, 0]
        shape_b3 = self.shape_r3[region_b]
        z_b1, y_b1, x_b1 = (self.origin_r3[region_b] + blocks.position_b4[:, 1:].to(shape_b3.dtype)).T[..., None]
        size_z_b1, size_y_b1, size_x_b1 = shape_b3.T[..., None]
        wanted_bc = z_b1 + torch.tensor(CHANNEL_OFFSETS[blocks.channels], device=self.device, dtype=shape_b3.dtype)
        z_bc = torch.where((wanted_bc < 0) | (wanted_bc >= size_z_b1), z_b1, wanted_bc)
        plane_bc = self.offset_r[region_b][:, None] + z_bc * (size_y_b1 * size_x_b1)
        first = anchor(blocks.window)
        return plane_bc, y_b1 - first, x_b1 - first, size_y_b1, size_x_b1
