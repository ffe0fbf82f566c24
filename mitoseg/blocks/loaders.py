"""What the Trainer iterates over: the batches of an epoch.

They are plain iterables and not a `torch.utils.data.DataLoader`: there is nothing that worker processes could do, the
voxels being gathered on the device, and a plain iterable can tell where it stands, so that a run goes on in the middle
of an epoch with exactly the batches that it had not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mitoseg.blocks.draws import Draws
from mitoseg.blocks.positions import Index
from mitoseg.blocks.sampler import BlockSampler
from mitoseg.blocks.tile_draws import TileDraws

Places = dict[str, Tensor | float | bool]
"""A batch that an `EpochLoader` yields."""


class Draw(Protocol):
    """The draws of an epoch as columns."""

    @property
    def position_n4(self) -> Index:
        """Region, z, y, x of each draw."""
        ...


Drawn = TypeVar("Drawn", bound=Draw, covariant=True)


class EpochDrawing(Protocol[Drawn]):
    """Makes the draws of an epoch from its number."""

    def draw(self, epoch: int) -> Drawn:
        """All draws of an epoch."""
        ...

    def __len__(self) -> int: ...


class EpochLoader(Generic[Drawn]):
    """Iterates over the batches of one epoch on one rank, as places, not yet as voxels.

    Yields dicts of ``position_b4`` int64, what `pick` adds, and ``weight``. The mean loss of the batch times its
    weight, averaged over ranks and accumulated parts as the Trainer does, is the mean over all draws of the optimizer
    step, also where these do not divide evenly; on one device, without accumulation, it is 1.

    Args:
        draws: Makes the draws of the epoch that the sampler is at.
        sampler: Cuts them into batches; the Trainer sets its epoch.
    """

    def __init__(self, draws: EpochDrawing[Drawn], sampler: BlockSampler) -> None:
        self.draws, self.sampler = draws, sampler
        self._state = {"epoch": 0, "batch": 0}
        self._resume = self._state

    def pick(self, draws: Drawn, index_b: Index) -> Places:  # type: ignore[misc]  # read only
        """What a batch holds besides its positions and its weight."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Places]:
        epoch = self.sampler.epoch  # read at the first batch: the Trainer sets it after calling iter()
        draws = self.draws.draw(epoch)
        skip = self._resume["batch"] if self._resume["epoch"] == epoch else 0
        for batch, index_b in enumerate(self.sampler):
            if batch < skip:
                continue
            self._state = {"epoch": epoch, "batch": batch + 1}
            total = self.sampler.draws_in_step(batch // self.sampler.parts)
            yield {
                "position_b4": torch.from_numpy(draws.position_n4[index_b]),
                **self.pick(draws, index_b),
                "weight": len(index_b) * self.sampler.shares / total,
            }
        self._resume = {"epoch": -1, "batch": 0}  # not before: the Trainer may begin an epoch twice

    def state_dict(self) -> dict[str, int]:
        """The epoch of the last batch, and how many of its batches are done."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out, in the epoch of ``state`` until it is done, the batches that were seen."""
        self._state = self._resume = dict(state)


class BlockLoader(EpochLoader[Draws]):
    """Batches of blocks: also ``angle_b`` float32, ``flip_b`` bool, ``label`` int64 (B,), and ``exact``.

    ``exact`` says whether all angles are quarter turns.
    """

    def pick(self, draws: Draws, index_b: Index) -> Places:
        """How the blocks are turned, and their classes."""
        angle_b = draws.angle_n[index_b]
        return {
            "angle_b": torch.from_numpy(angle_b),
            "flip_b": torch.from_numpy(draws.flip_n[index_b]),
            "label": torch.from_numpy(draws.label_n[index_b]),
            "exact": not np.any(angle_b % 90),
        }


class TileLoader(EpochLoader[TileDraws]):
    """Batches of tiles: also ``symmetry_b`` int64, the number of a `TileSymmetry`, and ``seed_b`` int64."""

    def pick(self, draws: TileDraws, index_b: Index) -> Places:
        """How the tiles are turned, and the seeds of their augmentation."""
        return {
            "symmetry_b": torch.from_numpy(draws.symmetry_n[index_b]),
            "seed_b": torch.from_numpy(draws.seed_n[index_b]),
        }
