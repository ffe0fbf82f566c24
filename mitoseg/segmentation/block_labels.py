r"""Connected components of a volume that is too large for memory: block by block, then across the blocks.

A block is read with one voxel more at its far sides, which is the first layer of the next block:

    block A    0 1 2 3|4
    block B           |4 5 6 7|8

Two voxels that touch, be it by a corner, have a corner of smallest coordinates in common, and the block that holds
this corner reads both. So components of what is read know of every contact, whatever the connectivity, and blocks are
joined by saying that a voxel of a shared layer is one voxel. Layers between blocks that meet in a face are enough:
those at edges and corners lie in several of them.

The three steps are separate, so that the first and the last can be done anywhere: `summarize_block` and
`relabel_block` need a block alone, `mitoseg.segmentation.joining` the summaries of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import cc3d
import numpy as np
import numpy.typing as npt

from mitoseg.engines import one_at_a_time
from mitoseg.geometry import Box
from mitoseg.segmentation.objects import Objects, measure_objects
from mitoseg.segmentation.packing import Packed, pack
from mitoseg.volumes.base import Array, Volume

Labels = npt.NDArray[np.uint32]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class BlockSummary:
    """What other blocks need to know of a block.

    Attributes:
        block: Where it lies.
        pieces: Its components, measured without the layer that belongs to the next block.
        near: For each axis, the labels of its first layer; None at the volume's start.
        far: For each axis, the labels of the layer shared with the next block; None at the volume's end.
    """

    block: Box
    pieces: Objects
    near: tuple[Packed | None, ...]
    far: tuple[Packed | None, ...]


def summarize_block(mask: Volume, block: Box, connectivity: int) -> BlockSummary:
    """Components of one block.

    Args:
        mask: Not zero is foreground.
        block: Part of a regular grid of blocks.
        connectivity: 6, 18 or 26.
    """
    mask_zyx = _read(mask, block)
    with one_at_a_time():
        label_zyx, count = label_components(mask_zyx, connectivity)
        own = tuple(slice(0, n) for n in block.shape)
        pieces = measure_objects(label_zyx[own], count, block.start, mask.shape)
        near = tuple(pack(np.take(label_zyx, 0, axis)) if a else None for axis, a in enumerate(block.start))
        far = tuple(
            pack(np.take(label_zyx, n, axis)) if label_zyx.shape[axis] > n else None
            for axis, n in enumerate(block.shape)
        )
    return BlockSummary(block, pieces, near, far)


def relabel_block(mask: Volume, block: Box, table: npt.NDArray[Value], connectivity: int) -> npt.NDArray[Value]:
    """The voxels of one block with what their components are in the whole volume.

    Args:
        mask: As given to `summarize_block`; its components are computed again, which costs less than storing them.
        block: The same.
        table: From the block's labels to those of the volume, or to anything else.
        connectivity: The same.
    """
    mask_zyx = _read(mask, block)
    with one_at_a_time():
        label_zyx, _ = label_components(mask_zyx, connectivity)
        return table[label_zyx[tuple(slice(0, n) for n in block.shape)]]


def _read(mask: Volume, block: Box) -> Array:
    """A block with the first layers of those after it."""
    return mask.read(Box(block.start, tuple(n + 1 for n in block.stop)).clip(mask.box))


def label_components(mask_zyx: npt.NDArray[np.generic], connectivity: int) -> tuple[Labels, int]:
    """Components of an array in memory, and how many there are; in no stated order."""
    foreground_zyx = np.ascontiguousarray(mask_zyx != 0).view(np.uint8)  # cc3d 4.1 fails on some tiny bool arrays
    options: dict[str, Any] = {"connectivity": connectivity, "return_N": True, "out_dtype": np.uint32}
    label_zyx, count = cc3d.connected_components(foreground_zyx, **options)
    return label_zyx, int(count)
