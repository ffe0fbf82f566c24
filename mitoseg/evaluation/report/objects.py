"""Instances for the report where only a mask is given, and the little that can be told of them without measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pandas import DataFrame

from mitoseg.evaluation.instances import SMALL
from mitoseg.geometry import Box, slabs, tiles
from mitoseg.segmentation.census import STARTS, STOPS, count_block, merge_counts
from mitoseg.segmentation.instances import InstanceVolume
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.volumes.base import Array, ArrayVolume, Volume, VolumeInfo

LARGEST = 2**28
"""Voxels whose ids are held in memory."""
SLAB_VOXELS = 2**22
"""Read at once."""


class Shifted(Volume):
    """An array that stands for one box of a volume; what lies beyond the box cannot be read.

    Args:
        array_zyx: Of the box.
        box: Where it lies.
        like: The volume whose shape and voxel size this one has.
    """

    def __init__(self, array_zyx: Array, box: Box, like: Volume) -> None:
        super().__init__(VolumeInfo(like.path, like.shape, array_zyx.dtype, like.voxel_size, {"kind": "instances"}))
        self._part, self._placed = ArrayVolume(array_zyx), box

    def read(self, box: Box | None = None) -> Array:
        """See `Volume.read`."""
        return self._part.read(self.check_box(box).inside(self._placed))


def hold(instances: Volume, box: Box | None = None, small: int = SMALL) -> Volume:
    """The ids of a box in memory, without small ones; as they are where they would take too much memory.

    Ids that are computed where they are read are computed once in this way, and not again for each slice.

    Args:
        instances: Ids from 1 to N, 0 for background.
        box: The part to hold; None: everything.
        small: Instances of fewer voxels in the box become background.
    """
    box = instances.check_box(box)
    if box.size > LARGEST:
        return instances
    few = isinstance(instances, InstanceVolume) and len(instances) < 2**16
    id_zyx = np.zeros(box.shape, np.uint16 if few else np.uint32)
    for part in tiles(box, BLOCK):
        id_zyx[part.inside(box).slices] = instances.read(part)
    voxels = np.zeros(int(id_zyx.max()) + 1, np.int64)
    for id_yx in id_zyx:  # slice by slice, as bincount makes eight bytes of each voxel
        voxels += np.bincount(id_yx.ravel(), minlength=len(voxels))
    kept = np.where(voxels >= small, np.arange(len(voxels), dtype=id_zyx.dtype), id_zyx.dtype.type(0))
    for id_yx in id_zyx:
        id_yx[:] = kept[id_yx]
    return Shifted(id_zyx, box, instances)


def plain_table(instances: Volume, box: Box, voxel_size: Sequence[float] | None) -> DataFrame:
    """Size and place of each instance in a box.

    Args:
        instances: Ids, 0 for background.
        box: The part that is read.
        voxel_size: (z, y, x) in nm; without it there is no ``volume_nm3``.

    Returns:
        ``instance``, ``voxels``, ``volume_nm3``, ``diameter_sphere_nm`` (of a ball of that volume), the box in voxels
        of the volume (``box_z0`` to ``box_x1``) and ``touches_border``: whether it reaches a face of the box.
    """
    depth = max(1, SLAB_VOXELS // (box.shape[1] * box.shape[2]))
    table = merge_counts(count_block(instances.read(slab), slab.start) for slab in slabs(box, depth))
    ends = np.hstack([table[STARTS].to_numpy() <= box.start, table[STOPS].to_numpy() >= box.stop])
    table = table.assign(touches_border=np.asarray(ends.any(axis=1)))
    if voxel_size is not None:
        volume = table["voxels"] * float(np.prod(voxel_size))
        table.insert(2, "volume_nm3", volume)
        table.insert(3, "diameter_sphere_nm", np.cbrt(6 * volume / np.pi))
    return table


def renumber(label_zyx: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The ids of an array in ascending order, and the array with 1 for the first of them and so on; 0 stays 0.

    >>> ids, dense = renumber(np.array([[[7, 0, 9]]]))
    >>> ids.tolist(), dense.tolist()
    ([7, 9], [[[1, 0, 2]]])
    """
    if int(label_zyx.max()) > max(2**16, label_zyx.size):
        ids, dense = np.unique(np.append(label_zyx, 0), return_inverse=True)
        return ids[1:].astype(np.int64), dense[:-1].reshape(label_zyx.shape).astype(np.int32)
    there = np.zeros(int(label_zyx.max()) + 1, bool)  # far faster than sorting all voxels
    there[label_zyx] = True
    there[0] = False
    numbers = np.where(there, np.cumsum(there), 0).astype(np.int32)
    return np.flatnonzero(there).astype(np.int64), numbers[label_zyx]
