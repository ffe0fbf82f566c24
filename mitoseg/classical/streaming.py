"""Volumes piece by piece: what is read, what is computed of it, and what is kept.

    z  |<- halo ->|<- slab ->|<- halo ->|     read; beyond the volume its border voxels are repeated
                  |<- slab ->|                computed

A slab's answer does not depend on where the slabs begin, so neither does the volume's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mitoseg.classical.eigenvalues import FloatArray
from mitoseg.classical.features import VoxelFeatures
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import Array, ArrayVolume, Volume, check_image_values

BUDGET = 2**28
"""Numbers (float32) of features that are held at a time, which is 1 GiB."""

ImageLike = npt.NDArray[np.generic] | Volume


def as_volume(image_zyx: ImageLike) -> Volume:
    """An array or a volume as a volume.

    Raises:
        UserError: The array is not three-dimensional, or empty.
    """
    if isinstance(image_zyx, Volume):
        return image_zyx
    image_zyx = np.asarray(image_zyx)
    if image_zyx.ndim != 3 or not image_zyx.size:
        raise UserError("no volume", image_zyx.shape, "give an array of the axes z, y, x")
    return ArrayVolume(image_zyx)


def read_with_halo(volume: Volume, box: Box, halo: Sequence[int]) -> Array:
    """Read a box and ``halo`` voxels around it, the volume's border voxels repeated beyond it.

    Raises:
        UserError: Some values are NaN, infinite or complex.
    """
    wanted = box.grow(halo)
    read = wanted.clip(volume.box)
    image_zyx = volume.read(read)
    check_image_values(image_zyx, volume.path)
    missing = zip(read.start, wanted.start, wanted.stop, read.stop, strict=True)
    return np.pad(image_zyx, [(a - b, c - d) for a, b, c, d in missing], mode="edge")


def slab_depth(volume: Volume, features: VoxelFeatures) -> int:
    """Slices whose features fit into the `BUDGET`, at least 1."""
    return max(1, BUDGET // (len(features.names) * volume.shape[1] * volume.shape[2]))


def slab_features(
    volume: Volume, box: Box, features: VoxelFeatures, depth: int, threads: int = 1
) -> Iterator[tuple[Box, FloatArray]]:
    """The features of a box, slab by slab.

    Args:
        volume: The image.
        box: What is wanted.
        features: Of each voxel.
        depth: Slices of a slab.
        threads: That share the scales.

    Yields:
        The slab, and float32 (F, Z, Y, X) of its voxels.
    """
    for slab in slabs(box, depth):
        yield slab, features.inside(read_with_halo(volume, slab, features.halo), threads)
