"""The draws of an epoch: which block, how it is turned, and of which class it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.blocks.options import AUGMENTS, BALANCES, check_choice
from mitoseg.blocks.positions import Index, PositionTable
from mitoseg.errors import UserError

Angles = npt.NDArray[np.float32]


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
    angle_n: Angles
    flip_n: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label_n)

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
        self.size = self._size(epoch_blocks)
        self._rare = int(table.counts[1] <= table.counts[0])

    def _size(self, epoch_blocks: int | None) -> int:
        """Draws per epoch."""
        counts = self.table.counts
        if self.grid:
            return {"rotate": 2 * max(counts), "subsample": 2 * min(counts), "none": sum(counts)}[self.balance]
        return self.table.grid_blocks if epoch_blocks is None else epoch_blocks

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
            angle_n = angle_n + _random_angles(self.size, rng)
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
            return number_n, _random_angles(size, rng) if self._turns(label) else np.zeros(size)
        number_n = np.resize(rng.permutation(self.table.members(label)), size)
        if not self._turns(label):
            return number_n, np.zeros(size)
        repeat_n = np.arange(size) // self.table.counts[self._rare]
        angle_n = np.where(repeat_n < 4, 90.0 * repeat_n, _random_angles(size, rng))
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


def describe(summary: Mapping[str, str | int | float]) -> str:
    """The summary of `EpochDraws` for people, in a few lines."""
    return (
        "Training blocks: positions={positions} label_rule={label_rule} balance={balance} augment={augment}\n"
        "  {blocks_foreground:d} mitochondria, {blocks_background:d} background, {blocks_dropped:d} dropped\n"
        "  draws an epoch: {draws_foreground:d} mitochondria, {draws_background:d} background, "
        "{draws_distinct:d} distinct (block, angle) pairs\n"
        "  each mitochondria block is drawn {multiplicity_foreground:.3g} times, "
        "each background block {multiplicity_background:.3g} times\n"
        "  share of mitochondria: {prior:.4f} of the blocks, {batch_prior:.4f} of the draws"
    ).format_map(summary)


def _random_angles(size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Uniform in [0, 360) degrees."""
    return 360 * rng.random(size)
