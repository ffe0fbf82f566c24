"""What is painted is found, read as meant, grouped, and cut into parts that can be left out."""

import time

import numpy as np
import pandas as pd
import pytest

from mitoseg.datasets.base import IGNORE
from mitoseg.datasets.painted import (
    Painted,
    PaintedRecipe,
    PlacedLabels,
    grouped,
    mitochondrion_width,
    open_painted,
    own_statistics,
    parts_to_leave_out,
    read_painted,
    reviewed_boxes,
    stacked,
)
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume

SIZE = (40.0, 5.0, 5.0)
SHAPE = (30, 96, 128)


def image(path="image", shape=SHAPE):
    return ArrayVolume(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8), SIZE, path)


def discs(z, radius=8, value=1):
    """Slices with discs in all quarters."""
    label_zyx = np.zeros(SHAPE, np.uint16)
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    for number, (cy, cx) in enumerate([(20, 25), (20, 90), (70, 25), (70, 90)]):
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        label_zyx[np.isin(np.arange(SHAPE[0]), z)[:, None, None] & inside] = number + 1 if value is None else value
    return label_zyx


def read(label_zyx, **options):
    """The labels of all regions in the image's coordinates."""
    regions = read_painted(image(), ArrayVolume(label_zyx, SIZE, "labels"), **options)
    return PlacedLabels(image(), regions).read(Box.of_shape(SHAPE)), regions


def test_two_is_background_and_zero_unknown():
    painted_zyx = discs([3])
    painted_zyx[3, 40:44] = 2
    found, regions = read(painted_zyx)
    assert np.array_equal(found, np.choose(painted_zyx, [IGNORE, 1, 0]))
    assert all(region.box.shape[0] == 1 for region in regions)


@pytest.mark.parametrize("reviewed", [None, [3, 9], ["[3:4,:,:]", "[9:10,:,:]"]])
@pytest.mark.parametrize("value", [1, 255, None])
def test_zero_is_background_where_it_is_reviewed(value, reviewed):
    painted_zyx = discs([3, 9], value=value)
    found, regions = read(painted_zyx, reviewed=reviewed)
    wanted = np.full(SHAPE, IGNORE, np.uint8)
    wanted[[3, 9]] = painted_zyx[[3, 9]] > 0
    assert np.array_equal(found, wanted)
    assert [region.box for region in regions] == [Box((z, 0, 0), (z + 1, *SHAPE[1:])) for z in (3, 9)]


def test_values_that_are_named_and_unknown_ones():
    painted_zyx = discs([3], value=7)
    painted_zyx[3, :10] = 4
    painted_zyx[3, 90:] = 255
    found, _ = read(painted_zyx, foreground=7, background=4, unknown=[255])
    assert [set(np.unique(found[3, rows])) for rows in (slice(10), slice(90, 96), slice(10, 90))] == [
        {0},
        {IGNORE},
        {1, IGNORE},
    ]


def test_boxes_of_a_shapes_layer(tmp_path):
    corners = [(2.0, 10.2, 5.0), (2.0, 10.2, 60.7), (2.0, 40.0, 60.7), (2.0, 40.0, 5.0)]
    rows = [[0, "rectangle", i, *corner] for i, corner in enumerate(corners)]
    columns = ["index", "shape-type", "vertex-index", "axis-0", "axis-1", "axis-2"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "boxes.csv", index=False)
    assert reviewed_boxes(str(tmp_path / "boxes.csv"), SHAPE) == [Box((2, 10, 5), (3, 40, 61))]
    flat = pd.DataFrame(rows, columns=columns).drop(columns="axis-0")
    flat.to_csv(tmp_path / "flat.csv", index=False)
    assert reviewed_boxes(str(tmp_path / "flat.csv"), (1, 96, 128)) == [Box((0, 10, 5), (1, 40, 61))]


@pytest.mark.parametrize(
    ("change", "options", "word"),
    [
        (lambda a: a * 0, {}, "no mitochondrion is painted"),
        (lambda a: a[:5], {}, "shape"),
        (lambda a: a.astype(np.float32), {}, "no whole numbers"),
        (lambda a: a, {"reviewed": [77]}, "no such slice"),
        (lambda a: a, {"reviewed": "no.csv"}, "cannot read the boxes"),
        (lambda a: a, {"reviewed": ["[0:99,:,:]"]}, "leaves the volume"),
        (lambda a: a, {"foreground": "mito"}, "label value"),
    ],
)
def test_bad_paint_is_one_line(change, options, word):
    label = ArrayVolume(change(discs([3])), SIZE, "labels")
    with pytest.raises(UserError, match=word) as caught:
        open_painted([image()], [label], **options)
    assert "\n" not in str(caught.value)


NOISE = np.random.default_rng(0).integers(0, 255, SHAPE)


