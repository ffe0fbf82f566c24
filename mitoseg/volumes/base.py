"""What a volume is: a lazy z, y, x array with a voxel size and a little metadata."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError
from mitoseg.geometry import Box

Array = npt.NDArray[Any]
VoxelSize = tuple[float, float, float]


@dataclass(frozen=True)
class VolumeInfo:
    """What is known of a volume before a voxel is read.

    Attributes:
        path: Where it came from, as the user wrote it.
        shape: (z, y, x).
        dtype: Of the stored voxels.
        voxel_size: (z, y, x) in nm, or None where the file does not say.
        metadata: What mitoseg wrote with it: ``kind`` ("probability", "mask", "instances"), ``threshold``, ``scale``.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size: VoxelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Mask(Protocol):
    """Which voxels of a volume are meant, found where they are asked for."""

    def find(self, box: Box) -> npt.NDArray[np.bool_] | None:
        """The mask (z, y, x) of a box; None where it holds none of them."""
        ...


class Volume(ABC):
    """A lazy (z, y, x) array: opening reads no voxels, ``read`` reads one box.

    Attributes:
        padding: Voxels that are no tissue; None where nobody looked. See `mitoseg.volumes.padding`.
        lossy: Whether the file's compression has changed values, as JPEG does.
        directions: For z, y and x, whether the stored axis runs with (``+``) the world's, to the top, front and right;
            empty where the file does not say.
    """

    padding: Mask | None = None
    lossy = False
    directions = ""

    def __init__(self, info: VolumeInfo) -> None:
        self.info = info

    @property
    def path(self) -> str:
        """Where it came from."""
        return self.info.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return self.info.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored voxels."""
        return self.info.dtype

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm, or None where the file does not say."""
        return self.info.voxel_size

    @property
    def box(self) -> Box:
        """All of it."""
        return Box.of_shape(self.shape)

    def check_box(self, box: Box | None) -> Box:
        """The box, all of the volume when None.

        Raises:
            UserError: The box leaves the volume.
        """
        if box is None:
            return self.box
        if any(a < 0 or b > n for a, b, n in zip(box.start, box.stop, self.shape, strict=True)):
            raise UserError(f"the box {box} leaves the volume of shape {self.shape}", self.path, "choose one inside")
        return box

    def state(self) -> str:
        """What tells the voxels of now from those that somebody may put in their place, for volumes in files."""
        raise NotImplementedError

    def find_gaps(self) -> UserError | None:
        """What is missing and would not be noticed: parts that read as a constant, slices that others close up.

        Returns:
            What to tell the user; None where all is there, as in most formats, which else do not open.

        Raises:
            UserError: What is there cannot be read.
        """
        return None

    def check_complete(self) -> None:
        """Refuse a volume of which parts are missing; see `find_gaps`.

        Raises:
            UserError: They are missing.
        """
        gaps = self.find_gaps()
        if gaps is not None:
            raise gaps

    def as_labels(self) -> Volume:
        """The same volume, if its values are to be read as labels: colours are told apart and not reduced to grey."""
        return self

    def scratch_bytes(self, box: Box) -> int:
        """Memory that reading a box takes for a while, about, besides what `read` gives.

        Args:
            box: Inside the volume.
        """
        return 0

    def part(self, box: Box) -> Volume:
        """What another process needs to read a box: the volume itself, unless it holds tables of all of it."""
        return self

    @abstractmethod
    def read(self, box: Box | None = None) -> Array:
        """Read one box (all of it when None) as ``image_zyx`` in the stored dtype.

        Raises:
            UserError: The file is damaged or the box leaves the volume.
        """


class ArrayVolume(Volume):
    """An array in memory as a volume.

    >>> ArrayVolume(np.zeros((2, 3, 4), np.uint8)).read(Box((0, 0, 0), (1, 3, 2))).shape
    (1, 3, 2)
    """

    def __init__(
        self,
        image_zyx: Array,
        voxel_size: VoxelSize | None = None,
        path: str = "array",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        z, y, x = image_zyx.shape
        super().__init__(VolumeInfo(path, (z, y, x), image_zyx.dtype, voxel_size, metadata or {}))
        self._image_zyx = image_zyx

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        return self._image_zyx[self.check_box(box).slices]


class ArrayWriter:
    """An array in memory as a writer of boxes.

    Attributes:
        array_zyx: What was written, zeros elsewhere.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: npt.DTypeLike = np.float32) -> None:
        self.array_zyx: Array = np.zeros(shape, dtype)

    def write(self, box: Box, array_zyx: Array, /) -> None:
        """Take the voxels of one box."""
        self.array_zyx[box.slices] = array_zyx
