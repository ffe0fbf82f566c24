"""The datamodule of block networks: a data set in, batches of balanced blocks and whole validation slices out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from mitoseg.datasets.base import Recipe
from mitoseg.geometry import anchor
from mitoseg.sampling.bank import VolumeBank
from mitoseg.sampling.draws import BlockLoader, BlockSampler, EpochDraws, describe
from mitoseg.sampling.positions import (
    AUGMENTS,
    BALANCES,
    INTERPOLATIONS,
    BlockRule,
    PositionTable,
    check_choice,
    check_positive,
)
from mitoseg.sampling.regions import Batch, RegionDataModule


class BlockDataModule(RegionDataModule):
    """Training blocks and validation slices of one data set.

    Training batches are ``{"image": float32 (B, C, window, window), "label": int64 (B,), "position_b4": int64,
    "weight": float}``, see `BlockLoader`. Validation items are whole slices, see `SliceLoader`.

    Args:
        recipe: Makes the data set from ``source``.
        batch_size: See `RegionDataModule`.
        label_rule: See `BlockRule`.
        purity: See `BlockRule`.
        positions: See `BlockRule`.
        channels: See `RegionDataModule`.
        balance: See `EpochDraws`.
        rotate_background: See `EpochDraws`.
        interpolation: See `VolumeBank.gather`.
        augment: See `EpochDraws`.
        epoch_blocks: See `EpochDraws`.
        block: Side of the labelled block in pixels.
        window: Side of what the network sees, in pixels.
        validation_stride: See `RegionDataModule`.
        voxels_on: See `RegionDataModule`.
        seed: See `RegionDataModule`.
        source: Handed to ``recipe``.

    Raises:
        UserError: An option has a value that is not known.
    """

    bank: VolumeBank
    draws: EpochDraws

    def __init__(
        self,
        recipe: Callable[..., Recipe],
        *,
        batch_size: int = 100,
        label_rule: str = "center",
        purity: Sequence[float] = (0.2, 0.8),
        positions: str = "any",
        channels: str = "adjacent",
        balance: str = "subsample",
        rotate_background: bool = False,
        interpolation: str = "bilinear",
        augment: str = "dihedral",
        epoch_blocks: int | None = None,
        block: int = 32,
        window: int = 32,
        validation_stride: int = 1,
        voxels_on: str = "auto",
        seed: int = 0,
        **source: object,
    ) -> None:
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_choice("balance", balance, BALANCES)
        check_choice("augment", augment, AUGMENTS)
        check_positive("window", window)
        self.rule = BlockRule(label_rule, positions, tuple(purity), block)
        super().__init__(
            recipe(**source),
            batch_size=batch_size,
            channels=channels,
            validation_stride=validation_stride,
            voxels_on=voxels_on,
            seed=seed,
        )
        self.interpolation = interpolation
        self.balance, self.rotate_background, self.augment = balance, rotate_background, augment
        self.epoch_blocks, self.window = epoch_blocks, window

    def prepare_draws(self) -> None:
        """Classify the positions."""
        self.draws = EpochDraws(
            PositionTable(self.splits.train, self.rule),
            balance=self.balance,
            rotate_background=self.rotate_background,
            augment=self.augment,
            epoch_blocks=self.epoch_blocks,
            seed=self.seed,
        )
        self.bank = VolumeBank(self.splits.train, self.normalization, self.window)
        self.summary = self.draws.summary()

    @property
    def prior(self) -> float:
        """Share of mitochondrion blocks among all training positions under the label rule."""
        return self.draws.table.prior

    @property
    def batch_prior(self) -> float:
        """Share of mitochondrion blocks in the batches."""
        return self.draws.share

    def describe(self) -> str:
        """See `mitoseg.sampling.draws.describe`."""
        return describe(self.summary)

    def make_loader(self, sampler: BlockSampler) -> BlockLoader:
        """The loader of places."""
        return BlockLoader(self.draws, sampler)

    def gather(self, batch: Batch) -> Batch:
        """Places to voxels."""
        position_b4, angle_b, flip_b = (cast(Tensor, batch[k]) for k in ("position_b4", "angle_b", "flip_b"))
        image_bcyx = self.bank.gather(
            position_b4,
            angle_b,
            flip_b,
            window=self.window,
            channels=self.channels,
            pivot=anchor(self.window) - (0.0 if self.rule.label_rule == "center" else 0.5),
            interpolation=self.interpolation,
            exact=bool(batch["exact"]),
        )
        kept = {name: batch[name] for name in ("label", "position_b4", "weight")}
        return {"image": image_bcyx, **kept}
