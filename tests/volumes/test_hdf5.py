import json
import os
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
import zarr
from made_files import check, refused, write_bdv_xml, write_hdf5

from mitoseg.geometry import Box
from mitoseg.volumes import open_volume
from mitoseg.volumes.hdf5 import SUFFIXES
from mitoseg.volumes.stored import split_dataset

PARTS = {
    "a.h5": ("a.h5", ""), "a.h5:": ("a.h5", ""), "a.h5:/": ("a.h5", ""), "a.h5:/d": ("a.h5", "d"),
    "a.h5:d": ("a.h5", "d"), "x y/[ü].HDF5:/volumes/raw": ("x y/[ü].HDF5", "volumes/raw"),
    r"C:\x.h5": (r"C:\x.h5", ""), r"C:\x.h5:/d": (r"C:\x.h5", "d"), "C:/x.h5:/d/e": ("C:/x.h5", "d/e"),
    "a.h5:/b.h5": ("a.h5", "b.h5"), "a.hdf:/t:0": ("a.hdf", "t:0"),
    **dict.fromkeys((r"C:\x.tif", "a.h5.tif", "a.h5x", "folder.h5/a.tif")),
}  # fmt: skip


def test_paths_are_split_where_the_file_ends():
    assert {path: split_dataset(path, SUFFIXES) for path in PARTS} == PARTS


def test_datasets_are_named_and_axes_ask(tmp_path, image_zyx):
    with h5py.File(tmp_path / "one.h5", "w") as h5:
        h5["deep/volume"] = image_zyx.astype(">u2")
        h5["table"] = np.zeros((5, 2))
    volume = open_volume(tmp_path / "one.h5")
    assert volume.dtype == "=u2"
    with h5py.File(tmp_path / "one.h5", "r"):  # others may read it
        assert np.array_equal(volume.read(), image_zyx)
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as h5:
        h5.create_dataset("volumes/raw", data=image_zyx, chunks=(2, 16, 16), compression="gzip")
        h5["few"], h5["channel"] = image_zyx[:3], image_zyx[None]
        h5["colours"] = np.stack([image_zyx] * 3 + [image_zyx * 0 + 255], 0)
    refused(r"not contain exactly one volume.*name one of its datasets: .*a\.h5:/", open_volume, file)
    refused(r"no dataset 'nope' in the file.*a\.h5:/few", open_volume, f"{file}:/nope")
    refused("no dataset 'volumes'", open_volume, f"{file}:/volumes")
    for name, axes in (("few", "zyx"), ("colours", "czyx"), ("channel", "czyx")):
        refused("ambiguous", open_volume, f"{file}:/{name}")
        found_zyx = open_volume(f"{file}:/{name}", axes=axes).read()
        assert np.array_equal(found_zyx, image_zyx[: len(found_zyx)])
    turned = check(f"{file}:/volumes/raw", image_zyx.transpose(), axes="xyz")
    assert turned.read(Box((40, 3, 2), (50, 30, 5))).flags.c_contiguous


NAMES = [{"axes": axes} for axes in (["x", "y", "z"], '["x", "y", "z"]', "X, Y, Z")]
NAMES += [{"axis_names": "xyz"}, {"axistags": json.dumps({"axes": [{"key": key} for key in "xyz"]})}]
NAMES += [{"_ARRAY_DIMENSIONS": ["width", "height", "depth"]}, {}]


def test_axes_however_named(tmp_path, image_zyx):
    for n, attributes in enumerate(NAMES):
        path = write_hdf5(tmp_path / f"{n}.h5", image_zyx.transpose(), **attributes)
        with h5py.File(path, "a") as h5:
            for dim, name in zip(h5["raw"].dims, () if attributes else ("width", "height", "depth"), strict=False):
                dim.label = name
        assert np.array_equal(open_volume(path).read(), image_zyx)


NAMED = {
    "element_size_um": [0.05, 0.0046, 0.0046],
    "voxel_size_nm": [50, 4.6, 4.6],
    "resolution": "[50, 4.6, 4.6]",
    "voxel_size": "50, 4.6, 4.6",
    "pixelResolution": '{"unit": "nm", "dimensions": [4.6, 4.6, 50]}',
}
CREMI, FUNLIB = {"resolution": [50.0, 4.6, 4.6], "offset": [0, 8, 8]}, {"voxel_size": [50, 4, 6], "units": ["nm"] * 3}
TAGS = json.dumps({"axes": [{"key": k, "resolution": r} for k, r in zip("xyz", (0.004, 0.005, 0.05), strict=True)]})
UNITS = json.dumps(dict.fromkeys("xyz", "um"))
COSEM = {"transform": {"axes": ["z", "y", "x"], "scale": [50.0, 4.6, 4.6], "units": ["nm"] * 3}}


