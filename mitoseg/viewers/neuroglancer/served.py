"""What the browser asks for, box by box: the library's local volume over a lazy volume of ours.

The library speaks of x, y, z; a volume of ours is z, y, x. The order is turned in this file and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import neuroglancer
import numpy as np
from neuroglancer.chunks import encode_npz
from neuroglancer.local_volume import InvalidObjectIdForMesh, MeshesNotSupportedForVolume

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.viewers.neuroglancer.levels import Levels
from mitoseg.viewers.neuroglancer.surfaces import Surfaces, encode_mesh
from mitoseg.volumes import Array, Volume, VoxelSize

log = logging.getLogger(__name__)

FLAT_HALVINGS = 64
"""How many stored voxels at most become one while a chunk is read: 4 x 4 x 4."""
_GREYS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
"""Types of voxels that the browser takes for grey values."""


def space(voxel_size: VoxelSize) -> neuroglancer.CoordinateSpace:
    """x, y and z in nm."""
    return neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=list(voxel_size[::-1]))


def grey_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type in which grey values travel.

    >>> grey_type(np.dtype(np.uint16)).name, grey_type(np.dtype(np.float16)).name, grey_type(np.dtype(bool)).name
    ('uint16', 'float32', 'uint8')
    """
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    return dtype if dtype.name in _GREYS else np.dtype(np.float32)


def label_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type in which numbers travel: unsigned.

    >>> label_type(np.dtype(np.int16)).name, label_type(np.dtype(np.float32)).name, label_type(np.dtype(bool)).name
    ('uint16', 'uint32', 'uint8')
    """
    if dtype.kind == "f":
        return np.dtype(np.uint32)
    return np.dtype(f"uint{8 * dtype.itemsize}")


class _Shape:
    """Shape and type of a volume, x, y, z: all that the library reads of it by itself."""

    def __init__(self, volume: Volume, dtype: np.dtype[np.generic]) -> None:
        self.shape, self.dtype = volume.shape[::-1], dtype


class ServedVolume(neuroglancer.LocalVolume):  # type: ignore[misc]
    """A volume that is read where the browser looks.

    Args:
        levels: Its voxels.
        voxel_size: (z, y, x) in nm.
        labels: Whether they are numbers of segments.
        surfaces: Of these, or None.
    """

    def __init__(
        self, levels: Levels, voxel_size: VoxelSize, *, labels: bool, surfaces: Surfaces | None = None
    ) -> None:
        volume = levels.finest
        self._levels, self._labels, self.surfaces = levels, labels, surfaces
        self._dtype = label_type(volume.dtype) if labels else grey_type(volume.dtype)
        super().__init__(
            _Shape(volume, self._dtype),
            dimensions=space(voxel_size),
            volume_type="segmentation" if labels else "image",
            max_downsampling=FLAT_HALVINGS * int(np.prod(levels.coarsest)),
        )

    def get_encoded_subvolume(
        self, data_format: str, start: Sequence[int], end: Sequence[int], scale_key: str
    ) -> tuple[bytes, str]:
        """One chunk, as the library's server asks for it.

        Args:
            data_format: ``npz``.
            start: (x, y, z) in voxels of this halving.
            end: The same.
            scale_key: The factors, such as ``2,2,1``, x first.

        Returns:
            The chunk and the type of its content.

        Raises:
            ValueError: What cannot be answered; the browser is told so.
        """
        try:
            x, y, z = (int(factor) for factor in scale_key.split(","))
            if data_format != "npz" or x * y * z > self.max_downsampling:
                raise ValueError("no such format or halving")
            box = Box(tuple(map(int, start[::-1])), tuple(map(int, end[::-1])))
            chunk_zyx = self._sent(self._levels.read(box, (z, y, x)))
        except UserError as error:
            log.warning("%s", error)
            raise ValueError("the voxels cannot be read") from error
        return encode_npz(chunk_zyx.T), "application/octet-stream"

    def get_object_mesh(self, object_id: int) -> bytes:
        """The surface of one segment; see `encode_mesh`.

        Raises:
            MeshesNotSupportedForVolume: There are no surfaces of this volume.
            InvalidObjectIdForMesh: There is no such segment.
            ValueError: It cannot be read.
        """
        if self.surfaces is None:
            raise MeshesNotSupportedForVolume
        try:
            mesh = self.surfaces.surface(object_id)
        except UserError as error:
            log.warning("%s", error)
            raise ValueError("the voxels cannot be read") from error
        if mesh is None:
            raise InvalidObjectIdForMesh
        return encode_mesh(mesh)

    def _sent(self, values_zyx: Array) -> Array:
        if self._labels and values_zyx.dtype.kind in "if":  # negative numbers mark what nobody labelled
            values_zyx = np.maximum(values_zyx, 0)
        return values_zyx.astype(self._dtype, copy=False)
