"""Round trips through every format, and what writers refuse."""

import itertools
import json
import math
import pickle
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
from made_files import refused, save

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import check_volume_output, create_volume, open_volume
from mitoseg.volumes import tiff as tiff_module

FORMATS = ["a.tif", "a.tiff", "a.h5", "a.hdf5:/deep/er", "a.zarr", "a.ome.zarr", "a.mrc"]
DTYPES = ["uint8", "uint16", "uint32", "float32", "float64"]
DTYPES_OF_MRC = ["uint8", "int8", "uint16", "int16", "float32"]
SIZES = st.floats(0.5, 400)
PLAIN = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=4
)


@st.composite
def volumes(draw, name="a.tif"):
    dtype = draw(st.sampled_from(DTYPES_OF_MRC if name.endswith(".mrc") else DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    elements = {"allow_nan": False} if dtype.startswith("float") else None
    return draw(hnp.arrays(dtype, shape, elements=elements))


@st.composite
def covers(draw, shape):
    """Boxes that cover a volume once, in any order."""
    edges = [sorted({0, n, *draw(st.sets(st.integers(0, n), max_size=2))}) for n in shape]
    starts = [list(itertools.pairwise(e)) for e in edges]
    boxes = [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z in starts[0] for y in starts[1] for x in starts[2]]
    return draw(st.permutations(boxes))


def round_trip(image_zyx, name, boxes, **options):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}"
        with create_volume(path, image_zyx.shape, image_zyx.dtype, **options) as writer:
            for box in boxes:
                writer.write(box, image_zyx[box.slices])
        volume = open_volume(path)
        return volume.info, volume.read(), volume.read(boxes[0])


def compare(info, back, image_zyx, voxel_size, metadata):
    assert info.shape == image_zyx.shape
    assert info.dtype == image_zyx.dtype == back.dtype
    assert np.array_equal(back, image_zyx)
    assert info.metadata == metadata
    assert info.voxel_size == (None if voxel_size is None else pytest.approx(voxel_size, rel=1e-6))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), voxel_size=st.none() | st.tuples(SIZES, SIZES, SIZES), metadata=PLAIN)
def test_what_is_written_comes_back(name, data, voxel_size, metadata):
    image_zyx = data.draw(volumes(name))
    boxes = data.draw(covers(image_zyx.shape))
    info, back, part = round_trip(image_zyx, name, boxes, voxel_size=voxel_size, metadata=metadata)
    compare(info, back, image_zyx, voxel_size, metadata)
    assert np.array_equal(part, image_zyx[boxes[0].slices])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), image_zyx=volumes(), voxel_size=st.none() | st.tuples(SIZES, SIZES, SIZES))
def test_bigtiff_comes_back(data, image_zyx, voxel_size):
    boxes = data.draw(covers(image_zyx.shape))
    metadata = {"kind": "probability", "threshold": 0.375, "note": '<"µ&>'}
    limit, tiff_module.CLASSIC_BYTES = tiff_module.CLASSIC_BYTES, 0
    try:
        info, back, _ = round_trip(image_zyx, "a.tif", boxes, voxel_size=voxel_size, metadata=metadata)
    finally:
        tiff_module.CLASSIC_BYTES = limit
    compare(info, back, image_zyx, voxel_size, metadata)


@pytest.mark.parametrize("name", FORMATS)
def test_numpy_scalars_in_metadata_and_unwritten_voxels(tmp_path, name):
    metadata = {"kind": "probability", "threshold": np.float64(0.25), "shape": (1, 2), "scale": np.int64(255)}
    with create_volume(f"{tmp_path}/{name}", (3, 4, 5), bool, metadata=metadata) as writer:
        writer.write(Box((1, 0, 0), (2, 4, 5)), np.ones((1, 4, 5), bool))
    volume = open_volume(f"{tmp_path}/{name}")
    assert volume.info.metadata == {"kind": "probability", "threshold": 0.25, "shape": [1, 2], "scale": 255}
    assert volume.dtype == np.uint8
    assert volume.read()[:, 0, 0].tolist() == [0, 1, 0]


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


@pytest.mark.parametrize(
    ("metadata", "top"),
    [({"kind": "mask"}, 1), ({"kind": "probability"}, 1), ({"kind": "probability", "scale": 255}, 255), ({}, None)],
)
def test_imagej_shows_masks_and_probabilities(tmp_path, metadata, top):
    with create_volume(f"{tmp_path}/a.tif", (2, 3, 4), "uint8", metadata=metadata):
        pass
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


def test_how_hdf5_and_zarr_are_stored(tmp_path):
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


@pytest.mark.parametrize("chunks", [(1, 37, 20), (100, 10, 100)])
def test_chunks_of_zarr_can_be_chosen(tmp_path, image_zyx, chunks):
    for name in ("a.zarr", "a.h5", "a.tif", "a.mrc"):
        save(f"{tmp_path}/{name}", image_zyx, chunks=chunks)
        assert np.array_equal(open_volume(f"{tmp_path}/{name}").read(), image_zyx)
    array = zarr.open_array(store=tmp_path / "a.zarr", mode="r")
    assert array.chunks == tuple(min(c, n) for c, n in zip(chunks, image_zyx.shape, strict=True))
    assert np.array_equal(array[...], image_zyx)
    zeros = save(f"{tmp_path}/b.zarr", np.zeros((4, 6, 8), np.uint8), chunks=(2, 3, 4))
    open_volume(zeros).check_complete()  # with chunks of zeros


