import os
import socket
import sys

import numpy as np
import pytest
import tifffile

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, check_same_shape, create_volume, open_volume


@pytest.mark.parametrize(
    "name", ["a.tif", "a.h5", "a.h5:/d", "a.zarr", "a.zarr/0", "a.mrc", "folder", "a.xyz", "a.tif/b", "a\0b", ""]
)
def test_what_is_missing(tmp_path, name):
    with pytest.raises(UserError) as caught:
        open_volume(f"{tmp_path}/nowhere/{name}")
    assert "nowhere" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path):
    for name in ("a.tif", "a.h5", "a.mrc", "a.mrc.gz", "a.png", "folder"):
        with pytest.raises(UserError, match=rf"no such file.*{name}.*check the path"):
            open_volume(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a"])
def test_unknown_suffixes(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=rf"unknown kind of volume: .*{name}.*TIFF stack, a folder"):
        open_volume(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.mrc"])
def test_a_folder_with_the_name_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="holds no png or tif slices"):
        open_volume(str(tmp_path / name))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.mrc"])
def test_a_file_that_may_not_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name).chmod(0)
    if os.access(tmp_path / name, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(UserError, match="may not be read"):
        open_volume(str(tmp_path / name))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows fills sparse files with zeros")
def test_many_gigabytes_open_at_once(tmp_path):
    shape = (5, 2**15, 2**15)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as tif:
        tif.write(None, shape=shape, dtype="uint8", photometric="minisblack", metadata={"axes": "ZYX"})
    if os.stat(tmp_path / "a.tif").st_blocks * 512 > 2**28:
        pytest.skip("no sparse files here")
    volume = open_volume(f"{tmp_path}/a.tif")
    assert volume.shape == shape
    assert volume.read(Box((4, 32767, 32766), (5, 32768, 32768))).tolist() == [[[0, 0]]]


@pytest.mark.parametrize("name", ["a b.tif", "[a]=1,2#.tif", "ü µ.h5", "a~b'c\".zarr", "a{0}%d.tif"])
def test_names_with_odd_characters(tmp_path, name):
    if sys.platform == "win32" and '"' in name:
        pytest.skip("no such names on Windows")
    image_zyx = np.arange(30, dtype=np.uint8).reshape(2, 3, 5)
    with create_volume(f"{tmp_path}/{name}", image_zyx.shape, np.uint8) as writer:
        writer.write(Box.of_shape(image_zyx.shape), image_zyx)
    assert np.array_equal(open_volume(f"{tmp_path}/{name}").read(), image_zyx)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.zarr", "a.mrc"])
@pytest.mark.parametrize("box", [Box((0, 0, 0), (3, 3, 5)), Box((-1, 0, 0), (1, 3, 5)), Box((2, 3, 6), (2, 3, 6))])
def test_a_box_that_leaves(tmp_path, name, box):
    with create_volume(f"{tmp_path}/{name}", (2, 3, 5), np.uint8):
        pass
    for volume in (open_volume(f"{tmp_path}/{name}"), ArrayVolume(np.zeros((2, 3, 5)))):
        with pytest.raises(UserError, match="leaves the volume"):
            volume.read(box)
        assert volume.read(Box((1, 1, 1), (1, 3, 4))).shape == (0, 2, 3)


@pytest.mark.parametrize("voxel_size", [(1, 2), (0, 1, 1), (1, 1, float("inf")), 5, "5,5,5", "555", ["a", 1, 2]])
def test_what_is_no_voxel_size(tmp_path, voxel_size):
    with create_volume(f"{tmp_path}/a.tif", (2, 3, 5), np.uint8):
        pass
    with pytest.raises(UserError, match="cannot read the voxel size"):
        open_volume(f"{tmp_path}/a.tif", voxel_size=voxel_size)


def test_image_and_labels_must_match():
    image, label = (ArrayVolume(np.zeros(shape), path=path) for shape, path in (((2, 3, 4), "i"), ((2, 3, 5), "l")))
    check_same_shape(image, ArrayVolume(np.zeros((2, 3, 4)), path="l"))
    with pytest.raises(UserError, match="image and labels are one file"):
        check_same_shape(image, image)
    with pytest.raises(UserError, match=r"differ in shape: \(2, 3, 4\) of i, \(2, 3, 5\).*'l'"):
        check_same_shape(image, label)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["a.tif", "a.mrc", "a.h5", "a.h5:/em", "a.zarr", "a.n5", "a.xyz", "slices"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link"])
def test_what_is_no_file(tmp_path, name, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    place = name.partition(":")[0]
    if name == "slices":
        (tmp_path / "slices").mkdir()
        place = "slices/1.png"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(place)
    else:
        os.symlink("/dev/zero" if kind == "device" else "nowhere", place)
    with pytest.raises(UserError, match="leads nowhere" if kind == "link" else "a pipe, a socket or a device"):
        open_volume(name)
