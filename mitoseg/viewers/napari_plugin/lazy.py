"""Between volumes and the arrays of layers, without reading more than what is looked at."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mitoseg.geometry import Box
from mitoseg.volumes import Array, Volume, VolumeInfo, VoxelSize
from mitoseg.volumes.n5 import is_n5
from mitoseg.volumes.zarrs import is_zarr

if TYPE_CHECKING:
    import dask.array

BRICK = (64, 256, 256)
"""Voxels (z, y, x) that are read together from chunked formats; others give whole slices."""


class VolumeArray:
    """A volume as what dask cuts: shape, type and slices.

    Args:
        volume: Opened.
    """

    ndim = 3

    def __init__(self, volume: Volume) -> None:
        self.volume, self.shape, self.dtype = volume, volume.shape, volume.dtype

    def __getitem__(self, index: tuple[slice | int, ...]) -> Array:
        """Read what three slices or numbers point at; of slices with steps, what lies between as well."""
        places = [
            range(n)[part] if isinstance(part, slice) else range(part, part + 1)
            for part, n in zip(index, self.shape, strict=True)
        ]
        ends = [(min(place), max(place) + 1) if len(place) else (0, 0) for place in places]
        inside = tuple(slice(None, None, part.step) if isinstance(part, slice) else 0 for part in index)
        return self.volume.read(Box(tuple(a for a, _ in ends), tuple(b for _, b in ends)))[inside]


def as_dask(volume: Volume) -> dask.array.Array:
    """A volume as a lazy (z, y, x) array of dask, which keeps what was looked at last."""
    import dask.array

    chunks = BRICK if is_zarr(volume.path) or is_n5(volume.path) else (1, *volume.shape[1:])
    sizes = tuple(min(n, size) for n, size in zip(chunks, volume.shape, strict=True))
    array: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        VolumeArray(volume),
        chunks=sizes,
        name=f"mitoseg-{uuid.uuid4().hex}",
        lock=True,  # a volume is read by one thread at a time
        asarray=False,
        meta=np.empty((0, 0, 0), volume.dtype),
    )
    return array


class LayerVolume(Volume):
    """The array of a layer as a volume.

    Args:
        data_zyx: Anything that can be sliced: of numpy, dask, zarr.
        voxel_size: (z, y, x) in nm, or None.
        name: Of the layer, for messages.
        metadata: What is known of it.
    """

    def __init__(
        self,
        data_zyx: Any,  # noqa: ANN401 (any array)
        voxel_size: VoxelSize | None,
        name: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        z, y, x = (int(n) for n in data_zyx.shape)
        super().__init__(VolumeInfo(name, (z, y, x), np.dtype(data_zyx.dtype), voxel_size, metadata or {}))
        self._data_zyx = data_zyx

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        return np.asarray(self._data_zyx[self.check_box(box).slices])
