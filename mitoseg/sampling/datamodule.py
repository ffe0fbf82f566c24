"""The datamodules: a data set in, batches of blocks or of whole tiles and whole validation slices out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from mitoseg.datasets.base import IGNORE, Recipe
from mitoseg.errors import UserError
from mitoseg.geometry import anchor
from mitoseg.sampling.augmentation import TILE_SYMMETRIES
from mitoseg.sampling.bank import VolumeBank
from mitoseg.sampling.draws import EpochDraws
from mitoseg.sampling.positions import (
    AUGMENTS,
    BALANCES,
    INTERPOLATIONS,
    BlockRule,
    PositionTable,
    check_choice,
    check_positive,
)
from mitoseg.sampling.regions import Batch, RegionDataModule, SlabLoader, SliceLoader, rank_and_world
from mitoseg.sampling.tile_bank import EpochTiles, TileBank

Augmentation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From image (B, C, ...), label (B, ...) and a seed for each (B,) to another image and label of the same shapes."""

_LOOKED_AT = 200
"""Tiles whose labels tell the share of mitochondria in the batches."""

BLOCK_OPTIONS = (
    *("positions", "label_rule", "purity", "block", "balance", "rotate_background", "interpolation"),
    *("epoch_blocks", "window"),
)
"""Options that say nothing of whole tiles."""
TILE_OPTIONS = ("foreground_share", "epoch_tiles", "spatial_dims", "margin", "augmentation")
"""Options that say nothing of blocks."""


def data_module(
    recipe: Callable[..., Recipe],
    *,
    tile: tuple[int, int, int] | None = None,
    **options: Any,  # noqa: ANN401
) -> BlockDataModule | TileDataModule:
    """The datamodule for blocks, or for tiles if their size is given.

    Args:
        recipe: Makes the data set.
        tile: (z, y, x) voxels of a training tile; None: train on blocks.
        **options: Of `BlockDataModule` and of `TileDataModule`; those of the other one are left out.

    Raises:
        UserError: See there; or the network has no window, and no tile is given.
    """
    if tile is None:
        if options.get("window") is None:
            raise UserError("this network is trained on whole tiles", None, "give data.tile=[z,y,x]")
        return BlockDataModule(recipe, **{k: v for k, v in options.items() if k not in TILE_OPTIONS})
    return TileDataModule(recipe, tile=tile, **{k: v for k, v in options.items() if k not in BLOCK_OPTIONS})


