import json
import logging

import h5py
import numpy as np
import pytest

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import open_volume
from mitoseg.volumes.hdf5 import split_dataset


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a.h5", ("a.h5", "")),
        ("a.h5:", ("a.h5", "")),
        ("a.h5:/", ("a.h5", "")),
        ("a.h5:/d", ("a.h5", "d")),
        ("a.h5:d", ("a.h5", "d")),
        ("x y/[ü].HDF5:/volumes/raw", ("x y/[ü].HDF5", "volumes/raw")),
        (r"C:\x.h5", (r"C:\x.h5", "")),
        (r"C:\x.h5:/d", (r"C:\x.h5", "d")),
        ("C:/x.h5:/d/e", ("C:/x.h5", "d/e")),
        ("a.h5:/b.h5", ("a.h5", "b.h5")),
        ("a.hdf:/t:0", ("a.hdf", "t:0")),
        (r"C:\x.tif", None),
        ("a.h5.tif", None),
        ("a.h5x", None),
        ("folder.h5/a.tif", None),
    ],
)
def test_paths_are_split_where_the_file_ends(path, parts):
    assert split_dataset(path) == parts


@pytest.fixture
def file(tmp_path, image_zyx):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("volumes/raw", data=image_zyx, chunks=(2, 16, 16), compression="gzip")
        h5["volumes/labels/mito"] = image_zyx > 20
        h5["few"] = image_zyx[:3]
        h5["colours"] = np.stack([image_zyx] * 3 + [image_zyx * 0 + 255], 0)
        h5["channel"] = image_zyx[None]
        h5["table"] = np.zeros(5)
        h5["complex"] = np.zeros((5, 6, 7), np.complex64)
        h5["records"] = np.zeros((5, 6, 7), [("a", "u1")])
        h5["empty"] = np.zeros((5, 0, 7), np.uint8)
    return str(tmp_path / "a.h5")


def test_boxes_of_a_dataset(file, image_zyx):
    volume = open_volume(f"{file}:/volumes/raw")
    assert volume.dtype == np.uint8
    assert np.array_equal(volume.read(), image_zyx)
    box = Box((1, 7, 20), (5, 33, 50))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])
    assert open_volume(f"{file}:volumes/labels/mito").dtype == bool


def test_a_dataset_must_be_named_where_there_are_several(file):
    with pytest.raises(UserError, match=r"several.*name one of its datasets: .*a\.h5:/"):
        open_volume(file)
    with pytest.raises(UserError, match=r"no dataset 'nope' in the file.*a\.h5:/few"):
        open_volume(f"{file}:/nope")
    with pytest.raises(UserError, match="no dataset 'volumes'"):
        open_volume(f"{file}:/volumes")


def test_the_only_volume_needs_no_name(tmp_path, image_zyx):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["deep/volume"] = image_zyx
        h5["table"] = np.zeros((5, 2))
    assert np.array_equal(open_volume(str(tmp_path / "a.h5")).read(), image_zyx)


def test_axes_ask(file, image_zyx):
    for name in ("few", "colours", "channel"):
        with pytest.raises(UserError, match="ambiguous"):
            open_volume(f"{file}:/{name}")
    assert np.array_equal(open_volume(f"{file}:/few", axes="zyx").read(), image_zyx[:3])
    assert np.array_equal(open_volume(f"{file}:/colours", axes="czyx").read(), image_zyx)
    assert np.array_equal(open_volume(f"{file}:/channel", axes="czyx").read(), image_zyx)
    turned = open_volume(f"{file}:/volumes/raw", axes="xyz")
    assert turned.shape == (50, 37, 6)
    box = Box((40, 3, 2), (50, 30, 5))
    assert np.array_equal(turned.read(box), image_zyx.transpose()[box.slices])
    assert turned.read(box).flags.c_contiguous


def test_axes_that_ilastik_states(tmp_path, image_zyx):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["exported_data"] = image_zyx.transpose()[..., None]
        h5["exported_data"].attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "xyzc"]})
    assert np.array_equal(open_volume(str(tmp_path / "a.h5")).read(), image_zyx)


