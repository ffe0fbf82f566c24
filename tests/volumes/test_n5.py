"""N5: order of axes, voxel sizes as four programs write them, and what is missing."""

import os
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_files import check, put, refused, write_bdv_xml, write_n5

from mitoseg.geometry import Box
from mitoseg.volumes import open_volume
from mitoseg.volumes.opening import stored_in

pytest.importorskip("tensorstore")
SIZES = {"pixelResolution": {"dimensions": [4.5, 4.6, 50], "unit": "nm"}}


@settings(max_examples=10, deadline=None)
@given(
    image_zyx=hnp.arrays(
        st.sampled_from(["uint8", "int16", "uint16", "uint32", "uint64", "float64"]),
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=5, max_side=9),
        elements={"allow_nan": False, "min_value": 1, "max_value": 200},
    ),
    blocks=st.tuples(*[st.integers(3, 12)] * 3),
    compression=st.sampled_from(["raw", "gzip", "bzip2", "xz"]),
    data=st.data(),
)
def test_what_others_write_is_read(image_zyx, blocks, compression, data):
    stops = [data.draw(st.integers(1, n)) for n in image_zyx.shape]
    starts = [data.draw(st.integers(0, b - 1)) for b in stops]
    box = Box(tuple(starts), tuple(stops))
    with tempfile.TemporaryDirectory() as folder:
        path = write_n5(f"{folder}/a.n5/raw", image_zyx, SIZES, blocks, compression)
        volume = check(path, image_zyx, (50, 4.6, 4.5))
        assert np.array_equal(volume.read(box), image_zyx[box.slices])
        volume.check_complete()


PLAIN = [
    ({}, SIZES, (50, 4.6, 4.5)),
    (SIZES, {}, (50, 4.6, 4.5)),
    (SIZES, {"downsamplingFactors": [2, 2, 1]}, (50, 9.2, 9)),
    ({"resolution": [4, 4, 40]}, {"downsamplingFactors": [4, 4, 2]}, (80, 16, 16)),
    ({"resolution": [4, 4, 40], "scales": [[1, 1, 1], [2, 2, 1]]}, {}, (40, 8, 8)),
    ({"resolution": [4, 4, 40], "downsamplingFactors": [[1, 1, 1], [4, 4, 1]]}, {}, (40, 16, 16)),
    ({"resolution": [0.004, 0.004, 0.04], "units": ["um", "um", "um"]}, {}, (40, 4, 4)),
    ({"pixelResolution": [0.004, 0.004, 0.04], "units": "um"}, {}, (40, 4, 4)),
    *((group, {}, None) for group in ({"resolution": "4"}, {"resolution": [4, 4]}, {})),
    ({}, {"downsamplingFactors": [2, 2, 1]}, None),
]


def test_voxel_size(tmp_path, image_zyx):
    for n, (group, own, nm) in enumerate(PLAIN):
        path = write_n5(tmp_path / f"{n}.n5" / "em" / "s1", image_zyx, own)
        put(tmp_path / f"{n}.n5" / "em", group)
        assert open_volume(path).voxel_size == nm, (group, own)


def stated(*sizes_xyz):
    return {"pixelResolution": {"dimensions": list(sizes_xyz), "unit": "nm"}}


def transform(*sizes_zyx):
    return {"transform": {"axes": ["z", "y", "x"], "scale": list(sizes_zyx), "units": ["nm"] * 3}}


SCALES = {"scales": [[1, 1, 1], [2, 2, 2]]}
FACTORS = {"downsamplingFactors": [2, 2, 2]}
LEVELS = {"multiscales": [{"datasets": [{"path": f"s{i}", **transform(n, n, n)} for i, n in enumerate((4, 8))]}]}


LEVELLED = [
    (SCALES | stated(4, 4, 4), stated(4, 4, 4), stated(8, 8, 8) | transform(8, 8, 8), 8),  # COSEM
    (SCALES, {}, stated(8, 8, 8) | transform(8, 8, 8), 8),
    (SCALES, {}, stated(8, 8, 8), 8),
    (SCALES, {}, transform(8, 8, 8), 8),
    (SCALES | LEVELS, {}, {}, 8),
    ({"multiscales": ["s0", "s1"]}, {}, transform(8, 8, 8), 8),  # of another kind, and not needed
    (SCALES, stated(4, 4, 4), {}, 8),
    (SCALES | stated(4, 4, 4), {}, stated(4, 4, 4), 8),  # repeated at every level
    (SCALES | stated(4, 4, 4), {}, {}, 8),
    ({}, {}, stated(4, 4, 4) | FACTORS, 8),  # n5-viewer
    ({}, stated(4, 4, 4), stated(8, 8, 8) | FACTORS, 8),
    ({}, stated(4, 4, 4), stated(4, 4, 4) | FACTORS, 8),
    ({}, {}, transform(8, 8, 8) | stated(4, 4, 4) | FACTORS, 8),
    ({"resolution": [4, 4, 4]}, {}, FACTORS, 8),  # Paintera
    ({"resolution": [4, 4, 4]}, {}, {}, 8),  # by the shapes of the levels
    (SCALES | stated(4, 4, 4), {}, stated(16, 16, 16), None),
    (SCALES | stated(4, 4, 4), {}, transform(16, 16, 16) | stated(8, 8, 8), None),
    ({}, {}, transform(8, 8, 8) | stated(8, 8, 8) | {"resolution": [4, 4, 4]}, None),
    ({}, {}, transform(8, 8, 8) | stated(6, 6, 6), None),
]


