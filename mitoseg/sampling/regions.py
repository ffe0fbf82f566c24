"""What training on blocks and on whole tiles have in common: a data set, normalisation, and validation.

A network is validated on whole slices, or on whole slabs if it works on volumes.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn

from mitoseg.datasets.base import Recipe, Region, Splits
from mitoseg.datasets.download import checksums
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.progress import waiting
from mitoseg.sampling.draws import BlockSampler, EpochDrawing, EpochLoader
from mitoseg.sampling.positions import PLACES, check_choice, check_positive
from mitoseg.storage import changes
from mitoseg.volumes import (
    CHANNEL_OFFSETS,
    Normalization,
    VoxelSize,
    check_image_values,
    measure_normalization,
    read_channels,
)
from mitoseg.volumes.normalize import grey_quantiles
from mitoseg.volumes.padding import Padding

_LOG = logging.getLogger(__name__)

Batch = dict[str, Tensor | int | float]


class RegionDataModule(pl.LightningDataModule):
    """Regions of a data set: draws of an epoch in batches, validation slices, and where a run stands.

    Where the voxels fit on the device they lie there, only places travel and the voxels are gathered in
    ``on_after_batch_transfer``; else they are gathered on the host. Everything random follows from ``seed`` and the
    epoch. The Trainer must be made with ``use_distributed_sampler=False``: batches and slices are shared out here,
    without repeats.

    Args:
        recipe: Makes the data set from ``source``.
        batch_size: Draws per optimizer step, over all devices and accumulated parts together.
        channels: A key of `CHANNEL_OFFSETS`.
        validation_stride: Validate on every n-th slice.
        voxels_on: ``device`` or ``host``; ``auto``: the device, if they take at most half of its free memory.
        seed: Of draws and order.
        source: Handed to ``recipe``.

    Attributes:
        splits: The regions, after ``setup`` like all below.
        normalization: Mean and standard deviation over the training regions.
        grey_quantiles: Of the training regions, see `mitoseg.volumes.normalize`.
        summary: Counts of what is drawn, plain data.

    Raises:
        UserError: An option has a value that is not known.
    """

    splits: Splits
    normalization: Normalization
    bank: nn.Module
    draws: EpochDrawing
    summary: Mapping[str, str | int | float]

    def __init__(
        self,
        recipe: Callable[..., Recipe],
        *,
        batch_size: int,
        channels: str = "adjacent",
        validation_stride: int = 1,
        voxels_on: str = "auto",
        seed: int = 0,
        **source: object,
    ) -> None:
        super().__init__()
        check_choice("channels", channels, CHANNEL_OFFSETS)
        check_choice("voxels_on", voxels_on, PLACES)
        check_positive("batch_size", batch_size)
        check_positive("validation_stride", validation_stride)
        self.recipe = recipe(**source)
        self.batch_size, self.channels, self.seed = batch_size, channels, seed
        self.validation_stride, self.voxels_on = validation_stride, voxels_on
        self._loader: EpochLoader | None = None
        self._progress: dict[str, int] | None = None
        self._ready = False

    @property
    @abstractmethod
    def prior(self) -> float:
        """Share of mitochondria among all that may be drawn."""

    @property
    @abstractmethod
    def batch_prior(self) -> float:
        """Share of mitochondria in the batches."""

    @abstractmethod
    def prepare_draws(self) -> None:
        """Set ``draws``, ``bank`` and ``summary``, once splits and normalisation are there."""

    @abstractmethod
    def describe(self) -> str:
        """``summary`` for people."""

    @abstractmethod
    def gather(self, batch: Batch) -> Batch:
        """Places to voxels: ``image``, ``label``, ``position_b4`` and ``weight``."""

    def prepare_data(self) -> None:
        """Download or generate what is missing."""
        self.recipe.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the regions, measure the normalisation, prepare the draws; once, whatever the stage."""
        if self._ready:
            return
        with waiting("opening the data"):
            self.splits = self.recipe.splits()
        with waiting("looking at the grey values of training"):
            parts = [(region.image, region.box) for region in self.splits.train]
            self.normalization = measure_normalization(parts)
            self.grey_quantiles = [round(float(q), 6) for q in grey_quantiles(parts)]
        padded = sum(image.padding.count(box) for image, box in parts if isinstance(image.padding, Padding))
        if padded and rank_and_world()[0] == 0:
            share = 100 * padded / sum(box.size for _, box in parts)
            _LOG.info("%.1f %% of the training voxels are padding of one value, which enters nothing", share)
        with waiting("choosing where to train"):
            self.prepare_draws()
        if rank_and_world()[0] == 0:
            _LOG.info(self.describe())
        self._ready = True

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm of the data set, or None where nobody said."""
        return self.splits.voxel_size

    def train_dataloader(self) -> EpochLoader:
        """This rank's part of every batch, cut further where the Trainer accumulates gradients."""
        self._loader = EpochLoader(self.draws, self._sampler())
        if self._progress is not None:
            self._loader.load_state_dict(self._progress)
        return self._loader

    def _sampler(self) -> BlockSampler:
        rank, world = rank_and_world()
        parts = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return BlockSampler(len(self.draws), self.batch_size, seed=self.seed, rank=rank, world=world, parts=parts)

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch is, and the checksums of the training data, for the checkpoint.

        The Trainer asks the loader as well, but forgets the answer where a schedule wants to know the number of
        steps before training starts.
        """
        progress = {} if self._loader is None else self._loader.state_dict()
        return {**progress, "data": checksums(self.splits.provenance, "train")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume in the middle of the epoch, where the checkpoint was written.

        Raises:
            UserError: The training data have changed since.
        """
        progress, now = dict(state_dict), checksums(self.splits.provenance, "train")
        before = progress.pop("data", now)
        if before != now:
            what = f"the training data have changed since the run was interrupted ({changes(before, now)})"
            remedy = "put the files back as they were, or start a new run, from its weights with init_from="
            raise UserError(what, None, remedy)
        self._progress = progress or None

    def val_dataloader(self) -> SliceLoader | SlabLoader:
        """This rank's validation slices."""
        rank, world = rank_and_world()
        regions, stride = self.splits.validation, self.validation_stride
        return SliceLoader(regions, self.normalization, self.channels, stride=stride, rank=rank, world=world)

    def batch_positions(self, epoch: int, batch: int) -> npt.NDArray[np.int64]:
        """Where what one of this rank's batches holds lies: (B, 4), region, z, y, x."""
        sampler = self._sampler()
        sampler.set_epoch(epoch)
        index_b = next(islice(sampler, batch, None))
        return self.draws.draw(epoch).position_n4[index_b]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather the voxels of a training batch on the host, if that is where they are to stay."""
        placed = "position_b4" in batch and "image" not in batch  # one of training, still without voxels
        return self.gather(batch) if placed and not self._on_device else batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather the voxels of a training batch on the device where its positions are."""
        if "position_b4" not in batch or "image" in batch:
            return batch
        self.bank.to(cast(Tensor, batch["position_b4"]).device)
        return self.gather(batch)

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


