"""A lazy volume to a file, its blocks computed wherever there is somebody to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mitoseg.engines import Engine, LocalEngine
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.packing import Travelling
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.staging import explained
from mitoseg.volumes.writing import VolumeWriter
from mitoseg.volumes.zarr_output import ZarrOutput, remove_partial


class BoxWriter(Protocol):
    """Whatever takes finished boxes, such as a volume writer."""

    def write(self, box: Box, array_zyx: Array, /) -> None:
        """Take the voxels of one box."""


@dataclass(frozen=True)
class BlockMaker:
    """Computes one block, and writes it where that is possible.

    Attributes:
        array: A Zarr array into which whole blocks may be written by several processes; None: the block is returned.
        dtype: Of the output, if the volume has another.
    """

    array: Path | None
    dtype: np.dtype[Any] | None = None

    def __call__(self, item: tuple[Box, Volume]) -> Travelling | None:
        """Read a block of a volume.

        Args:
            item: The block, and what is enough of the volume to read it.
        """
        block, volume = item
        array_zyx = volume.read(block)
        if self.dtype is not None:
            array_zyx = array_zyx.astype(self.dtype, copy=False)
        if self.array is None:
            return Travelling(array_zyx)
        with explained(self.array):
            ZarrOutput.reopen(self.array).write(block, array_zyx)
        return None


def write_blocks(
    volume: Volume,
    block: Sequence[int],
    writer: BoxWriter,
    *,
    on_block: Callable[[Box], None] | None = None,
    engine: Engine | None = None,
    dtype: np.dtype[Any] | None = None,
) -> None:
    """Write a volume block by block.

    Other processes write into a Zarr array themselves, where their blocks are made of whole chunks. For other outputs
    they send compressed blocks, and this process writes.

    Args:
        volume: What is written, all of it.
        block: (z, y, x) voxels at once.
        writer: Such as `mitoseg.volumes.create_volume` gives.
        on_block: Called with each block that is written.
        engine: Started; others than this process read what the volume is made of for themselves. None: this process.
        dtype: What voxels are cast to; None: they stay as they are.
    """
    engine = engine or LocalEngine()
    array = writer.shared(block) if isinstance(writer, VolumeWriter) and not engine.in_process else None

    def take(item: tuple[Box, Volume], found: Travelling | None) -> None:
        if found is not None:
            writer.write(item[0], found.array)
        if on_block is not None:
            on_block(item[0])

    engine.map(BlockMaker(array, dtype), ((part, volume.part(part)) for part in tiles(volume.box, block)), take)
    if array is not None:
        remove_partial(array)  # of workers that were killed