SIZED = [
    *(({key: value}, (50, 4.6, 4.6)) for key, value in NAMED.items()),
    *(({"element_size_um": value}, None) for value in ([0.05, 0.0046], [0, 0, 0], "unknown")),
    *((CREMI, (50, 4.6, 4.6)), (COSEM, (50, 4.6, 4.6)), (FUNLIB, (50, 4, 6))),
    (FUNLIB | {"axis_names": ["x", "y", "z"]}, (6, 4, 50)),
    ({"voxel_size": [0.05, 0.004, 0.006], "units": ["um"] * 3}, (50, 4, 6)),
    ({"resolution": [0.05, 0.004, 0.006]}, None),  # in um by what it is
    ({"axistags": TAGS, "axis_units": UNITS}, (50, 5, 4)),  # ilastik; vigra
    ({"axistags": TAGS.replace("0.004", "4").replace("0.005", "5").replace("0.05", "50")}, (50, 5, 4)),
    *(({"axistags": json.dumps({"axes": [{"key": k, "resolution": n} for k in "zyx"]})}, None) for n in (0, 1)),
    (CREMI | {"element_size_um": [0.05, 0.0046, 0.0046]}, (50, 4.6, 4.6)),
    (CREMI | {"element_size_um": [0.05, 0.0023, 0.0023]}, "contradict"),
]


@pytest.mark.parametrize("container", ["h5", "2.zarr", "3.zarr"])
def test_voxel_sizes_of_other_programs(tmp_path, image_zyx, container):
    for n, (attributes, nm) in enumerate(SIZED):
        path = tmp_path / f"{n}.{container}"
        if container == "h5":
            texts = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in attributes.items()}
            write_hdf5(path, image_zyx[:, :9, :9], **texts)
        elif "axistags" in attributes:
            continue  # of HDF5 alone
        else:
            options = {"zarr_format": int(container[0]), "attributes": attributes}
            zarr.create_array(path, data=image_zyx[:, :9, :9], **options)
        if nm == "contradict":
            refused(r"contradictory.*element_size_um 50 x 2.3 x 2.3, resolution 50", open_volume, path)
            assert open_volume(path, voxel_size=(5, 5, 5)).voxel_size == (5, 5, 5)
        else:
            assert open_volume(path).voxel_size == nm, attributes


def test_what_bigdataviewer_writes(tmp_path, image_zyx):
    image = image_zyx.astype(np.uint16) + 65_000
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        for level, stored in enumerate((image, image[:, ::2, ::2])):
            h5[f"t00000/s00/{level}/cells"] = stored.view(np.int16) if level == 0 else stored.astype(np.int16)
        h5["s00/resolutions"] = np.array([[1.0, 1, 1], [2, 2, 1]])
        h5["s00/subdivisions"] = np.full((2, 3), 16)
    assert open_volume(f"{tmp_path}/a.h5").voxel_size is None
    write_bdv_xml(tmp_path / "a.xml", "um")
    check(f"{tmp_path}/a.h5", image, (50, 5, 4))
    check(f"{tmp_path}/a.h5:/t00000/s00/1/cells", image[:, ::2, ::2], (50, 10, 8))


def test_a_link_to_another_file(tmp_path, image_zyx):
    for name, image in (("a.h5", image_zyx + 1), ("b.h5", image_zyx)):
        write_hdf5(tmp_path / name, image)
    with h5py.File(tmp_path / "a.h5", "a") as h5:
        h5["link"] = h5py.ExternalLink("b.h5", "/raw")
    assert np.array_equal(open_volume(f"{tmp_path}/a.h5:/link").read(), image_zyx)


@pytest.mark.parametrize("swmr", [False, True])
def test_a_file_that_another_program_writes_is_not_called_damaged(tmp_path, image_zyx, swmr):
    path = str(tmp_path / "a.h5")
    code = "import h5py, sys, time\nh5 = h5py.File(sys.argv[1], 'r+', libver='latest')\n"
    with h5py.File(path, "w", libver="latest") as h5:
        h5.create_dataset("a", data=image_zyx, chunks=(1, 37, 50))
    code += "h5.swmr_mode = True\n" if swmr else ""
    code += "print('open', flush=True)\ntime.sleep(60)"
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "open\n"
        told = refused("another program", open_volume, path)
    finally:
        writer.kill()
        writer.communicate()
    assert "damaged" not in told
    if swmr:
        refused(r"crashed while writing.*h5clear -s", open_volume, path)


