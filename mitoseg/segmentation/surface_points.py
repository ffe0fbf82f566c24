r"""The voxels on the surfaces of a volume's instances, found once and kept in files, one for each piece of the volume.

piece 0   |########|                 voxels are read once, with one more on each side
piece 1            |########|
tile 1         |--------|            points of all pieces that a tile's halo meets, however far it reaches
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoseg.engines import one_at_a_time
from mitoseg.geometry import Box, meeting
from mitoseg.volumes import Array, Volume
from mitoseg.volumes.staging import explained, wait_for

PIECE = (32, 512, 512)
Points = npt.NDArray[np.integer]


@dataclass(frozen=True)
class SurfacePoints:
    """See the module; picklable.

    Attributes:
        labels: Instance numbers.
        folder: Of the files; all processes must see it.
        piece: Voxels (z, y, x) of each file.
    """

    labels: Volume
    folder: Path
    piece: tuple[int, int, int] = PIECE

    def store(self, piece: Box) -> None:
        """Find and keep the points of one piece of the grid."""
        block = piece.grow(1).clip(self.labels.box)
        labels_zyx = self.labels.read(block)
        with one_at_a_time():
            points, ids = surface_voxels(labels_zyx, piece.inside(block), block.start)
        file = self._file(piece)
        partial = file.with_suffix(f".{os.getpid()}")
        with explained(self.folder):
            with partial.open("wb") as stream:
                np.savez(stream, points=(points - piece.start).astype(np.uint16), ids=ids)
            partial.replace(file)  # as a worker may be killed while it writes

    def read(self, box: Box) -> tuple[Points, Array]:
        """The points of a box, when all pieces are stored; see `surface_voxels`."""
        points: list[Points] = [np.zeros((0, 3), np.int32)]
        ids = [np.zeros(0, self.labels.dtype)]
        for piece in meeting(self.labels.box, self.piece, box):
            wait_for(self._file(piece))
            with np.load(self._file(piece)) as stored:
                at, of = stored["points"] + np.array(piece.start, np.int32), stored["ids"]
            inside = ((at >= box.start) & (at < box.stop)).all(axis=1)
            points.append(at[inside])
            ids.append(of[inside])
        return np.concatenate(points), np.concatenate(ids)

    def _file(self, piece: Box) -> Path:
        return self.folder.absolute() / ("_".join(map(str, piece.start)) + ".npz")


def surface_voxels(labels_zyx: Array, inner: Box, start: Sequence[int]) -> tuple[Points, Array]:
    """Voxels of instances that have another label, or background, behind a face.

    Args:
        labels_zyx: A block, with one voxel round ``inner`` where the volume has one.
        inner: The part whose voxels are given, in the block's own voxels.
        start: Of the block in the volume.

    Returns:
        ``(points, ids)``: (n, 3) in voxels of the volume, and the (n,) labels.
    """
    surface = np.zeros(labels_zyx.shape, bool)
    for axis in range(3):
        low, high = (tuple(s if a == axis else slice(None) for a in range(3)) for s in (slice(-1), slice(1, None)))
        differs = labels_zyx[low] != labels_zyx[high]
        surface[low] |= differs
        surface[high] |= differs
    surface &= labels_zyx != 0
    at = np.argwhere(surface[inner.slices]) + inner.start
    return at + np.asarray(start), labels_zyx[tuple(at.T)]