class BlockDataModule(RegionDataModule):
    """Training blocks and validation slices of one data set.

    Training batches are ``{"image": float32 (B, C, window, window), "label": int64 (B,), "position_b4": int64,
    "weight": float}``, see `mitoseg.sampling.draws.EpochLoader`. Validation items are whole slices, see `SliceLoader`.

    Args:
        recipe: Makes the data set from further keywords.
        batch_size: Draws per optimizer step, over all devices and accumulated parts together.
        label_rule: As ``positions``, ``purity`` and ``block`` (the side of the labelled block in pixels), see
            `BlockRule`.
        balance: As ``rotate_background``, ``augment`` and ``epoch_blocks``, see `EpochDraws`.
        interpolation: See `VolumeBank.gather`.
        window: Side of what the network sees, in pixels.
        options: Of `RegionDataModule`, and of ``recipe``.

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
        balance: str = "subsample",
        rotate_background: bool = False,
        interpolation: str = "bilinear",
        augment: str = "dihedral",
        epoch_blocks: int | None = None,
        block: int = 32,
        window: int = 32,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_choice("balance", balance, BALANCES)
        check_choice("augment", augment, AUGMENTS)
        check_positive("window", window)
        self.rule = BlockRule(label_rule, positions, tuple(purity), block)
        super().__init__(recipe, batch_size=batch_size, **options)
        self.interpolation, self.window = interpolation, window
        self.balance, self.rotate_background, self.augment = balance, rotate_background, augment
        self.epoch_blocks = epoch_blocks

    def prepare_draws(self) -> None:
        """Classify the positions, and read all voxels."""
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
        """``summary`` for people."""
        return self.draws.describe(self.summary)

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
        return {"image": image_bcyx, **{name: batch[name] for name in ("label", "position_b4", "weight")}}


class TileDataModule(RegionDataModule):
    """Training tiles and validation slices of one data set.

    Training batches are ``{"image": float32, "label": int64, "position_b4": int64, "weight": float}``. For networks on
    slices the image is (B, C, Y, X) and the label, of 0, 1 and `IGNORE`, (B, Y, X); for networks on volumes they are
    (B, 1, Z, Y, X) and (B, Z, Y, X). Validation items are whole slices or slabs, see `mitoseg.sampling.regions`.

    Args:
        recipe: Makes the data set from further keywords.
        tile: (z, y, x) voxels of a tile.
        spatial_dims: 2 for a network on slices (then z of the tile is 1), 3 for one on volumes.
        margin: (before, after), pixels that the network sees beyond a tile; see `TileBank`.
        augmentation: Applied to each batch on its device, after turns and mirror images.
        batch_size: Draws per optimizer step, over all devices and accumulated parts together.
        channels: How slices become channels; ``single`` for a network on volumes.
        augment: As ``foreground_share`` and ``epoch_tiles``, see `EpochTiles`.
        options: Of `RegionDataModule`, and of ``recipe``; networks on volumes are validated on every slice.

    Raises:
        UserError: An option has a value that is not known, or tile, network and channels do not fit together.
    """

    bank: TileBank
    draws: EpochTiles

    def __init__(
        self,
        recipe: Callable[..., Recipe],
        *,
        tile: Sequence[int],
        spatial_dims: int = 2,
        margin: tuple[int, int] = (0, 0),
        augmentation: Augmentation | None = None,
        batch_size: int = 4,
        channels: str = "adjacent",
        augment: str = "dihedral",
        foreground_share: float = 0.0,
        epoch_tiles: int | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_choice("augment", augment, TILE_SYMMETRIES)
        if len(tile) != 3 or any(type(n) is not int or n < 1 for n in tile):
            raise UserError("data.tile is not a size", list(tile), "give data.tile=[z,y,x], each at least 1")
        if spatial_dims == 2 and tile[0] != 1:
            remedy = f"give [1,{tile[1]},{tile[2]}]"
            raise UserError("a network on slices takes tiles of one slice", list(tile), remedy)
        if spatial_dims == 3 and channels != "single":
            raise UserError("a network on volumes takes data.channels=single", channels, "give data.channels=single")
        super().__init__(recipe, batch_size=batch_size, channels=channels, **options)
        self.tile = (tile[0], tile[1], tile[2])
        self.spatial_dims, self.margin, self.augmentation = spatial_dims, margin, augmentation
        self.augment, self.foreground_share, self.epoch_tiles = augment, foreground_share, epoch_tiles

    def prepare_draws(self) -> None:
        """Look for mitochondria, and read all voxels."""
        self.draws = EpochTiles(
            self.splits.train,
            self.tile,
            augment=self.augment,
            foreground_share=self.foreground_share,
            epoch_tiles=self.epoch_tiles,
            seed=self.seed,
        )
        channels = self.channels if self.spatial_dims == 2 else None
        self.bank = TileBank(self.splits.train, self.normalization, margin=self.margin, channels=channels)
        self._batch_prior = self.draws.prior if not self.foreground_share else self._measured_prior()
        self.summary = {**self.draws.summary(), "batch_prior": self._batch_prior}

    def _measured_prior(self) -> float:
        """Share of mitochondria in the first epoch's tiles."""
        counts = np.zeros(2, np.int64)
        position_n4 = np.random.default_rng(0).permutation(self.draws.draw(0).position_n4)[:_LOOKED_AT]
        for number, *start in position_n4.tolist():
            label_zyx = getattr(self.bank, f"label_{number}")
            part = label_zyx[tuple(slice(a, a + n) for a, n in zip(start, self.tile, strict=True))]
            counts += [int((part == c).sum()) for c in (0, 1)]
        return float(counts[1] / counts.sum())

    @property
    def prior(self) -> float:
        """Share of mitochondria among the labelled voxels of the training regions."""
        return self.draws.prior

    @property
    def batch_prior(self) -> float:
        """Share of mitochondria in the batches."""
        return self._batch_prior

    def describe(self) -> str:
        """``summary`` for people."""
        return (
            "Training tiles: {tile} voxels, augment={augment}\n  {draws:d} tiles an epoch\n"
            "  share of mitochondria: {prior:.4f} of the voxels, {batch_prior:.4f} of the batches"
        ).format_map(self.summary)

    def val_dataloader(self) -> SliceLoader | SlabLoader:
        """This rank's validation slices, or slabs for a network on volumes."""
        if self.spatial_dims == 2:
            return super().val_dataloader()
        rank, world = rank_and_world()
        return SlabLoader(self.splits.validation, self.normalization, rank=rank, world=world)

    def gather(self, batch: Batch) -> Batch:
        """Places to voxels, augmented."""
        position_b4, symmetry_b, seed_b = (cast(Tensor, batch[k]) for k in ("position_b4", "symmetry_b", "seed_b"))
        ways = TILE_SYMMETRIES[self.augment]
        image, label = self.bank.gather(position_b4, [ways[i] for i in symmetry_b.tolist()], self.tile)
        if self.augmentation is not None:
            before, after = self.margin  # the label, too, is given the margin while it is augmented
            image, label = self.augmentation(image, pad(label, (before, after, before, after), value=IGNORE), seed_b)
            Y, X = label.shape[-2:]
            label = label[..., before : Y - after, before : X - after]
        return {"image": image, "label": label, "position_b4": position_b4, "weight": batch["weight"]}
