"""A volume that is computed box by box: in memory while it is small, else as Zarr that every worker writes into."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from mitoseg.engines import Engine, LocalEngine
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, ArrayVolume, Volume, VolumeInfo
from mitoseg.volumes.opening import open_volume
from mitoseg.volumes.stage_folder import explained
from mitoseg.volumes.zarr_output import ZarrOutput, remove_partial

Extra = TypeVar("Extra")
CHUNK = (64, 128, 128)
"""Voxels (z, y, x) of a chunk, so that one layer of the next block costs little."""


@dataclass(frozen=True)
class _Store(Generic[Extra]):
    """Computes one box and writes it; see `compute_volume`."""

    function: Callable[[Box, Extra], Array]
    path: Path

    def __call__(self, item: tuple[Box, Extra]) -> None:
        array_zyx = self.function(*item)
        with explained(self.path):
            ZarrOutput.reopen(self.path).write(item[0], array_zyx)


def compute_volume(
    function: Callable[[Box, Extra], Array],
    items: Sequence[tuple[Box, Extra]],
    info: VolumeInfo,
    path: Path,
    *,
    engine: Engine | None = None,
    in_memory: int = 2**28,
    on_box: Callable[[Box], None] | None = None,
) -> Volume:
    """The volume whose boxes a function gives.

    Args:
        function: From a box, and what else belongs to it, to the voxels of the box; picklable.
        items: The boxes of a regular grid from the origin, and what else belongs to each.
        info: Of the volume; its metadata are those of the result.
        path: Of a Zarr array that does not exist yet, where all workers see it.
        engine: Started; None: this process.
        in_memory: Voxels up to which the result is an array, where the engine is this process.
        on_box: Called with each box that is done.

    Raises:
        UserError: A box cannot be computed or written.
    """
    engine, tell = engine or LocalEngine(), on_box or (lambda box: None)
    if engine.in_process and math.prod(info.shape) <= in_memory:
        array_zyx = np.empty(info.shape, info.dtype)
        for box, extra in items:
            array_zyx[box.slices] = function(box, extra)
            tell(box)
        return ArrayVolume(array_zyx, info.voxel_size, info.path, info.metadata)
    size = items[0][0].shape
    chunks = tuple(_chunk(s, n, most) for s, n, most in zip(size, info.shape, CHUNK, strict=True))
    with explained(path):
        ZarrOutput(path, info, chunks)  # type: ignore[arg-type]
    engine.map(_Store(function, path.absolute()), items, lambda item, _: tell(item[0]))
    remove_partial(path)
    return open_volume(str(path))


def _chunk(side: int, total: int, most: int) -> int:
    """Side of a chunk that no two boxes share: a divisor of the side of a box, unless that is the whole axis.

    >>> _chunk(512, 1000, 128), _chunk(96, 1000, 64), _chunk(1000, 1000, 128)
    (128, 48, 128)
    """
    if side >= total:
        return min(most, total)
    return max(d for d in range(1, min(side, most) + 1) if side % d == 0)