def rank_and_world() -> tuple[int, int]:
    """This process and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


DEPTH, CONTEXT = 16, 16
"""Slices of a slab that are scored, and slices before and after them that the network sees as well."""


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
            what = f"{world} devices cannot share the validation slices"
            raise UserError(what, len(slices), "lower validation_stride")
        self.regions, self.normalization, self.channels = regions, normalization, channels
        self.slices = slices[rank::world]

    def __len__(self) -> int:
        return len(self.slices)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        for number, z in self.slices:
            region = self.regions[number]
            (z0, *start_yx), (_, *stop_yx) = region.box.start, region.box.stop
            grey_cyx = read_channels(region.image, z0 + z, self.channels, Box(tuple(start_yx), tuple(stop_yx)))
            check_image_values(grey_cyx, region.image.path)
            label_yx = region.label.read(Box((z0 + z, *start_yx), (z0 + z + 1, *stop_yx)))[0]
            yield {
                "image_cyx": torch.from_numpy(self.normalization.apply(grey_cyx)),
                "label_yx": torch.from_numpy(label_yx.copy()),
                "region": number,
                "z": z,
            }


class SlabLoader:
    """Iterates over slabs of some regions, shared out exactly: slab i goes to rank i % world.

    Yields dicts of ``image_czyx`` float32 (one channel, normalised), which reaches `CONTEXT` slices beyond the slab
    as far as the volume does, ``label_zyx`` uint8 (0, 1 or `IGNORE`) of the slab itself, ``first``, the slice of it
    at which the slab starts, ``region`` and ``z``, that of its first slice in the region's own coordinates.

    Args:
        regions: What to read.
        normalization: Of the training regions.
        rank: Of this process.
        world: Number of processes.

    Raises:
        UserError: There are fewer slabs than ranks.
    """

    def __init__(
        self, regions: Sequence[Region], normalization: Normalization, *, rank: int = 0, world: int = 1
    ) -> None:
        found = [(r, slab) for r, region in enumerate(regions) for slab in slabs(region.box, DEPTH)]
        if found and len(found) < world:
            raise UserError(f"{world} devices cannot share the validation slabs", len(found), "use fewer devices")
        self.regions, self.normalization = regions, normalization
        self.slabs = found[rank::world]

    def __len__(self) -> int:
        return len(self.slabs)

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        for number, slab in self.slabs:
            region = self.regions[number]
            seen = slab.grow((CONTEXT, 0, 0)).clip(region.image.box)
            grey_zyx = region.image.read(seen)
            check_image_values(grey_zyx, region.image.path)
            yield {
                "image_czyx": torch.from_numpy(self.normalization.apply(grey_zyx))[None],
                "label_zyx": torch.from_numpy(region.label.read(slab).copy()),
                "first": slab.start[0] - seen.start[0],
                "region": number,
                "z": slab.start[0] - region.box.start[0],
            }
