"""MRC files of other programs, sound and damaged, and what mitoseg writes, as others and itself read it."""

import io
import logging
import math
import struct

import mrcfile
import numpy as np
import pytest
from made_files import check, refused

from mitoseg.geometry import Box, slabs
from mitoseg.volumes import create_volume, open_volume

MODE, NX, NZ, RANGE, SPACE_GROUP, EXTENDED, IMOD, MAP = 12, 0, 8, 76, 88, 92, 152, 208


def write(path, image_zyx, voxel_size=None, **header):
    """A file that mrcfile itself makes; voxel sizes in Angstrom, x, y, z."""
    with mrcfile.new(path, image_zyx, overwrite=True) as mrc:
        if voxel_size is not None:
            mrc.voxel_size = voxel_size
        for name, value in header.items():
            mrc.header[name] = value
    return str(path)


def patch(path, offset, layout, *values):
    """Change a file's header."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(layout, *values))
    return str(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_files_of_mrcfile(tmp_path, image_zyx, order):
    for dtype in ("i1", "i2", "f4", "u2", "f2"):
        stored = (image_zyx.astype(np.int16) - 60 * (dtype[0] == "i")).astype(np.dtype(dtype).newbyteorder(order))
        volume = check(write(tmp_path / "a.mrc", stored, (46, 45, 500)), stored, (50, 4.5, 4.6))
        assert volume.dtype.isnative
        assert volume.info.metadata == {}
    stored = image_zyx.astype(f"{order}i2")
    for name in ("a.rec", "a.map", "a.st", "a.ali", "a.mrcs", "A.MRC"):
        assert np.array_equal(open_volume(write(tmp_path / name, stored)).read(), image_zyx)
    for stamp in (b"\x44\x41\0\0", b"\0\0\0\0", b"\x11\x11\0\0"):  # missing or wrong
        path = patch(write(tmp_path / "a.mrc", stored), MAP + 4, "4s", stamp)
        assert np.array_equal(open_volume(path).read(), image_zyx)


UNKNOWN, EMPTY = (0, -1), (0, 0)
RAMP = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
WAVES = (128 + 90 * np.sin(np.add.outer(np.arange(3), np.add.outer(np.arange(40), np.arange(48))) / 9)).astype(
    np.uint8
)


def write_bytes(path, stored, low_high=UNKNOWN, imod=None, order="<"):
    """A file of mode 0, with the smallest and largest value that its header is to state, and flags of IMOD."""
    with mrcfile.new(path, np.zeros(stored.shape, f"{order}i2"), overwrite=True) as mrc:
        start = 1024 + int(mrc.header.nsymbt)
    patch(path, MODE, f"{order}i", 0)
    patch(path, RANGE, f"{order}ff", *low_high)
    patch(path, start, f"{stored.size}B", *stored.ravel().tolist())
    return str(path) if imod is None else patch(path, IMOD, f"{order}ii", 1146047817, imod)


BYTES = [
    (RAMP, None, (-128, 127), RAMP.view("int8")),
    (RAMP, None, (0, 255), RAMP),
    (RAMP // 3, None, (0, 85), RAMP // 3),  # either would do
    (RAMP // 3, None, UNKNOWN, RAMP // 3),
    (RAMP, 0, (0, 100), RAMP),
    (RAMP, 0, (-128, 127), RAMP),
    (RAMP, 1, (0, 255), RAMP ^ 0x80),  # what IMOD stores less 128
    (RAMP, 5, UNKNOWN, RAMP ^ 0x80),
    (RAMP, 4, (0, 255), RAMP),
    *[(WAVES, None, nothing, WAVES) for nothing in (UNKNOWN, EMPTY, (-5, 255), (float("nan"),) * 2, (3e9, -3e9))],
    (WAVES ^ 0x80, None, UNKNOWN, (WAVES.astype(int) - 128).astype("int8")),
]
UNCLEAR = [
    (RAMP, None, (0, 100), "at most 127, but some are 255"),
    (np.where(RAMP > 99, np.uint8(255), np.uint8(0)), None, EMPTY, "0 to 255 or from -128 to 127"),
    (np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8), None, UNKNOWN, "0 to 255 or from -128"),
    (RAMP, 16, (0, 15), "holds two voxels"),
]


@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_with_and_without_a_sign(tmp_path, order):
    for stored, imod, low_high, values in BYTES:
        volume = open_volume(write_bytes(tmp_path / "a.mrc", stored, low_high, imod, order))
        assert np.array_equal(volume.read(), values)
        assert volume.read().dtype == volume.dtype
        assert volume.dtype.itemsize == 1
    for stored, imod, low_high, says in UNCLEAR:
        path = write_bytes(tmp_path / "a.mrc", stored, low_high, imod, order)
        assert "a.mrc" in refused(says, lambda path=path: open_volume(path).read())


def test_voxel_sizes(tmp_path, image_zyx, caplog):
    stored = image_zyx.astype("i2")
    path = write(tmp_path / "a.mrc", stored, 50, cellb=(90, 90, 120))
    refused("angles of 90, 90, 120 degrees", open_volume, path)
    assert open_volume(path, voxel_size=(5, 4, 4)).voxel_size == (5, 4, 4)
    for angles in ((0, 0, 0), (90, 90, 90)):
        assert open_volume(write(tmp_path / "a.mrc", stored, 50, cellb=angles)).voxel_size == (5, 5, 5)
    for header in ({"cella": (0, 0, 0)}, {"cella": (5, 5, 0)}, {"mx": 0}, {"mz": -2}, {"cella": 1e30}):
        assert open_volume(write(tmp_path / "a.mrc", stored, (50, 50, 500), **header)).voxel_size is None
    assert open_volume(write(tmp_path / "a.mrc", stored, 1)).voxel_size is None  # what programs write for unknown
    assert "1 Angstrom" in caplog.text


def test_axes_in_another_order(tmp_path, image_zyx):
    """Columns, rows and sections may run along any of x, y and z."""
    for stated in ((1, 2, 3), (3, 2, 1), (2, 3, 1), (1, 3, 2)):
        letters = "".join("xyz"[n - 1] for n in stated)[::-1]
        stored = np.ascontiguousarray(image_zyx.transpose(["zyx".index(a) for a in letters]).astype("i2"))
        counts = dict(zip(("mx", "my", "mz"), image_zyx.shape[::-1], strict=True))
        axes = dict(zip(("mapc", "mapr", "maps"), stated, strict=True))
        path = write(tmp_path / "a.mrc", stored, **axes, **counts, cella=(50 * 46, 37 * 45, 6 * 500))
        for options in ({}, {"axes": letters}):
            check(path, image_zyx.astype("i2"), (50, 4.5, 4.6), **options)


def test_axes_that_say_nothing(tmp_path, image_zyx):
    stored = image_zyx.astype("i2")
    assert np.array_equal(open_volume(write(tmp_path / "a.mrc", stored, mapc=0, mapr=0, maps=0)).read(), image_zyx)
    path = write(tmp_path / "a.mrc", stored, mapc=1, mapr=1, maps=3)
    refused(r"axes \(maps, mapr, mapc\) are \[3, 1, 1\].*axes=zyx", open_volume, path)
    assert np.array_equal(open_volume(path, axes="zyx").read(), image_zyx)
    for few in (stored[:3], stored[:, :, :4], stored[:1]):  # are no colours
        assert np.array_equal(open_volume(write(tmp_path / "a.mrc", few)).read(), few)
    assert open_volume(write(tmp_path / "a.mrc", stored[0])).shape == (1, 37, 50)
    with mrcfile.new(tmp_path / "b.mrc", stored) as mrc:  # an extended header of others
        mrc.set_extended_header(np.frombuffer(bytes(range(256)) * 3, "V1"))
        mrc.header.exttyp = b"SERI"
    check(tmp_path / "b.mrc", stored)


UNREADABLE = [
    *((MODE, "<i", (mode,), "complex") for mode in (3, 4)),
    (MODE, "<i", (101,), "mode 101.*save it with mode 0, 1, 2, 6 or 12"),
    *((MODE, "<i", (mode,), f"mode {mode}") for mode in (16, -1)),
    (MAP, "<4s", (b"PAM ",), "not an MRC file"),
    (NX, "<i", (-50,), "size of 6 x 37 x -50"),
    *((place, "<i", (0,), "empty") for place in (NX, NZ)),
    *(
        (NX, "<iii", (2**31 - 1,) * 3, "cut short"),
        (NZ, "<i", (7,), "cut short"),
        (EXTENDED, "<i", (64,), "cut short"),
    ),
    *((EXTENDED, "<i", (size,), f"extended header of {size} bytes") for size in (-4, 2**31 - 1)),
    (SPACE_GROUP, "<i", (401,), "holds 3 volumes"),
]


def test_what_cannot_be_read_is_one_line(tmp_path, image_zyx, caplog):
    for offset, layout, values, says in UNREADABLE:
        path = write(tmp_path / "a.mrc", image_zyx.astype("i2"), mz=2 if says.endswith("volumes") else 6)
        with caplog.at_level(logging.INFO):
            assert "a.mrc" in refused(says, open_volume, patch(path, offset, layout, *values))
    assert caplog.records == []
    for dtype, low_high in (("i2", (0, 60000)), ("u2", (-90, 90))):  # contradict the sign of the voxels
        path = write(tmp_path / "a.mrc", image_zyx.astype(dtype))
        refused("sign", open_volume, patch(path, RANGE, "<2f", *low_high))


def test_files_that_shrink_after_they_were_opened_or_are_compressed(tmp_path, image_zyx):
    volume = open_volume(write(tmp_path / "a.mrc", image_zyx.astype("i2")))
    (tmp_path / "a.mrc").write_bytes((tmp_path / "a.mrc").read_bytes()[:5000])
    refused("cannot be read", volume.read)
    for name, compression, says in (
        *(("b.mrc", "gzip", "gzip"), ("a.mrc.gz", "gzip", "unknown kind"), ("a.rec.bz2", "bzip2", "unknown kind")),
    ):
        mrcfile.new(tmp_path / name, image_zyx.astype("i2"), compression=compression).close()
        refused(rf"{says}.*unpack it first", open_volume, f"{tmp_path}/{name}")


SHAPE = (5, 6, 7)
MASK = {"kind": "mask", "threshold": 0.4}


def save_slabs(path, image_zyx, **options):
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


@pytest.mark.parametrize("metadata", [{}, MASK | {"kind": "probability"}, {"note": "ü" * 2000}])
def test_mrcfile_reads_the_same_voxels(tmp_path, metadata):
    """Long metadata go into an extended header."""
    for dtype, mode in (("uint8", 6), ("int8", 0), ("uint16", 6), ("int16", 1), ("float32", 2)):
        image_zyx = noise(dtype)
        path = save_slabs(tmp_path / f"{dtype}.mrc", image_zyx, voxel_size=(50, 4.6, 4.5), metadata=metadata)
        assert "note" in metadata or problems(path) == ""
        with mrcfile.open(path) as mrc:
            assert mrc.is_volume()
            assert mrc.header.mode == mode
            assert np.array_equal(mrc.data, image_zyx)
            assert [float(mrc.voxel_size[a]) for a in "zyx"] == pytest.approx([500, 46, 45])
            assert (mrc.header.dmin, mrc.header.dmax) == (image_zyx.min(), image_zyx.max())
        assert check(path, image_zyx, (50, 4.6, 4.5)).info.metadata == metadata


def test_a_mask_takes_one_byte(tmp_path):
    for top in (0, 1):
        mask_zyx = (noise("uint8") % 2 * top).astype(np.uint8)
        path = save_slabs(tmp_path / f"{top}.mrc", mask_zyx, metadata=MASK)
        assert problems(path) == ""
        assert (tmp_path / f"{top}.mrc").stat().st_size == 1024 + math.prod(SHAPE)
        with mrcfile.open(path) as mrc:
            assert mrc.data.dtype == np.int8
            assert np.array_equal(mrc.data, mask_zyx)
        check(path, mask_zyx)
    with pytest.raises(ValueError, match="a mask of 0 and 1 cannot hold 255"):
        save_slabs(tmp_path / "a.mrc", np.full(SHAPE, 255, np.uint8), metadata=MASK)
    assert {p.name for p in tmp_path.iterdir()} == {"0.mrc", "1.mrc"}


@pytest.mark.parametrize("honest", [True, False])
def test_bytes_that_another_program_made_larger(tmp_path, honest):
    """The label still says that they are bytes: neither values nor the sum of an error may be cut off."""
    path = save_slabs(tmp_path / "a.mrc", noise("uint8"))
    with mrcfile.open(path, "r+") as mrc:
        mrc.data[0, 0, 0] = 1000
        if honest:
            mrc.update_header_stats()
    volume = open_volume(path)
    if honest:
        assert volume.dtype == np.uint16
        assert volume.read()[0, 0, 0] == 1000
    else:
        refused("at most 255, but some are 1000", volume.read)


@pytest.mark.parametrize(
    ("values", "known"), [((1.0, 2.0), True), ((-3.5, math.nan), False), ((1.0, math.inf), False), ((7.0, 7.0), True)]
)
def test_the_range_of_values(tmp_path, values, known):
    image_zyx = np.full(SHAPE, values[0], np.float32)
    image_zyx[-1, -1, -1] = values[1]
    path = save_slabs(tmp_path / "a.mrc", image_zyx, metadata=MASK)
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
