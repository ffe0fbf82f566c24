"""The draws of an epoch (which block, how turned, of which class), their order, and the batches that they make.

The loader is a plain iterable and not a `torch.utils.data.DataLoader`: worker processes would have nothing to do, the
voxels being gathered on the device, and a plain iterable can save where it stands, so that a run resumes in the middle
of an epoch with exactly the batches that it had not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from mitoseg.errors import UserError
from mitoseg.sampling.positions import AUGMENTS, BALANCES, Index, PositionTable, check_choice, check_positive

Places = dict[str, Tensor | float | bool]
"""A batch that an `EpochLoader` yields."""


@dataclass(frozen=True)
class Draws:
    """Draws as columns; row i of each belongs to the same block.

    Attributes:
        position_n4: int64, region, z, y, x of the answered pixel in the region's own coordinates.
        label_n: int64, 0 background, 1 mitochondrion.
        angle_n: float32, degrees counter-clockwise, in [0, 360).
        flip_n: bool, mirrored in x after the turn.
    """

    position_n4: Index
    label_n: Index
    angle_n: npt.NDArray[np.float32]
    flip_n: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label_n)

    def batch(self, index_b: Index) -> Places:
        """What a batch holds besides positions and weight; ``exact``: whether all angles are quarter turns."""
        angle_b = self.angle_n[index_b]
        return {
            "angle_b": torch.from_numpy(angle_b),
            "flip_b": torch.from_numpy(self.flip_n[index_b]),
            "label": torch.from_numpy(self.label_n[index_b]),
            "exact": not np.any(angle_b % 90),
        }

    def distinct(self) -> int:
        """How many different pairs of block and angle there are."""
        keys = (self.angle_n, *self.position_n4.T)
        order = np.lexsort(keys)
        changes = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
        return int(np.count_nonzero(changes)) + 1


class EpochDraws:
    """Makes an epoch's draws from (seed, epoch) alone, the same on every rank.

    On the grid, with n background and m mitochondrion blocks, m < n (the other way round alike):

    - ``rotate``: each background block once; each mitochondrion block again and again until there are n of them, every
      one floor(n / m) or ceil(n / m) times: turned by 0, 90, 180, 270 degrees, then by random angles, fresh ones each
      epoch.
    - ``subsample``: each mitochondrion block once, and m background blocks, others each epoch; none is turned.
    - ``none``: each block once.

    With ``positions=any`` blocks are drawn with replacement: half of each class under ``rotate`` (the rarer class at
    random angles) and ``subsample``, in the natural proportion under ``none``.

    Args:
        table: The positions to draw from.
        balance: ``rotate``, ``subsample`` or ``none``.
        rotate_background: Under ``rotate``, give the commoner class the same angles as the rarer one. Interpolation
            smooths what it turns, so without this a network may learn that smooth means mitochondrion.
        augment: On top, for both classes: ``turns`` a random quarter turn, ``dihedral`` that and a mirror image half
            of the time, ``any_angle`` any angle and a mirror image half of the time; or ``none``.
        epoch_blocks: Draws per epoch with ``positions=any``; None: as many as the regions have grid blocks.
        seed: Of all randomness.

    Raises:
        UserError: An unknown word, a negative seed, or ``epoch_blocks`` below 2 or given on the grid.
    """

    def __init__(
        self,
        table: PositionTable,
        *,
        balance: str = "rotate",
        rotate_background: bool = False,
        augment: str = "none",
        epoch_blocks: int | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("balance", balance, BALANCES)
        check_choice("augment", augment, AUGMENTS)
        self.table, self.balance, self.augment, self.seed = table, balance, augment, seed
        self.rotate_background = rotate_background
        self.grid = table.rule.positions == "grid"
        if self.grid and epoch_blocks is not None:
            raise UserError("epoch_blocks is for positions=any", epoch_blocks, "leave it null, or set positions=any")
        if epoch_blocks is not None and epoch_blocks < 2:
            raise UserError("too few epoch_blocks", epoch_blocks, "draw 2 blocks or more per epoch")
        if seed < 0:
            raise UserError("a negative seed", seed, "give a seed of 0 or more")
        sizes = {"rotate": 2 * max(table.counts), "subsample": 2 * min(table.counts), "none": sum(table.counts)}
        self.size = sizes[balance] if self.grid else epoch_blocks or table.grid_blocks
        self._rare = int(table.counts[1] <= table.counts[0])

    def __len__(self) -> int:
        return self.size

    @property
    def share(self) -> float:
        """Share of mitochondrion among the draws (its expectation for random draws in the natural proportion)."""
        return self.table.prior if self.balance == "none" else (self.size // 2) / self.size

    def draw(self, epoch: int) -> Draws:
        """The draws of an epoch: first all of the background, then all of mitochondria; a sampler mixes them."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        foreground = self.size // 2
        if self.balance == "none":
            foreground = self.table.counts[1] if self.grid else int(rng.binomial(self.size, self.table.prior))
        parts = [self._draw_class(c, n, rng) for c, n in enumerate((self.size - foreground, foreground))]
        number_n, angle_n = (np.concatenate(column) for column in zip(*parts, strict=True))
        flip_n = np.zeros(self.size, bool)
        if self.augment == "any_angle":
            angle_n = angle_n + 360 * rng.random(self.size)
        elif self.augment != "none":
            angle_n = angle_n + 90 * rng.integers(4, size=self.size)
        if self.augment in ("dihedral", "any_angle"):
            flip_n = rng.random(self.size) < 0.5
        label_n = np.repeat(np.arange(2, dtype=np.int64), (self.size - foreground, foreground))
        angle_n = angle_n.astype(np.float32) % np.float32(360)  # rounding may reach 360
        return Draws(self.table.positions(number_n), label_n, angle_n, flip_n)

    def _turns(self, label: int) -> bool:
        """Whether balancing turns the blocks of a class."""
        return self.balance == "rotate" and (label == self._rare or self.rotate_background)

    def _draw_class(self, label: int, size: int, rng: np.random.Generator) -> tuple[Index, npt.NDArray[np.float64]]:
        """Position numbers of one class, and the angle of each before augmentation."""
        if not self.grid:
            number_n = self.table.sample(label, size, rng)
            return number_n, 360 * rng.random(size) if self._turns(label) else np.zeros(size)
        number_n = np.resize(rng.permutation(self.table.members(label)), size)
        if not self._turns(label):
            return number_n, np.zeros(size)
        repeat_n = np.arange(size) // self.table.counts[self._rare]
        angle_n = np.where(repeat_n < 4, 90.0 * repeat_n, 360 * rng.random(size))
        return number_n, angle_n if label == self._rare else rng.permutation(angle_n)

    def summary(self) -> dict[str, str | int | float]:
        """Plain data for provenance: blocks, draws and shares; what is random is that of epoch 0."""
        draws, rule = self.draw(0), self.table.rule
        (background, foreground), drawn = self.table.counts, np.bincount(draws.label_n, minlength=2).tolist()
        return {
            "positions": rule.positions,
            "label_rule": rule.label_rule,
            "balance": self.balance,
            "rotate_background": self.rotate_background,
            "augment": self.augment,
            "blocks_foreground": foreground,
            "blocks_background": background,
            "blocks_dropped": self.table.dropped,
            "draws_foreground": drawn[1],
            "draws_background": drawn[0],
            "draws_distinct": draws.distinct(),
            "multiplicity_foreground": drawn[1] / foreground,
            "multiplicity_background": drawn[0] / background,
            "prior": self.table.prior,
            "batch_prior": self.share,
        }

    @staticmethod
    def describe(summary: Mapping[str, str | int | float]) -> str:
        """The summary for people, in a few lines."""
        return (
            "Training blocks: positions={positions} label_rule={label_rule} balance={balance} augment={augment}\n"
            "  {blocks_foreground:d} mitochondria, {blocks_background:d} background, {blocks_dropped:d} dropped\n"
            "  draws an epoch: {draws_foreground:d} mitochondria, {draws_background:d} background, "
            "{draws_distinct:d} distinct (block, angle) pairs\n"
            "  each mitochondria block is drawn {multiplicity_foreground:.3g} times, "
            "each background block {multiplicity_background:.3g} times\n"
            "  share of mitochondria: {prior:.4f} of the blocks, {batch_prior:.4f} of the draws"
        ).format_map(summary)


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


