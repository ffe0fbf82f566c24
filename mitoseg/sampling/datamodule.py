"""The datamodules, which turn a data set into batches of blocks or tiles, and validation slices or slabs."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from inspect import signature
from itertools import islice
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import pad

from mitoseg.datasets.base import IGNORE, Recipe, Region, Splits
from mitoseg.datasets.download import checksums
from mitoseg.errors import UserError
from mitoseg.geometry import Box, anchor, slabs
from mitoseg.progress import waiting
from mitoseg.sampling.augmentation import TILE_SYMMETRIES
from mitoseg.sampling.bank import TileBank, VolumeBank
from mitoseg.sampling.draws import BlockSampler, EpochDraws, EpochLoader, EpochTiles
from mitoseg.sampling.positions import BlockRule, PositionTable, check_choice, check_positive
from mitoseg.storage import changes
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization, check_image_values, measure_normalization, read_channels
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.normalize import grey_quantiles
from mitoseg.volumes.padding import Padding

_LOG = logging.getLogger(__name__)

Batch = dict[str, Tensor | int | float]
Augmentation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A function of image (B, C, ...), label (B, ...) and seeds (B,) that returns image and label of the same shapes."""

DEPTH, CONTEXT = 16, 16  # slices of a slab that are scored, and slices of context before and after


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class SlabLoader:
    """Iterates over slabs of some regions, divided exactly between ranks: slab i goes to rank i % world.

    Yields dicts of ``image_czyx`` float32 (one channel, normalised), which extends `CONTEXT` slices beyond the slab
    where the volume does; ``label_zyx`` uint8 (0, 1 or `IGNORE`) of the slab itself; ``first``, the slice of the image
    at which the slab starts; ``region``, and ``z`` of the slab's first slice in the region's coordinates.
    """

    def __init__(
        self, regions: Sequence[Region], normalization: Normalization, *, depth: int = DEPTH, stride: int = 1
    ) -> None:
        rank, world = rank_and_world()
        found = [(r, slab) for r, region in enumerate(regions) for slab in [*slabs(region.box, depth)][::stride]]
        if found and len(found) < world:
            remedy = "use fewer devices, or a lower data.validation_stride"
            raise UserError(f"{world} devices cannot share the slices or slabs of validation", len(found), remedy)
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


class SliceLoader(SlabLoader):
    """Iterates over every n-th slice of some regions, divided exactly between ranks: slice i goes to rank i % world.

    Yields dicts of ``image_cyx`` float32 (normalised; neighbours in z may lie outside the region), ``label_yx`` uint8
    (0, 1 or `IGNORE`), ``region`` and ``z`` int, in the region's coordinates.
    """

    def __init__(
        self, regions: Sequence[Region], normalization: Normalization, channels: str, *, stride: int = 1
    ) -> None:
        super().__init__(regions, normalization, depth=1, stride=stride)
        self.channels = channels

    def __iter__(self) -> Iterator[dict[str, Tensor | int]]:
        for number, slab in self.slabs:
            region, (z, *start_yx) = self.regions[number], slab.start
            grey_cyx = read_channels(region.image, z, self.channels, Box(tuple(start_yx), slab.stop[1:]))
            check_image_values(grey_cyx, region.image.path)
            yield {
                "image_cyx": torch.from_numpy(self.normalization.apply(grey_cyx)),
                "label_yx": torch.from_numpy(region.label.read(slab)[0].copy()),
                "region": number,
                "z": z - region.box.start[0],
            }


