"""The order of an epoch's draws, cut into batches and shared out to ranks and to parts of a step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from mitoseg.blocks.options import check_positive
from mitoseg.errors import UserError


class BlockSampler(Sampler[npt.NDArray[np.int64]]):
    """Yields what one rank takes of each batch: indices into an epoch's draws.

    The order is a permutation from (seed, epoch), whatever the number of ranks. The batch of step k is
    ``order[k * batch_size : (k + 1) * batch_size]``. With w ranks and gradients accumulated over m parts it is cut
    into w m shares, every w m-th draw each, and rank r takes shares r, r + w, ... one after the other:

        batch of 9, two ranks, two parts:   0 1 2 3 4 5 6 7 8   ->   rank 0: 0 4 8 | 2 6   rank 1: 1 5 | 3 7

    so that no draw goes to two ranks and all ranks together see the one-device epoch, batch by batch. A last batch of
    fewer draws than shares joins the one before, so that all ranks take the same number of steps.

    Args:
        size: Draws per epoch.
        batch_size: Draws per optimizer step, over all ranks and parts together.
        seed: Of the order.
        rank: Of this process.
        world: Number of processes.
        parts: Parts of a step whose gradients are accumulated.

    Raises:
        UserError: ``batch_size`` is not positive, or a share would go without draws.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, parts: int = 1
    ) -> None:
        check_positive("batch_size", batch_size)
        self.shares = world * parts
        if min(size, batch_size) < self.shares:
            accumulated = f", in {parts} parts each," if parts > 1 else ""
            what = f"{world} devices{accumulated} cannot share batches of {batch_size} out of {size} blocks"
            raise UserError(what, None, "use fewer devices, or a larger batch_size")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.parts = rank, world, parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest >= self.shares)

    def __len__(self) -> int:
        return self.steps * self.parts

    def draws_in_step(self, step: int) -> int:
        """Draws of one step's batch, over all ranks and parts."""
        return self.size - step * self.batch_size if step == self.steps - 1 else self.batch_size

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.size)
        for step in range(self.steps):
            start = step * self.batch_size
            batch = order[start : start + self.draws_in_step(step)]
            for part in range(self.parts):
                yield batch[part * self.world + self.rank :: self.shares]