def test_a_filter_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    options = {"chunks": (5, 6, 7), "allow_unknown_filter": True}
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        for number in (32004, 32008, 305):
            h5.create_dataset(f"f{number}", (5, 6, 7), "u1", compression=number, **options)
    for number, kind in ((32004, "LZ4"), (32008, "Bitshuffle"), (305, "unknown filter")):
        refused(rf"{kind} \(filter {number}\).*pip install hdf5plugin", open_volume, f"{tmp_path}/a.h5:/f{number}")


def virtual(path, source, name="a"):
    with h5py.File(path, "w") as h5:
        layout = h5py.VirtualLayout((5, 6, 7), "u1")
        layout[...] = h5py.VirtualSource(source, name, (5, 6, 7))
        h5.create_virtual_dataset("a", layout)


def test_virtual_datasets_that_lead_to_themselves(tmp_path):
    """HDF5 itself ends the process when it reads one."""
    virtual(tmp_path / "a.h5", ".")
    for i in range(3):
        virtual(tmp_path / f"b{i}.h5", f"b{(i + 1) % 3}.h5")
    virtual(tmp_path / "c.h5", "b1.h5")
    for name in ("a.h5", "b0.h5", "c.h5"):
        refused("virtual dataset refers to itself", open_volume, str(tmp_path / name))
    for i in range(20):
        virtual(tmp_path / f"d{i}.h5", f"d{i + 1}.h5")
    refused("nested too deeply", open_volume, str(tmp_path / "d0.h5"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_voxels_in_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    virtual(tmp_path / "a.h5", "pipe.h5")
    with h5py.File(tmp_path / "b.h5", "w") as h5:
        h5.create_dataset("a", (5, 6, 7), "u1", external=[(str(tmp_path / "pipe.h5"), 0, 210)])
    for name in ("a.h5", "b.h5"):
        refused(r"not (a|in a regular) file: .*pipe\.h5", open_volume, str(tmp_path / name))


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_what_is_missing_of_a_dataset(tmp_path, compression):
    """A dataset of three chunks along z, or without chunks, of which only some slices are written."""
    cases = [((2, 8, 9), slices, n) for slices, n in (((0, 2, 5), 0), ((0, 1, 3), 1), ((2,), 2), ((), 3))]
    cases += [] if compression else [(None, (3,), 0), (None, (), 1)]
    for number, (chunks, slices, missing) in enumerate(cases):
        with h5py.File(tmp_path / f"{number}.h5", "w") as h5:
            options = {"chunks": chunks, "compression": compression, "fillvalue": 7}
            dataset = h5.create_dataset("raw", shape=(6, 8, 9), dtype="u1", **options)
            for z in slices:
                dataset[z] = 1
        volume = open_volume(tmp_path / f"{number}.h5")
        if not missing:
            volume.check_complete()
            continue
        what = f"{missing} of 3 chunks" if chunks else "the voxels of the dataset"
        says = rf"{what} were never written and would read as 7: .*\.h5.*missing_chunks=fill"
        refused(says, volume.check_complete)
        assert volume.read()[4, 0, 0] == 7


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
    refused(r"1 of 6 files of the virtual dataset are missing and would read as 0", volume.check_complete)


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "fletcher32": True}])
def test_a_chunk_of_gzip_that_unpacks_to_far_too_much(tmp_path, image_zyx, options):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("a", data=image_zyx + 1, chunks=(3, 37, 50), compression="gzip", **options)
    assert np.array_equal(open_volume(str(tmp_path / "a.h5")).read(), image_zyx + 1)
    with h5py.File(tmp_path / "a.h5", "r+") as h5:
        packed = zlib.compress(bytes(2**25)) + bytes(4 if options else 0)
        h5["a"].id.write_direct_chunk((3, 0, 0), packed)
    volume = open_volume(str(tmp_path / "a.h5"))
    assert np.array_equal(volume.read(Box((0, 0, 0), (3, 37, 50))), image_zyx[:3] + 1)
    refused("unpacks to more than belongs in it", volume.read, Box((2, 0, 0), (4, 37, 50)))


def test_values_that_mean_others_are_told(tmp_path, image_zyx, caplog):
    open_volume(write_hdf5(tmp_path / "a.h5", image_zyx, scale_factor=1.0, add_offset=[0.0]))
    assert not caplog.messages
    open_volume(write_hdf5(tmp_path / "b.h5", image_zyx, IMAGE_WHITE_IS_ZERO=np.uint8(1)))
    zarr.create_array(tmp_path / "a.zarr", data=image_zyx, attributes={"scale_factor": 0.5})
    open_volume(tmp_path / "a.zarr")
    assert "attributes say otherwise: {'IMAGE_WHITE_IS_ZERO'" in caplog.text
    assert "attributes say otherwise: {'scale_factor': 0.5}" in caplog.text
