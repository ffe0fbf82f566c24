"""Labels and counts of blocks joined are those of the whole, in raster order, cut or not, whoever does which block."""

import logging
import sys
from pathlib import Path

import cc3d
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from other_places import Elsewhere, Killing
from scipy import ndimage
from scipy.ndimage import find_objects

from mitoseg.engines import DaskEngine, LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation import Labelling, Postprocess, label_array, label_volume, write_instances
from mitoseg.segmentation.blockwise import (
    COLUMNS,
    STARTS,
    STOPS,
    count_block,
    count_instances,
    merge_counts,
    pack,
    store,
    unpack,
    write_blocks,
)
from mitoseg.volumes import ArrayVolume, create_volume, open_volume
from mitoseg.volumes.base import ArrayWriter

SIZE = (10.0, 10.0, 10.0)
CUTS = Labelling(split=True, smoothing=0.0, neck=1.0, fragment=0.0)
RANKS = {6: 1, 18: 2, 26: 3}


def in_raster_order(label_zyx):
    """The same labels, numbered by their first voxels."""
    found, first = np.unique(label_zyx, return_index=True)
    first = first[found > 0]
    table = np.zeros(label_zyx.max() + 1, int)
    table[found[found > 0][np.argsort(first)]] = np.arange(1, len(first) + 1)
    return table[label_zyx]


def scipy_labels(mask_zyx, connectivity):
    structure = ndimage.generate_binary_structure(3, RANKS[connectivity])
    return in_raster_order(ndimage.label(mask_zyx, structure)[0])


masks = arrays(bool, st.tuples(*[st.integers(1, 7)] * 3), elements=st.booleans())
blocks = st.tuples(*[st.integers(1, 8)] * 3)


@settings(max_examples=20, deadline=None)
@given(masks, blocks, st.sampled_from([6, 18, 26]), st.sampled_from([0.0, 3.0]))
def test_cuts_do_not_depend_on_blocks(mask_zyx, block, connectivity, fragment):
    options = Labelling(connectivity, split=True, smoothing=0.0, neck=1.0, fragment=fragment)
    mask = ArrayVolume(mask_zyx, (1.0, 1.0, 1.0))
    whole = label_volume(mask, options).read()
    np.testing.assert_array_equal(label_volume(mask, options, block=block).read(), whole)
    np.testing.assert_array_equal(whole, in_raster_order(whole))
    np.testing.assert_array_equal(whole > 0, mask_zyx)
    structure = ndimage.generate_binary_structure(3, RANKS[connectivity])
    sizes = np.bincount(whole.ravel())[1:]
    components = scipy_labels(mask_zyx, connectivity)
    for i, size in enumerate(sizes, 1):
        assert ndimage.label(whole == i, structure)[1] == 1
        neighbours = np.unique(components[whole == i])
        assert len(neighbours) == 1
        assert size >= fragment or (components == neighbours[0]).sum() == size


@settings(max_examples=20, deadline=None)
@given(masks, blocks)
@example(np.zeros((3, 4, 5), bool), (2, 2, 2))
@example(np.ones((3, 4, 5), bool), (2, 2, 2))
def test_the_table_measures_the_objects(mask_zyx, block):
    found = label_volume(ArrayVolume(mask_zyx, (1, 1, 1)), CUTS, block=block)
    label_zyx, rows = found.read(), found.objects
    flat = label_zyx.ravel()
    assert len(found) == len(found.touches_border) == flat.max()
    np.testing.assert_array_equal(label_zyx > 0, mask_zyx)
    for i, part in enumerate(ndimage.find_objects(label_zyx)):
        assert rows["voxels"][i] == (flat == i + 1).sum()
        assert rows["first"][i] == np.flatnonzero(flat == i + 1)[0]
        assert rows["start"][i].tolist() == [s.start for s in part]
        assert rows["stop"][i].tolist() == [s.stop for s in part]
        sides = [np.take(label_zyx, end, axis) for axis in range(3) for end in (0, -1)]
        assert found.touches_border[i] == any((side == i + 1).any() for side in sides)


