r"""Connected components of a volume that is too large for memory: block by block, then across the blocks.

A block is read with one voxel more at its far sides, which is the first layer of the next block:

    block A    0 1 2 3|4
    block B           |4 5 6 7|8

Two voxels that touch, be it by a corner, have a corner of smallest coordinates in common, and the block that holds
this corner reads both. So components of what is read know of every contact, whatever the connectivity, and blocks are
joined by saying that a voxel of a shared layer is one voxel. Layers between blocks that meet in a face are enough:
those at edges and corners lie in several of them.

The three steps are separate, so that the first and the last can be done anywhere: `summarize_block` and
`relabel_block` need a block alone, `merge_blocks` the summaries of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cc3d
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mitoseg.geometry import Box
from mitoseg.segmentation.objects import Objects, join_objects, measure_objects, unite_objects
from mitoseg.volumes.base import Volume

Labels = npt.NDArray[np.uint32]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class BlockSummary:
    """What other blocks need to know of a block.

    Attributes:
        block: Where it lies.
        pieces: Its components, measured without the layer that belongs to the next block.
        near: For each axis, the labels of its first layer.
        far: For each axis, the labels of the layer shared with the next block; None at the volume's end.
    """

    block: Box
    pieces: Objects
    near: tuple[Labels, ...]
    far: tuple[Labels | None, ...]


def summarize_block(mask: Volume, block: Box, connectivity: int) -> BlockSummary:
    """Components of one block.

    Args:
        mask: Not zero is foreground.
        block: Part of a regular grid of blocks.
        connectivity: 6, 18 or 26.
    """
    label_zyx, count = _label(mask, block, connectivity)
    own = tuple(slice(0, n) for n in block.shape)
    pieces = measure_objects(label_zyx[own], count, block.start, mask.shape)
    near = tuple(np.take(label_zyx, 0, axis) for axis in range(3))
    far = tuple(
        np.take(label_zyx, n, axis) if label_zyx.shape[axis] > n else None for axis, n in enumerate(block.shape)
    )
    return BlockSummary(block, pieces, near, far)


def merge_blocks(summaries: Sequence[BlockSummary]) -> tuple[Objects, dict[Box, Labels]]:
    """Join the components of all blocks.

    Args:
        summaries: Of every block of a grid, in any order.

    Returns:
        The components, ordered by their first voxel, and for each block the table from its labels (0 included) to
        theirs.
    """
    summaries = sorted(summaries, key=lambda summary: summary.block.start)
    offset = np.cumsum([0, *(len(summary.pieces) for summary in summaries)])
    at = {summary.block.start: i for i, summary in enumerate(summaries)}
    pairs = [np.zeros((0, 2), np.int64)]
    for i, summary in enumerate(summaries):
        for axis, far in enumerate(summary.far):
            if far is not None:
                start = list(summary.block.start)
                start[axis] = summary.block.stop[axis]
                j = at[tuple(start)]
                both = np.stack([far, summaries[j].near[axis]], -1)[far > 0].astype(np.int64)
                pairs.append(np.unique(both, axis=0) - 1 + [offset[i], offset[j]])
    first, second = np.concatenate(pairs).T
    total = int(offset[-1])
    contacts = coo_array((np.ones(len(first), bool), (first, second)), (total, total))
    count, group = connected_components(contacts, directed=False) if total else (0, np.zeros(0, np.int32))
    joined = unite_objects(join_objects([summary.pieces for summary in summaries]), group, count)
    order = np.argsort(joined.first)
    rank = np.empty(count, np.uint32)
    rank[order] = np.arange(1, count + 1)
    tables = {
        summary.block: np.concatenate([[0], rank[group[a:b]]]).astype(np.uint32)
        for summary, a, b in zip(summaries, offset[:-1], offset[1:], strict=True)
    }
    return joined.take(order), tables


def relabel_block(mask: Volume, block: Box, table: npt.NDArray[Value], connectivity: int) -> npt.NDArray[Value]:
    """The voxels of one block with what their components are in the whole volume.

    Args:
        mask: As given to `summarize_block`; its components are computed again, which costs less than storing them.
        block: The same.
        table: From the block's labels to those of the volume, or to anything else.
        connectivity: The same.
    """
    label_zyx, _ = _label(mask, block, connectivity)
    return table[label_zyx[tuple(slice(0, n) for n in block.shape)]]


def _label(mask: Volume, block: Box, connectivity: int) -> tuple[Labels, int]:
    read = Box(block.start, tuple(n + 1 for n in block.stop)).clip(mask.box)
    return label_components(mask.read(read), connectivity)


def label_components(mask_zyx: npt.NDArray[np.generic], connectivity: int) -> tuple[Labels, int]:
    """Components of an array in memory, and how many there are; in no stated order."""
    foreground_zyx = np.ascontiguousarray(mask_zyx != 0).view(np.uint8)  # cc3d 4.1 fails on some tiny bool arrays
    options: dict[str, Any] = {"connectivity": connectivity, "return_N": True, "out_dtype": np.uint32}
    label_zyx, count = cc3d.connected_components(foreground_zyx, **options)
    return label_zyx, int(count)