@pytest.mark.parametrize(
    ("name", "value", "nm"),
    [
        ("element_size_um", [0.05, 0.0046, 0.0046], (50, 4.6, 4.6)),
        ("voxel_size_nm", [50, 4.6, 4.6], (50, 4.6, 4.6)),
        ("element_size_um", [0.05, 0.0046], None),
        ("element_size_um", [0, 0, 0], None),
        ("element_size_um", "unknown", None),
    ],
)
def test_voxel_size(tmp_path, image_zyx, name, value, nm):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["a"] = image_zyx
        h5["a"].attrs[name] = value
    assert open_volume(str(tmp_path / "a.h5")).voxel_size == nm


def test_big_endian_is_turned(tmp_path, image_zyx):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["a"] = image_zyx.astype(">u2")
    volume = open_volume(str(tmp_path / "a.h5"))
    assert volume.dtype.isnative
    assert np.array_equal(volume.read(), image_zyx)


@pytest.mark.parametrize(("name", "says"), [("complex", "complex"), ("records", "no numbers"), ("empty", "is empty")])
def test_what_is_no_volume(file, name, says):
    with pytest.raises(UserError, match=says):
        open_volume(f"{file}:/{name}")


def test_opening_reads_no_voxels(file, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("voxels were read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    volume = open_volume(f"{file}:/volumes/raw")
    with pytest.raises(UserError, match="voxels were read"):  # the trap works
        volume.read()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_one_line(tmp_path, image_zyx, share, caplog, capfd):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("a", data=image_zyx, chunks=(1, 37, 50), compression="gzip")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: int(len(data) * share)])
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match=r"a\.h5") as caught:
        open_volume(str(tmp_path / "a.h5")).read()
    assert "\n" not in str(caught.value)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_damaged_chunk_is_one_line(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 9, (6, 100, 100), np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("a", data=noise, chunks=(1, 100, 100), compression="gzip", fletcher32=True)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[-3000:-2000] = bytes(1000)
    (tmp_path / "a.h5").write_bytes(data)
    volume = open_volume(str(tmp_path / "a.h5"))
    with pytest.raises(UserError, match="cannot be read"):
        volume.read()
    assert capfd.readouterr() == ("", "")


def test_a_file_that_others_hold_open_can_be_read(file, image_zyx):
    with h5py.File(file, "r"):
        assert np.array_equal(open_volume(f"{file}:/volumes/raw").read(), image_zyx)


def partly(path, slices, **options):
    """A dataset of three chunks along z of which only some are written."""
    with h5py.File(path, "w") as h5:
        dataset = h5.create_dataset("raw", shape=(6, 8, 9), dtype="u1", fillvalue=7, **options)
        for z in slices:
            dataset[z] = 1
    return open_volume(path)


@pytest.mark.parametrize(("slices", "missing"), [((0, 2, 5), 0), ((0, 1, 3), 1), ((2,), 2), ((), 3)])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_chunks_that_were_never_written(tmp_path, slices, missing, compression):
    volume = partly(tmp_path / "a.h5", slices, chunks=(2, 8, 9), compression=compression)
    if not missing:
        volume.check_complete()
        return
    says = rf"{missing} of 3 chunks were never written and would read as 7: .*a\.h5.*missing_chunks=fill"
    with pytest.raises(UserError, match=says):
        volume.check_complete()
    assert volume.read()[4, 0, 0] == 7


def test_a_dataset_without_chunks(tmp_path):
    partly(tmp_path / "a.h5", (3,)).check_complete()  # is set aside at once
    with pytest.raises(UserError, match="the voxels of the dataset were never written and would read as 7"):
        partly(tmp_path / "b.h5", ()).check_complete()


def test_files_of_a_virtual_dataset(tmp_path, image_zyx):
    layout = h5py.VirtualLayout(shape=image_zyx.shape, dtype="u1")
    for z, image_yx in enumerate(image_zyx):
        with h5py.File(tmp_path / f"{z}.h5", "w") as h5:
            h5["slice"] = image_yx
        layout[z] = h5py.VirtualSource(f"{z}.h5", "slice", shape=image_yx.shape)
    with h5py.File(tmp_path / "all.h5", "w") as h5:
        h5.create_virtual_dataset("raw", layout)
    volume = open_volume(tmp_path / "all.h5")
    volume.check_complete()
    assert np.array_equal(volume.read(), image_zyx)
    (tmp_path / "3.h5").unlink()
    with pytest.raises(UserError, match=r"1 of 6 files of the virtual dataset are missing and would read as 0"):
        volume.check_complete()
