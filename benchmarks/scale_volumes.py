"""Volumes of growing size for ``scale.py``, cut from one that is continued by reflection and written slab by slab."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoseg.datasets import Phantom
from mitoseg.geometry import Box, reflect, slabs
from mitoseg.volumes import Volume, create_volume, map_labels, open_volume
from mitoseg.volumes.base import Array, mask_volume
from mitoseg.volumes.predicted import decide

CHUNKS = (16, 256, 256)
SIZE = (5.0, 5.0, 5.0)


def shape_of(megabytes: float, side: int) -> tuple[int, int, int]:
    """(z, y, x) of a volume of so many megabytes at a byte a voxel, ``side`` voxels along y and x."""
    return (max(1, round(megabytes * 1e6 / side**2)), side, side)


def make_image(source: Volume, megabytes: float, side: int, path: Path) -> tuple[int, int, int]:
    """Write grey values; their shape."""
    shape = shape_of(megabytes, side)
    with create_volume(path, shape, "uint8", voxel_size=SIZE, chunks=CHUNKS) as writer:
        for slab in slabs(Box.of_shape(shape), CHUNKS[0]):
            writer.write(slab, read_reflected(source, slab).astype(np.uint8))
    return shape


def make_mask(source: Volume, megabytes: float, side: int, path: Path) -> tuple[int, int, int]:
    """Write a mask of 0 and 1; its shape.

    An object that meets its own mirror image would go on through the whole volume, which no mitochondrion does: the
    layers in which the source is folded are background.
    """
    shape = shape_of(megabytes, side)
    with create_volume(path, shape, "uint8", voxel_size=SIZE, chunks=CHUNKS, metadata={"kind": "mask"}) as writer:
        for slab in slabs(Box.of_shape(shape), CHUNKS[0]):
            mask_zyx = read_reflected(source, slab).astype(np.uint8)
            for axis, n in enumerate(source.shape):
                place = np.arange(slab.start[axis], slab.stop[axis])
                np.moveaxis(mask_zyx, axis, 0)[(place > 0) & (place % max(n - 1, 1) == 0)] = 0
            writer.write(slab, mask_zyx)
    return shape


def read_reflected(source: Volume, box: Box) -> Array:
    """A box that may leave the source, which goes on by reflection."""
    index = [reflect(np.arange(a, b), n) for a, b, n in zip(box.start, box.stop, source.shape, strict=True)]
    part = Box(tuple(int(i.min()) for i in index), tuple(int(i.max()) + 1 for i in index))
    values_zyx: npt.NDArray[np.generic] = source.read(part)
    return values_zyx[np.ix_(*(i - a for i, a in zip(index, part.start, strict=True)))]


def find_mask(path: str | None) -> Volume:
    """Where mitochondria are.

    Args:
        path: A stored prediction, by its threshold, or labels; None: the labels of EPFL CA1 below ``MITOSEG_DATA``,
            else the phantom's.
    """
    if path is None and (folder := os.environ.get("MITOSEG_DATA")):
        path = str(Path(folder) / "epfl_ca1" / "training_groundtruth.tif")
    if path is None:
        phantom = Phantom()
        phantom.prepare()
        path = phantom.named("train").label[0]
    stored = open_volume(path)
    if stored.info.metadata.get("kind") == "probability":
        return mask_volume(stored, decide(stored).foreground)
    return mask_volume(map_labels(stored), lambda label_zyx: label_zyx == 1)
