"""Volumes whose voxels say where they lie, and run folders as the commands leave them."""

import json

import numpy as np
import yaml

from mitoseg.geometry import Box
from mitoseg.volumes import create_volume

SIZE = (30.0, 5.0, 4.0)


def places(shape, dtype=np.uint16):
    """Voxels of value 100 z + 10 y + x, or of a unique number where that does not fit."""
    z, y, x = np.indices(shape)
    if max(shape) > 10:
        return (np.ravel_multi_index((z, y, x), shape)).astype(dtype)
    return (100 * z + 10 * y + x).astype(dtype)


def save(path, values_zyx, **metadata):
    """Write a volume; its path as text."""
    size = metadata.pop("voxel_size", SIZE)
    with create_volume(str(path), values_zyx.shape, values_zyx.dtype, voxel_size=size, metadata=metadata) as writer:
        writer.write(Box.of_shape(values_zyx.shape), values_zyx)
    return str(path)


def make_run(folder, started=None, **record):
    """A run's folder with its record; ``started`` is where the command was given."""
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps(record))
    if started is not None:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"cwd": str(started)}}}))
    return str(folder)


def two_cells():
    """Instances 3 and 7: a ball and a box; the box is larger."""
    labels_zyx = np.zeros((12, 24, 30), np.uint16)
    z, y, x = np.indices(labels_zyx.shape)
    labels_zyx[(z - 5) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 <= 16] = 3
    labels_zyx[2:10, 12:22, 16:28] = 7
    return labels_zyx


def dumbbell(number=1, radius=(9, 7)):
    """Two balls that touch over a thin neck, in a margin of background; both middles."""
    z, y, x = np.ogrid[:24, :24, :44]
    first, second = (12, 12, 12), (12, 12, 29)
    balls = [
        (z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 <= r**2
        for c, r in zip((first, second), radius, strict=True)
    ]
    neck = (abs(z - 12) <= 1) & (abs(y - 12) <= 1) & (x > 12) & (x < 29)
    return ((balls[0] | balls[1] | neck) * number).astype(np.uint32), first, second