@settings(max_examples=15, deadline=None)
@given(masks, st.data())
def test_any_box_is_a_part_of_the_whole(mask_zyx, data):
    found = label_volume(ArrayVolume(mask_zyx, (1, 1, 1)), CUTS, block=(2, 3, 2))
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in mask_zyx.shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    np.testing.assert_array_equal(found.read(box), found.read()[box.slices])


def balls(*centres, shape=(24, 24, 60), radius=9):
    """Balls, and bars between them."""
    grid = np.indices(shape)
    return np.any([sum((a - c) ** 2 for a, c in zip(grid, at, strict=True)) < radius**2 for at in centres], axis=0)


def dumbbell(neck=2):
    """Two balls with a bar of the given radius between them."""
    mask_zyx = balls((12, 12, 14), (12, 12, 44))
    mask_zyx[12 - neck : 13 + neck, 12 - neck : 13 + neck, 14:44] = True
    return mask_zyx


def test_a_dumbbell_is_cut_at_its_neck_also_where_the_border_halves_it():
    label_zyx = label_array(dumbbell(), Labelling(split=True, fragment=1e6), voxel_size=SIZE)
    assert np.unique(label_zyx).tolist() == [0, 1, 2]
    assert (label_zyx[12, 12, 14], label_zyx[12, 12, 44]) == (1, 2)
    border = np.flatnonzero(np.diff(label_zyx[12, 12, 14:45].astype(int))) + 14
    assert len(border) == 1
    assert 24 <= border[0] <= 34
    assert label_array(dumbbell(), Labelling(), voxel_size=SIZE).max() == 1
    half_zyx = dumbbell()[12:]  # beyond the border it goes on; a bar through the volume has no neck at its ends
    assert label_array(half_zyx, Labelling(split=True, fragment=1e6), voxel_size=SIZE).max() == 2
    assert label_array(np.ones((4, 5, 6), bool), CUTS, voxel_size=SIZE).max() == 1
    mask_zyx = balls((20, 12, 12), (20, 12, 28), (20, 12, 44), shape=(40, 24, 60))[::4]  # thick sections
    label_zyx = label_array(mask_zyx, Labelling(split=True, neck=0.8, fragment=1e6), voxel_size=(40.0, 10.0, 10.0))
    assert [label_zyx[5, 12, x] for x in (12, 28, 44)] == [1, 2, 3]


def bent_tube():
    z, y, x = np.indices((40, 60, 120))
    tube_zyx = (z - 20) ** 2 + (y - 30 - 15 * np.sin(x / 15)) ** 2 < (7 + np.sin(x / 4)) ** 2
    return tube_zyx | ((z - 20) ** 2 + (x - 60 - y / 3) ** 2 < 36) & (y > 20)


@pytest.mark.parametrize(
    "option", [{"neck": 0.1}, {"neck": 0.0}, {"depth": 80.0}, {"seed_distance": 400.0}, {"fragment": 5e6}, {}]
)
def test_what_stays_whole(option):
    """A dumbbell by any option, and a long tube by none."""
    options = Labelling(**{"split": True, "fragment": 1e6, **option})
    assert label_array(dumbbell() if option else bent_tube(), options, voxel_size=SIZE).max() == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"connectivity": 8}, "not a neighbourhood: 8"),
        ({"split": "yes"}, "split is neither"),
        ({"neck": 1.5}, "neck is not a fraction"),
        ({"smoothing": -1}, "smoothing is negative or not a number"),
        ({"fragment": float("nan")}, "fragment is negative or not a number"),
        ({"min_volume": True}, "min_volume is negative or not a number"),
        ({"split": True}, "no voxel size"),
        ({"min_volume": 1.0}, "no voxel size"),
    ],
)
def test_options_out_of_range(options, line):
    with pytest.raises(UserError, match=line):
        label_array(np.ones((2, 2, 2)), Labelling(**options))
    for labelling in ("split", Labelling, Postprocess()):
        with pytest.raises(UserError, match="no such labelling"):
            label_array(np.ones((2, 2, 2)), labelling, voxel_size=SIZE)


