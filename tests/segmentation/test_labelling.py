"""Labels of blocks joined are the labels of the whole, numbered in raster order, cut or not."""

import itertools

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation import Labelling, label_array, label_volume, write_instances
from mitoseg.segmentation.blockwise import Joiner, relabel_block, summarize_block
from mitoseg.volumes import ArrayVolume, create_volume, open_volume

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


@settings(max_examples=30, deadline=None)
@given(masks, blocks, st.sampled_from([6, 18, 26]))
def test_blocks_give_the_labels_of_the_whole(mask_zyx, block, connectivity):
    found = label_volume(ArrayVolume(mask_zyx), Labelling(connectivity), block=block)
    expected = scipy_labels(mask_zyx, connectivity)
    np.testing.assert_array_equal(found.read(), expected)
    np.testing.assert_array_equal(
        expected, in_raster_order(cc3d.connected_components(mask_zyx, connectivity=connectivity))
    )
    assert len(found) == expected.max()


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
def test_the_table_measures_the_objects(mask_zyx, block):
    found = label_volume(ArrayVolume(mask_zyx, (1, 1, 1)), CUTS, block=block)
    label_zyx, rows = found.read(), found.objects
    flat = label_zyx.ravel()
    for i, part in enumerate(ndimage.find_objects(label_zyx)):
        assert rows.voxels[i] == (flat == i + 1).sum()
        assert rows.first[i] == np.flatnonzero(flat == i + 1)[0]
        assert rows.start[i].tolist() == [s.start for s in part]
        assert rows.stop[i].tolist() == [s.stop for s in part]
        sides = [np.take(label_zyx, end, axis) for axis in range(3) for end in (0, -1)]
        assert found.touches_border[i] == any((side == i + 1).any() for side in sides)


@settings(max_examples=15, deadline=None)
@given(masks, st.data())
def test_any_box_is_a_part_of_the_whole(mask_zyx, data):
    found = label_volume(ArrayVolume(mask_zyx, (1, 1, 1)), CUTS, block=(2, 3, 2))
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in mask_zyx.shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    np.testing.assert_array_equal(found.read(box), found.read()[box.slices])


def joined(summaries):
    joiner = Joiner()
    for summary in summaries:
        joiner.add(summary)
    return joiner.finish()


def test_blocks_may_be_merged_in_any_order():
    mask = ArrayVolume(np.random.default_rng(0).random((6, 7, 8)) < 0.3)
    parts = list(tiles(mask.box, (3, 2, 5)))
    summaries = [summarize_block(mask, part, 18) for part in parts]
    (objects, tables), (_, other) = joined(summaries), joined(summaries[::-1])
    expected = scipy_labels(mask.read(), 18)
    for part in reversed(parts):
        np.testing.assert_array_equal(tables[part], other[part])
        np.testing.assert_array_equal(relabel_block(mask, part, tables[part], 18), expected[part.slices])
    assert len(objects) == expected.max()


def balls(*centres, shape=(24, 24, 60), radius=9):
    """Balls, and bars between them."""
    grid = np.indices(shape)
    return np.any([sum((a - c) ** 2 for a, c in zip(grid, at, strict=True)) < radius**2 for at in centres], axis=0)


def dumbbell(neck=2):
    """Two balls with a bar of the given radius between them."""
    mask_zyx = balls((12, 12, 14), (12, 12, 44))
    mask_zyx[12 - neck : 13 + neck, 12 - neck : 13 + neck, 14:44] = True
    return mask_zyx


def test_a_dumbbell_is_cut_at_its_neck():
    label_zyx = label_array(dumbbell(), Labelling(split=True, fragment=1e6), voxel_size=SIZE)
    assert np.unique(label_zyx).tolist() == [0, 1, 2]
    assert (label_zyx[12, 12, 14], label_zyx[12, 12, 44]) == (1, 2)
    border = np.flatnonzero(np.diff(label_zyx[12, 12, 14:45].astype(int))) + 14
    assert len(border) == 1
    assert 24 <= border[0] <= 34
    assert label_array(dumbbell(), Labelling(), voxel_size=SIZE).max() == 1


@pytest.mark.parametrize(
    "option",
    [{"neck": 0.1}, {"neck": 0.0}, {"depth": 80.0}, {"seed_distance": 400.0}, {"fragment": 5e6}],
    ids=lambda option: next(iter(option)),
)
def test_every_option_can_keep_it_whole(option):
    assert label_array(dumbbell(), Labelling(**{"split": True, "fragment": 1e6, **option}), voxel_size=SIZE).max() == 1


