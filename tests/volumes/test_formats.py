"""What holds for every format: reading, round trips, what writers refuse, names, and the state of the files."""

import itertools
import json
import math
import os
import pickle
import socket
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_files import KINDS, check, refused, save, walk_image, write_ome_set, write_slices

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import ArrayVolume, check_same_shape, check_volume_output, create_volume, open_volume
from mitoseg.volumes import tiff as tiff_module
from mitoseg.volumes.stored import state_of

WRITTEN = ["a.tif", "big.tif", "a.h5", "a.hdf5:/deep/er", "a.zarr", "a.ome.zarr", "a.mrc"]
DTYPES = ["uint8", "uint16", "uint32", "float32", "float64"]
DTYPES_OF_MRC = ["uint8", "int8", "uint16", "int16", "float32"]
SIZES = st.floats(0.5, 400)
PLAIN = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4
)
NO_PERMISSIONS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(tmp_path, monkeypatch, name):
    """Opened by a relative path, read elsewhere, in another process and with other voxel sizes; nothing is missing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    KINDS[name](Path(name), walk_image())
    found = open_volume(f"{name}:/em" if name == "virtual.h5" else name)
    image_zyx = walk_image()[: found.shape[0]]
    assert found.shape == image_zyx.shape
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not Path(name).exists()
    stored_zyx = found.read()
    np.testing.assert_allclose(stored_zyx.astype(float), image_zyx, atol=9 if name == "jpeg.tif" else 0)
    sent = pickle.dumps(found)  # after what is opened at the first reading
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent).read(), stored_zyx)
    for start, stop in (((0, 0, 0), (6, 3, 5)), ((-1, 0, 0), (1, 3, 5)), ((0, 3, 49), (0, 3, 49))):
        refused("leaves the volume", found.read, Box(start, stop))
    assert found.read(Box((1, 1, 1), (1, 3, 4))).shape == (0, 2, 3)
    found.check_complete()
    monkeypatch.chdir(tmp_path)
    assert found.path.partition(":")[0] == name
    check(found.path, stored_zyx, (8.0, 4.5, 5.0), voxel_size=(8, 4.5, 5))
    refused("cannot read the voxel size", open_volume, found.path, voxel_size=(0, 1, 1))


@st.composite
def covers(draw, shape):
    """Boxes that cover a volume once, in any order."""
    edges = [sorted({0, n, *draw(st.sets(st.integers(0, n), max_size=2))}) for n in shape]
    starts = [list(itertools.pairwise(e)) for e in edges]
    boxes = [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z in starts[0] for y in starts[1] for x in starts[2]]
    return draw(st.permutations(boxes))


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), voxel_size=st.none() | st.tuples(SIZES, SIZES, SIZES), metadata=PLAIN)
def test_what_is_written_comes_back(name, data, voxel_size, metadata):
    dtype = data.draw(st.sampled_from(DTYPES_OF_MRC if name == "a.mrc" else DTYPES))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    elements = {"allow_nan": False} if dtype.startswith("float") else None
    image_zyx = data.draw(hnp.arrays(dtype, shape, elements=elements))
    boxes = data.draw(covers(shape))
    if name == "big.tif":
        metadata |= {"threshold": 0.375, "note": '<"µ&>'}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if name == "big.tif":
            patch.setattr(tiff_module, "CLASSIC_BYTES", 0)
        path = f"{folder}/{name}"
        with create_volume(path, shape, dtype, voxel_size=voxel_size, metadata=metadata) as writer:
            for box in boxes:
                writer.write(box, image_zyx[box.slices])
        volume = open_volume(path)
        info, back, part = volume.info, volume.read(), volume.read(boxes[0])
    assert info.shape == image_zyx.shape
    assert info.dtype == image_zyx.dtype == back.dtype
    assert np.array_equal(back, image_zyx)
    assert np.array_equal(part, image_zyx[boxes[0].slices])
    assert info.metadata == metadata
    assert info.voxel_size == (None if voxel_size is None else pytest.approx(voxel_size, rel=1e-6))


@pytest.mark.parametrize("name", WRITTEN)
def test_an_output_is_there_whole_or_not_at_all(tmp_path, name):
    path, box = f"{tmp_path}/{name}", Box((1, 0, 0), (2, 4, 5))

    def fail():
        with create_volume(path, (3, 4, 5), "uint8") as writer:
            writer.write(box, np.ones(box.shape, np.uint8))
            assert [p.name[0] for p in tmp_path.iterdir()] == ["."]  # only a hidden file, not the final name
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    save(path, np.full((1, 2, 3), 1, np.uint8))
    for refuse in (lambda: create_volume(path, (1, 2, 3), "uint8"), lambda: check_volume_output(path, False)):
        refused(r"exists.*overwrite=true", refuse)
    metadata = {"kind": "probability", "threshold": np.float64(0.25), "shape": (1, 2), "scale": np.int64(255)}
    with create_volume(path, (3, 4, 5), bool, metadata=metadata, overwrite=True) as writer:
        writer.write(box, np.ones(box.shape, bool))
    volume = open_volume(path)
    assert volume.info.metadata == {"kind": "probability", "threshold": 0.25, "shape": [1, 2], "scale": 255}
    assert volume.dtype == np.uint8
    assert volume.read()[:, 0, 0].tolist() == [0, 1, 0]  # what is not written is 0
    assert len(list(tmp_path.iterdir())) == 1


def test_imagej_reads_the_tiff(tmp_path):
    image_zyx = np.arange(24, dtype="uint32").reshape(2, 3, 4)
    save(f"{tmp_path}/a.tif", image_zyx, voxel_size=(50, 4.6, 4.5))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (tif.is_imagej, tif.is_bigtiff, len(tif.pages)) == (True, False, 2)
        assert [tif.imagej_metadata[key] for key in ("unit", "spacing", "slices")] == ["nm", 50, 2]
        x, y = (tif.pages[0].tags[name].value for name in ("XResolution", "YResolution"))
        assert x[0] / x[1] == pytest.approx(1 / 4.5)
        assert y[0] / y[1] == pytest.approx(1 / 4.6)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), image_zyx)
    shown = {"mask": 1, "probability": 1, "probability 255": 255, "": None}  # or all would be black
    for kind, top in shown.items():
        metadata = dict(zip(("kind", "scale"), kind.split(), strict=False))
        save(tmp_path / "a.tif", np.zeros((2, 3, 4), np.uint8), metadata=metadata, overwrite=True)
        with tifffile.TiffFile(tmp_path / "a.tif") as tif:
            assert tif.imagej_metadata.get("max") == top


@pytest.mark.skipif(sys.platform == "win32", reason="Windows fills sparse files with zeros")
def test_bigtiff_from_4_gb_on(tmp_path):
    shape = (5, 2**15, 2**15)
    try:
        with create_volume(f"{tmp_path}/a.tif", shape, "uint8", voxel_size=(50, 4.5, 4)) as writer:
            writer.write(Box((4, 32767, 32766), (5, 32768, 32768)), np.array([[[7, 9]]], np.uint8))
    except UserError as error:
        pytest.skip(str(error))  # not 5 GB free, or no sparse files
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (tif.is_bigtiff, tif.is_ome, len(tif.pages)) == (True, True, 5)
    volume = open_volume(f"{tmp_path}/a.tif")
    assert (volume.shape, volume.voxel_size) == (shape, (50, 4.5, 4))
    assert volume.read(Box((4, 32767, 32765), (5, 32768, 32768))).tolist() == [[[0, 7, 9]]]


def test_how_hdf5_and_zarr_are_stored(tmp_path, image_zyx):
    options = {"voxel_size": (50, 4, 4), "metadata": {"kind": "mask"}}
    for name in ("a.h5", "a.zarr"):
        with create_volume(tmp_path / name, (40, 300, 300), "uint8", **options):
            pass
    with h5py.File(tmp_path / "a.h5") as h5:
        assert (h5["volume"].chunks, h5["volume"].compression) == ((16, 256, 256), "gzip")
        assert h5["volume"].attrs["element_size_um"].tolist() == [0.05, 0.004, 0.004]
    array = zarr.open_array(store=tmp_path / "a.zarr", mode="r")
    assert (array.metadata.zarr_format, array.chunks) == (3, (16, 256, 256))
    assert array.attrs.asdict() == {"mitoseg": {"kind": "mask"}, "voxel_size_nm": [50, 4, 4]}
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["dimension_names"] == ["z", "y", "x"]
    for n, chunks in enumerate([(1, 37, 20), (100, 10, 100)]):
        array = zarr.open_array(store=save(f"{tmp_path}/{n}.zarr", image_zyx, chunks=chunks), mode="r")
        assert array.chunks == tuple(min(c, n) for c, n in zip(chunks, image_zyx.shape, strict=True))
        assert np.array_equal(array[...], image_zyx)
    zeros = save(f"{tmp_path}/b.zarr", np.zeros((4, 6, 8), np.uint8), chunks=(2, 3, 4))
    open_volume(zeros).check_complete()  # with chunks of zeros


def test_overwriting_never_removes_other_data(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["raw"] = np.zeros((2, 2, 2))
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "notes.txt").write_text("mine")
    zarr.create_group(store=tmp_path / "c.zarr")
    (tmp_path / "d.tif").mkdir()
    for name in ("a.h5:/prediction", "b.zarr", "c.zarr", "d.tif"):
        refused("overwriting would remove", create_volume, f"{tmp_path}/{name}", (1, 2, 3), "uint8", overwrite=True)
    create_volume(f"{tmp_path}/a.h5:/raw", (1, 2, 3), "uint8", overwrite=True)


UNWRITTEN = [
    *((name, {}, r"unknown kind of output.*\.zarr or \.mrc") for name in ("a.png", "a", "a.tif.gz", "a.mrc.gz")),
    *(("a.tif", {"shape": shape}, "not the shape of a volume") for shape in ((0, 2, 3), (2, 3), (1, 2, 3, 4))),
    *(("a.zarr", {"chunks": chunks}, "chunks=") for chunks in ((1, 2), (0, 1, 1), (-1, 4, 4))),
    *(("a.zarr", {"voxel_size": s}, "read the voxel size") for s in ((1, 2), (0, 1, 1), (1, 1, math.nan), "abc")),
    *(
        ("a.mrc", {"dtype": d}, rf"an MRC holds no {d}.*choose uint8, .*\.zarr or")
        for d in ("float64", "uint32", "float16")
    ),
    ("a.tif", {"dtype": "uint64"}, r"a TIFF stack holds no uint64.*\.h5, \.zarr or"),
    ("a.h5", {"dtype": "complex64"}, "complex"),
]


def test_outputs_that_cannot_be(tmp_path):
    for name, options, says in UNWRITTEN:
        with pytest.raises((UserError, ValueError), match=says):
            create_volume(f"{tmp_path}/{name}", **{"shape": (1, 2, 3), "dtype": "uint8", **options})
    assert list(tmp_path.iterdir()) == []
    box = Box((0, 0, 0), (1, 2, 2))
    with create_volume(f"{tmp_path}/a.tif", (1, 2, 3), "uint8") as writer:
        with pytest.raises(ValueError, match="does not fit box"):
            writer.write(box, np.zeros((1, 2, 3), np.uint8))
        with pytest.raises(ValueError, match="does not fit box"):
            writer.write(Box((0, 0, 2), (1, 2, 4)), np.zeros((1, 2, 2), np.uint8))
        with pytest.raises(ValueError, match="float32 does not fit"):
            writer.write(box, np.zeros((1, 2, 2), np.float32))
    with pytest.raises(ValueError, match="inside `with"):
        writer.write(box, np.zeros((1, 2, 2), np.uint8))


SAME = ["a.tif", "big.tif", "a.h5", "b.h5:/deep/er", "a.zarr", "a.mrc"]


def write_all(folder, monkeypatch):
    image_zyx = np.random.default_rng(0).integers(0, 255, (20, 90, 270), np.uint8)
    options = {"voxel_size": (50, 4.6, 4.6), "metadata": {"kind": "probability", "threshold": 0.375}}
    for name in SAME:
        with monkeypatch.context() as patch:
            if name == "big.tif":
                patch.setattr(tiff_module, "CLASSIC_BYTES", 0)
            with create_volume(f"{folder}/{name}", image_zyx.shape, "uint8", **options) as writer:
                for box in slabs(Box.of_shape(image_zyx.shape), 7):
                    writer.write(box, image_zyx[box.slices])
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_equal_volumes_are_equal_files(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = write_all(tmp_path / "first", monkeypatch)
    time.sleep(1.1)  # formats that write the time write seconds
    second = write_all(tmp_path / "second", monkeypatch)
    for name in SAME:
        assert any(file.startswith(name.split(":")[0]) for file in first)
    assert first.keys() == second.keys()
    assert [file for file in first if first[file] != second[file]] == []


def test_big_tiffs_of_different_volumes_have_different_names(tmp_path, monkeypatch):
    """OME tells files of a set apart by a UUID, which must not be random here, and not one for all either."""
    monkeypatch.setattr(tiff_module, "CLASSIC_BYTES", 0)
    found = set()
    for number, shape in enumerate([(2, 3, 4), (2, 3, 5)]):
        text = Path(save(tmp_path / f"{number}.tif", np.zeros(shape, np.uint8))).read_bytes()
        found.add(text[text.index(b"urn:uuid:") :][:45])
    assert len(found) == 2


MISSING = ["a.tif", "a.h5", "a.h5:/d", "a.zarr", "a.zarr/0", "a.mrc", "folder", "a.xyz", "a.tif/b", "a\0b", ""]


def test_what_is_missing_or_of_an_unknown_kind(tmp_path):
    for name in MISSING:
        refused(r"(no such file|cannot be read).*nowhere", open_volume, f"{tmp_path}/nowhere/{name}")
    for name in ("a.txt", "a.gz", "a"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        refused(rf"unknown kind of volume: .*{name}.*TIFF stack, a folder", open_volume, str(tmp_path / name))
    for name in ("a.tif", "a.h5", "a.mrc"):
        (tmp_path / name).mkdir()
        refused("holds no png or tif slices", open_volume, str(tmp_path / name))
    save(tmp_path / "b.tif", np.zeros((2, 3, 5), np.uint8))
    for size in ((1, 2), (1, 1, math.inf), (5, 5, 1e9), (50, 5, 0.049), 5, "5,5,5", "555", ["a", 1, 2]):
        refused("cannot read the voxel size", open_volume, tmp_path / "b.tif", voxel_size=size)


@NO_PERMISSIONS
def test_a_file_that_may_not_be_read(tmp_path):
    for name in ("a.tif", "a.h5", "a.mrc"):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).chmod(0)
        if os.access(tmp_path / name, os.R_OK):
            pytest.skip("root may read everything")
        refused("may not be read", open_volume, str(tmp_path / name))


def test_names_with_odd_characters(tmp_path):
    image_zyx = np.arange(30, dtype=np.uint8).reshape(2, 3, 5)
    names = ["a b.tif", "[a]=1,2#.tif", "ü µ.h5", "a{0}%d.tif", *(["a~b'c\".zarr"] if sys.platform != "win32" else [])]
    for name in names:
        save(f"{tmp_path}/{name}", image_zyx)
        assert np.array_equal(open_volume(f"{tmp_path}/{name}").read(), image_zyx)
    assert {p.name for p in tmp_path.iterdir()} == {*names}


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


def test_image_and_labels_must_match():
    image, label = (ArrayVolume(np.zeros(shape), path=path) for shape, path in (((2, 3, 4), "i"), ((2, 3, 5), "l")))
    check_same_shape(image, ArrayVolume(np.zeros((2, 3, 4)), path="l"))
    check_same_shape(image, image)  # arrays in memory are not files
    refused(r"differ in shape: \(2, 3, 4\) of i, \(2, 3, 5\).*'l'", check_same_shape, image, label)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link"])
def test_what_is_no_file(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    (tmp_path / "slices").mkdir()
    for name in ("a.tif", "a.mrc", "a.h5", "b.h5:/em", "a.zarr", "a.n5", "a.xyz", "slices"):
        place = "slices/1.png" if name == "slices" else name.partition(":")[0]
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(place)
        else:
            os.symlink("/dev/zero" if kind == "device" else "nowhere", place)
        refused("the link is broken" if kind == "link" else "a pipe, a socket or a device", open_volume, name)


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


STORED = {"slices": lambda folder, image: write_slices(folder, image, "{}.tif"), "virtual": write_virtual}
STORED["ome set"] = lambda folder, image: write_ome_set(folder, image, compression="zlib")
OURS = ("a.tif", "a.h5", "a.mrc", "a.zarr", "a.ome.zarr")
STORED |= {name: lambda folder, image, name=name: save(folder / name, image, chunks=(2, 16, 32)) for name in OURS}


@pytest.mark.parametrize("kind", STORED)
def test_the_state_of_a_volume_is_that_of_all_its_files(tmp_path, image_zyx, monkeypatch, kind):
    path = STORED[kind](tmp_path, image_zyx)
    np.testing.assert_array_equal(open_volume(path).read(), image_zyx)
    (tmp_path / ".DS_Store").touch()
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert len(files) >= {"virtual": 4, "ome set": 2, "slices": 6, "a.zarr": 19}.get(kind, 1)
    for many in (False, True):
        if many:
            monkeypatch.setattr("mitoseg.volumes.stored.MANY_FILES", 3)
            monkeypatch.setattr("mitoseg.volumes.stored.SAMPLED_FILES", 2)
        volume = open_volume(path)
        states = {volume.state(), open_volume(os.path.relpath(path)).state()}
        assert len(states) == 1
        for file in files:
            replaced = file.with_name("new")  # as most programs change a file, also zarr
            replaced.write_bytes(file.read_bytes())
            os.utime(replaced, ns=(0, file.stat().st_mtime_ns + 1))
            replaced.replace(file)
            states.add(volume.state())
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
