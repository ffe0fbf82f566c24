import os
import socket
import sys
import time

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from made_files import refused, save, write_ome_set

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, check_same_shape, create_volume, open_volume
from mitoseg.volumes.stored import state_of


@pytest.mark.parametrize(
    "name", ["a.tif", "a.h5", "a.h5:/d", "a.zarr", "a.zarr/0", "a.mrc", "folder", "a.xyz", "a.tif/b", "a\0b", ""]
)
def test_what_is_missing(tmp_path, name):
    refused(r"(no such file|cannot be read).*nowhere", open_volume, f"{tmp_path}/nowhere/{name}")


def test_unknown_kinds_and_folders_with_the_name_of_a_file(tmp_path):
    for name in ("a.txt", "a.gz", "a"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        refused(rf"unknown kind of volume: .*{name}.*TIFF stack, a folder", open_volume, str(tmp_path / name))
    for name in ("a.tif", "a.h5", "a.mrc"):
        (tmp_path / name).mkdir()
        refused("holds no png or tif slices", open_volume, str(tmp_path / name))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.mrc"])
def test_a_file_that_may_not_be_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / name).chmod(0)
    if os.access(tmp_path / name, os.R_OK):
        pytest.skip("root may read everything")
    refused("may not be read", open_volume, str(tmp_path / name))


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
    save(f"{tmp_path}/{name}", image_zyx)
    assert np.array_equal(open_volume(f"{tmp_path}/{name}").read(), image_zyx)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.zarr", "a.mrc"])
@pytest.mark.parametrize("box", [Box((0, 0, 0), (3, 3, 5)), Box((-1, 0, 0), (1, 3, 5)), Box((2, 3, 6), (2, 3, 6))])
def test_a_box_that_leaves(tmp_path, name, box):
    with create_volume(f"{tmp_path}/{name}", (2, 3, 5), np.uint8):
        pass
    for volume in (open_volume(f"{tmp_path}/{name}"), ArrayVolume(np.zeros((2, 3, 5)))):
        refused("leaves the volume", volume.read, box)
        assert volume.read(Box((1, 1, 1), (1, 3, 4))).shape == (0, 2, 3)


def test_opening_reads_no_voxels(tmp_path, image_zyx, monkeypatch):
    paths = [f"{tmp_path}/{name}" for name in ("a.tif", "a.h5", "a.mrc", "a.zarr", "b.tif")]
    for path in paths[:-1]:
        save(path, image_zyx)
    tifffile.imwrite(paths[-1], image_zyx, photometric="minisblack", compression="zlib")

    def refuse(*_, **__):
        raise AssertionError("voxels were read")

    readers = [(np, "memmap"), (h5py.Dataset, "__getitem__"), (zarr.Array, "__getitem__")]
    for owner, name in (*readers, (tifffile.TiffPage, "asarray"), (tifffile.TiffPage, "decode")):
        monkeypatch.setattr(owner, name, refuse)
    for path in paths:
        volume = open_volume(path)
        assert volume.shape == image_zyx.shape
        with pytest.raises(UserError, match="voxels were read"):  # the trap works
            volume.read()


def test_voxels_that_are_no_numbers_or_not_there(tmp_path):
    records = np.zeros((5, 6, 7), [("a", "u1"), ("b", "f4")])
    empty, complexes = np.zeros((0, 5, 6), np.uint8), np.zeros((5, 6, 7), np.complex64)
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["complex"], h5["records"], h5["empty"] = complexes, records, empty
    tifffile.imwrite(tmp_path / "complex.tif", complexes)
    for name, array in (("complex", complexes), ("empty", empty)):
        zarr.create_array(tmp_path / f"{name}.zarr", data=array)
    for name in ("a.h5:/complex", "a.h5:/records", "a.h5:/empty", "complex.tif", "complex.zarr", "empty.zarr"):
        refused(r"complex numbers|not numbers|is empty", open_volume, tmp_path / name)