def test_a_long_tube_stays_whole():
    z, y, x = np.indices((40, 60, 120))
    tube_zyx = (z - 20) ** 2 + (y - 30 - 15 * np.sin(x / 15)) ** 2 < (7 + np.sin(x / 4)) ** 2
    branch_zyx = ((z - 20) ** 2 + (x - 60 - y / 3) ** 2 < 36) & (y > 20)
    assert label_array(tube_zyx | branch_zyx, Labelling(split=True, fragment=1e6), voxel_size=SIZE).max() == 1


def test_three_touching_balls_in_thick_sections():
    mask_zyx = balls((20, 12, 12), (20, 12, 28), (20, 12, 44), shape=(40, 24, 60))[::4]
    label_zyx = label_array(mask_zyx, Labelling(split=True, neck=0.8, fragment=1e6), voxel_size=(40.0, 10.0, 10.0))
    assert [label_zyx[5, 12, x] for x in (12, 28, 44)] == [1, 2, 3]


def test_beyond_the_border_a_mitochondrion_goes_on():
    """A dumbbell halved by the border is cut as the whole one is; a bar through the volume has no neck at its ends."""
    half_zyx = dumbbell()[12:]
    assert label_array(half_zyx, Labelling(split=True, fragment=1e6), voxel_size=SIZE).max() == 2
    assert label_array(np.ones((4, 5, 6), bool), CUTS, voxel_size=SIZE).max() == 1


def test_small_objects_are_left_out():
    mask_zyx = np.zeros((4, 6, 20), bool)
    mask_zyx[0, 0, :3] = mask_zyx[2, 2, :8] = mask_zyx[3, 5, 10:15] = True
    found = label_volume(ArrayVolume(mask_zyx, SIZE), Labelling(min_volume=5000.0), block=(2, 2, 4))
    assert found.objects.voxels.tolist() == [8, 5]
    assert found.read()[2, 2, 0] == 1
    assert found.read()[0].max() == 0


@pytest.mark.parametrize("fill", [False, True])
def test_empty_and_full(fill):
    found = label_volume(ArrayVolume(np.full((3, 4, 5), fill), SIZE), CUTS, block=(2, 2, 2))
    assert len(found) == fill
    assert (found.read() == fill).all()
    assert found.touches_border.tolist() == [True] * fill


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.zarr"])
def test_written_block_by_block(tmp_path, name):
    found = label_volume(
        ArrayVolume(dumbbell(), SIZE), Labelling(split=True, fragment=1e6), block=(7, 11, 13), metadata={"made": "so"}
    )
    info = found.info
    with create_volume(
        tmp_path / name, info.shape, info.dtype, voxel_size=info.voxel_size, metadata=info.metadata
    ) as writer:
        write_instances(found, writer)
    stored = open_volume(tmp_path / name)
    np.testing.assert_array_equal(stored.read(), found.read())
    assert stored.dtype == np.uint32
    assert stored.voxel_size == SIZE
    assert stored.info.metadata["kind"] == "instances"
    assert stored.info.metadata["labelling"]["split"] is True
    assert stored.info.metadata["made"] == "so"


def test_a_component_too_large_for_memory_is_not_cut(monkeypatch, caplog):
    monkeypatch.setattr("mitoseg.segmentation.labelling.BYTES", 10**12)
    assert len(label_volume(ArrayVolume(dumbbell(), SIZE), Labelling(split=True, fragment=1e6))) == 1
    assert "too large for memory" in caplog.text


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"connectivity": 8}, "no neighbourhood: 8"),
        ({"split": "yes"}, "split is neither"),
        ({"neck": 1.5}, "neck is no share"),
        ({"smoothing": -1}, "smoothing is not a number"),
        ({"fragment": float("nan")}, "fragment is not a number"),
        ({"min_volume": True}, "min_volume is not a number"),
    ],
)
def test_options_out_of_range(options, line):
    with pytest.raises(UserError, match=line):
        Labelling(**options)


@pytest.mark.parametrize("options", [{"split": True}, {"min_volume": 1.0}])
def test_lengths_need_a_voxel_size(options):
    with pytest.raises(UserError, match="no voxel size"):
        label_array(np.ones((2, 2, 2)), Labelling(**options))


def test_real_labels_in_blocks(real_data):
    labels = open_volume(real_data / "epfl_ca1" / "testing_z000-081_groundtruth.tif")
    mask = ArrayVolume(labels.read(Box((0, 200, 300), (40, 560, 700))) > 0, SIZE)
    whole = label_volume(mask, Labelling(split=True, neck=0.7, fragment=1e5)).read()
    for block in itertools.islice(itertools.product((17, 40), (90, 100), (64,)), 0, 4, 3):
        np.testing.assert_array_equal(
            label_volume(mask, Labelling(split=True, neck=0.7, fragment=1e5), block=block).read(), whole
        )
    plain = label_volume(mask, block=(17, 100, 90)).read()
    np.testing.assert_array_equal(plain, scipy_labels(mask.read(), 6))
    assert whole.max() > plain.max() > 5