class RegionDataModule(pl.LightningDataModule):
    """Base class: the draws of an epoch in batches, validation slices, and the state needed to resume.

    If the voxels fit on the device they are kept there: only positions are transferred, and voxels are gathered in
    ``on_after_batch_transfer``; otherwise they are gathered on the host. All randomness depends on ``seed`` and the
    epoch alone. The Trainer needs ``use_distributed_sampler=False``: batches and slices are divided between ranks
    here, without duplicates.

    ``recipe`` makes the data set from ``source``; ``batch_size`` is the number of draws per optimizer step, over all
    devices and accumulated parts; ``voxels_on=auto`` is the device if they take at most half of its free memory.
    """

    splits: Splits  # set by `setup`, like all below
    voxel_size: VoxelSize | None
    normalization: Normalization  # measured on the training regions, like the quantiles
    grey_quantiles: list[float]
    bank: nn.Module
    draws: EpochDraws | EpochTiles
    prior: float  # fraction of mitochondria among everything that may be drawn
    batch_prior: float  # fraction of mitochondria in the batches
    summary: Mapping[str, str | int | float]
    description: ClassVar[str]  # template that prints the summary

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
        check_choice("voxels_on", voxels_on, ("auto", "device", "host"))
        check_positive("batch_size", batch_size)
        check_positive("validation_stride", validation_stride)
        if seed < 0:
            raise UserError("the seed is negative", seed, "give a seed of 0 or more")
        self.recipe = recipe(**source)
        self.batch_size, self.channels, self.seed = batch_size, channels, seed
        self.validation_stride, self.voxels_on = validation_stride, voxels_on
        self._loader: EpochLoader | None = None
        self._progress: dict[str, int] | None = None
        self._ready = False

    @abstractmethod
    def prepare_draws(self) -> None:
        """Set ``draws``, ``bank``, both priors and ``summary``; splits and normalisation exist by then."""

    @abstractmethod
    def gather(self, batch: Batch) -> Batch:
        """Gather the voxels of a batch: ``image``, ``label``, ``position_b4`` and ``weight``."""

    def prepare_data(self) -> None:
        """Download or generate what is missing."""
        self.recipe.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the regions, measure the normalisation, prepare the draws; once, whatever the stage."""
        if self._ready:
            return
        with waiting("opening the data"):
            self.splits = self.recipe.splits()
            self.voxel_size = self.splits.voxel_size
        with waiting("measuring the grey values of the training data"):
            parts = [(region.image, region.box) for region in self.splits.train]
            self.normalization = self.splits.normalization or measure_normalization(parts)
            self.grey_quantiles = [round(float(q), 6) for q in grey_quantiles(parts)]
        padded = sum(image.padding.count(box) for image, box in parts if isinstance(image.padding, Padding))
        with waiting("choosing where to train"):
            self.prepare_draws()
        if rank_and_world()[0] == 0:
            if padded:
                share = 100 * padded / sum(box.size for _, box in parts)
                _LOG.info("%.1f %% of the training voxels are constant padding and are left out", share)
            _LOG.info(self.description.format_map(self.summary))
        self._ready = True

    def train_dataloader(self) -> EpochLoader:
        """This rank's part of every batch, divided further if the Trainer accumulates gradients."""
        self._loader = EpochLoader(self.draws, self._sampler())
        if self._progress is not None:
            self._loader.load_state_dict(self._progress)
        return self._loader

    def _sampler(self) -> BlockSampler:
        rank, world = rank_and_world()
        parts = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return BlockSampler(len(self.draws), self.batch_size, seed=self.seed, rank=rank, world=world, parts=parts)

    def state_dict(self) -> dict[str, Any]:
        """Progress within the epoch, and the checksums of the training data, for the checkpoint.

        The Trainer also saves the loader's state, but loses it if a schedule asks for the number of steps before
        training starts.
        """
        progress = {} if self._loader is None else self._loader.state_dict()
        return {**progress, "data": checksums(self.splits.provenance, "train")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume within the epoch, where the checkpoint was written; refuse data that have changed."""
        progress, now = dict(state_dict), checksums(self.splits.provenance, "train")
        before = progress.pop("data", now)
        if before != now:
            what = f"the training data have changed since the run was interrupted ({changes(before, now)})"
            remedy = "put the files back as they were, or start a new run from its weights with init_from="
            raise UserError(what, None, remedy)
        self._progress = progress or None

    def val_dataloader(self) -> SlabLoader:
        """This rank's validation slices."""
        regions, stride = self.splits.validation, self.validation_stride
        return SliceLoader(regions, self.normalization, self.channels, stride=stride)

    def batch_positions(self, epoch: int, batch: int) -> npt.NDArray[np.int64]:
        """Positions of one of this rank's batches: (B, 4), region, z, y, x."""
        sampler = self._sampler()
        sampler.set_epoch(epoch)
        index_b = next(islice(sampler, batch, None))
        return self.draws.draw(epoch).position_n4[index_b]

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather the voxels of a training batch on the host, if they are kept there."""
        placed = "position_b4" in batch and "image" not in batch  # a training batch, still without voxels
        return self.gather(batch) if placed and not self._on_device else batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Gather the voxels of a training batch on the device of its positions."""
        if "position_b4" not in batch or "image" in batch:
            return batch
        self.bank.to(cast(Tensor, batch["position_b4"]).device)
        return self.gather(batch)

    @cached_property
    def _on_device(self) -> bool:
        """Whether the voxels are kept on the network's device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self.voxels_on != "auto" or device.type != "cuda":
            return self.voxels_on != "host"
        free, _ = torch.cuda.mem_get_info(device)
        fits = sum(buffer.nbytes for buffer in self.bank.buffers()) <= free / 2
        if not fits:
            _LOG.info("the training voxels stay on the host: they take more than half of the device's free memory")
        return fits


class BlockDataModule(RegionDataModule):
    """Training blocks and validation slices of one data set.

    Training batches are ``{"image": float32 (B, C, window, window), "label": int64 (B,), "position_b4": int64,
    "weight": float}``, see `EpochLoader`. Validation items are whole slices, see `SliceLoader`. For the options see
    `BlockRule`, `EpochDraws`, `VolumeBank.gather` and `RegionDataModule`; others are passed to the recipe.
    """

    bank: VolumeBank
    description = (
        "Training blocks: positions={positions} label_rule={label_rule} balance={balance} augment={augment}\n"
        "  {blocks_foreground:d} mitochondria, {blocks_background:d} background, {blocks_dropped:d} dropped\n"
        "  draws an epoch: {draws_foreground:d} mitochondria, {draws_background:d} background, "
        "{draws_distinct:d} distinct (block, angle) pairs\n"
        "  each mitochondria block is drawn {multiplicity_foreground:.3g} times, "
        "each background block {multiplicity_background:.3g} times\n"
        "  share of mitochondria: {prior:.4f} of the blocks, {batch_prior:.4f} of the draws"
    )

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
        check_choice("interpolation", interpolation, ("bilinear", "nearest"))
        check_choice("balance", balance, ("rotate", "subsample", "none"))
        check_choice("augment", augment, ("none", "turns", "dihedral", "any_angle"))
        check_positive("window", window)
        self.rule = BlockRule(label_rule, positions, tuple(purity), block)
        super().__init__(recipe, batch_size=batch_size, **options)
        self.interpolation, self.window = interpolation, window
        self._drawing: dict[str, Any] = {"balance": balance, "rotate_background": rotate_background}
        self._drawing |= {"augment": augment, "epoch_blocks": epoch_blocks}

    def prepare_draws(self) -> None:
        """Assign a class to every position, and read all voxels."""
        draws = EpochDraws(PositionTable(self.splits.train, self.rule), seed=self.seed, **self._drawing)
        self.bank = VolumeBank(self.splits.train, self.normalization, self.window)
        self.draws, self.summary = draws, draws.summary()
        self.prior, self.batch_prior = draws.table.prior, draws.share

    def gather(self, batch: Batch) -> Batch:
        """Gather the voxels."""
        position_b4, angle_b, flip_b = (cast(Tensor, batch[k]) for k in ("position_b4", "angle_b", "flip_b"))
        pivot = anchor(self.window) - (0.0 if self.rule.label_rule == "center" else 0.5)
        form: dict[str, Any] = {"window": self.window, "channels": self.channels, "pivot": pivot}
        form |= {"interpolation": self.interpolation, "exact": bool(batch["exact"])}
        image_bcyx = self.bank.gather(position_b4, angle_b, flip_b, **form)
        return {"image": image_bcyx, **{name: batch[name] for name in ("label", "position_b4", "weight")}}


class TileDataModule(RegionDataModule):
    """Training tiles and validation slices of one data set.

    Training batches are ``{"image": float32, "label": int64, "position_b4": int64, "weight": float}``. For networks on
    slices the image is (B, C, Y, X) and the label, of 0, 1 and `IGNORE`, (B, Y, X); for 3D networks they are
    (B, 1, Z, Y, X) and (B, Z, Y, X), and validation items are slabs that cover every slice, see `SlabLoader`.

    ``tile`` is (z, y, x) voxels, ``margin`` the pixels (before, after) that the network needs beyond it. Augmentation
    is applied to each batch on its device, after rotations and reflections. For the options see `EpochTiles` and
    `RegionDataModule`; others are passed to the recipe.
    """

    bank: TileBank
    description = (
        "Training tiles: {tile} voxels, augment={augment}\n  {draws:d} tiles an epoch\n"
        "  share of mitochondria: {prior:.4f} of the voxels, {batch_prior:.4f} of the batches"
    )

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
            raise UserError("a 2D network takes tiles of one slice", list(tile), remedy)
        if spatial_dims == 3 and channels != "single":
            raise UserError("a 3D network takes data.channels=single", channels, "give data.channels=single")
        super().__init__(recipe, batch_size=batch_size, channels=channels, **options)
        self.tile = (tile[0], tile[1], tile[2])
        self.spatial_dims, self.margin, self.augmentation = spatial_dims, margin, augmentation
        self.augment, self.foreground_share, self.epoch_tiles = augment, foreground_share, epoch_tiles

    def prepare_draws(self) -> None:
        """Find the mitochondrion voxels, and read all voxels."""
        regions, share = self.splits.train, self.foreground_share
        options: dict[str, Any] = {"augment": self.augment, "epoch_tiles": self.epoch_tiles, "seed": self.seed}
        draws = EpochTiles(regions, self.tile, foreground_share=share, **options)
        channels = self.channels if self.spatial_dims == 2 else None
        self.bank = TileBank(regions, self.normalization, margin=self.margin, channels=channels)
        self.draws, self.prior, self.batch_prior = draws, draws.prior, draws.prior
        if share:  # measured in some of the first epoch's tiles
            counts = np.zeros(2, np.int64)
            position_n4 = np.random.default_rng(0).permutation(draws.draw(0).position_n4)[:200]
            for number, *start in position_n4.tolist():
                label_zyx = getattr(self.bank, f"label_{number}")
                part = label_zyx[tuple(slice(a, a + n) for a, n in zip(start, self.tile, strict=True))]
                counts += [int((part == c).sum()) for c in (0, 1)]
            self.batch_prior = float(counts[1] / counts.sum())
        self.summary = {**draws.summary(), "batch_prior": self.batch_prior}

    def val_dataloader(self) -> SlabLoader:
        """This rank's validation slices, or slabs for a 3D network."""
        if self.spatial_dims == 2:
            return super().val_dataloader()
        return SlabLoader(self.splits.validation, self.normalization)

    def gather(self, batch: Batch) -> Batch:
        """Gather and augment the voxels."""
        position_b4, symmetry_b, seed_b = (cast(Tensor, batch[k]) for k in ("position_b4", "symmetry_b", "seed_b"))
        ways = TILE_SYMMETRIES[self.augment]
        image, label = self.bank.gather(position_b4, [ways[i] for i in symmetry_b.tolist()], self.tile)
        if self.augmentation is not None:
            before, after = self.margin  # the label is padded by the margin during augmentation
            image, label = self.augmentation(image, pad(label, (before, after, before, after), value=IGNORE), seed_b)
            Y, X = label.shape[-2:]
            label = label[..., before : Y - after, before : X - after]
        return {"image": image, "label": label, "position_b4": position_b4, "weight": batch["weight"]}


def data_module(
    recipe: Callable[..., Recipe],
    *,
    tile: tuple[int, int, int] | None = None,
    **options: Any,  # noqa: ANN401
) -> BlockDataModule | TileDataModule:
    """The datamodule for tiles of (z, y, x) voxels, or for blocks if no tile size is given.

    ``options`` may include those of both `BlockDataModule` and `TileDataModule`; those of the other are ignored.
    """
    if tile is None and options.get("window") is None:
        raise UserError("this network is trained on whole tiles", None, "give data.tile=[z,y,x]")
    shared, blocks, tiles = (
        set(signature(module).parameters) for module in (RegionDataModule, BlockDataModule, TileDataModule)
    )
    if tile is None:
        return BlockDataModule(recipe, **{k: v for k, v in options.items() if k not in tiles - blocks - shared})
    return TileDataModule(recipe, tile=tile, **{k: v for k, v in options.items() if k not in blocks - tiles - shared})
