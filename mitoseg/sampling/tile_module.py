"""The datamodule of networks that are trained on whole tiles, every voxel of which is labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from mitoseg.datasets.base import IGNORE, Recipe
from mitoseg.errors import UserError
from mitoseg.sampling.augmentation import TILE_SYMMETRIES
from mitoseg.sampling.draws import BlockSampler, TileLoader
from mitoseg.sampling.positions import check_choice
from mitoseg.sampling.regions import Batch, RegionDataModule, SlabLoader, SliceLoader, rank_and_world
from mitoseg.sampling.tile_bank import EpochTiles, TileBank

Augmentation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From image (B, C, ...), label (B, ...) and a seed for each (B,) to another image and label of the same shapes."""

_LOOKED_AT = 200
"""Tiles whose labels tell the share of mitochondria in the batches."""


class TileDataModule(RegionDataModule):
    """Training tiles and validation slices of one data set.

    Training batches are ``{"image": float32, "label": int64, "position_b4": int64, "weight": float}``. For networks on
    slices the image is (B, C, Y, X) and the label, of 0, 1 and `IGNORE`, (B, Y, X); for networks on volumes they are
    (B, 1, Z, Y, X) and (B, Z, Y, X). Validation items are whole slices or slabs, see `mitoseg.sampling.regions`.

    Args:
        recipe: Makes the data set from ``source``.
        tile: (z, y, x) voxels of a tile.
        spatial_dims: 2 for a network on slices (then z of the tile is 1), 3 for one on volumes.
        margin: (before, after), pixels that the network sees beyond a tile; see `TileBank`.
        augmentation: Applied to each batch on its device, after turns and mirror images.
        batch_size: See `RegionDataModule`.
        channels: See `RegionDataModule`; ``single`` for a network on volumes.
        augment: See `EpochTiles`.
        foreground_share: See `EpochTiles`.
        epoch_tiles: See `EpochTiles`.
        validation_stride: See `RegionDataModule`; networks on volumes are validated on every slice.
        voxels_on: See `RegionDataModule`.
        seed: See `RegionDataModule`.
        source: Handed to ``recipe``.

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
        validation_stride: int = 1,
        voxels_on: str = "auto",
        seed: int = 0,
        **source: object,
    ) -> None:
        check_choice("augment", augment, TILE_SYMMETRIES)
        if len(tile) != 3 or any(type(n) is not int or n < 1 for n in tile):
            raise UserError("data.tile is not a size", list(tile), "give data.tile=[z,y,x], each at least 1")
        if spatial_dims == 2 and tile[0] != 1:
            raise UserError(
                "a network on slices takes tiles of one slice", list(tile), f"give [1,{tile[1]},{tile[2]}]"
            )
        if spatial_dims == 3 and channels != "single":
            raise UserError("a network on volumes takes data.channels=single", channels, "give data.channels=single")
        super().__init__(
            recipe(**source),
            batch_size=batch_size,
            channels=channels,
            validation_stride=validation_stride,
            voxels_on=voxels_on,
            seed=seed,
        )
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
        draws = self.draws.draw(0)
        counts = np.zeros(2, np.int64)
        for number, z, y, x in np.random.default_rng(0).permutation(draws.position_n4)[:_LOOKED_AT].tolist():
            start, label_zyx = (z, y, x), getattr(self.bank, f"label_{number}")
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

    def make_loader(self, sampler: BlockSampler) -> TileLoader:
        """The loader of places."""
        return TileLoader(self.draws, sampler)

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
            image, label = self._augmented(image, label, seed_b)
        return {"image": image, "label": label, "position_b4": position_b4, "weight": batch["weight"]}

    def _augmented(self, image: Tensor, label: Tensor, seed_b: Tensor) -> tuple[Tensor, Tensor]:
        """Augment image and label together: the label, too, is given the margin while it is done."""
        assert self.augmentation is not None
        before, after = self.margin
        wide = torch.nn.functional.pad(label, (before, after, before, after), value=IGNORE)
        image, wide = self.augmentation(image, wide, seed_b)
        Y, X = wide.shape[-2:]
        return image, wide[..., before : Y - after, before : X - after]