@pytest.mark.parametrize(
    "voxel_size",
    [(1, 2), (0, 1, 1), (1, 1, float("inf")), (5, 5, 1e9), (50, 5, 0.049), 5, "5,5,5", "555", ["a", 1, 2]],
)
def test_what_is_no_voxel_size(tmp_path, voxel_size):
    with create_volume(f"{tmp_path}/a.tif", (2, 3, 5), np.uint8):
        pass
    refused("cannot read the voxel size", open_volume, f"{tmp_path}/a.tif", voxel_size=voxel_size)


def test_image_and_labels_must_match():
    image, label = (ArrayVolume(np.zeros(shape), path=path) for shape, path in (((2, 3, 4), "i"), ((2, 3, 5), "l")))
    check_same_shape(image, ArrayVolume(np.zeros((2, 3, 4)), path="l"))
    check_same_shape(image, image)  # arrays in memory are not files
    refused(r"differ in shape: \(2, 3, 4\) of i, \(2, 3, 5\).*'l'", check_same_shape, image, label)


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
    refused("the link is broken" if kind == "link" else "a pipe, a socket or a device", open_volume, name)


def write_slices(folder, image_zyx):
    for z, image_yx in enumerate(image_zyx):
        tifffile.imwrite(folder / f"{z}.tif", image_yx)
    return folder


def write_virtual(folder, image_zyx):
    """An HDF5 file whose voxels lie in others: of the second a part lies in a third, raw."""
    shape = image_zyx.shape
    external = [(str(folder / "c.raw"), 0, image_zyx.nbytes)]
    with h5py.File(folder / "b.h5", "w") as h5:
        h5.create_dataset("raw", shape, "u1", external=external)[:] = image_zyx
    layout = h5py.VirtualLayout(shape=shape, dtype="u1")
    layout[:] = h5py.VirtualSource("b.h5", "raw", shape=shape)
    with h5py.File(folder / "a.h5", "w") as h5:
        h5.create_virtual_dataset("raw", layout)
    with h5py.File(folder / "link.h5", "w") as h5:
        h5["raw"] = h5py.ExternalLink("a.h5", "raw")
    return f"{folder}/link.h5:/raw"


STORED = {"slices": write_slices, "virtual": write_virtual}
STORED["ome set"] = lambda folder, image: write_ome_set(folder, image, compression="zlib")
OURS = ("a.tif", "a.h5", "a.mrc", "a.zarr", "a.ome.zarr")
STORED |= {name: lambda folder, image, name=name: save(folder / name, image, chunks=(2, 16, 16)) for name in OURS}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", STORED)
def test_the_state_of_a_volume_is_that_of_all_its_files(tmp_path, image_zyx, monkeypatch, kind, many):
    if many:
        monkeypatch.setattr("mitoseg.volumes.stored.MANY_FILES", 3)
        monkeypatch.setattr("mitoseg.volumes.stored.SAMPLED_FILES", 2)
    path = STORED[kind](tmp_path, image_zyx)
    np.testing.assert_array_equal(open_volume(path).read(), image_zyx)
    (tmp_path / ".DS_Store").touch()
    states = {open_volume(path).state(), open_volume(os.path.relpath(path)).state()}
    assert len(states) == 1
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert len(files) >= {"virtual": 4, "ome set": 2, "slices": 6, "a.zarr": 37}.get(kind, 1)
    for file in files:
        replaced = file.with_name("new")  # as most programs change a file, also zarr
        replaced.write_bytes(file.read_bytes())
        os.utime(replaced, ns=(0, file.stat().st_mtime_ns + 1))
        replaced.replace(file)
        states.add(open_volume(path).state())
    assert len(states) == 1 + len(files)


def test_the_state_of_a_hundred_thousand_files_takes_a_moment(tmp_path):
    for i in range(1000):
        (tmp_path / f"{i}").touch()
    start = time.process_time()
    before = state_of([tmp_path])
    assert time.process_time() - start < 0.1
    (tmp_path / "999").write_text("x")
    changed = state_of([tmp_path])
    (tmp_path / "999").unlink()
    assert len({before, changed, state_of([tmp_path])}) == 3
