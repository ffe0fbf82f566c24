r"""From a mask to numbered mitochondria, at any size.

    mask --> components of each block --> joined across blocks --> touching ones cut --> small ones left out --> ids

Ids run from 1 to N in the order of the objects' first voxels (z, then y, then x). Cutting works on one whole component
at a time. So the result does not depend on the blocks, nor on the order in which they are computed.

Objects that the volume's border cuts get ids like any other. `Objects.touches_border` says which they are: those
whose bounding box reaches a face of the volume. Their size and shape are those of the part that is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.block_labels import merge_blocks, summarize_block
from mitoseg.segmentation.instances import InstanceVolume, number_objects
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.parts import Parts, split_component
from mitoseg.volumes.base import Array, ArrayVolume, Volume

BLOCK = (64, 512, 512)
"""Voxels (z, y, x) labelled at once, at some 15 bytes each."""


class BoxWriter(Protocol):
    """Whatever takes finished boxes, such as a volume writer."""

    def write(self, box: Box, array_zyx: Array, /) -> None:
        """Take the voxels of one box."""


def label_volume(
    mask: Volume,
    labelling: Labelling | None = None,
    *,
    voxel_size: Sequence[float] | None = None,
    block: tuple[int, int, int] | None = None,
    on_block: Callable[[Box], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> InstanceVolume:
    """Number the mitochondria of a mask.

    Args:
        mask: Not zero is foreground. It is read twice, block by block, and must not change in between.
        labelling: How; None for connected components.
        voxel_size: (z, y, x) in nm; None: the mask's.
        block: (z, y, x) voxels at once, None: `BLOCK`. It does not change the result.
        on_block: Called with each block that the first pass is done with.
        metadata: Of the result, besides its kind and how it was made.

    Returns:
        A lazy volume of uint32 ids, 0 for background, with a table of the objects. `write_instances` writes it.

    Raises:
        UserError: A length is given in nm and the voxel size is not known, or there are too many objects.
    """
    labelling = labelling or Labelling()
    size = voxel_size or mask.voxel_size
    spacing = labelling.spacing(size)
    block, summaries = block or BLOCK, []
    for part in tiles(mask.box, block):
        summaries.append(summarize_block(mask, part, labelling.connectivity))
        if on_block is not None:
            on_block(part)
    components, tables = merge_blocks(summaries)
    found: dict[int, Parts] = {}
    if labelling.split:
        for row in range(len(components)):
            parts = split_component(mask, components.take(np.array([row])), labelling, spacing)
            if parts is not None:
                found[row] = parts
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
    instances: InstanceVolume, writer: BoxWriter, *, on_block: Callable[[Box], None] | None = None
) -> None:
    """Hand the ids to a writer, block by block.

    Args:
        instances: What `label_volume` gave.
        writer: Such as `mitoseg.volumes.create_volume` gives, of uint32.
        on_block: Called with each block that is written.
    """
    for block in instances.blocks():
        writer.write(block, instances.read(block))
        if on_block is not None:
            on_block(block)
