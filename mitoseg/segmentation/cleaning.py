r"""Post-processing of volumes that are too large for memory; the result is that of `Postprocess` on the whole array.

    local steps     smooth ... fill_slices: a block with what its voxels can see around it, the halo
    fill_holes      components of the background, joined across blocks: those that no face of the volume cuts are holes
    min_volume      components of the mask, joined across blocks: their sizes decide

        +-----------+
        |   halo    |     Steps that need whole slices (min_mean, watershed, fill_slices) get blocks of whole slices,
        | +-------+ |     with a halo along z alone. At a face of the volume there is none: there the steps see the
        | | block | |     border as they would in the whole array.
        | +-------+ |
        +-----------+

A mask between two of these lies in memory while it is small, else as Zarr in a folder that every worker sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.engines import Engine, LocalEngine
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.block_labels import BlockSummary, Labels, merge_blocks, relabel_block, summarize_block
from mitoseg.segmentation.objects import Objects, least_voxels
from mitoseg.segmentation.postprocess import Postprocess
from mitoseg.segmentation.smoothing import Mask
from mitoseg.segmentation.storing import CHUNK, compute_volume
from mitoseg.volumes.base import Volume, VolumeInfo
from mitoseg.volumes.masks import MaskVolume

BLOCK = (64, 512, 512)
"""Voxels (z, y, x) cleaned at once."""


@dataclass(frozen=True)
class Cleaner:
    """Cleans volumes.

    Attributes:
        steps: What is done.
        folder: Where masks between two steps are kept if they are large; every worker of the engine must see it.
        engine: Started; None: this process. Others read the volumes themselves.
        block: (z, y, x) voxels at once; it does not change the result.
        in_memory: Voxels up to which masks stay in memory, where the engine is this process.
    """

    steps: Postprocess
    folder: Path
    engine: Engine | None = None
    block: tuple[int, int, int] = BLOCK
    in_memory: int = 2**28

    def __call__(
        self,
        probability: Volume,
        threshold: float,
        *,
        scale: float = 1.0,
        voxel_size: Sequence[float] | None = None,
        image: Volume | None = None,
        on_box: Callable[[Box], None] | None = None,
    ) -> Volume:
        """The mask.

        Args:
            probability: Calibrated, stored times ``scale``.
            threshold: Probability at and above which a voxel is foreground.
            scale: The stored value of probability 1.
            voxel_size: (z, y, x) in nm; lengths and volumes need it.
            image: The EM image, whose edges the watershed follows; without it those of the probability.
            on_box: Called with each block that the first pass is done with.

        Returns:
            A volume of uint8, 0 and 1, in memory or in ``folder``.

        Raises:
            UserError: A step needs the voxel size, or there is too little memory for a block.
        """
        spacing = self.steps.spacing(voxel_size)
        halo = self.steps.halo(spacing)
        blocks = list(tiles(probability.box, self._local_block(probability.shape, halo[0])))
        self.steps.check_memory(max(block.grow(halo).clip(probability.box).size for block in blocks))
        local = _Local(self.steps, probability, threshold, scale, spacing, image)
        mask = self._compute("local", local, [(block, None) for block in blocks], probability, on_box)
        if self.steps.fill_holes:
            mask = self._fill_holes(mask)
        if self.steps.min_volume is not None:
            mask = self._remove_small(mask, least_voxels(self.steps.min_volume, spacing))
        return mask

    def _local_block(self, shape: tuple[int, int, int], depth: int) -> tuple[int, int, int]:
        """Blocks of as many voxels, in whole slices if a step needs them, and then not much thinner than the halo."""
        if not self.steps.by_slice:
            return self.block
        slices = max(math.prod(self.block) // (shape[1] * shape[2]), 2 * depth, 1)
        return (slices - slices % CHUNK[0] or slices, shape[1], shape[2])

    def _fill_holes(self, mask: Volume) -> Volume:
        outside = MaskVolume(mask, np.logical_not)
        objects, tables = self._components(outside, 6)
        hole = np.concatenate([[False], ~objects.touches_border(mask.shape)])
        if not hole.any():
            return mask
        items = [(block, hole[table]) for block, table in tables.items()]
        return self._compute("filled", partial(_fill, mask, outside), items, mask)

    def _remove_small(self, mask: Volume, least: int) -> Volume:
        objects, tables = self._components(mask, 26)
        large = np.concatenate([[False], objects.voxels >= least])
        if large[1:].all():
            return mask
        items = [(block, large[table]) for block, table in tables.items()]
        return self._compute("large", partial(_keep, mask), items, mask)

    def _components(self, mask: Volume, connectivity: int) -> tuple[Objects, dict[Box, Labels]]:
        summaries: list[BlockSummary] = []
        (self.engine or LocalEngine()).map(
            partial(summarize_block, mask, connectivity=connectivity),
            tiles(mask.box, self.block),
            lambda _, summary: summaries.append(summary),
        )
        return merge_blocks(summaries)

    def _compute(
        self,
        name: str,
        function: Callable[[Box, Any], Mask],
        items: Sequence[tuple[Box, Any]],
        like: Volume,
        on_box: Callable[[Box], None] | None = None,
    ) -> Volume:
        info = VolumeInfo(like.path, like.shape, np.dtype(np.uint8), like.voxel_size, {"kind": "mask"})
        options = {"engine": self.engine, "in_memory": self.in_memory, "on_box": on_box}
        return compute_volume(function, items, info, self.folder / f"{name}.zarr", **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Local:
    """The steps that a voxel's surroundings decide."""

    steps: Postprocess
    probability: Volume
    threshold: float
    scale: float
    spacing: Sequence[float]
    image: Volume | None

    def __call__(self, block: Box, _: None) -> Mask:
        """The mask of one block."""
        read = block.grow(self.steps.halo(self.spacing)).clip(self.probability.box)
        probability_zyx = self.probability.read(read).astype(np.float32) / np.float32(self.scale)
        image_zyx = None if self.image is None or self.steps.watershed is None else self.image.read(read)
        stages = list(self.steps.local_stages(probability_zyx, self.threshold, self.spacing, image_zyx))
        return stages[-1][1][block.inside(read).slices]


def _fill(mask: Volume, outside: Volume, block: Box, hole: Mask) -> Mask:
    return mask.read(block).astype(bool) | relabel_block(outside, block, hole, 6)


def _keep(mask: Volume, block: Box, large: Mask) -> Mask:
    return relabel_block(mask, block, large, 26)
