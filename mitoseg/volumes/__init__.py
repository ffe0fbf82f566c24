"""Read files as lazy (z, y, x) arrays with a voxel size, and write them; labels, normalisation and channels."""

from mitoseg.volumes.base import Array, ArrayVolume, Volume, VolumeInfo, VoxelSize
from mitoseg.volumes.labels import LabelVolume, map_labels
from mitoseg.volumes.normalize import (
    CHANNEL_OFFSETS,
    Normalization,
    channel_slices,
    check_image_values,
    measure_normalization,
    read_channels,
)
from mitoseg.volumes.opening import VolumeWriter, check_same_shape, check_volume_output, create_volume, open_volume

__all__ = [
    "CHANNEL_OFFSETS",
    "Array",
    "ArrayVolume",
    "LabelVolume",
    "Normalization",
    "Volume",
    "VolumeInfo",
    "VolumeWriter",
    "VoxelSize",
    "channel_slices",
    "check_image_values",
    "check_same_shape",
    "check_volume_output",
    "create_volume",
    "map_labels",
    "measure_normalization",
    "open_volume",
    "read_channels",
]