@pytest.mark.parametrize(
    ("label_zyx", "options", "word"),
    [
        (NOISE.astype(np.uint8), {}, "an image instead of labels"),
        (discs([3]).astype(np.int16) - (NOISE > 200), {}, "negative values.*unknown="),
        (np.where(NOISE > 200, np.uint64(2**64 - 1), discs([3])), {}, "Paintera for unlabelled.*unknown="),
        (np.uint32(7) + discs([3]) * np.uint32(9), {}, "no label is 0"),
        (np.where(NOISE > 200, 255, discs([3])), {}, "255 beside others.*unknown=255"),
        (discs([3]), {"foreground": 7}, r"none of the values \[7\]"),
        (discs([3]), {"foreground": [1, 2], "background": 2}, "two meanings: 2"),
        (discs([3]), {"foreground": 1, "unknown": 1}, "two meanings: 1"),
        (discs([3]), {"background": 3}, "no background is painted"),
    ],
)
def test_values_that_mean_something_else_are_refused(label_zyx, options, word):
    with pytest.raises(UserError, match=word):
        open_painted([image()], [ArrayVolume(label_zyx, SIZE, "labels")], **options)


def test_values_of_results_keep_their_meaning():
    two_zyx = discs([3], value=None) % 3  # ids 1 and 2, and 1 again
    found, _ = read(two_zyx)
    assert (found[3] == 0).sum() == (two_zyx == 2).sum()
    stored = ArrayVolume(two_zyx, SIZE, "labels", metadata={"kind": "instances"})
    regions = open_painted([image()], [stored])
    assert sum((region.label_zyx == 1).sum() for region in regions) == (two_zyx > 0).sum()
    soft_zyx = np.clip(discs([3]) * 255 - discs([3], 9) * 0 + (discs([3], 9) - discs([3])) * 60, 0, 255)
    found, _ = read(soft_zyx.astype(np.uint8))
    assert (found == 1).sum() == discs([3]).sum()
    with pytest.raises(UserError, match="probabilities instead of labels"):
        open_painted([image()], [ArrayVolume(soft_zyx.astype(np.uint8), SIZE, metadata={"kind": "probability"})])


def test_files_of_one_kind_are_read_alike():
    both_zyx, one_zyx, two_zyx = discs([3]), discs([12]), discs([20], value=2)
    both_zyx[3, 40:44] = 2
    images = [image(name) for name in "abc"]
    regions = open_painted(images, [ArrayVolume(label, SIZE, "labels") for label in (both_zyx, one_zyx, two_zyx)])
    values = {
        name: {int(v) for r in regions if r.image.path == name for v in np.unique(r.label_zyx)} for name in "abc"
    }
    assert values == {"a": {0, 1, IGNORE}, "b": {1, IGNORE}, "c": {0, IGNORE}}


def test_what_is_painted_twice_counts_once():
    first, second = (ArrayVolume(discs(z), SIZE, f"labels {z}") for z in ([3, 12, 20], [3]))
    alone, both = (open_painted([image()], given) for given in ([first], [first, second]))
    assert [(r.box, r.label_zyx.sum()) for r in alone] == [(r.box, r.label_zyx.sum()) for r in both]
    with pytest.raises(UserError, match="mitochondrion in one file of labels and background in another"):
        open_painted([image()], [first, ArrayVolume(discs([3], radius=5), SIZE, "other")])


@pytest.mark.parametrize("reviewed", [[3, 9], [[3, 9], [3, 9]]])
def test_slices_are_reviewed_in_all_files_unless_each_has_a_list(reviewed):
    labels = [ArrayVolume(discs([3, 9]), SIZE, "labels")] * 2
    regions = open_painted([image("a"), image("b")], labels, reviewed=reviewed)
    assert [(r.image.path, r.box.start[0]) for r in regions] == [("a", 3), ("a", 9), ("b", 3), ("b", 9)]


def test_paint_in_padding_and_images_of_unknown_size_are_told():
    black = ArrayVolume(np.zeros(SHAPE, np.uint8), SIZE, "black")
    label = ArrayVolume(discs([3]), SIZE, "labels")
    with pytest.raises(UserError, match="padding"):
        open_painted([black], [label])
    with pytest.raises(UserError, match="only some of the images have a voxel size"):
        open_painted([image(), ArrayVolume(NOISE.astype(np.uint8), None, "other")], [label, label])


def test_many_scribbles_are_grouped_in_time():
    painted_zyx = np.zeros((60, 1024, 1024), np.uint8)
    painted_zyx[:, ::64, ::64] = 1
    volume = ArrayVolume(np.broadcast_to(NOISE[:1, :1, :1].astype(np.uint8), painted_zyx.shape), SIZE)
    regions = [Painted(volume, Box((z, y, x), (z + 1, y + 1, x + 1)), np.ones((1, 1, 1), np.uint8))
               for z, y, x in np.argwhere(painted_zyx)[::6].tolist()]  # fmt: skip
    began = time.monotonic()
    assert len({region.group for region in grouped(regions)}) >= 1
    assert time.monotonic() - began < 20


