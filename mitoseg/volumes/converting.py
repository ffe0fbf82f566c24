"""From a volume in one format to a file in another, box by box."""

from __future__ import annotations

from collections.abc import Callable

from mitoseg.geometry import Box, tiles
from mitoseg.volumes.base import Array, Volume, VolumeInfo
from mitoseg.volumes.ome_output import block_shape, is_ome
from mitoseg.volumes.writing import create_volume


def convert(
    source: Volume,
    info: VolumeInfo,
    tile: tuple[int, int, int],
    *,
    read: Callable[[Volume, Box], Array] = lambda volume, box: volume.read(box),
    on_box: Callable[[Box], None] | None = None,
) -> None:
    """Write a volume under another name, whose suffix chooses the format.

    Args:
        source: Where the voxels come from.
        info: What is written, and where (its path).
        tile: (z, y, x) voxels to read at once; an OME-Zarr image takes whole chunks instead.
        read: Reads a box of the source.
        on_box: Called with each box that is written.

    Raises:
        UserError: The source is damaged, or the output cannot be written.
    """
    part = block_shape(info, tile) if is_ome(info.path) else tile
    with create_volume(
        info.path, info.shape, info.dtype, voxel_size=info.voxel_size, metadata=info.metadata
    ) as writer:
        for box in tiles(source.box, part):
            writer.write(box, read(source, box))
            if on_box is not None:
                on_box(box)
