"""Counting block by block is counting at once."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import find_objects

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation.blockwise import COLUMNS, STARTS, STOPS, count_block, count_instances, merge_counts
from mitoseg.volumes import ArrayVolume

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


def test_nothing_is_an_empty_table_of_the_same_kind():
    empty = count_instances(ArrayVolume(np.zeros((3, 3, 3), np.uint16)))
    full = count_instances(ArrayVolume(np.ones((3, 3, 3), np.uint16)))
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()


@pytest.mark.parametrize(("labels", "told"), [(np.full((2, 2, 2), -3), "negative"), (np.ones((2, 2, 2)), "whole")])
def test_what_are_no_labels(labels, told):
    with pytest.raises(UserError, match=told):
        count_instances(ArrayVolume(labels))
