"""Volumes in files, for the tests: TIFF of many kinds, and what mitoseg writes."""

import pickle

import numpy as np
import pytest
import tifffile

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import create_volume, open_volume

WAYS = {
    "plain": {},
    "generic": {"metadata": None},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej_channels": {"imagej": True},  # tifffile's default takes six slices for channels
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "bigtiff": {"bigtiff": True},
    "big_endian": {"byteorder": ">"},
    "zlib": {"compression": "zlib"},
    "lzw": {"compression": "lzw"},
    "zlib_predictor": {"compression": "zlib", "predictor": True},
    "rows": {"rowsperstrip": 5},
    "zlib_rows": {"compression": "zlib", "rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
    "zlib_tiles": {"compression": "zlib", "tile": (16, 32), "bigtiff": True},
    "volumetric": {"volumetric": True, "tile": (4, 16, 16), "compression": "zlib"},
    "ome_zlib": {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"},
}


def write(path, image, **options):
    tifffile.imwrite(path, image, photometric="minisblack", **options)
    return str(path)


def save(path, image_zyx, **options):
    """Write a volume with mitoseg; its path."""
    image_zyx = np.asarray(image_zyx)
    with create_volume(path, image_zyx.shape, image_zyx.dtype, **options) as writer:
        writer.write(Box.of_shape(image_zyx.shape), image_zyx)
    return str(path)


def refused(says, call, *arguments, **options):
    """A call ends in one line for the user that matches; the line."""
    with pytest.raises(UserError, match=says) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(path, image_zyx, size=None, **options):
    """A file opens with these voxels, as a whole, in part and in another process, and this voxel size; the volume."""
    volume = open_volume(path, **options)
    assert (volume.shape, volume.voxel_size) == (image_zyx.shape, size)
    assert volume.dtype == image_zyx.dtype.newbyteorder("=")
    part = Box(tuple(n // 5 for n in volume.shape), tuple(-(-9 * n // 10) for n in volume.shape))
    for one in (volume, pickle.loads(pickle.dumps(volume))):
        for box in (volume.box, part):
            found_zyx = one.read(box)
            assert found_zyx.dtype == volume.dtype
            np.testing.assert_array_equal(found_zyx, image_zyx[box.slices])
    return volume
