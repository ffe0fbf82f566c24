"""Where each instance lies: boxes and sizes, found slab by slab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cc3d
import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes.base import Array, ArrayVolume, Volume

Mask = npt.NDArray[np.bool_]

_SLAB = 16
"""Slices that are read at once."""
_DENSE = 2**22
"""Numbers from this one on are counted by their rank."""
_IN_MEMORY = 2**30
"""Bytes up to which a volume is read once and kept; a larger one is read object by object."""


@dataclass(frozen=True)
class FoundObject:
    """One instance in its volume.

    Attributes:
        id: Its number.
        box: The smallest box that holds it.
        voxels: How many it has.
    """

    id: int
    box: Box
    voxels: int

    def touches_border(self, shape: tuple[int, ...]) -> bool:
        """Whether it reaches a face of a volume of that shape, and so may go on beyond it."""
        return any(a == 0 or b == n for a, b, n in zip(self.box.start, self.box.stop, shape, strict=True))


def held(instances: Volume) -> Volume:
    """The volume, in memory where it is small, so that objects are cut from it without reading a file again."""
    size = int(np.prod(instances.shape)) * instances.dtype.itemsize
    if isinstance(instances, ArrayVolume) or size > _IN_MEMORY:
        return instances
    return ArrayVolume(instances.read(), instances.voxel_size, instances.path, instances.info.metadata)


def find_objects(instances: Volume) -> dict[int, FoundObject]:
    """All instances by their number, in ascending order.

    Args:
        instances: Integers, 0 for background. Numbers may be sparse and as large as their type allows.

    Raises:
        UserError: The volume holds a mask, probabilities or negative numbers.
    """
    check_instances(instances)
    found: dict[int, FoundObject] = {}
    for slab in slabs(instances.box, _SLAB):
        label_zyx = instances.read(slab)
        if label_zyx.min(initial=0) < 0:
            raise UserError("instances have negative numbers", instances.path, "give 0 for background, then 1, 2, ...")
        for part in _objects_of(label_zyx, slab):
            known = found.get(part.id)
            found[part.id] = part if known is None else _joined(known, part)
    return dict(sorted(found.items()))


def check_instances(instances: Volume) -> None:
    """Refuse what is no volume of instances.

    Raises:
        UserError: Its metadata say that it is something else, or its voxels are no integers.
    """
    kind = instances.info.metadata.get("kind", "instances")
    if kind != "instances" or not np.issubdtype(instances.dtype, np.integer):
        kind = kind if kind != "instances" else str(instances.dtype)
        raise UserError(f"instances are needed, not {kind}", instances.path, "give what save=instances wrote")


def choose_objects(found: dict[int, FoundObject], ids: Iterable[int] | None, least_voxels: float) -> list[FoundObject]:
    """The objects that are asked for, without those that are too small.

    Args:
        found: All of them.
        ids: Numbers; None for all.
        least_voxels: Objects with fewer voxels are left out.

    Raises:
        UserError: There is no instance of such a number.
    """
    wanted = list(found) if ids is None else list(dict.fromkeys(ids))
    if unknown := [i for i in wanted if i not in found]:
        raise UserError("no instance has the number", unknown[0], f"the volume holds {_numbers(found)}")
    return [found[i] for i in wanted if found[i].voxels >= least_voxels]


def read_mask(instances: Volume, one: FoundObject) -> Mask:
    """The object within its box."""
    mask_zyx: Mask = instances.read(one.box) == one.id
    return mask_zyx


def _objects_of(label_zyx: Array, box: Box) -> Iterator[FoundObject]:
    label_zyx, ids = np.pad(label_zyx, ((0, 0), (0, 0), (0, 1))), None
    if int(label_zyx.max()) >= min(label_zyx.size, _DENSE):
        # Statistics take memory for every number up to the highest, and no numbers beyond the count of voxels.
        ids, index = np.unique(label_zyx, return_inverse=True)
        label_zyx = index.reshape(label_zyx.shape).astype(np.uint32)  # the padding's 0 has rank 0
    # statistics take no signed integers
    plain_zyx = np.ascontiguousarray(label_zyx.astype(f"u{label_zyx.dtype.itemsize}", copy=False))
    found = cc3d.statistics(plain_zyx, no_slice_conversion=True)
    counts, boxes = found["voxel_counts"], found["bounding_boxes"].reshape(-1, 6)
    for place in (np.flatnonzero(counts[1:]) + 1).tolist():
        z, z1, y, y1, x, x1 = boxes[place].tolist()
        inner = Box((z, y, x), (z1 + 1, y1 + 1, x1 + 1)).shift(box.start)
        yield FoundObject(place if ids is None else int(ids[place]), inner, int(counts[place]))


def _joined(one: FoundObject, other: FoundObject) -> FoundObject:
    z, y, x = (min(pair) for pair in zip(one.box.start, other.box.start, strict=True))
    z1, y1, x1 = (max(pair) for pair in zip(one.box.stop, other.box.stop, strict=True))
    return FoundObject(one.id, Box((z, y, x), (z1, y1, x1)), one.voxels + other.voxels)


def _numbers(found: dict[int, FoundObject]) -> str:
    return f"{len(found)} of them, from {min(found)} to {max(found)}" if found else "none"
