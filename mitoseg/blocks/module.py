"""The datamodule: a data set in, batches of balanced blocks and whole validation slices out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import cast

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, distributed

from mitoseg.blocks.bank import VolumeBank
from mitoseg.blocks.draws import EpochDraws, describe
from mitoseg.blocks.loaders import BlockLoader, SliceLoader
from mitoseg.blocks.options import AUGMENTS, BALANCES, INTERPOLATIONS, PLACES, check_choice, check_positive
from mitoseg.blocks.positions import BlockRule, PositionTable
from mitoseg.blocks.sampler import BlockSampler
from mitoseg.datasets.base import Recipe, Splits
from mitoseg.geometry import anchor
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, VoxelSize, measure_normalization

_LOG = logging.getLogger(__name__)

Batch = dict[str, Tensor | int | float]


class BlockDataModule(pl.LightningDataModule):
    """Training blocks and validation slices of one data set.

    Training batches are ``{"image_bcyx": float32 (B, C, window, window), "label_b": int64, "position_b4": int64,
    "weight": float}``, see `BlockLoader`. Where the voxels fit on the device they lie there, only places travel and
    the blocks are gathered in ``on_after_batch_transfer``; else they are gathered on the host. Validation items are
    whole slices, see `SliceLoader`. Everything random follows from ``seed`` and the epoch. The Trainer must be made
    with ``use_distributed_sampler=False``: batches and slices are shared out here, without repeats.

    Args:
        recipe: Makes the data set from ``source``.
        batch_size: Blocks per optimizer step, over all devices and accumulated parts together.
        label_rule: See `BlockRule`.
        purity: See `BlockRule`.
        positions: See `BlockRule`.
        channels: A key of `CHANNEL_OFFSETS`.
        balance: See `EpochDraws`.
        rotate_background: See `EpochDraws`.
        interpolation: See `VolumeBank.gather`.
        augment: See `EpochDraws`.
        epoch_blocks: See `EpochDraws`.
        block: Side of the labelled block in pixels.
        window: Side of what the network sees, in pixels.
        validation_stride: Validate on every n-th slice.
        voxels_on: ``device`` or ``host``; ``auto``: the device, if they take at most half of its free memory.
        seed: Of draws and order.
        source: Handed to ``recipe``.

    Attributes:
        splits: The regions, after ``setup`` like all below.
        normalization: Mean and standard deviation over the training regions.
        prior: Share of mitochondrion blocks among all training positions under the label rule.
        batch_prior: Share of mitochondrion blocks in the batches.
        summary: Counts of blocks and draws, plain data; see `EpochDraws.summary`.

    Raises:
        UserError: An option has a value that is not known.
    """

    splits: Splits
    normalization: Normalization
    bank: VolumeBank
    draws: EpochDraws
    summary: dict[str, str | int | float]

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
        super().__init__()
        check_choice("channels", channels, CHANNEL_OFFSETS)
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_choice("balance", balance, BALANCES)
        check_choice("augment", augment, AUGMENTS)
        check_choice("voxels_on", voxels_on, PLACES)
        check_positive("batch_size", batch_size)
        check_positive("window", window)
        check_positive("validation_stride", validation_stride)
        self.rule = BlockRule(label_rule, positions, tuple(purity), block)
        self.recipe = recipe(**source)
        self.batch_size, self.channels, self.interpolation = batch_size, channels, interpolation
        self.balance, self.rotate_background, self.augment = balance, rotate_background, augment
        self.epoch_blocks, self.window, self.seed = epoch_blocks, window, seed
        self.validation_stride, self.voxels_on = validation_stride, voxels_on
        self._loader: BlockLoader | None = None
        self._progress: dict[str, int] | None = None
        self._ready = False

    def prepare_data(self) -> None:
        """Download or generate what is missing."""
        self.recipe.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the regions, measure the normalisation, classify the positions; once, whatever the stage."""
        if self._ready:
            return
        self.splits = self.recipe.splits()
        train = self.splits.train
        self.draws = EpochDraws(
            PositionTable(train, self.rule),
            balance=self.balance,
            rotate_background=self.rotate_background,
            augment=self.augment,
            epoch_blocks=self.epoch_blocks,
            seed=self.seed,
        )
        self.normalization = measure_normalization((region.image, region.box) for region in train)
        self.bank = VolumeBank(train, self.normalization, self.window)
        self.summary = self.draws.summary()
        if _rank_and_world()[0] == 0:
            _LOG.info(describe(self.summary))
        self._ready = True

    @property
    def prior(self) -> float:
        """Share of mitochondrion blocks among all training positions under the label rule."""
        return self.draws.table.prior

    @property
    def batch_prior(self) -> float:
        """Share of mitochondrion blocks in the batches."""
        return self.draws.share

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm of the data set, or None where nobody said."""
        return self.splits.voxel_size

    def train_dataloader(self) -> BlockLoader:
        """This rank's part of every batch, cut further where the Trainer accumulates gradients."""
        self._loader = BlockLoader(self.draws, self._sampler())
        if self._progress is not None:
            self._loader.load_state_dict(self._progress)
        return self._loader

    def _sampler(self) -> BlockSampler:
        rank, world = _rank_and_world()
        parts = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return BlockSampler(len(self.draws), self.batch_size, seed=self.seed, rank=rank, world=world, parts=parts)

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is, for the checkpoint.

        The Trainer asks the loader as well, but forgets what it was told where a schedule wants to know the number of
        steps before training starts.
        """
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on in the middle of the epoch where the checkpoint was written."""
        self._progress = state_dict or None

    def val_dataloader(self) -> SliceLoader:
        """This rank's validation slices."""
        rank, world = _rank_and_world()
        regions, stride = self.splits.validation, self.validation_stride
        return SliceLoader(regions, self.normalization, self.channels, stride=stride, rank=rank, world=world)

    def batch_positions(self, epoch: int, batch: int) -> npt.NDArray[np.int64]:
        """Where the blocks of one of this rank's batches lie: (B, 4), region, z, y, x."""
        sampler = self._sampler()
        sampler.set_epoch(epoch)
        index_b = next(islice(sampler, batch, None))
        return self.draws.draw(epoch).position_n4[index_b]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather the voxels of a training batch on the host, if that is where they are to stay."""
        return self._gather(batch) if "angle_b" in batch and not self._on_device else batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather the voxels of a training batch on the device where its positions are."""
        if "angle_b" not in batch:
            return batch
        device = cast(Tensor, batch["position_b4"]).device
        if self.bank.device != device:
            self.bank.to(device)
        return self._gather(batch)

    @cached_property
    def _on_device(self) -> bool:
        """Whether the voxels are to lie where the network is."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self.voxels_on != "auto" or device.type != "cuda":
            return self.voxels_on != "host"
        free, _ = torch.cuda.mem_get_info(device)
        fits = sum(buffer.nbytes for buffer in self.bank.buffers()) <= free / 2
        if not fits:
            _LOG.info("the training voxels stay on the host: they take more than half of the device's free memory")
        return fits

    def _gather(self, batch: Batch) -> Batch:
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
        kept = {name: batch[name] for name in ("label_b", "position_b4", "weight")}
        return {"image_bcyx": image_bcyx, **kept}


def _rank_and_world() -> tuple[int, int]:
    """This process and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