def test_scribbles_without_background_in_them_are_refused():
    painted_zyx = np.zeros(SHAPE, np.uint8)
    painted_zyx[3, 20, 20:40] = 1
    with pytest.raises(UserError, match="no background"):
        open_painted([image()], [ArrayVolume(painted_zyx, SIZE, "labels")], reviewed=["[3:4,20:21,20:40]"])


def test_regions_closer_than_a_mitochondrion_are_one_group():
    painted_zyx = discs([3, 4, 12, 20])
    regions = grouped(read_painted(image(), ArrayVolume(painted_zyx, SIZE, "labels")))
    assert mitochondrion_width(regions) == pytest.approx(82, abs=6)
    assert [region.group for region in regions] == [0, 0, 1, 2]


def test_three_groups_are_left_out_in_turn():
    regions = grouped(read_painted(image(), ArrayVolume(discs([3, 4, 12, 20]), SIZE, "labels")))
    parts = parts_to_leave_out(regions)
    assert sorted(tuple(region.box.start[0] for region in part) for part in parts) == [(3, 4), (12,), (20,)]


@pytest.mark.parametrize("z", [[3], [3, 4]])
def test_fewer_groups_are_cut_into_strips_that_cover_all_paint(z):
    regions = grouped(read_painted(image(), ArrayVolume(discs(z), SIZE, "labels")))
    parts = parts_to_leave_out(regions)
    assert 2 <= len(parts) <= 3
    whole = PlacedLabels(image(), regions).read(Box.of_shape(SHAPE))
    pieces = [PlacedLabels(image(), part).read(Box.of_shape(SHAPE)) for part in parts]
    assert (np.sum([piece != IGNORE for piece in pieces], axis=0) == (whole != IGNORE)).all()
    assert all((piece == 1).any() for piece in pieces)


def test_a_single_object_can_be_cut():
    painted_zyx = np.zeros(SHAPE, np.uint8)
    painted_zyx[3, 40:60, 100:120] = 1
    assert len(parts_to_leave_out(read_painted(image(), ArrayVolume(painted_zyx, SIZE, "labels")))) >= 2


def test_training_stays_away_from_what_is_left_out():
    regions = grouped(read_painted(image(), ArrayVolume(discs([3]), SIZE, "labels")))
    parts = parts_to_leave_out(regions)
    others = [region for part in parts[1:] for region in part]
    splits = PaintedRecipe(others, parts[0], tile=32, margin=8, statistics=own_statistics(regions)).splits()
    (held,) = (region.box for region in parts[0])
    for region in splits.train:
        label_zyx = region.label.read(region.image.box)
        assert (label_zyx[held.slices] == IGNORE).all()
        assert (label_zyx[held.grow((0, 3, 3)).clip(region.image.box).slices] == IGNORE).all()
        assert min(region.box.shape[1:]) >= 32


def test_labels_follow_the_image_to_another_pixel_size():
    regions = read_painted(image(), ArrayVolume(discs([3]), SIZE, "labels"))
    recipe = PaintedRecipe(regions, pixel_size=(10.0, 10.0), tile=32, statistics=own_statistics(regions))
    (region,) = recipe.splits().validation
    assert region.image.voxel_size == (40.0, 10.0, 10.0)
    coarse = region.read_label()[0]
    assert coarse.shape == (48, 64)
    assert (coarse == 1).mean() == pytest.approx((discs([3])[3] == 1).mean(), rel=0.1)


def test_several_images_are_each_normalised_by_themselves():
    first, second = image("a"), ArrayVolume(image("b").read(Box.of_shape(SHAPE)) // 2, SIZE, "b")
    painted = [ArrayVolume(discs([z]), SIZE, f"labels {z}") for z in (3, 9)]
    regions = open_painted([first, second], painted)
    splits = PaintedRecipe(regions, tile=32, statistics=own_statistics(regions)).splits()
    assert (splits.normalization.mean, splits.normalization.std) == (0, 1)
    for region in splits.train:
        assert region.image.read(region.image.box).mean() == pytest.approx(0, abs=0.02)
    assert [region.group for region in regions] == [0, 1]


def test_slices_that_lie_side_by_side_are_read_together():
    boxes = [Box((z, 0, 0), (z + 1, 5, 5)) for z in (8, 3, 4)] + [Box((5, 0, 0), (6, 4, 5))]
    assert [str(box) for box in stacked(boxes)] == ["[5:6,0:4,0:5]", "[3:5,0:5,0:5]", "[8:9,0:5,0:5]"]
