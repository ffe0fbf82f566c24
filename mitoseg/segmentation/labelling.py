r"""From a mask to numbered mitochondria, at any size.

    mask --> components of each block --> joined across blocks --> touching ones cut --> small ones left out --> ids

Ids run from 1 to N in the order of the objects' first voxels (z, then y, then x). Cutting works on one whole component
at a time. So the result does not depend on the blocks, nor on the order in which they are computed, nor on who does
it: an engine maps blocks, then components, then blocks again, and only tables come together here.

Objects that the volume's border cuts get ids like any other. `Objects.touches_border` says which they are: those
whose bounding box reaches a face of the volume. Their size and shape are those of the part that is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.engines import Engine, LocalEngine
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.block_labels import BlockSummary, summarize_block
from mitoseg.segmentation.block_writing import BoxWriter, write_blocks
from mitoseg.segmentation.instances import InstanceVolume, number_objects
from mitoseg.segmentation.joining import Joiner
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.parts import Parts, Splitter
from mitoseg.volumes.base import ArrayVolume, Volume

BLOCK = (64, 512, 512)
"""Voxels (z, y, x) labelled at once, unless memory is short."""
VOXEL_BYTES = 24
"""Of each of them."""


def label_volume(
    mask: Volume,
    labelling: Labelling | None = None,
    *,
    voxel_size: Sequence[float] | None = None,
    block: tuple[int, int, int] | None = None,
    on_block: Callable[[Box], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
) -> InstanceVolume:
    """Number the mitochondria of a mask.

    Args:
        mask: Not zero is foreground. It is read twice, block by block, and must not change in between.
        labelling: How; None for connected components.
        voxel_size: (z, y, x) in nm; None: the mask's.
        block: (z, y, x) voxels at once, None: `BLOCK`, or what fits. It does not change the result.
        on_block: Called with each block that the first pass is done with.
        metadata: Of the result, besides its kind and how it was made.
        engine: Started; others than this process read the mask for themselves. None: this process.

    Returns:
        A lazy volume of uint32 ids, 0 for background, with a table of the objects. `write_instances` writes it.

    Raises:
        UserError: A length is given in nm and the voxel size is not known, or there are too many objects.
    """
    labelling = labelling or Labelling()
    size = voxel_size or mask.voxel_size
    spacing = labelling.spacing(size)
    engine, joiner = engine or LocalEngine(), Joiner()
    block = block or engine.fit(BLOCK, VOXEL_BYTES)

    def take(part: Box, summary: BlockSummary) -> None:
        joiner.add(summary)
        if on_block is not None:
            on_block(part)

    engine.map(partial(summarize_block, mask, connectivity=labelling.connectivity), tiles(mask.box, block), take)
    components, tables = joiner.finish()
    found: dict[int, Parts] = {}

    def keep(item: tuple[int, object], parts: Parts | None) -> None:
        if parts is not None:
            found[item[0]] = parts

    if labelling.split:
        splitter = Splitter(mask, labelling, spacing)
        engine.map(splitter, splitter.choose(components), keep)
    numbers = number_objects(components, found, labelling.min_volume, spacing)
    made = {"labelling": asdict(labelling), **(metadata or {})}
    return InstanceVolume(mask, numbers, tables, block, labelling.connectivity, size, made)


def label_array(
    mask_zyx: npt.NDArray[Any], labelling: Labelling | None = None, *, voxel_size: Sequence[float] | None = None
) -> npt.NDArray[np.uint32]:
    """`label_volume` of an array in memory.

    >>> label_array(np.array([[[1, 0, 1, 1]]])).tolist()
    [[[1, 0, 2, 2]]]
    """
    return label_volume(ArrayVolume(mask_zyx), labelling, voxel_size=voxel_size).read()


def write_instances(
    instances: InstanceVolume,
    writer: BoxWriter,
    *,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
) -> None:
    """Hand the ids to a writer, block by block; see `mitoseg.segmentation.block_writing.write_blocks`.

    Args:
        instances: What `label_volume` gave.
        writer: Such as `mitoseg.volumes.create_volume` gives, of uint32.
        on_block: Called with each block that is written.
        engine: Started; None: this process.
    """
    write_blocks(instances, instances.block, writer, on_block=on_block, engine=engine)
