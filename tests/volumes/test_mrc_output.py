"""MRC files that mitoseg writes, as other programs and mitoseg itself read them."""

import io
import math

import mrcfile
import numpy as np
import pytest

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import create_volume, open_volume

SHAPE = (5, 6, 7)
MASK = {"kind": "mask", "threshold": 0.4}


def write(path, image_zyx, **options):
    with create_volume(path, image_zyx.shape, image_zyx.dtype, **options) as writer:
        for box in slabs(Box.of_shape(image_zyx.shape), 2):
            writer.write(box, image_zyx[box.slices])
    return str(path)


def noise(dtype):
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return rng.normal(size=SHAPE).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, SHAPE, dtype, endpoint=True)


def problems(path):
    """What mrcfile finds wrong."""
    text = io.StringIO()
    return "" if mrcfile.validate(path, print_file=text) else text.getvalue()


@pytest.mark.parametrize(("dtype", "mode"), [("uint8", 6), ("int8", 0), ("uint16", 6), ("int16", 1), ("float32", 2)])
@pytest.mark.parametrize("metadata", [{}, MASK | {"kind": "probability"}])
def test_mrcfile_reads_the_same_voxels(tmp_path, dtype, mode, metadata):
    image_zyx = noise(dtype)
    path = write(tmp_path / "a.mrc", image_zyx, voxel_size=(50, 4.6, 4.5), metadata=metadata)
    assert problems(path) == ""
    with mrcfile.open(path) as mrc:
        assert mrc.is_volume()
        assert mrc.header.mode == mode
        assert np.array_equal(mrc.data, image_zyx)
        assert [float(mrc.voxel_size[a]) for a in "zyx"] == pytest.approx([500, 46, 45])
        assert (mrc.header.dmin, mrc.header.dmax) == (image_zyx.min(), image_zyx.max())
    volume = open_volume(path)
    assert volume.dtype == dtype
    assert volume.voxel_size == (50, 4.6, 4.5)
    assert volume.info.metadata == metadata
    assert np.array_equal(volume.read(), image_zyx)


@pytest.mark.parametrize("top", [0, 1])
def test_a_mask_takes_one_byte(tmp_path, top):
    mask_zyx = (noise("uint8") % 2 * top).astype(np.uint8)
    path = write(tmp_path / "a.mrc", mask_zyx, metadata=MASK)
    assert problems(path) == ""
    assert (tmp_path / "a.mrc").stat().st_size == 1024 + math.prod(SHAPE)
    with mrcfile.open(path) as mrc:
        assert mrc.data.dtype == np.int8
        assert np.array_equal(mrc.data, mask_zyx)
    assert open_volume(path).dtype == np.uint8
    assert np.array_equal(open_volume(path).read(), mask_zyx)


def test_a_mask_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="a mask of 0 and 1 cannot hold 255"):
        write(tmp_path / "a.mrc", np.full(SHAPE, 255, np.uint8), metadata=MASK)
    assert list(tmp_path.iterdir()) == []


def test_long_metadata_go_into_an_extended_header(tmp_path):
    image_zyx, metadata = noise("uint8"), {"note": "ü" * 2000}
    path = write(tmp_path / "a.mrc", image_zyx, metadata=metadata)
    assert open_volume(path).info.metadata == metadata
    assert open_volume(path).dtype == np.uint8
    assert np.array_equal(open_volume(path).read(), image_zyx)
    with mrcfile.open(path) as mrc:
        assert np.array_equal(mrc.data, image_zyx)


@pytest.mark.parametrize("honest", [True, False])
def test_bytes_that_another_program_made_larger(tmp_path, honest):
    """The label still says that they are bytes: neither values nor the sum of an error may be cut off."""
    path = write(tmp_path / "a.mrc", noise("uint8"))
    with mrcfile.open(path, "r+") as mrc:
        mrc.data[0, 0, 0] = 1000
        if honest:
            mrc.update_header_stats()
    volume = open_volume(path)
    if honest:
        assert volume.dtype == np.uint16
        assert volume.read()[0, 0, 0] == 1000
    else:
        with pytest.raises(UserError, match="at most 255, but some are 1000"):
            volume.read()


@pytest.mark.parametrize(
    ("values", "known"), [((1.0, 2.0), True), ((-3.5, math.nan), False), ((1.0, math.inf), False), ((7.0, 7.0), True)]
)
def test_the_range_of_values(tmp_path, values, known):
    image_zyx = np.full(SHAPE, values[0], np.float32)
    image_zyx[-1, -1, -1] = values[1]
    path = write(tmp_path / "a.mrc", image_zyx, metadata=MASK)
    with mrcfile.open(path) as mrc:
        low, high, mean = (float(mrc.header[name]) for name in ("dmin", "dmax", "dmean"))
    assert (low, high) == (values if known else (0, -1))
    assert mean < min(low, high)
    assert np.array_equal(open_volume(path).read(), image_zyx, equal_nan=True)
    with mrcfile.open(path, "r+") as mrc:
        mrc.add_label("and then there was another program")
    assert open_volume(path).info.metadata == MASK
    with create_volume(path, SHAPE, "float32", overwrite=True) as writer:  # with boxes left out
        writer.write(Box((0, 0, 0), (1, 6, 7)), np.ones((1, 6, 7), np.float32))
    assert problems(path) == ""
    with mrcfile.open(path) as mrc:
        assert mrc.header.dmax < mrc.header.dmin
