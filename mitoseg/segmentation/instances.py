"""Numbered mitochondria as a lazy volume: ids are computed block by block where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, meeting, tiles
from mitoseg.segmentation.block_labels import relabel_block
from mitoseg.segmentation.objects import Objects, join_objects, least_voxels
from mitoseg.segmentation.parts import Parts
from mitoseg.volumes.base import Volume, VolumeInfo
from mitoseg.volumes.units import check_voxel_size

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Numbers:
    """The ids of all objects.

    Attributes:
        objects: Row ``i`` is the object of id ``i + 1``.
        whole: (components + 1,) the id of each component; 0 for background, what is left out, and what was cut.
        parts: What was cut, with the id of each part (value 0 included).
    """

    objects: Objects
    whole: Ids
    parts: tuple[tuple[Parts, Ids], ...]


def number_objects(
    components: Objects, cut: Mapping[int, Parts], min_volume: float | None, voxel_size: Sequence[float]
) -> Numbers:
    """Number components and parts by their first voxels, without those that are too small.

    Args:
        components: As `mitoseg.segmentation.joining.merge_blocks` gives them.
        cut: The parts of some of them, by row.
        min_volume: In nm3; None keeps all.
        voxel_size: (z, y, x) in nm.

    Raises:
        UserError: There are more objects than 32 bits can number.
    """
    rows = sorted(cut)
    everything = join_objects([components, *(cut[row].objects for row in rows)])
    kept = everything.voxels >= (least_voxels(min_volume, voxel_size) if min_volume else 1)
    kept[rows] = False
    order = np.flatnonzero(kept)
    order = order[np.argsort(everything.first[order])]
    if len(order) > np.iinfo(np.uint32).max:
        raise UserError("too many objects for 32 bits", len(order), "leave out small ones with labelling.min_volume=")
    ids = np.zeros(len(everything), np.uint32)
    ids[order] = np.arange(1, len(order) + 1)
    ends = np.cumsum([len(components), *(len(cut[row].objects) for row in rows)])
    parts = tuple(
        (cut[row], np.concatenate([[0], ids[a:b]]).astype(np.uint32))
        for row, a, b in zip(rows, ends[:-1], ends[1:], strict=True)
    )
    whole = np.concatenate([[0], ids[: len(components)]]).astype(np.uint32)
    return Numbers(everything.take(order), whole, parts)


class InstanceVolume(Volume):
    """Ids from 1 to N, uint32, 0 for background; `mitoseg.segmentation.labelling.label_volume` makes it.

    Attributes:
        objects: Row ``i`` is the object of id ``i + 1``: voxels, bounding box, first voxel.
        block: (z, y, x) voxels that are computed at once; reading along this grid computes each once.
    """

    def __init__(
        self,
        mask: Volume,
        numbers: Numbers,
        tables: Mapping[Box, Ids],
        block: tuple[int, int, int],
        connectivity: int,
        voxel_size: Sequence[float] | None,
        metadata: Mapping[str, Any],
    ) -> None:
        size = None if voxel_size is None else check_voxel_size(voxel_size)
        about = {"kind": "instances", **metadata}
        super().__init__(VolumeInfo(mask.path, mask.shape, np.dtype(np.uint32), size, about))
        self.objects = numbers.objects
        self._mask, self.block, self._connectivity = mask, block, connectivity
        self._tables = {part: numbers.whole[table] for part, table in tables.items()}
        self._parts: dict[Box, list[tuple[Parts, Ids]]] = {}
        for parts, ids in numbers.parts:
            for there in self._meeting(parts.box):
                self._parts.setdefault(there, []).append((parts, ids))

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def touches_border(self) -> npt.NDArray[np.bool_]:
        """(N,) which objects the volume's border cuts."""
        return self.objects.touches_border(self.shape)

    def blocks(self) -> Iterator[Box]:
        """The grid of blocks; reading along it computes each block once."""
        return tiles(self.box, self.block)

    def part(self, box: Box) -> InstanceVolume:
        """The same volume as far as a box needs it, without the table of objects; see `Volume.part`."""
        blocks, small = list(self._meeting(box)), copy(self)
        small.objects = self.objects.take(np.zeros(0, np.int64))
        small._tables = {block: self._tables[block] for block in blocks}
        small._parts = {block: self._parts[block] for block in blocks if block in self._parts}
        return small

    def read(self, box: Box | None = None) -> Ids:
        """Read one box as ``id_zyx``; see `Volume.read`."""
        box = self.check_box(box)
        id_zyx = np.zeros(box.shape, np.uint32)
        for block in self._meeting(box):
            common = block.clip(box)
            id_zyx[common.inside(box).slices] = self._compute(block)[common.inside(block).slices]
        return id_zyx

    def _meeting(self, box: Box) -> Iterator[Box]:
        """Blocks that hold a part of the box."""
        return meeting(self.box, self.block, box)

    def _compute(self, block: Box) -> Ids:
        """All ids of a block."""
        id_zyx = relabel_block(self._mask, block, self._tables[block], self._connectivity)
        for parts, ids in self._parts.get(block, ()):
            common = parts.box.clip(block)
            part_zyx = parts.unpack()[common.inside(parts.box).slices]
            there = part_zyx > 0
            id_zyx[common.inside(block).slices][there] = ids[part_zyx[there]]
        return id_zyx
