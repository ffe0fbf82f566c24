"""Labels in little memory: most voxels are background, and labels come in runs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mitoseg.volumes.base import Array

Packed = tuple[bytes, str, tuple[int, ...]]


def pack(array: Array) -> Packed:
    """An array, compressed."""
    return zlib.compress(np.ascontiguousarray(array).tobytes(), 1), array.dtype.str, array.shape


def unpack(packed: Packed) -> Array:
    """What `pack` was given; not to be written to.

    >>> unpack(pack(np.array([[0, 3]], np.uint32))).tolist()
    [[0, 3]]
    """
    data, dtype, shape = packed
    return np.frombuffer(zlib.decompress(data), dtype).reshape(shape)


class Travelling:
    """An array that is compressed on its way to another process, and costs nothing where it stays.

    Attributes:
        array: The voxels.
    """

    def __init__(self, array: Array) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Callable[[Packed], Travelling], tuple[Any, ...]]:
        return _arrive, (pack(self.array),)


def _arrive(packed: Packed) -> Travelling:
    return Travelling(unpack(packed))