class Draw(Protocol):
    """The draws of an epoch as columns."""

    @property
    def position_n4(self) -> Index:
        """Region, z, y, x of each draw."""

    def batch(self, index_b: Index) -> Places:
        """What a batch of some draws holds besides its positions and its weight."""


class EpochDrawing(Protocol):
    """Makes the draws of an epoch from its number."""

    def draw(self, epoch: int) -> Draw:
        """All draws of an epoch."""

    def __len__(self) -> int: ...


class EpochLoader:
    """Iterates over the batches of one epoch on one rank, as places, not yet as voxels.

    Yields dicts of ``position_b4`` int64, what `Draw.batch` adds, and ``weight``. The mean loss of the batch times its
    weight, averaged over ranks and accumulated parts as the Trainer does, is the mean over all draws of the optimizer
    step, also where these do not divide evenly; on one device, without accumulation, it is 1.

    Args:
        draws: Makes the draws of the epoch that the sampler is at.
        sampler: Cuts them into batches; the Trainer sets its epoch.
    """

    def __init__(self, draws: EpochDrawing, sampler: BlockSampler) -> None:
        self.draws, self.sampler = draws, sampler
        self._state = {"epoch": 0, "batch": 0}
        self._resume = self._state

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
                **draws.batch(index_b),
                "weight": len(index_b) * self.sampler.shares / total,
            }
        self._resume = {"epoch": -1, "batch": 0}  # not before: the Trainer may begin an epoch twice

    def state_dict(self) -> dict[str, int]:
        """The epoch of the last batch, and how many of its batches are done."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out, in the epoch of ``state`` until it is done, the batches that were seen."""
        self._state = self._resume = dict(state)
