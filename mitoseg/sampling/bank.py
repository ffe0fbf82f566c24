r"""The training voxels on one device, from which whole batches of rotated blocks or tiles are gathered.

A window of 67 pixels that classifies pixel p includes context around the labelled block:

    p-33 ............ p-16 ....... p ....... p+15 ............ p+33
     |<-- context -->|<---- labelled block --->|<-- context -->|

A block is rotated about its pivot, an index inside the window. If the label describes the block, this is the centre of
the labelled block (``w // 2 - 0.5``), so that a quarter turn gives the same 32x32 pixels; if it describes the
classified pixel, it is that pixel (``w // 2``).

Each slice of a region is kept with a margin as wide as any block may read, so that blocks need no bounds checks. A
square about a pivot then consists of runs of adjacent voxels, one per row, and the squares of a batch are a single
index into the overlapping runs (`torch.as_strided`). A square is large enough for any rotation of the window about the
pivot, which is its centre, on a pixel or between four of them:

    window of 4, pivot 1.5        window of 4, pivot 2          any angle: the circle through
       [. . . .]                     [. . . .] .                the window's corners, enlarged
       [. . . .]                     [. . . .] .                to whole pixels
       [. . . .]                     [. . p .] .
       [. . . .]                     [. . . .] .
      square of 4                     . . . . .   square of 5

Output (i, j) reads pivot + R (i - pivot, j - pivot), where j - pivot is negated first for a reflection, with

    R = [[cos, sin], [-sin, cos]]   (rows: y, x)

Tiles are read with a margin in y and x, so that a block network has the full window of every pixel of the tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from mitoseg.datasets.base import Region
from mitoseg.geometry import anchor, slabs
from mitoseg.sampling.augmentation import TileSymmetry
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, channel_slices, check_image_values

NEIGHBOURS = max(abs(offset) for offsets in CHANNEL_OFFSETS.values() for offset in offsets)
_CACHED = 2**19  # voxels gathered at a time on a CPU, so that they are still in the cache when normalised
_TURNS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of 0..3 quarter turns


class _KeptRegion:
    """A region with the margin kept around it: real tissue, and beyond the volume's edge in y and x its reflection.

    A missing neighbour slice in z is replaced by the slice itself.
    """

    def __init__(self, region: Region, margin: int) -> None:
        self.region = region
        wanted = region.box.grow((NEIGHBOURS, margin, margin))
        self.tissue = wanted.clip(region.image.box)
        self.first = self.tissue.start[0] - region.box.start[0]
        self.shape = (self.tissue.shape[0], wanted.shape[1], wanted.shape[2])
        ends = zip(wanted.start, self.tissue.start, self.tissue.stop, wanted.stop, strict=True)
        self.reflected = [(start - before, after - stop) for before, start, stop, after in ends][1:]

    def fill(self, voxels_zyx: npt.NDArray[Any], normalization: Normalization | None) -> None:
        """Read the region slab by slab into an array, normalising if a normalisation is given."""
        image, z = self.region.image, 0
        for slab in slabs(self.tissue, 16):
            image_zyx = image.read(slab)
            check_image_values(image_zyx, image.path)
            image_zyx = image_zyx if normalization is None else normalization.apply(image_zyx)
            voxels_zyx[z : z + len(image_zyx)] = np.pad(image_zyx, ((0, 0), *self.reflected), mode="reflect")
            z += len(image_zyx)


class VolumeBank(nn.Module):
    """The image voxels of some regions, with the real tissue around them, on one device.

    uint8 voxels are normalised when gathered; others are stored as normalised float32. ``window`` is the largest
    window that will be gathered, in pixels.
    """

    voxels_n: Tensor  # all voxels, ordered by region, slice and row
    places_r5: Tensor  # offset of each region's voxel (0, 0, 0), slice and row strides, first and last z kept
    _scale_2: Tensor

    def __init__(self, regions: Sequence[Region], normalization: Normalization, window: int = 32) -> None:
        super().__init__()
        self.window, self.normalization = window, normalization
        self.raw = all(region.image.dtype == np.uint8 for region in regions)
        margin = reach(window)
        kept = [_KeptRegion(region, margin) for region in regions]
        ends = np.cumsum([math.prod(k.shape) for k in kept], dtype=np.int64).tolist()
        voxels_n = np.empty(ends[-1], np.uint8 if self.raw else np.float32)  # on large pages, unlike torch.empty
        places = []
        for k, start, end in zip(kept, [0, *ends], ends, strict=False):
            Z, Y, X = k.shape
            places.append([start - k.first * Y * X + margin * (X + 1), Y * X, X, k.first, k.first + Z])
            k.fill(voxels_n[start:end].reshape(k.shape), None if self.raw else normalization)
        self.register_buffer("voxels_n", torch.from_numpy(voxels_n))
        self.register_buffer("places_r5", torch.tensor(places))
        self.register_buffer("_scale_2", torch.tensor([normalization.mean, normalization.std], dtype=torch.float32))

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
        """A batch of normalised blocks, each rotated counter-clockwise by its angle and, if requested, mirrored in x.

        Multiples of 90 degrees are exact, as with ``torch.rot90`` and ``torch.flip``; other angles are interpolated
        ("bilinear" or "nearest") from the tissue around the block, so that corners are never black.

        ``position_b4``, int64 (B, 4): region, z, y, x of the classified pixel in the region's coordinates. ``pivot``
        is the index inside the window that stays fixed, at most 0.5 from the classified pixel (None: the centre of the
        labelled block). ``exact``: whether all angles are multiples of 90 (None: check, which makes the host wait for
        a GPU). The result is float32 (B, C, window, window), in channels-last layout.
        """
        pivot = anchor(window) - 0.5 if pivot is None else pivot
        if window > self.window or abs(pivot - anchor(window)) not in (0.0, 0.5):
            raise ValueError(f"cannot gather a window of {window} about {pivot} from a bank built for {self.window}")
        shape = len(angle_b), len(CHANNEL_OFFSETS[channels]), window, window
        portion = max(1, _CACHED // (shape[1] * window**2))
        if self.voxels_n.device.type == "cpu" and len(angle_b) > portion:
            image_bcyx = torch.empty(shape, memory_format=torch.channels_last)
            form: dict[str, Any] = {"window": window, "channels": channels, "pivot": pivot}
            form |= {"interpolation": interpolation, "exact": exact}
            for start in range(0, len(angle_b), portion):
                some = slice(start, start + portion)
                image_bcyx[some] = self.gather(position_b4[some], angle_b[some], flip_b[some], **form)
            return image_bcyx
        turned = partial(self._turn, window, channels, pivot)
        rotated = partial(self._rotate, window, channels, pivot, interpolation)
        blocks, exact_b = (position_b4, angle_b, flip_b), angle_b % 90 == 0
        if bool(exact_b.all()) if exact is None else exact:
            return self._normalize(turned(*blocks))
        if self.voxels_n.device.type != "cpu":  # do both for all blocks rather than wait for their numbers
            return self._normalize(torch.where(exact_b[:, None, None, None], turned(*blocks), rotated(*blocks)))
        if not exact_b.any():
            return self._normalize(rotated(*blocks))
        image_bcyx = torch.empty(shape, memory_format=torch.channels_last)
        for index, make in ((exact_b.nonzero()[:, 0], turned), ((~exact_b).nonzero()[:, 0], rotated)):
            image_bcyx[index] = make(*(column[index] for column in blocks))
        return self._normalize(image_bcyx)

    def _turn(self, window: int, channels: str, pivot: float, *blocks: Tensor) -> Tensor:
        """Rotate by quarter turns, without interpolation."""
        position_b4, angle_b, flip_b = blocks
        half = half_side(window, pivot, any_angle=False)
        square_bcyx = self._squares(position_b4, window, channels, pivot, half)
        B, C = square_bcyx.shape[:2]
        table = _turn_table(window, pivot, C, square_bcyx.device)
        code_b = (angle_b / 90).round().to(torch.int64) % 4 + 4 * flip_b
        turned = square_bcyx.flatten(1).gather(1, table.index_select(0, code_b))
        return turned.view(B, window, window, C).permute(0, 3, 1, 2).float()

    def _rotate(self, window: int, channels: str, pivot: float, interpolation: str, *blocks: Tensor) -> Tensor:
        """Rotate by any angle, with interpolation."""
        position_b4, angle_b, flip_b = blocks
        half = half_side(window, pivot, any_angle=True)  # grid_sample's -1 to 1 is -half to half
        square_bcyx = self._squares(position_b4, window, channels, pivot, half).float()
        across = (torch.arange(window, dtype=torch.float32, device=square_bcyx.device) - pivot) / half
        radians = torch.deg2rad(angle_b.float())[:, None]
        cos, sin = torch.cos(radians), torch.sin(radians)
        along = across * (1 - 2 * flip_b.float())[:, None]
        grid_byx2 = torch.empty((len(angle_b), window, window, 2), device=square_bcyx.device)
        torch.sub((cos * along)[:, None], (sin * across)[..., None], out=grid_byx2[..., 0])
        torch.add((sin * along)[:, None], (cos * across)[..., None], out=grid_byx2[..., 1])
        turned_bcyx = grid_sample(square_bcyx, grid_byx2, mode=interpolation, align_corners=True)
        return turned_bcyx.contiguous(memory_format=torch.channels_last)

    def _squares(self, position_b4: Tensor, window: int, channels: str, pivot: float, half: float) -> Tensor:
        """The stored voxels up to ``half`` pixels on each side of the pivot, (B, C, s, s)."""
        size, first = int(2 * half) + 1, int(pivot - half) - anchor(window)
        region_b, z_b, y_b, x_b = position_b4.unbind(1)
        start_b, plane_b, row_b, first_b, end_b = self.places_r5.index_select(0, region_b).unbind(1)
        start_b = start_b + z_b * plane_b + (y_b + first) * row_b + (x_b + first)
        offset_c = _offsets(channels, self.voxels_n.device)
        z_bc = z_b[:, None] + offset_c
        there_bc = (z_bc >= first_b[:, None]) & (z_bc < end_b[:, None])
        start_bc = start_b[:, None] + offset_c * there_bc * plane_b[:, None]
        down_bs = torch.arange(size, device=self.voxels_n.device) * row_b[:, None]
        runs = self.voxels_n.as_strided((len(self.voxels_n) - size + 1, size), (1, 1))
        run_bcs = start_bc[:, :, None] + down_bs[:, None]
        return runs.index_select(0, run_bcs.view(-1)).view(*start_bc.shape, size, size)

    def _normalize(self, image_bcyx: Tensor) -> Tensor:
        """Normalise in place, unless this was done on reading."""
        (mean, std), limit = self._scale_2.unbind(), self.normalization.limit
        return image_bcyx.sub_(mean).div_(std).clamp_(-limit, limit) if self.raw else image_bcyx


@lru_cache
def _offsets(channels: str, device: torch.device) -> Tensor:
    return torch.tensor(CHANNEL_OFFSETS[channels], device=device)


def reach(window: int) -> int:
    """Pixels around the classified one that any rotation and reflection of a window may read.

    >>> reach(32), reach(67)
    (25, 49)
    """
    return math.ceil(math.sqrt(2) * (anchor(window) + 0.5)) + 1


def half_side(window: int, pivot: float, *, any_angle: bool) -> float:
    """Distance in pixels from the pivot to the outermost pixels of its square; like the pivot, a multiple of 0.5.

    >>> half_side(32, 15.5, any_angle=False), half_side(32, 16.0, any_angle=False), half_side(32, 15.5, any_angle=True)
    (15.5, 16.0, 22.5)
    """
    longest = max(pivot, window - 1 - pivot)
    if not any_angle:
        return longest
    rest = pivot % 1
    return math.ceil(math.sqrt(2) * longest - rest) + rest


@lru_cache(maxsize=32)
def _turn_table(window: int, pivot: float, channels: int, device: torch.device) -> Tensor:
    """Where the voxels of a rotated block lie in its square: for the four quarter turns, then for their mirror images.

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


