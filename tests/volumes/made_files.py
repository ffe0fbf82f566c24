"""Volumes in files, for the tests: TIFF of many kinds, and what mitoseg writes."""

import numpy as np
import tifffile

from mitoseg.geometry import Box
from mitoseg.volumes import create_volume

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
