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


def write_ome_set(folder, image_zyx, **options):
    """An OME image whose slices lie in two files."""
    uuid = "urn:uuid:0000000{}-0000-0000-0000-000000000000"
    planes = "".join(
        f'<TiffData IFD="{z % 3}" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="{z // 3}.ome.tif">{uuid.format(z // 3)}</UUID></TiffData>'
        for z in range(6)
    )
    for part in (0, 1):
        text = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid.format(part)}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" SizeY="37" '
            'SizeZ="6" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            f"{planes}</Pixels></Image></OME>"
        )
        slices = image_zyx[part * 3 : part * 3 + 3]
        write(folder / f"{part}.ome.tif", slices, description=text.encode(), metadata=None, **options)
    return str(folder / "0.ome.tif")