@pytest.mark.parametrize("name", FORMATS)
def test_an_error_leaves_nothing(tmp_path, name):
    def fail():
        with create_volume(f"{tmp_path}/{name}", (3, 4, 5), "uint8") as writer:
            writer.write(Box((0, 0, 0), (1, 4, 5)), np.ones((1, 4, 5), np.uint8))
            assert [p.name[0] for p in tmp_path.iterdir()] == ["."]  # only a hidden file, not the final name
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_what_exists_is_refused_or_replaced(tmp_path, name):
    path = f"{tmp_path}/{name}"
    for value in (1, 2):
        save(path, np.full((1, 2, 3), value, np.uint8), overwrite=value == 2)
    refused(r"exists.*overwrite=true", create_volume, path, (1, 2, 3), "uint8")
    refused(r"exists.*overwrite=true", check_volume_output, path, overwrite=False)
    assert (open_volume(path).read() == 2).all()
    assert len(list(tmp_path.iterdir())) == 1


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


@pytest.mark.parametrize("name", ["a.png", "a", "a.tif.gz", "a.mrc.gz"])
def test_unknown_suffixes(tmp_path, name):
    with pytest.raises(UserError, match=r"unknown kind of output.*\.tif, \.h5, \.zarr, \.ome\.zarr or \.mrc"):
        create_volume(f"{tmp_path}/{name}", (1, 2, 3), "uint8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({"shape": shape}, "not the shape of a volume") for shape in ((0, 2, 3), (2, 3), (1, 2, 3, 4))),
        *(({"chunks": chunks}, "chunks=") for chunks in ((1, 2), (0, 1, 1), (-1, 4, 4))),
        *(({"voxel_size": size}, "read the voxel size") for size in ((1, 2), (0, 1, 1), (1, 1, math.nan), "abc")),
    ],
)
def test_what_is_no_shape_or_size(tmp_path, options, says):
    with pytest.raises((UserError, ValueError), match=says):
        create_volume(f"{tmp_path}/a.zarr", **{"shape": (1, 2, 3), "dtype": "uint8", **options})


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [
        *(("a.mrc", d, rf"an MRC holds no {d}.*choose uint8, .*\.zarr or") for d in ("float64", "uint32", "float16")),
        ("a.tif", "uint64", r"a TIFF stack holds no uint64.*\.h5, \.zarr or"),
        ("a.h5", "complex64", "complex"),
    ],
)
def test_dtypes_that_a_format_cannot_hold(tmp_path, name, dtype, says):
    refused(says, create_volume, tmp_path / name, (1, 2, 3), dtype)
    assert list(tmp_path.iterdir()) == []


def test_boxes_that_do_not_fit(tmp_path):
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


@pytest.mark.parametrize("name", FORMATS)
def test_volumes_travel_to_other_processes(tmp_path, name):
    image_zyx = np.arange(60, dtype="uint8").reshape(3, 4, 5)
    volume = open_volume(save(f"{tmp_path}/{name}", image_zyx))
    volume.read()  # opens what is opened at the first reading
    sent = pickle.dumps(volume)
    assert len(sent) < 10_000
    assert np.array_equal(pickle.loads(sent).read(), image_zyx)


@pytest.mark.parametrize("name", FORMATS)
def test_relative_paths_survive_a_change_of_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with create_volume(name, (3, 4, 5), "uint8"):
        pass
    volume = open_volume(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert volume.read().shape == (3, 4, 5)
    assert volume.path == name
    assert Path(name).exists() is False


SAME = ["a.tif", "big.tif", "a.h5", "b.h5:/deep/er", "a.zarr", "a.mrc"]
WRITTEN = {"kind": "probability", "threshold": 0.375}


def write_all(folder, monkeypatch):
    image_zyx = np.random.default_rng(0).integers(0, 255, (20, 90, 270), np.uint8)
    for name in SAME:
        with monkeypatch.context() as patch:
            if name == "big.tif":
                patch.setattr(tiff_module, "CLASSIC_BYTES", 0)
            with create_volume(
                f"{folder}/{name}", image_zyx.shape, "uint8", voxel_size=(50, 4.6, 4.6), metadata=WRITTEN
            ) as writer:
                for box in slabs(Box.of_shape(image_zyx.shape), 7):
                    writer.write(box, image_zyx[box.slices])
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = write_all(tmp_path_factory.mktemp("first"), monkeypatch)
        time.sleep(1.1)  # formats that write the time write seconds
        return first, write_all(tmp_path_factory.mktemp("second"), monkeypatch)


@pytest.mark.parametrize("name", SAME)
def test_equal_volumes_are_equal_files(twice, name):
    first, second = ({k: v for k, v in files.items() if k.startswith(name.split(":")[0])} for files in twice)
    assert first
    assert first == second


def test_big_tiffs_of_different_volumes_have_different_names(tmp_path, monkeypatch):
    """OME tells files of a set apart by a UUID, which must not be random here, and not one for all either."""
    monkeypatch.setattr(tiff_module, "CLASSIC_BYTES", 0)
    found = set()
    for number, shape in enumerate([(2, 3, 4), (2, 3, 5)]):
        with create_volume(tmp_path / f"{number}.tif", shape, "uint8"):
            pass
        text = (tmp_path / f"{number}.tif").read_bytes()
        found.add(text[text.index(b"urn:uuid:") :][:45])
    assert len(found) == 2