def test_voxel_size_of_a_level(tmp_path):
    """Whether it is the level's own or that of the full resolution: all statements have to agree."""
    image = np.zeros((8, 12, 16), np.uint8)
    for n, (group, finest, own, nm) in enumerate(LEVELLED):
        folder = tmp_path / f"{n}.n5" / "em"
        write_n5(folder / "s0", image, finest)
        path = write_n5(folder / "s1", image[::2, ::2, ::2].copy(), own)
        put(folder, group)
        if nm is None:
            refused(r"contradictory.*voxel_size=\[z,y,x\]", open_volume, path)
            assert open_volume(path, voxel_size=(9, 9, 9)).voxel_size == (9, 9, 9)
        else:
            assert open_volume(path).voxel_size == (nm, nm, nm), (group, finest, own)


def test_bigdataviewer_states_the_voxel_size_beside_the_container(tmp_path, image_zyx):
    group = tmp_path / "a.n5" / "setup0"
    for level, factors in enumerate(([1, 1, 1], [2, 2, 1])):
        path = write_n5(group / "timepoint0" / f"s{level}", image_zyx, {"downsamplingFactors": factors})
    put(group / "timepoint0", {"resolution": [4.0, 4.0, 50.0], "multiScale": True})  # in the unit of the XML
    assert open_volume(path).voxel_size is None
    write_bdv_xml(tmp_path / "a.xml", "micrometer")
    assert open_volume(path).voxel_size == (50, 10, 8)
    assert open_volume(path.replace("s1", "s0")).voxel_size == (50, 5, 4)


def test_axes_that_the_file_names_come_first(tmp_path, image_zyx):
    path = write_n5(tmp_path / "a.n5" / "raw", image_zyx, {**SIZES, "axes": ["z", "y", "x"]})
    check(path, image_zyx.transpose(), (4.5, 4.6, 50))


def test_how_a_dataset_is_named(tmp_path, image_zyx):
    write_n5(tmp_path / "a.n5" / "em" / "s0", image_zyx, SIZES)
    write_n5(tmp_path / "a.n5" / "em" / "s1", image_zyx[:, ::2, ::2].copy(), {"downsamplingFactors": [2, 2, 1]})
    put(tmp_path / "a.n5", {"n5": "2.5.1"})
    for name in ("a.n5/em", "a.n5:/em", "a.n5:em/s0", "a.n5/em/s0"):
        assert open_volume(f"{tmp_path}/{name}").shape == image_zyx.shape
        assert stored_in(f"{tmp_path}/{name}").is_dir()
    refused(r"holds 2 datasets.*name one: .*a\.n5:/em/s0, .*a\.n5:/em/s1", open_volume, f"{tmp_path}/a.n5")
    refused("no such f", open_volume, f"{tmp_path}/a.n5:/other")
    refused("no such f", open_volume, f"{tmp_path}/b.n5")


def test_a_block_that_is_missing_or_damaged(tmp_path, image_zyx):
    path = write_n5(tmp_path / "a.n5" / "raw", image_zyx + 1, blocks=(32, 32, 32))
    block = tmp_path / "a.n5" / "raw" / "1" / "0" / "0"
    data = block.read_bytes()
    block.write_bytes(data[: len(data) // 2])
    refused("cannot be read", lambda: open_volume(path).read())
    block.unlink()
    refused(r"1 of \d+ blocks are missing and would read as 0", lambda: open_volume(path).check_complete())
    assert open_volume(path).read()[0, 0, 32] == 0
    if hasattr(os, "mkfifo"):
        os.mkfifo(block)
        refused("a pipe, a socket or a device", open_volume(path).check_complete)
        refused("a pipe, a socket or a device", lambda: open_volume(path).read())


def test_what_is_not_read_is_one_line(tmp_path, image_zyx, monkeypatch):
    changes = [{"blockSize": [10**9] * 3}, {"blockSize": [0, 1, 1]}, {"blockSize": [64, 64]}, {"dataType": "string"}]
    for n, change in enumerate(changes):
        path = write_n5(tmp_path / f"{n}.n5" / "raw", image_zyx, change)
        refused(rf"{n}\.n5", lambda path=path: open_volume(path).read())
    path = write_n5(tmp_path / "a.n5" / "raw", image_zyx, {"compression": {"type": "lz4"}})
    assert "damaged" not in refused(r"compressed with lz4.*write it again with gzip", open_volume, path)
    path = write_n5(tmp_path / "b.n5" / "raw", image_zyx)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    refused(r'tensorstore.*pip install "mitoseg\[n5\]"', open_volume, path)
