"""Instances to draw or to write: where each lies, which are wanted, and their masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.segmentation.census import STARTS, STOPS, take_census
from mitoseg.volumes.base import ArrayVolume, Volume

Mask = npt.NDArray[np.bool_]

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
    table = take_census(instances)
    corners = zip(table[STARTS].to_numpy().tolist(), table[STOPS].to_numpy().tolist(), strict=True)
    rows = zip(table["instance"].tolist(), corners, table["voxels"].tolist(), strict=True)
    return {i: FoundObject(i, Box(tuple(start), tuple(stop)), voxels) for i, (start, stop), voxels in rows}


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


def _numbers(found: dict[int, FoundObject]) -> str:
    return f"{len(found)} of them, from {min(found)} to {max(found)}" if found else "none"