class TileBank(nn.Module):
    """The voxels and labels of some regions on one device, stored as in `VolumeBank`.

    ``margin``: pixels (before, after) that the network needs beyond a tile in y and x; ``channels``: a key of
    `CHANNEL_OFFSETS`, or None for a 3D network, whose tiles have one channel.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        normalization: Normalization,
        *,
        margin: tuple[int, int] = (0, 0),
        channels: str | None = None,
    ) -> None:
        super().__init__()
        self.normalization, self.margin, self.channels = normalization, margin, channels
        self.reach = max(margin)
        self.raw = all(region.image.dtype == np.uint8 for region in regions)
        self._firsts: list[int] = []
        for number, region in enumerate(regions):
            kept = _KeptRegion(region, self.reach)
            self._firsts.append(-kept.first)
            image_zyx = np.empty(kept.shape, np.uint8 if self.raw else np.float32)
            kept.fill(image_zyx, None if self.raw else normalization)
            self.register_buffer(f"image_{number}", torch.from_numpy(image_zyx))
            self.register_buffer(f"label_{number}", torch.from_numpy(region.read_label().copy()))

    def gather(
        self, position_b4: Tensor, symmetries: Sequence[TileSymmetry], tile: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """A batch of tiles of (z, y, x) voxels, each with its own symmetry applied.

        ``position_b4``, int64 (B, 4): region, z, y, x of the first voxel in the region's coordinates. The image is
        float32, (B, C, Y, X), or (B, 1, Z, Y, X) for a 3D network, and larger than the tile by the margin in y and x;
        the label is int64, (B, Y, X) or (B, Z, Y, X).
        """
        images, labels, before, after = [], [], *(self.reach - m for m in self.margin)
        for (number, z, y, x), symmetry in zip(position_b4.tolist(), symmetries, strict=True):
            image_zyx, label_zyx = getattr(self, f"image_{number}"), getattr(self, f"label_{number}")
            first = self._firsts[number] + z
            slices: slice | list[int] = slice(first, first + tile[0])
            if self.channels is not None:
                slices = channel_slices(first, len(image_zyx), self.channels)
            wide = symmetry(image_zyx[slices, y : y + tile[1] + 2 * self.reach, x : x + tile[2] + 2 * self.reach])
            images.append(wide[:, before : wide.shape[1] - after, before : wide.shape[2] - after])
            labels.append(symmetry(label_zyx[z : z + tile[0], y : y + tile[1], x : x + tile[2]]))
        image, label = torch.stack(images).float(), torch.stack(labels).long()
        if self.raw:
            mean, std, limit = self.normalization.mean, self.normalization.std, self.normalization.limit
            image = image.sub_(mean).div_(std).clamp_(-limit, limit)
        return (image[:, None], label) if self.channels is None else (image, label[:, 0])
