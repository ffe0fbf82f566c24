r"""The training voxels and their labels, and batches of turned tiles out of them.

    image   |<- margin ->|<------ tile, every voxel labelled ------>|<- margin ->|

The margin is what a block network sees beyond the tile, so that each of its answers there is that of a whole window; a
network that answers a tile from the tile alone has none. It is real tissue, or the volume's reflection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mitoseg.blocks.margins import KeptRegion
from mitoseg.blocks.symmetries import TileSymmetry
from mitoseg.datasets.base import Region
from mitoseg.geometry import slabs
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, check_image_values


class TileBank(nn.Module):
    """The voxels and labels of some regions on one device.

    uint8 voxels stay as they are until they are gathered, any others are kept as normalised float32.

    Args:
        regions: What positions refer to, by their place in this sequence.
        normalization: Mean and standard deviation that tiles are normalised with.
        margin: (before, after), pixels that the network sees beyond a tile in y and x.
        channels: A key of `CHANNEL_OFFSETS`; None for a network on volumes, whose tiles have one channel.
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
            kept = KeptRegion(region, self.reach)
            self._firsts.append(region.box.start[0] - kept.tissue.start[0])
            self.register_buffer(f"image_{number}", torch.from_numpy(self._image(kept)))
            self.register_buffer(f"label_{number}", torch.from_numpy(region.read_label().copy()))

    def _image(self, kept: KeptRegion) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """A region with its margins, read slab by slab."""
        image_zyx = np.empty(kept.shape, np.uint8 if self.raw else np.float32)
        volume, z = kept.region.image, 0
        for slab in slabs(kept.tissue, 16):
            grey_zyx = volume.read(slab)
            check_image_values(grey_zyx, volume.path)
            grey_zyx = grey_zyx if self.raw else self.normalization.apply(grey_zyx)
            image_zyx[z : z + len(grey_zyx)] = np.pad(grey_zyx, ((0, 0), *kept.reflected), mode="reflect")
            z += len(grey_zyx)
        return image_zyx

    def gather(
        self, position_b4: Tensor, symmetries: Sequence[TileSymmetry], tile: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """A batch of tiles, each turned in its own way.

        Args:
            position_b4: int64 (B, 4): region, z, y, x of the first voxel in the region's own coordinates.
            symmetries: One for each tile.
            tile: (z, y, x) voxels.

        Returns:
            ``image`` float32, (B, C, Y, X), or (B, 1, Z, Y, X) for a network on volumes, in y and x larger than the
            tile by the margin; and ``label`` int64, (B, Y, X) or (B, Z, Y, X).
        """
        pairs = [
            self._tile(place, symmetry, tile) for place, symmetry in zip(position_b4.tolist(), symmetries, strict=True)
        ]
        image, label = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        image = image.float()
        if self.raw:
            image = image.sub_(self.normalization.mean).div_(self.normalization.std)
        return (image[:, None], label.long()) if self.channels is None else (image, label[:, 0].long())

    def _tile(self, place: list[int], symmetry: TileSymmetry, tile: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Image (C or Z, Y, X) and label (1 or Z, Y, X) as they are stored, turned."""
        number, z, y, x = place
        image_zyx, label_zyx = getattr(self, f"image_{number}"), getattr(self, f"label_{number}")
        label = label_zyx[z : z + tile[0], y : y + tile[1], x : x + tile[2]]
        wide = [n + 2 * self.reach for n in tile[1:]]
        slices = self._slices(number, z, tile[0], len(image_zyx))
        image = image_zyx[slices, y : y + wide[0], x : x + wide[1]]
        before, after = (self.reach - m for m in self.margin)
        turned = symmetry(image)
        return turned[:, before : turned.shape[1] - after, before : turned.shape[2] - after], symmetry(label)

    def _slices(self, number: int, z: int, depth: int, kept: int) -> slice | list[int]:
        """The slices of a tile among those that are kept; a missing neighbour is the slice itself."""
        first = self._firsts[number] + z
        if self.channels is None:
            return slice(first, first + depth)
        wanted = [first + offset for offset in CHANNEL_OFFSETS[self.channels]]
        return [n if 0 <= n < kept else first for n in wanted]