def test_small_objects_are_left_out_and_what_is_too_large_for_memory_is_not_cut(monkeypatch, caplog):
    mask_zyx = np.zeros((4, 6, 20), bool)
    mask_zyx[0, 0, :3] = mask_zyx[2, 2, :8] = mask_zyx[3, 5, 10:15] = True
    found = label_volume(ArrayVolume(mask_zyx, SIZE), Labelling(min_volume=5000.0), block=(2, 2, 4))
    assert found.objects["voxels"].tolist() == [8, 5]
    assert found.read()[2, 2, 0] == 1
    assert found.read()[0].max() == 0

    monkeypatch.setattr("mitoseg.segmentation.labelling.BYTES", 10**12)
    assert len(label_volume(ArrayVolume(dumbbell(), SIZE), Labelling(split=True, fragment=1e6))) == 1
    assert "too large for memory" in caplog.text


def test_real_labels_in_blocks(real_data):
    labels = open_volume(real_data / "epfl_ca1" / "testing_z000-081_groundtruth.tif")
    mask = ArrayVolume(labels.read(Box((0, 200, 300), (40, 560, 700))) > 0, SIZE)
    cuts = Labelling(split=True, neck=0.7, fragment=1e5)
    whole = label_volume(mask, cuts).read()
    for block in ((17, 90, 64), (40, 100, 64)):
        np.testing.assert_array_equal(label_volume(mask, cuts, block=block).read(), whole)
    plain = label_volume(mask, block=(17, 100, 90)).read()
    np.testing.assert_array_equal(plain, scipy_labels(mask.read(), 6))
    assert whole.max() > plain.max() > 5


BLOCK = (4, 8, 8)
MASK = np.random.default_rng(3).random((9, 20, 28)) < 0.35
MASK[:4, :8, :8] = False  # a block without an object


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_no_two_blocks_share_a_chunk(tmp_path):
    cases = ((100, 1, 600), (96, 1, 512), (48, 1, 128)), ((20, 1, 300), (20, 1, 300), (20, 1, 128))
    for shape, block, chunks in cases:
        path = tmp_path / f"{shape[0]}.zarr"
        store(ArrayVolume(np.ones(shape, np.uint8)), block, path)
        assert zarr.open_array(path, mode="r").chunks == chunks


@settings(max_examples=60, deadline=None)
@given(masks, blocks, st.sampled_from([6, 18, 26]), st.booleans(), st.integers(0, 99))
def test_whoever_does_which_block(mask_zyx, block, connectivity, split, seed):
    options = Labelling(connectivity, split=split, smoothing=0.0, neck=1.0, fragment=0.0)
    mask, engine = ArrayVolume(mask_zyx, (1.0, 1.0, 1.0)), Elsewhere(seed)
    found = label_volume(mask, options, block=block, engine=engine)
    one = label_volume(mask, options)
    writer, boxes = ArrayWriter(mask.shape, np.uint32), []
    write_instances(found, writer, engine=engine, on_block=boxes.append)
    kept = writer.array_zyx
    np.testing.assert_array_equal(kept, one.read())
    assert sorted(map(str, boxes)) == sorted(map(str, tiles(mask.box, block)))
    np.testing.assert_array_equal(found.objects, one.objects)
    if not split:
        expected = scipy_labels(mask_zyx, connectivity)
        cc3d_labels = cc3d.connected_components(mask_zyx, connectivity=connectivity)
        np.testing.assert_array_equal(in_raster_order(cc3d_labels), expected)
        np.testing.assert_array_equal(kept, expected)
        np.testing.assert_array_equal(label_volume(mask, options, block=block).read(), expected)
        assert len(found) == expected.max()
    counted = count_instances(ArrayVolume(kept), block=block, engine=engine)
    assert counted.to_dict("list") == count_instances(ArrayVolume(kept)).to_dict("list")


