"""What a network is validated on: whole slices, or whole slabs for networks on volumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mitoseg.blocks.options import check_positive
from mitoseg.datasets.base import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import Normalization, check_image_values, read_channels

DEPTH, CONTEXT = 16, 16
"""Slices of a slab that are scored, and slices before and after them that the network sees as well."""


class SliceLoader:
    """Iterates over every n-th slice of some regions, shared out exactly: slice i goes to rank i % world.

    Yields dicts of ``image_cyx`` float32 (normalised; neighbours in z come from the whole volume), ``label_yx`` uint8
    (0, 1 or `IGNORE`), ``region`` and ``z`` int, in the region's own coordinates.

    Args:
        regions: What to read.
        normalization: Of the training regions.
        channels: A key of `CHANNEL_OFFSETS`.
        stride: Take every n-th slice of each region.
        rank: Of this process.
        world: Number of processes.

    Raises:
        UserError: ``stride`` is not positive, or there are fewer slices than ranks.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        normalization: Normalization,
        channels: str,
        *,
        stride: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_positive("validation_stride", stride)
        slices = [(r, z) for r, region in enumerate(regions) for z in range(0, region.box.shape[0], stride)]
        if slices and len(slices) < world:
            raise UserError(
                f"{world} devices cannot share the validation slices", len(slices), "lower validation_stride"
            )
        self.regions, self.normalization, self.channels = regions, normalization, channels
        self.slices = slices[rank::world]

    def __len__(self) -> int:
        return len(self.slices)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        return map(self._read, *zip(*self.slices, strict=True)) if self.slices else iter(())

    def _read(self, number: int, z: int) -> dict[str, Tensor | int]:
        """One slice of a region."""
        region = self.regions[number]
        (z0, *start_yx), (_, *stop_yx) = region.box.start, region.box.stop
        box_yx = Box(tuple(start_yx), tuple(stop_yx))
        grey_cyx = read_channels(region.image, z0 + z, self.channels, box_yx)
        check_image_values(grey_cyx, region.image.path)
        image_cyx = self.normalization.apply(grey_cyx)
        label_yx = region.label.read(Box((z0 + z, *start_yx), (z0 + z + 1, *stop_yx)))[0]
        return {
            "image_cyx": torch.from_numpy(image_cyx),
            "label_yx": torch.from_numpy(label_yx.copy()),
            "region": number,
            "z": z,
        }


class SlabLoader:
    """Iterates over slabs of some regions, shared out exactly: slab i goes to rank i % world.

    Yields dicts of ``image_czyx`` float32 (one channel, normalised), which reaches `CONTEXT` slices beyond the slab
    as far as the volume does, ``label_zyx`` uint8 (0, 1 or `IGNORE`) of the slab itself, ``first``, the slice of it
    at which the slab starts, ``region`` and ``z``, that of its first slice in the region's own coordinates.

    Args:
        regions: What to read.
        normalization: Of the training regions.
        rank: Of this process.
        world: Number of processes.

    Raises:
        UserError: There are fewer slabs than ranks.
    """

    def __init__(
        self, regions: Sequence[Region], normalization: Normalization, *, rank: int = 0, world: int = 1
    ) -> None:
        found = [(r, slab) for r, region in enumerate(regions) for slab in slabs(region.box, DEPTH)]
        if found and len(found) < world:
            raise UserError(f"{world} devices cannot share the validation slabs", len(found), "use fewer devices")
        self.regions, self.normalization = regions, normalization
        self.slabs = found[rank::world]

    def __len__(self) -> int:
        return len(self.slabs)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        return (self._read(number, slab) for number, slab in self.slabs)

    def _read(self, number: int, slab: Box) -> dict[str, Tensor | int]:
        region = self.regions[number]
        seen = slab.grow((CONTEXT, 0, 0)).clip(region.image.box)
        grey_zyx = region.image.read(seen)
        check_image_values(grey_zyx, region.image.path)
        return {
            "image_czyx": torch.from_numpy(self.normalization.apply(grey_zyx))[None],
            "label_zyx": torch.from_numpy(region.label.read(slab).copy()),
            "first": slab.start[0] - seen.start[0],
            "region": number,
            "z": slab.start[0] - region.box.start[0],
        }
