"""TIFF stacks: voxels of every kind of file, and files that are damaged."""

import logging
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import WAYS, check, refused, write, write_ome_set

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import open_volume
from mitoseg.volumes.stored import PageCache
from mitoseg.volumes.tiff import Stack

CASES = [
    (way, dtype)
    for way, options in WAYS.items()
    for dtype in ("uint8", "uint16", "float32", "float64", "bool")
    if not (options.get("imagej") and dtype in ("float64", "bool"))  # there are no such files
    if not (options.get("predictor") and dtype == "bool")
]


@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_every_kind_of_file_reads_the_same(tmp_path, image_zyx, way, dtype):
    options = dict(WAYS[way])
    image_zyx = image_zyx.astype(dtype) if dtype != "bool" else image_zyx % 3 == 0
    if options.get("predictor") and image_zyx.dtype.kind == "f":
        options["predictor"] = 3
    volume = check(write(tmp_path / "a.tif", image_zyx, **options), image_zyx)
    assert volume.dtype.isnative
    for box in (Box((2, 3, 30), (5, 36, 50)), Box((5, 36, 49), (6, 37, 50)), Box((0, 0, 0), (6, 1, 1))):
        assert np.array_equal(volume.read(box), image_zyx[box.slices])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_box_of_strips_and_tiles(tmp_path_factory, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=3, max_size=3)))
    image_zyx = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    layout = data.draw(
        st.sampled_from([{"tile": (16, 16)}, {"tile": (32, 16)}, {"rowsperstrip": 1}, {"rowsperstrip": 7}, {}])
    )
    path = tmp_path_factory.mktemp("any") / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for image_yx in image_zyx:
            tif.write(image_yx, metadata=None, compression="zlib", photometric="minisblack", **layout)
    axes = "zyx" if {shape[0], shape[-1]} & {3, 4} else None
    volume = open_volume(str(path), axes=axes)
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])


def test_a_slab_decodes_each_page_once(tmp_path, image_zyx, monkeypatch):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    decoded = []
    read = Stack.read_segment
    monkeypatch.setattr(Stack, "read_segment", lambda *a: decoded.append(a[1:]) or read(*a))
    for y in range(0, 37, 8):
        for x in range(0, 50, 8):
            volume.read(Box((0, y, x), (6, min(y + 8, 37), min(x + 8, 50))))
    for z in range(5):
        volume.read(Box((z, 0, 0), (z + 2, 37, 50)))
    assert sorted(decoded) == [(z, 0) for z in range(6)]


def test_a_small_cache_still_reads_right(tmp_path, image_zyx):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    volume._cache = PageCache(1)
    assert all(np.array_equal(volume.read(box), image_zyx[box.slices]) for box in slabs(volume.box, 4))


def test_threads_share_a_volume(tmp_path, image_zyx):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib", rowsperstrip=2))
    volume._cache = PageCache(4000)
    wrong = []

    def run(seed):
        for z in np.random.default_rng(seed).integers(0, 6, 20):
            box = Box((int(z), 0, 0), (int(z) + 1, 37, 50))
            if not np.array_equal(volume.read(box), image_zyx[box.slices]):
                wrong.append(box)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_opens_the_file_for_itself(tmp_path, image_zyx, monkeypatch):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    volume.read(Box((0, 0, 0), (1, 37, 50)))
    handle = volume._handle()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)  # as if forked
    assert volume._handle() is not handle
    assert np.array_equal(volume.read(), image_zyx)


def test_a_real_volume_reads_as_tifffile_reads_it(real_data):
    path = real_data / "epfl_ca1" / "training.tif"
    volume = open_volume(str(path))
    assert (volume.shape, volume.dtype) == ((165, 768, 1024), np.uint8)
    expected = tifffile.imread(path, key=range(40, 45))
    assert np.array_equal(volume.read(Box((40, 0, 0), (45, 768, 1024))), expected)
    box = Box((41, 250, 1000), (44, 262, 1024))  # crosses two strips
    assert np.array_equal(volume.read(box), expected[1:4, 250:262, 1000:])


def test_pages_of_different_sizes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for n in (20, 20, 21):
            tif.write(np.zeros((n, 30), np.uint8), metadata=None)
    refused("not one stack", open_volume, str(tmp_path / "a.tif"))


def test_a_file_that_is_damaged_inside_is_one_line(tmp_path, caplog, capfd):
    image_zyx = np.random.default_rng(0).integers(0, 9, (6, 100, 100), np.uint8)
    path = write(tmp_path / "a.tif", image_zyx, compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "a.tif").write_bytes(data)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"damaged.*|cannot be read"):
        open_volume(path).read()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\xff\xff", b"PK\3\4"]
)
def test_what_is_no_tiff(tmp_path, content, caplog):
    (tmp_path / "a.tif").write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"a\.tif"):
        open_volume(str(tmp_path / "a.tif"))
    assert caplog.records == []


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_an_ome_image_in_several_files(tmp_path, image_zyx, options):
    path = write_ome_set(tmp_path, image_zyx, **options)
    check(path, image_zyx)
    (tmp_path / "1.ome.tif").unlink()
    refused("3 of the 6 slices that the OME-TIFF lists are not there", open_volume, path)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "png"])
@pytest.mark.parametrize("colour", [False, True])
def test_a_strip_that_unpacks_to_far_too_much(tmp_path, codec, colour):
    shape = (40, 50, 3) if colour else (40, 50)
    encode = {"jpeg": imagecodecs.jpeg8_encode, "jpeg2000": imagecodecs.jpeg2k_encode, "png": imagecodecs.png_encode}
    large = encode[codec](np.zeros((400, 500, *shape[2:]), np.uint8))
    options = {"photometric": "rgb" if colour else "minisblack", "compression": codec, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        tags = [tif.pages.first.tags[name] for name in ("StripOffsets", "StripByteCounts")]
        places = [(tag.offset, tag.dtype) for tag in tags]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for (place, _), value in zip(places, (len(data), len(large)), strict=True):
        data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, value)
    (tmp_path / "a.tif").write_bytes(data + large)
    refused("unpacks to 500 x 400 pixels", lambda: open_volume(tmp_path / "a.tif").read())
