"""Surfaces of instances, made when they are asked for."""

from __future__ import annotations

import math
import struct
from functools import cached_property
from threading import Lock

from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.geometry import Box
from mitoseg.segmentation.finding import FoundObject, find_objects
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.viewers.neuroglancer.levels import Levels
from mitoseg.volumes import VoxelSize

MOST_VOXELS = 2**22
"""Voxels of an object's box at which its surface is made of every second voxel, and so on."""
LARGEST_BOX = 2**28
"""An object in a larger box has no surface here: the box would be read at once."""
REDUCTION = 4.0
_METRE = 1e9


class Surfaces:
    """The surfaces of a volume's instances.

    Args:
        levels: Instance numbers.
        voxel_size: (z, y, x) in nm.

    Attributes:
        objects: All instances by their number; found in one pass over the volume when first needed.
    """

    def __init__(self, levels: Levels, voxel_size: VoxelSize) -> None:
        self._levels, self._size = levels, voxel_size
        self._lock = Lock()

    @cached_property
    def objects(self) -> dict[int, FoundObject]:
        """See the class."""
        return find_objects(self._levels.finest)

    def largest(self, count: int) -> list[int]:
        """The numbers of the largest instances, in ascending order."""
        by_size = sorted(self.objects.values(), key=lambda one: (-one.voxels, one.id))
        return sorted(one.id for one in by_size[:count])

    def surface(self, number: int) -> Mesh | None:
        """The surface of one instance; None where there is no such instance, or its box is too large.

        Raises:
            UserError: The file is damaged.
        """
        with self._lock:
            one = self.objects.get(number)
        if one is None or one.box.size > LARGEST_BOX:
            return None
        step = 1
        while one.box.size > MOST_VOXELS * step**3:
            step *= 2
        start = tuple(a // step for a in one.box.start)
        part = Box(start, tuple(-(-b // step) for b in one.box.stop))
        mask_zyx = self._levels.read(part, (step, step, step)) == number
        if not mask_zyx.any():  # a thread between the voxels that were looked at
            return None
        z, y, x = (step * size for size in self._size)
        return mesh_object(mask_zyx, (z, y, x), start=start, reduction=_reduction())


def _reduction() -> float:
    """Fewer faces, where the library that takes them away is there."""
    try:
        import_extra("zmesh", "zmesh", "mesh")
    except UserError:
        return 1.0
    return REDUCTION


def encode_mesh(mesh: Mesh) -> bytes:
    """A surface as neuroglancer takes it from a server: the number of vertices, x, y, z of each in m, then the faces.

    Little-endian uint32, float32 and uint32. The library's own client divides by the scales of the coordinate space,
    which it keeps in m.
    """
    vertices = (mesh.vertices / _METRE).astype("<f4")
    return struct.pack("<I", len(vertices)) + vertices.tobytes() + mesh.faces.astype("<u4").tobytes()


def fits_memory(shape: tuple[int, ...]) -> bool:
    """Whether a volume is small enough to look for its instances before it is shown."""
    return math.prod(shape) <= LARGEST_BOX
