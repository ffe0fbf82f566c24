import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitoseg.datasets.base import Validation, fold_slabs, split_slabs
from mitoseg.errors import UserError


def slices(ranges):
    return [z for start, stop in ranges for z in range(start, stop)]


@pytest.mark.parametrize(
    ("depth", "slabs", "gap", "train"),
    [
        (165, [[0, 14], [151, 165]], 8, [(22, 143)]),
        (10, [[4, 6]], 0, [(0, 4), (6, 10)]),
        (10, [[4, 6]], 2, [(0, 2), (8, 10)]),
        (10, [[4, 6]], 4, None),
        (10, [[0, 1]], 8, [(9, 10)]),
        (10, [[8, 10], [0, 2]], 1, [(3, 7)]),
    ],
)
def test_split_slabs_by_hand(depth, slabs, gap, train):
    if train is None:
        with pytest.raises(UserError, match="no slice of 10 is left to train on"):
            split_slabs(depth, slabs, gap)
    else:
        assert split_slabs(depth, slabs, gap) == (train, sorted(tuple(s) for s in slabs))


@given(st.integers(1, 60), st.integers(0, 59), st.integers(1, 20), st.integers(0, 10))
def test_training_slices_are_exactly_those_farther_than_the_gap(depth, start, length, gap):
    stop = min(start + length, depth)
    expected = [z for z in range(depth) if z < start - gap or z >= stop + gap]
    if start >= depth or not expected:
        with pytest.raises(UserError):
            split_slabs(depth, [[start, stop]], gap)
    else:
        train, validation = split_slabs(depth, [[start, stop]], gap)
        assert slices(train) == expected
        assert validation == [(start, stop)]


@pytest.mark.parametrize(
    ("slabs", "gap", "message"),
    [
        ([[0, 14], [151, 165]], 8, "[151, 165]; give data.validation.slabs=[[z0,z1]] within [0,82]"),
        ([[4, 4]], 0, "empty"),
        ([[-1, 4]], 0, "leaves the volume"),
        ([[0, 4], [3, 6]], 0, "overlap"),
        ([[0, 4]], -1, "negative"),
        ([], 1, "no slab to validate on"),
    ],
)
def test_split_slabs_refuses(slabs, gap, message):
    with pytest.raises(UserError, match=re.escape(message)):
        split_slabs(82, slabs, gap)


@given(st.integers(12, 80), st.integers(3, 6), st.integers(0, 3))
def test_folds_tile_the_volume_and_never_come_closer_than_the_gap(depth, folds, gap):
    tested = []
    for fold in range(folds):
        try:
            cut = fold_slabs(depth, folds, fold, gap)
        except UserError:
            assert depth // folds <= 2 * gap  # a slab thin enough to drown in its gaps
            return
        train, validation, test = (slices(r) for r in cut)
        tested += test
        for a, b in ((train, validation), (train, test), (validation, test)):
            assert min(abs(i - j) for i in a for j in b) > gap
    assert sorted(tested) == list(range(depth))


def test_folds_hold_out_the_next_slab_for_validation():
    assert fold_slabs(20, 5, 4, gap=1)[1] == [(0, 4)]  # cyclic, and far from the test slab
    assert fold_slabs(20, 5, 0, gap=1)[1] == [(5, 8)]  # gives the gap to the test slab
    assert fold_slabs(20, 5, 1, gap=1, with_test=False) == ([(0, 3), (9, 20)], [(4, 8)], [])


@pytest.mark.parametrize(
    ("depth", "folds", "fold", "gap", "message"),
    [
        (20, 2, 0, 1, "data.folds is 3 or more"),
        (20, 5, 5, 1, "no such fold"),
        (20, 5, -1, 1, "no such fold"),
        (4, 5, 0, 0, "too few slices for the folds"),
        (15, 5, 0, 3, "too few slices for the folds: '15 slices, folds=5, gap=3'"),
        (0, 5, 0, 0, "too few slices"),
    ],
)
def test_folds_refuse(depth, folds, fold, gap, message):
    with pytest.raises(UserError, match=re.escape(message)):
        fold_slabs(depth, folds, fold, gap)


def test_validation_options():
    slabs = Validation(slabs=((0, 2),), gap=8)
    assert Validation.of(None) == Validation(None, 0.15, 2)
    assert Validation.of(None, slabs) == slabs
    assert Validation.of({"gap": 3}, slabs) == Validation(((0, 2),), 0.15, 3)
    assert Validation.of({"share": 0.3}, slabs) == Validation(None, 0.3, 8)
    assert Validation.of({"slabs": [[1, 2]], "share": 0.3, "gap": 0}) == Validation(((1, 2),), 0.3, 0)
    assert Validation.of({"slabs": None, "share": 0.2}, slabs).slabs is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(({"slab": 1}, "slab"), ({"gap": 1.5}, "gap"), ({"gap": True}, "gap")),
        *(({"slabs": slabs}, "slab") for slabs in (3, [3], [[1, 2, 3]])),
        *(({"share": share, "gap": 0}, "share") for share in ("a", 0, 1, -0.1, 15, float("nan"))),
    ],
)
def test_validation_refuses(options, words):
    with pytest.raises(UserError, match=words):
        Validation.of(options).ranges(0, 10)


def test_validation_of_an_annotated_part_counts_slices_of_the_volume():
    for depth, share, slab in ((20, 0.15, (17, 20)), (3, 0.01, (2, 3)), (165, 0.2, (132, 165))):
        assert Validation(share=share, gap=0).ranges(0, depth)[1] == [slab]
    assert Validation(share=0.2, gap=1).ranges(30, 40) == ([(30, 37)], [(38, 40)])
    assert Validation(slabs=((30, 32),), gap=1).ranges(30, 40) == ([(33, 40)], [(30, 32)])
    with pytest.raises(UserError, match="labelled slices are 30:40"):
        Validation(slabs=((0, 2),)).ranges(30, 40)
    with pytest.raises(UserError, match=r"too few slices .* behind a gap of 2: 3; lower data\.validation"):
        Validation().ranges(0, 3)
    assert Validation().ranges(0, 4) == ([(0, 1)], [(3, 4)])