@given(arrays(st.sampled_from([np.uint32, np.int32, np.uint64]), st.tuples(*[st.integers(0, 4)] * 2)))
def test_packed_labels_come_back(array):
    back = unpack(pack(array))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_a_part_is_enough_for_its_box_and_holds_no_tables():
    mask_zyx = np.tile(MASK, (1, 2, 2))
    found = label_volume(ArrayVolume(mask_zyx, SIZE), CUTS, block=BLOCK)
    box = Box((3, 7, 9), (6, 20, 25))
    part = found.part(box)
    np.testing.assert_array_equal(part.read(box), found.read()[box.slices])
    assert len(part) == 0 < len(found)
    with pytest.raises(KeyError):
        part.read(Box((0, 0, 40), (1, 1, 41)))


def test_what_is_sent_for_a_block_does_not_grow_with_the_volume(tmp_path):
    sizes = []
    for times in (1, 6):
        path = tmp_path / f"{times}.zarr"
        mask_zyx = np.pad(np.tile(MASK[1:], (times, 1, 1)), ((1, 1), (0, 0), (0, 0))).astype(np.uint8)
        with create_volume(path, mask_zyx.shape, "uint8", voxel_size=SIZE) as writer:
            writer.write(Box.of_shape(mask_zyx.shape), mask_zyx)
        engine = Elsewhere()
        found = label_volume(open_volume(path), block=BLOCK, engine=engine)
        write_instances(found, ArrayWriter(found.shape, np.uint32), engine=engine)
        sizes.append(engine.largest)
    assert sizes[1] < 1.1 * sizes[0]


@pytest.fixture
def stored(tmp_path):
    """A mask in a file, in small chunks."""
    with create_volume(tmp_path / "m.zarr", MASK.shape, "uint8", voxel_size=SIZE, chunks=BLOCK) as writer:
        writer.write(Box.of_shape(MASK.shape), MASK.astype(np.uint8))
    return open_volume(tmp_path / "m.zarr")


def label_file(mask, output, engine, chunks=BLOCK, labelling=CUTS):
    found = label_volume(mask, labelling, block=BLOCK, engine=engine, metadata={"from": "a test"})
    options = {"voxel_size": found.voxel_size, "metadata": found.info.metadata, "chunks": chunks}
    with create_volume(output, found.shape, np.uint32, **options) as writer:
        write_instances(found, writer, engine=engine)
    return files(output) if Path(output).is_dir() else Path(output).read_bytes()


@pytest.mark.parametrize("name", ["a.zarr", "a.tif", "a.h5", "a.ome.zarr"])
def test_files_are_the_same_to_the_byte(stored, name, tmp_path):
    (tmp_path / "one").mkdir()
    one = label_file(stored, tmp_path / "one" / name, None)
    written = open_volume(tmp_path / "one" / name)
    np.testing.assert_array_equal(written.read(), label_array(MASK, CUTS, voxel_size=SIZE))
    assert (written.dtype, written.voxel_size) == (np.uint32, SIZE)
    about = written.info.metadata
    assert (about["kind"], about["labelling"]["split"], about["from"]) == ("instances", True, "a test")
    assert label_file(stored, tmp_path / name, Elsewhere()) == one


def test_workers_write_whole_chunks_alone(tmp_path):
    """Two that write different parts of one chunk would undo each other's work."""
    options = {"chunks": (4, 8, 16)}
    with create_volume(tmp_path / "a.zarr", (9, 20, 28), "uint32", **options) as writer:
        assert writer.shared((4, 8, 16)) == writer.shared((8, 16, 16)) != None  # noqa: E711
        assert writer.shared((4, 8, 8)) is None
        assert writer.shared((9, 20, 28)) is not None
    with create_volume(tmp_path / "a.tif", (9, 20, 28), "uint32") as writer:
        assert writer.shared((4, 8, 16)) is None


