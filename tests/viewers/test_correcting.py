"""Corrections of instances, on arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_volumes import dumbbell

from mitoseg.errors import UserError
from mitoseg.segmentation import Labelling
from mitoseg.viewers.napari_plugin.computing import delete, merge, middle, split_necks, split_seeds

SIZE = (5.0, 5.0, 5.0)
LARGE = (15.0, 15.0, 15.0)  # the distance is smoothed by 20 nm


def corrected(labels_zyx, edit):
    after_zyx = labels_zyx.copy()
    edit.apply(after_zyx)
    return after_zyx


labels = st.builds(
    lambda seed: np.random.default_rng(seed).integers(0, 5, (3, 4, 5)).astype(np.uint16), st.integers(0, 10**6)
)


@settings(max_examples=40, deadline=None)
@given(labels, st.sets(st.integers(1, 4), min_size=2))
def test_merging_gives_all_the_lowest_number(labels_zyx, ids):
    if not ids <= set(np.unique(labels_zyx).tolist()):
        return
    edit = merge(labels_zyx, list(ids))
    assert np.array_equal(corrected(labels_zyx, edit), np.where(np.isin(labels_zyx, list(ids)), min(ids), labels_zyx))
    assert edit.changed == ids
    assert edit.values.dtype == labels_zyx.dtype


@settings(max_examples=40, deadline=None)
@given(labels, st.sets(st.integers(1, 4), min_size=1))
def test_deleting_makes_background(labels_zyx, ids):
    if not ids <= set(np.unique(labels_zyx).tolist()):
        return
    edit = delete(labels_zyx, list(ids))
    assert np.array_equal(corrected(labels_zyx, edit), np.where(np.isin(labels_zyx, list(ids)), 0, labels_zyx))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda a: merge(a, [1]), "two instances"),
        (lambda a: merge(a, [1, 1]), "two instances"),
        (lambda a: merge(a, [1, 9]), "no instance has the number: 9"),
        (lambda a: delete(a, []), "no instance is chosen"),
        (lambda a: delete(a, [0]), "no instance has the number: 0"),
        (lambda a: split_necks(a, [], SIZE), "no instance is chosen"),
        (lambda a: split_seeds(a, np.zeros((0, 3)), SIZE), "no instance holds two seed points"),
        (lambda a: split_seeds(a, np.array([[0, 0, 0], [0, 0, 1]]), SIZE), "no instance holds two seed points"),
        (lambda a: split_seeds(a, np.array([[-5, 0, 0], [0, 99, 1]]), SIZE), "no instance holds two seed points"),
    ],
)
def test_what_cannot_be_corrected(act, message):
    labels_zyx = np.zeros((2, 3, 4), np.uint32)
    labels_zyx[1, 1, 1:3] = 1
    with pytest.raises(UserError, match=message):
        act(labels_zyx)


def test_a_neck_is_cut_and_the_larger_part_keeps_its_number():
    labels_zyx, first, second = dumbbell(3)
    labels_zyx[0, 0, 0] = 8  # the highest number, of another instance
    edit = split_necks(labels_zyx, [3], LARGE, Labelling(split=True, fragment=0))
    after_zyx = corrected(labels_zyx, edit)
    assert after_zyx[first] == 3
    assert after_zyx[second] == 9
    assert edit.changed == {3, 9}
    assert np.array_equal(after_zyx > 0, labels_zyx > 0)
    at = np.nonzero(after_zyx == 9)[2].min()
    assert abs(at - 22) <= 2  # where the smaller ball begins


def test_two_instances_that_are_cut_at_once_get_different_numbers():
    one, first, second = dumbbell(1)
    labels_zyx = np.concatenate([one, 2 * one])
    after_zyx = corrected(labels_zyx, split_necks(labels_zyx, [1, 2], LARGE, Labelling(split=True, fragment=0)))
    below = [(24 + z, y, x) for z, y, x in (first, second)]
    assert len({int(after_zyx[at]) for at in (first, second, *below)}) == 4


def test_a_ball_has_no_neck():
    labels_zyx, _, _ = dumbbell(radius=(9, 0))
    labels_zyx[:, :, 22:] = 0
    with pytest.raises(UserError, match="no neck to cut at"):
        split_necks(labels_zyx, [1], LARGE)


def test_seeds_cut_where_the_neck_is():
    labels_zyx, first, second = dumbbell(2)
    labels_zyx[0, 0, 0] = 5
    seeds = np.array([first, second, (0, 20, 40)]) + 0.3  # the last lies in the background
    after_zyx = corrected(labels_zyx, split_seeds(labels_zyx, seeds, SIZE))
    assert (after_zyx[first], after_zyx[second], after_zyx[0, 0, 0]) == (2, 6, 5)
    assert np.array_equal(after_zyx > 0, labels_zyx > 0)
    assert abs(np.nonzero(after_zyx == 6)[2].min() - 22) <= 2


def test_seeds_in_one_ball_cut_it_as_well():
    labels_zyx, (z, y, x), _ = dumbbell()
    after_zyx = corrected(labels_zyx, split_seeds(labels_zyx, np.array([(z - 5, y, x), (z + 5, y, x)]), SIZE))
    assert after_zyx[z - 5, y, x] != after_zyx[z + 5, y, x]


def test_numbers_that_the_type_does_not_have_are_not_given():
    labels_zyx, first, second = dumbbell(255)
    with pytest.raises(UserError, match="no more numbers"):
        split_seeds(labels_zyx.astype(np.uint8), np.array([first, second]), SIZE)


def test_the_middle_of_a_ring_lies_on_the_ring():
    labels_zyx = np.zeros((3, 9, 9), np.uint32)
    labels_zyx[1, 1:8, 1:8] = 4
    labels_zyx[1, 2:7, 2:7] = 0
    at = middle(labels_zyx, 4)
    assert labels_zyx[at] == 4
    assert middle(labels_zyx, 5) is None
