"""What the Trainer iterates over: batches of draws to train on, whole slices to validate on.

Both are plain iterables and not a `torch.utils.data.DataLoader`: there is nothing that worker processes could do, the
voxels being gathered on the device, and a plain iterable can tell where it stands, so that a run goes on in the middle
of an epoch with exactly the batches that it had not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mitoseg.blocks.draws import EpochDraws
from mitoseg.blocks.options import check_positive
from mitoseg.blocks.sampler import BlockSampler
from mitoseg.datasets.base import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import Normalization, check_image_values, read_channels

BlockPlaces = dict[str, Tensor | float | bool]
"""A batch that a `BlockLoader` yields."""


class BlockLoader:
    """Iterates over the batches of one epoch on one rank, as places and turns, not yet as voxels.

    Yields dicts of ``position_b4`` int64, ``angle_b`` float32, ``flip_b`` bool, ``label_b`` int64, and two plain
    values: ``exact``, whether all angles are quarter turns, and ``weight``. The mean loss of the batch times its
    weight, averaged over ranks and accumulated parts as the Trainer does, is the mean over all blocks of the optimizer
    step, also where these do not divide evenly; on one device, without accumulation, it is 1.

    Args:
        draws: Makes the draws of the epoch that the sampler is at.
        sampler: Cuts them into batches; the Trainer sets its epoch.
    """

    def __init__(self, draws: EpochDraws, sampler: BlockSampler) -> None:
        self.draws, self.sampler = draws, sampler
        self._state = {"epoch": 0, "batch": 0}
        self._resume = self._state

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[BlockPlaces]:
        epoch = self.sampler.epoch  # read at the first batch: the Trainer sets it after calling iter()
        draws = self.draws.draw(epoch)
        skip = self._resume["batch"] if self._resume["epoch"] == epoch else 0
        for batch, index_b in enumerate(self.sampler):
            if batch < skip:
                continue
            self._state = {"epoch": epoch, "batch": batch + 1}
            total = self.sampler.draws_in_step(batch // self.sampler.parts)
            angle_b = draws.angle_n[index_b]
            yield {
                "position_b4": torch.from_numpy(draws.position_n4[index_b]),
                "angle_b": torch.from_numpy(angle_b),
                "flip_b": torch.from_numpy(draws.flip_n[index_b]),
                "label_b": torch.from_numpy(draws.label_n[index_b]),
                "exact": not np.any(angle_b % 90),
                "weight": len(index_b) * self.sampler.shares / total,
            }
        self._resume = {"epoch": -1, "batch": 0}  # not before: the Trainer may begin an epoch twice

    def state_dict(self) -> dict[str, int]:
        """The epoch of the last batch, and how many of its batches are done."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out, in the epoch of ``state`` until it is done, the batches that were seen."""
        self._state = self._resume = dict(state)


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
