r"""Post-processing of volumes that are too large for memory; the result is that of `Postprocess` on the whole array.

Local steps see a block and the halo around it, but nothing beyond the faces of the volume. Steps that need whole
slices (min_mean, watershed, fill_slices) get blocks of whole slices, with a halo along z alone. For fill_holes and
min_volume components are joined across blocks. A mask in between lies in memory while it is small, else as Zarr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoseg.engines import Engine, LocalEngine, one_at_a_time
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.blockwise import (
    CHUNK,
    Joiner,
    Labels,
    Objects,
    least_voxels,
    relabel_block,
    store,
    summarize_block,
)
from mitoseg.segmentation.postprocess import Postprocess
from mitoseg.volumes.base import Volume, VolumeInfo, mask_volume

Mask8 = npt.NDArray[np.uint8]
Chosen = npt.NDArray[np.bool_]
BLOCK = (64, 512, 512)  # voxels (z, y, x) cleaned at once


@dataclass(frozen=True)
class Cleaner:
    """Cleans volumes."""

    steps: Postprocess
    folder: Path  # of masks between two steps, if they are large; every worker of the engine must see it
    engine: Engine | None = None  # started; None: this process; others read the volumes themselves
    block: tuple[int, int, int] = BLOCK  # (z, y, x) voxels at once; it does not change the result
    in_memory: int = 2**28  # voxels up to which masks stay in memory, where the engine is this process

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
        """The mask, a volume of uint8, 0 and 1, in memory or in ``folder``; see `Postprocess`.

        The probability is stored times ``scale``; ``on_box`` takes each block that the first pass is done with.
        """
        spacing = self.steps.spacing(voxel_size)
        halo = self.steps.halo(spacing)
        block = self.block
        if self.steps.by_slice:  # as many voxels in whole slices, not much thinner than the halo
            _, y, x = probability.shape
            slices = max(math.prod(block) // (y * x), 2 * halo[0], 1)
            block = (slices - slices % CHUNK[0] or slices, y, x)
        whole = max((part.grow(halo).clip(probability.box).size for part in tiles(probability.box, block)), default=0)
        self.steps.check_memory(whole, self.engine)
        local = _Local(self.steps, probability, threshold, scale, spacing, image)
        mask = self._store("local", local, block, on_box)
        if self.steps.fill_holes:
            outside = mask_volume(mask, np.logical_not)
            objects, tables = self._components(outside, 6)
            hole = ~objects.touches_border(mask.shape)
            if hole.any():
                mask = self._store("filled", _Chosen(outside, _of_labels(hole, tables), 6, mask))
        if self.steps.min_volume is not None:
            objects, tables = self._components(mask, 26)
            large = objects.voxels >= least_voxels(self.steps.min_volume, spacing)
            if not large.all():
                mask = self._store("large", _Chosen(mask, _of_labels(large, tables), 26))
        return mask

    def _components(self, mask: Volume, connectivity: int) -> tuple[Objects, dict[Box, Labels]]:
        joiner = Joiner()
        (self.engine or LocalEngine()).map(
            partial(summarize_block, mask, connectivity=connectivity),
            tiles(mask.box, self.block),
            lambda _, summary: joiner.add(summary),
        )
        return joiner.finish()

    def _store(
        self,
        name: str,
        mask: Volume,
        block: tuple[int, int, int] | None = None,
        on_box: Callable[[Box], None] | None = None,
    ) -> Volume:
        path, most = self.folder / f"{name}.zarr", self.in_memory
        return store(mask, block or self.block, path, engine=self.engine, in_memory=most, on_block=on_box)


def _of_labels(chosen: Chosen, tables: Mapping[Box, Labels]) -> dict[Box, Chosen]:
    """For each block, which of its labels are among the chosen objects; 0 is not."""
    of_objects = np.concatenate([[False], chosen])
    return {block: of_objects[table] for block, table in tables.items()}


class _MaskOf(Volume):
    """A mask that is made of another volume."""

    def __init__(self, volume: Volume) -> None:
        mask8 = np.dtype(np.uint8)
        super().__init__(VolumeInfo(volume.path, volume.shape, mask8, volume.voxel_size, {"kind": "mask"}))


class _Local(_MaskOf):
    """What the steps that need no more than a halo make of a probability."""

    def __init__(
        self,
        steps: Postprocess,
        probability: Volume,
        threshold: float,
        scale: float,
        spacing: Sequence[float],
        image: Volume | None,
    ) -> None:
        super().__init__(probability)
        self._steps, self._probability, self._image = steps, probability, image
        self._threshold, self._scale, self._spacing = threshold, scale, spacing

    def _read(self, box: Box) -> Mask8:
        read = box.grow(self._steps.halo(self._spacing)).clip(self.box)
        stored_zyx = self._probability.read(read)
        image_zyx = None if self._image is None or self._steps.watershed is None else self._image.read(read)
        with one_at_a_time():
            probability_zyx = stored_zyx.astype(np.float32) / np.float32(self._scale)
            stages = list(self._steps.local_stages(probability_zyx, self._threshold, self._spacing, image_zyx))
            return stages[-1][1][box.inside(read).slices].astype(np.uint8)


class _Chosen(_MaskOf):
    """The components of a mask whose labels are chosen in each block, with what is set in ``onto``.

    It is read along the grid of blocks that the components were found in.
    """

    def __init__(
        self, mask: Volume, chosen: Mapping[Box, Chosen], connectivity: int, onto: Volume | None = None
    ) -> None:
        super().__init__(mask)
        self._mask, self._chosen, self._connectivity, self._onto = mask, chosen, connectivity, onto

    def part(self, box: Box) -> Volume:
        """See `Volume.part`."""
        return _Chosen(self._mask, {box: self._chosen[box]}, self._connectivity, self._onto)

    def _read(self, box: Box) -> Mask8:
        chosen_zyx = relabel_block(self._mask, box, self._chosen[box], self._connectivity)
        if self._onto is not None:
            chosen_zyx |= self._onto.read(box).astype(bool)
        return chosen_zyx.astype(np.uint8)
