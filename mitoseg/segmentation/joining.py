"""The components of a volume from those of its blocks, as these come in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mitoseg.geometry import Box
from mitoseg.segmentation.block_labels import BlockSummary, Labels
from mitoseg.segmentation.objects import Objects, join_objects, unite_objects
from mitoseg.segmentation.packing import Packed, unpack

Pairs = npt.NDArray[np.int64]


class Joiner:
    """Takes summaries of the blocks of a grid, in any order; a layer is kept until the other block has shown its own.

    What grows with the volume is the table of pieces, the pairs of them that touch, and one run of blocks' layers.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[Box, int]] = []
        self._pieces: list[Objects] = []
        self._total = 0
        self._pairs: list[Pairs] = [np.zeros((0, 2), np.int64)]
        self._waiting: dict[tuple[int, tuple[int, ...]], tuple[int, Packed]] = {}

    def add(self, summary: BlockSummary) -> None:
        """Take one block."""
        block, offset = summary.block, self._total
        self._blocks.append((block, offset))
        self._pieces.append(summary.pieces)
        self._total += len(summary.pieces)
        for axis, (near, far) in enumerate(zip(summary.near, summary.far, strict=True)):
            if near is not None:
                self._meet(axis, block.start, offset, near)
            if far is not None:
                next_start = (*block.start[:axis], block.stop[axis], *block.start[axis + 1 :])
                self._meet(axis, next_start, offset, far)

    def _meet(self, axis: int, start: tuple[int, ...], offset: int, face: Packed) -> None:
        """One of the two views of the first layer of the block at ``start``; the second that comes finds the first."""
        other = self._waiting.pop((axis, start), None)
        if other is None:
            self._waiting[axis, start] = (offset, face)
            return
        mine, theirs = unpack(face), unpack(other[1])
        both = np.stack([mine, theirs], -1)[mine > 0].astype(np.int64)
        if len(both):
            self._pairs.append(np.unique(both, axis=0) - 1 + np.array([offset, other[0]]))

    def finish(self) -> tuple[Objects, dict[Box, Labels]]:
        """The components when all blocks are there; see `merge_blocks`."""
        total = self._total
        first, second = np.concatenate(self._pairs).T
        contacts = coo_array((np.ones(len(first), bool), (first, second)), (total, total))
        count, group = connected_components(contacts, directed=False) if total else (0, np.zeros(0, np.int32))
        joined = unite_objects(join_objects(self._pieces), group, count)
        order = np.argsort(joined.first)
        rank = np.empty(count, np.uint32)
        rank[order] = np.arange(1, count + 1)
        ends = [*(offset for _, offset in self._blocks[1:]), total]
        tables = {
            block: np.concatenate([[0], rank[group[a:b]]]).astype(np.uint32)
            for (block, a), b in zip(self._blocks, ends, strict=True)
        }
        return joined.take(order), tables


def merge_blocks(summaries: Iterable[BlockSummary]) -> tuple[Objects, dict[Box, Labels]]:
    """Join the components of all blocks.

    Args:
        summaries: Of every block of a grid, in any order.

    Returns:
        The components, ordered by their first voxel, and for each block the table from its labels (0 included) to
        theirs.
    """
    joiner = Joiner()
    for summary in summaries:
        joiner.add(summary)
    return joiner.finish()
