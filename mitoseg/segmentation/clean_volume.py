r"""Post-processing of a volume of any size: the voxels that `Postprocess` gives for the whole array, block by block.

    probability --> steps that look a few voxels far --> holes --> small components --> mask
                    each block with a halo               components of blocks, joined across blocks

A block is read with as many voxels round it as its steps look at, one after the other; steps that look at a whole
slice get whole slices. Whether background is a hole, and a component small, is known when all blocks have been seen:
these are components as `mitoseg.segmentation.labelling` finds them. Each pass leaves a mask in a folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.engines import Engine, one_at_a_time
from mitoseg.geometry import Box
from mitoseg.segmentation.block_writing import write_blocks
from mitoseg.segmentation.labelling import BLOCK, label_volume
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.postprocess import Postprocess
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.opening import open_volume
from mitoseg.volumes.writing import create_volume

_VOXELS = 2**25
"""Read at once where whole slices are needed, if a slice with its halo is not more."""


@dataclass(frozen=True)
class Source:
    """What is post-processed.

    Attributes:
        probability: Stored times ``scale``.
        threshold: At and above which a voxel is foreground.
        scale: The stored value of probability 1.
        voxel_size: (z, y, x) in nm, if it is known.
        image: The EM image, whose edges the watershed follows.
    """

    probability: Volume
    threshold: float
    scale: float = 1.0
    voxel_size: Sequence[float] | None = None
    image: Volume | None = None


def clean_volume(
    steps: Postprocess,
    source: Source,
    folder: Path,
    *,
    engine: Engine | None = None,
    block: tuple[int, int, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Volume:
    """The mask that post-processing makes.

    Args:
        steps: What is done.
        source: To what.
        folder: An empty one, in which the passes leave their masks; all processes of the engine must see it.
        engine: Started; None: this process.
        block: (z, y, x) voxels at once, None: `BLOCK`, or some whole slices. It does not change the result.
        metadata: Of the result.

    Returns:
        Zeros and ones, stored in the folder.

    Raises:
        UserError: A step needs the voxel size, there is too little memory, or the source cannot be read.
    """
    near = NearSteps(steps, source)
    store = partial(_stored, folder, metadata or {"kind": "mask"}, engine)
    mask = store("near", near, block or near.block())
    options: dict[str, Any] = {"block": block, "engine": engine}
    if steps.fill_holes:
        outside = label_volume(Chosen(mask, inverted=True), Labelling(6), **options)
        filled = Filled(mask, outside.only(~outside.touches_border))
        mask = store("filled", filled, outside.block)
    if steps.min_volume is not None:
        labelling = Labelling(26, min_volume=steps.min_volume)
        large = label_volume(mask, labelling, voxel_size=source.voxel_size, **options)
        mask = store("large", Chosen(large), large.block)
    return mask


def _stored(
    folder: Path,
    metadata: Mapping[str, Any],
    engine: Engine | None,
    name: str,
    mask: Volume,
    block: tuple[int, int, int],
) -> Volume:
    """A mask that need not be computed again."""
    path = folder.absolute() / f"{name}.zarr"
    options: dict[str, Any] = {"voxel_size": mask.voxel_size, "chunks": block, "metadata": metadata}
    with create_volume(path, mask.shape, np.uint8, **options) as writer:
        write_blocks(mask, block, writer, engine=engine)
    return open_volume(str(path))


class NearSteps(Volume):
    """The mask after the steps that look a known number of voxels far, computed where it is read.

    Args:
        steps: Those that need the whole volume are left out.
        source: What is post-processed.

    Raises:
        UserError: A step needs the voxel size.
    """

    def __init__(self, steps: Postprocess, source: Source) -> None:
        self.steps, self.source = replace(steps, fill_holes=False, min_volume=None), source
        self._halo = steps.halo(steps.spacing(source.voxel_size))
        about = source.probability.info
        super().__init__(VolumeInfo(about.path, about.shape, np.dtype(np.uint8), about.voxel_size))

    def block(self) -> tuple[int, int, int]:
        """What is best read at once: `BLOCK`, or a power of two of whole slices."""
        _, y, x = self.shape
        if not self.steps.whole_slices:
            return BLOCK
        depth = max(_VOXELS // (y * x) - 2 * self._halo[0], 1)
        return (min(2 ** int(math.log2(depth)), BLOCK[0]), y, x)

    def read(self, box: Box | None = None) -> Array:
        """Read one box as ``mask_zyx`` of 0 and 1; see `Volume.read`."""
        box = self.check_box(box)
        outer = box.grow(self._halo).clip(self.box)
        if self.steps.whole_slices:
            outer = Box((outer.start[0], 0, 0), (outer.stop[0], *self.shape[1:]))
        stored_zyx = self.source.probability.read(outer)
        image = None if self.steps.watershed is None else self.source.image
        image_zyx = None if image is None else image.read(outer)
        with one_at_a_time():
            probability_zyx = stored_zyx.astype(np.float32) / np.float32(self.source.scale)
            mask_zyx = self.steps(probability_zyx, self.source.threshold, self.source.voxel_size, image_zyx)
            return np.ascontiguousarray(mask_zyx[box.inside(outer).slices])


class Chosen(Volume):
    """Zeros and ones: where a volume is not zero, or where it is."""

    def __init__(self, volume: Volume, *, inverted: bool = False) -> None:
        super().__init__(VolumeInfo(volume.path, volume.shape, np.dtype(np.uint8), volume.voxel_size))
        self._volume, self._inverted = volume, inverted

    def part(self, box: Box) -> Volume:
        """See `Volume.part`."""
        return Chosen(self._volume.part(box), inverted=self._inverted)

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        values_zyx = self._volume.read(box)
        chosen_zyx: Array = np.equal(values_zyx, 0) if self._inverted else np.not_equal(values_zyx, 0)
        return chosen_zyx.astype(np.uint8)


class Filled(Volume):
    """A mask and its holes, both as zeros and ones."""

    def __init__(self, mask: Volume, holes: Volume) -> None:
        super().__init__(mask.info)
        self._mask, self._holes = mask, holes

    def part(self, box: Box) -> Volume:
        """See `Volume.part`."""
        return Filled(self._mask, self._holes.part(box))

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        filled_zyx: Array = self._mask.read(box) | (self._holes.read(box) != 0).astype(np.uint8)
        return filled_zyx
