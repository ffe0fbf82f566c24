"""Volumes: lazy (z, y, x) arrays with a voxel size and some metadata; and volumes derived from others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
VoxelSize = tuple[float, float, float]
SLAB_VOXELS = 2**24
_LARGEST = 2**32 - 1


@dataclass(frozen=True)
class VolumeInfo:
    """What is known about a volume without reading voxels: ``shape`` and ``voxel_size`` (nm, or None) are z, y, x.

    ``metadata`` was written by mitoseg: ``kind`` ("probability", "mask", "instances"), ``threshold``, ``scale``.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Volume:
    """A lazy (z, y, x) array: opening reads no voxels, ``read`` reads one box. Subclasses define ``_read``.

    ``padding``: voxels outside the tissue (`mitoseg.volumes.padding`), if known; ``lossy``: whether compression has
    changed values, as JPEG does; ``directions``: for z, y and x, whether the stored axis runs with (``+``) the world
    axis, to the top, front and right, or against it; empty if the file does not say.
    """

    padding: Volume | None = None
    lossy = False
    directions = ""

    def __init__(self, info: VolumeInfo) -> None:
        self.info = info

    @property
    def path(self) -> str:
        """The file that it was opened from."""
        return self.info.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return self.info.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        return self.info.dtype

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm, or None if unknown."""
        return self.info.voxel_size

    @property
    def box(self) -> Box:
        """The box of the whole volume."""
        return Box.of_shape(self.shape)

    def check_box(self, box: Box | None) -> Box:
        """The box, all of the volume when None; refuses one that leaves the volume."""
        if box is None:
            return self.box
        if any(a < 0 or b > n for a, b, n in zip(box.start, box.stop, self.shape, strict=True)):
            raise UserError(f"the box {box} leaves the volume of shape {self.shape}", self.path, "choose one inside")
        return box

    def read(self, box: Box | None = None) -> Array:
        """Read one box (all of it when None) as ``image_zyx`` in the stored dtype.

        Raises:
            UserError: The file is damaged or the box leaves the volume.
        """
        return self._read(self.check_box(box))

    def _read(self, box: Box) -> Array:
        raise NotImplementedError

    def find(self, box: Box) -> Array | None:
        """Of a mask: `read`, or None if it is empty there."""
        mask_zyx = self.read(box)
        return mask_zyx if mask_zyx.any() else None

    def state(self) -> str:
        """A checksum that changes when the files of the volume do."""
        raise NotImplementedError

    def find_gaps(self) -> UserError | None:
        """Missing parts that would go unnoticed: chunks read as a constant, gaps in the numbering of slices."""
        return None

    def check_complete(self) -> None:
        """Refuse a volume with missing parts; see `find_gaps`."""
        gaps = self.find_gaps()
        if gaps is not None:
            raise gaps

    def as_labels(self) -> Volume:
        """The same volume read as labels: colours are distinguished instead of reduced to grey."""
        return self

    def scratch_bytes(self, box: Box) -> int:
        """Approximate temporary memory for reading a box, besides the array that `read` returns."""
        return 0

    def part(self, box: Box) -> Volume:
        """What another process needs to read a box: the volume itself, unless it holds large tables."""
        return self


class ArrayVolume(Volume):
    """An array as a volume: a NumPy array, or a lazy one (Zarr, Dask) from which boxes are read on demand."""

    def __init__(
        self,
        image_zyx: Any,  # noqa: ANN401 (anything with shape, dtype and slices)
        voxel_size: VoxelSize | None = None,
        path: str = "array",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        z, y, x = (int(n) for n in image_zyx.shape)
        super().__init__(VolumeInfo(path, (z, y, x), np.dtype(image_zyx.dtype), voxel_size, metadata or {}))
        self._image_zyx = image_zyx

    def _read(self, box: Box) -> Array:
        return np.asarray(self._image_zyx[box.slices])


class BoxWriter(Protocol):
    """Whatever takes finished boxes: a volume writer, or an array in memory."""

    def write(self, box: Box, array_zyx: Array, /) -> None:
        """Take the voxels of one box."""


class ArrayWriter:
    """Writes boxes into an array in memory, ``array_zyx``, initially zero."""

    def __init__(self, shape: tuple[int, int, int], dtype: npt.DTypeLike = np.float32) -> None:
        self.array_zyx: Array = np.zeros(shape, dtype)

    def write(self, box: Box, array_zyx: Array, /) -> None:
        """Write one box."""
        self.array_zyx[box.slices] = array_zyx


class DerivedVolume(Volume):
    """A volume computed from another, with its gaps, state, losses and directions; ``changed``: fields of its info."""

    def __init__(self, volume: Volume, **changed: Any) -> None:  # noqa: ANN401 (of the fields' types)
        super().__init__(replace(volume.info, **changed))
        self.volume, self.padding = volume, volume.padding
        self.lossy, self.directions = volume.lossy, volume.directions

    def state(self) -> str:
        """See `Volume.state`."""
        return self.volume.state()

    def find_gaps(self) -> UserError | None:
        """See `Volume.find_gaps`."""
        return self.volume.find_gaps()

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self.volume.scratch_bytes(box)


class ElementwiseVolume(DerivedVolume):
    """A volume computed voxel by voxel, such as a mask from probabilities."""

    def __init__(self, volume: Volume, function: Callable[[Array], Array], **changed: Any) -> None:  # noqa: ANN401
        super().__init__(volume, **changed)
        self._function = function

    def part(self, box: Box) -> Volume:
        """See `Volume.part`."""
        part = copy(self)
        part.volume = self.volume.part(box)
        return part

    def _read(self, box: Box) -> Array:
        return self._function(self.volume.read(box))


class CroppedVolume(DerivedVolume):
    """The part of a lazy volume inside a box, with coordinates from the box's first voxel."""

    def __init__(self, volume: Volume, box: Box) -> None:
        super().__init__(volume, shape=volume.check_box(box).shape)
        self._box = box
        self.padding = volume.padding and CroppedVolume(volume.padding, box)

    def as_labels(self) -> Volume:
        """See `Volume.as_labels`."""
        return CroppedVolume(self.volume.as_labels(), self._box)

    def scratch_bytes(self, box: Box) -> int:
        """See `Volume.scratch_bytes`."""
        return self.volume.scratch_bytes(box.shift(self._box.start))

    def _read(self, box: Box) -> Array:
        return self.volume.read(box.shift(self._box.start))


