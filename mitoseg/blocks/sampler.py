"""The order of an epoch's draws, cut into batches and shared out to ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from mitoseg.blocks.options import check_positive
from mitoseg.errors import UserError


class BlockSampler(Sampler[npt.NDArray[np.int64]]):
    """Yields batches of indices into an epoch's draws.

    The order is a permutation from (seed, epoch), whatever the number of ranks. Batch k of the epoch is
    ``order[k * batch_size : (k + 1) * batch_size]``, and rank r of n takes every n-th of it from r on:

        batch of 5, two ranks:   0 1 2 3 4   ->   rank 0: 0 2 4   rank 1: 1 3

    so that no draw goes to two ranks and all ranks together see the one-device epoch, batch by batch. A last batch of
    fewer draws than ranks joins the one before, so that all ranks take the same number of steps.

    Args:
        size: Draws per epoch.
        batch_size: Draws per step, over all ranks together.
        seed: Of the order.
        rank: Of this process.
        world: Number of processes.

    Raises:
        UserError: ``batch_size`` is not positive, or a rank would go without draws.
    """

    def __init__(self, size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        check_positive("batch_size", batch_size)
        if min(size, batch_size) < world:
            what = f"{world} devices cannot share batches of {batch_size} out of {size} blocks"
            raise UserError(what, None, "use fewer devices, or a larger batch_size")
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest >= self.world)

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.size)
        for batch in range(len(self)):
            stop = self.size if batch == len(self) - 1 else (batch + 1) * self.batch_size
            yield order[batch * self.batch_size : stop][self.rank :: self.world]
