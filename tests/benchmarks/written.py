"""Small volumes as files."""

from mitoseg.geometry import Box
from mitoseg.volumes import create_volume


def write(path, array_zyx, voxel_size=None, **metadata):
    """Write a volume; its path as text."""
    options = {"voxel_size": voxel_size, "metadata": metadata}
    with create_volume(path, array_zyx.shape, array_zyx.dtype, **options) as writer:
        writer.write(Box.of_shape(array_zyx.shape), array_zyx)
    return str(path)