def thin_slabs(box: Box) -> Iterator[Box]:
    """Cut a box along z into slabs of at most `SLAB_VOXELS`, or of one slice."""
    return slabs(box, max(1, SLAB_VOXELS // max(1, math.prod(box.shape[1:]))))


def mask_volume(volume: Volume, foreground: Callable[[Array], Bools]) -> Volume:
    """A lazy mask, by a function from stored values to booleans."""
    return ElementwiseVolume(volume, foreground, dtype=np.dtype(np.bool_), metadata={"kind": "mask"})


def integer_volume(volume: Volume, background: int | None = None) -> Volume:
    """Instance numbers, stored as floats or integers, as uint64; checked on reading, with ``background`` read as 0."""
    whole = partial(_whole_numbers, path=volume.path, background=background)
    return ElementwiseVolume(volume, whole, dtype=np.dtype(np.uint64))


def _whole_numbers(values: Array, path: str, background: int | None) -> Array:
    if background is not None:
        values = np.where(values == background, 0, values)
    if values.size and not (np.isfinite(values).all() and values.min() >= 0 and (values == np.floor(values)).all()):
        raise UserError("instances are whole numbers from 0 up", path, "give kind=probability or kind=mask")
    return values.astype(np.uint64)


def compact_ids(volume: Volume) -> Volume:
    """Instance numbers that fit into 32 bits: the volume itself if they do, else renumbered 1, 2, ... in order."""
    if volume.dtype.itemsize < 8 and volume.dtype.kind != "f":
        return volume
    volume = integer_volume(volume) if volume.dtype.kind == "f" else volume
    ids = np.zeros(0, volume.dtype)
    for slab in thin_slabs(volume.box):
        ids = np.union1d(ids, pd.unique(volume.read(slab).ravel()))
    if ids.size and ids[0] < 0:
        raise UserError(f"instance numbers are negative, down to {ids[0]}", volume.path, "write 0 for background")
    if not ids.size or ids[-1] <= _LARGEST:
        return volume
    return ElementwiseVolume(volume, partial(_ranks, ids=ids[ids != 0]), dtype=np.dtype(np.uint32))


def _ranks(stored: Array, ids: npt.NDArray[np.integer]) -> Array:
    return np.where(stored == 0, 0, np.searchsorted(ids, stored) + 1).astype(np.uint32)


def encoded_volume(volume: Volume, dtype: np.dtype[Any], metadata: Mapping[str, Any], scale: float = 1.0) -> Volume:
    """Float32 values converted to the type they are saved in: thresholded for a mask, else scaled and rounded."""
    least = metadata["threshold"] * scale if metadata.get("kind") == "mask" else None
    return ElementwiseVolume(volume, partial(_encode, dtype=dtype, least=least), dtype=dtype, metadata=dict(metadata))


def _encode(values: Array, dtype: np.dtype[Any], least: float | None) -> Array:
    if least is not None:
        return np.asarray(values >= least).astype(dtype)
    return (np.rint(values) if dtype.kind in "iu" else values).astype(dtype, copy=False)
