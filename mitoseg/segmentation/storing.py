"""A lazy volume, computed once: in memory while it is small, else in a file that other processes can read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from mitoseg.engines import Engine, LocalEngine
from mitoseg.geometry import Box
from mitoseg.segmentation.block_writing import write_blocks
from mitoseg.volumes.base import ArrayVolume, ArrayWriter, Volume
from mitoseg.volumes.opening import open_volume
from mitoseg.volumes.writing import create_volume

CHUNK = (64, 128, 128)
"""Voxels (z, y, x) of a chunk at most, so that one layer of the next block costs little."""


def store(
    volume: Volume,
    block: tuple[int, int, int],
    path: Path,
    *,
    engine: Engine | None = None,
    in_memory: int = 0,
    on_block: Callable[[Box], None] | None = None,
) -> Volume:
    """Compute a volume block by block, so that reading it again computes nothing.

    Args:
        volume: Lazy; see `Volume.part`.
        block: (z, y, x) voxels that are computed at once.
        path: Of a Zarr array that does not exist yet, where all workers see it.
        engine: Started; None: this process.
        in_memory: Voxels up to which the result is an array, where the engine is this process.
        on_block: Called with each block that is done.

    Returns:
        The same voxels, with the same voxel size and metadata.
    """
    engine, about = engine or LocalEngine(), volume.info
    if engine.in_process and math.prod(about.shape) <= in_memory:
        memory = ArrayWriter(about.shape, about.dtype)
        write_blocks(volume, block, memory, engine=engine, on_block=on_block)
        return ArrayVolume(memory.array_zyx, about.voxel_size, about.path, about.metadata)
    chunks = tuple(_chunk(side, n, most) for side, n, most in zip(block, about.shape, CHUNK, strict=True))
    options = {"voxel_size": about.voxel_size, "metadata": about.metadata, "chunks": chunks}
    with create_volume(str(path), about.shape, about.dtype, **options) as writer:  # type: ignore[arg-type]
        write_blocks(volume, block, writer, engine=engine, on_block=on_block)
    return open_volume(str(path))


def _chunk(side: int, total: int, most: int) -> int:
    """Side of a chunk that no two blocks share: a divisor of the side of a block, unless that is the whole axis.

    >>> _chunk(512, 1000, 128), _chunk(96, 1000, 64), _chunk(1000, 1000, 128)
    (128, 48, 128)
    """
    if side >= total:
        return min(most, total)
    return max(d for d in range(1, min(side, most) + 1) if side % d == 0)