def test_what_a_killed_worker_half_wrote_goes(stored, tmp_path):
    with create_volume(tmp_path / "a.zarr", MASK.shape, "uint32", chunks=BLOCK) as writer:
        (writer.shared(BLOCK) / "c.partial").touch()
        write_blocks(stored, BLOCK, writer, engine=Elsewhere(), dtype=np.dtype(np.uint32))
    assert not list(tmp_path.rglob("*.partial"))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr").read(), MASK)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", [LocalEngine, pytest.param(DaskEngine, marks=pytest.mark.slow)])
def test_two_processes(stored, tmp_path, kind):
    if kind is DaskEngine:
        pytest.importorskip("distributed")
    one = label_file(stored, tmp_path / "one.zarr", LocalEngine())
    with kind(2) as engine:
        assert label_file(stored, tmp_path / "two.zarr", engine) == one


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_workers_killed_in_each_pass(stored, tmp_path, caplog):
    """While blocks are summarised, while components are cut, and while blocks are numbered and written."""
    caplog.set_level(logging.WARNING)
    one = label_file(stored, tmp_path / "one.zarr", LocalEngine())
    blocks = len(list(tiles(stored.box, BLOCK)))
    components = len(label_volume(stored, Labelling(min_volume=1001.0)))
    assert components > 4
    (tmp_path / "notes").mkdir()
    at = (blocks // 2, blocks + components // 2, blocks + components + blocks // 2)
    with LocalEngine(2) as engine:
        assert label_file(Killing(tmp_path / "m.zarr", tmp_path / "notes", at), tmp_path / "two.zarr", engine) == one
    assert len(list((tmp_path / "notes").glob("kill.*"))) == 3
    assert caplog.text.count("a worker process was killed") == 3


labels_of = st.tuples(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2**32), st.sampled_from([2, 5, 40]))


def random_labels(shape, seed, count):
    rng = np.random.default_rng(seed)
    return rng.integers(0, count, shape) * (rng.random(shape) < 0.4)


@settings(max_examples=25, deadline=None)
@given(labels_of, st.tuples(*[st.integers(1, 5)] * 3), st.randoms())
def test_merging_blocks_in_any_order_is_counting_the_whole(drawn, block, random):
    labels = random_labels(*drawn)
    parts = [count_block(labels[box.slices], box.start) for box in tiles(Box.of_shape(labels.shape), block)]
    random.shuffle(parts)
    split = random.randrange(len(parts) + 1)
    whole = count_block(labels).sort_values("instance", ignore_index=True)
    pd.testing.assert_frame_equal(merge_counts(parts), whole)
    again = merge_counts([merge_counts(parts[:split]), merge_counts(parts[split:])])
    pd.testing.assert_frame_equal(again, whole)


@settings(max_examples=15, deadline=None)
@given(labels_of)
def test_boxes_are_those_of_scipy(drawn):
    labels = random_labels(*drawn)
    found = count_instances(ArrayVolume(labels), block=(2, 3, 4)).set_index("instance")
    boxes = {n: box for n, box in enumerate(find_objects(labels), 1) if box is not None}
    assert set(found.index) == set(boxes)
    for n, box in boxes.items():
        assert found.loc[n, STARTS].tolist() == [s.start for s in box]
        assert found.loc[n, STOPS].tolist() == [s.stop for s in box]
        assert found.loc[n, "voxels"] == (labels == n).sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, bool])
def test_any_type_and_any_id(dtype):
    labels = np.zeros((3, 4, 5), dtype)
    top = True if dtype is bool else np.iinfo(dtype).max
    labels[1, 1:3, 2:5] = top
    (row,) = count_instances(ArrayVolume(labels)).to_dict("records")
    assert row == dict(zip(COLUMNS, [int(top), 6, 1, 1, 2, 2, 3, 5], strict=True))
    empty, full = (count_instances(ArrayVolume(array)) for array in (0 * labels, labels))
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()

    for wrong, message in ((np.full((2, 2, 2), -3), "negative"), (np.ones((2, 2, 2)), "whole")):
        with pytest.raises(UserError, match=message):
            count_instances(ArrayVolume(wrong))
