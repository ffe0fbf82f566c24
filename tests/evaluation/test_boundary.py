"""Boundary bands against distances measured by brute force and by scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from mitoseg.evaluation.score import halo, near_counts, relative_spacing, squared_distance
from mitoseg.geometry import Box
from mitoseg.metrics import Counts, count

SIZES = [(1, 1, 1), (5, 5, 5), (50, 4.6, 4.6), (30, 10, 5), (4, 9, 9), (1, 2.5, 1)]


def phantom(seed, shape, ignored=0.0, share=0.5):
    """Blobs, with a sprinkle of ignored voxels."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([-(-n // 3) for n in shape]) < share
    truth = np.kron(coarse, np.ones((3,) * len(shape), bool))[tuple(slice(n) for n in shape)].astype(np.uint8)
    truth[rng.random(shape) < ignored] = 255
    return truth


def brute_force(truth, spacing):
    """Distance to the nearest voxel of the other class, over all pairs of voxels."""
    at = np.argwhere(np.ones(truth.shape, bool)) * np.asarray(spacing)
    labels = truth.ravel()
    out = np.full(labels.shape, np.inf)
    for own in (0, 1):
        others = at[labels == 1 - own]
        if len(others):
            mine = at[labels == own]
            out[labels == own] = np.sqrt(((mine[:, None] - others[None]) ** 2).sum(-1)).min(1)
    return out.reshape(truth.shape)


def left_out(truth, distance, band, prediction):
    out = (distance <= band + 1e-6) & (truth != 255)
    return count(prediction[out], truth[out])


@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize("voxel_size", SIZES)
@pytest.mark.parametrize("shape", [(1, 6, 7), (5, 8, 9), (6, 5, 11)])
def test_bands_agree_with_brute_force(shape, voxel_size, ignored):
    truth = phantom(sum(shape), shape, ignored)
    prediction = np.random.default_rng(1).random(shape) < 0.5
    bands = [1, 1.5, 2, 3, 5]
    box = Box.of_shape(shape)
    distance_3d = brute_force(truth, relative_spacing(voxel_size))
    distance_2d = np.stack([brute_force(t, relative_spacing(voxel_size[1:])) for t in truth])
    for dims, distance in ((3, distance_3d), (2, distance_2d)):
        found = near_counts(prediction, truth, box, bands=bands, voxel_size=voxel_size, dims=dims)
        assert found == [left_out(truth, distance, d, prediction) for d in bands]


@pytest.mark.parametrize("voxel_size", SIZES)
def test_distances_agree_with_scipy(voxel_size):
    truth = phantom(3, (20, 31, 27), share=0.4)
    spacing = relative_spacing(voxel_size)
    ours = np.sqrt(squared_distance(truth, spacing))
    theirs = np.where(truth, distance_transform_edt(truth, spacing), distance_transform_edt(truth == 0, spacing))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_by_hand():
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8).reshape(1, 1, 8)
    prediction = np.zeros((1, 1, 8), bool)
    found = near_counts(prediction, truth, Box.of_shape((1, 1, 8)), bands=[1, 2, 9], voxel_size=(1, 1, 1), dims=3)
    assert found == [Counts(fn=1, tn=1), Counts(fn=2, tn=2), Counts(fn=4, tn=4)]
    halos = [halo([1, 5], (1, 1, 1)), halo([5], (50, 5, 5)), halo([5], (1, 5, 10)), halo([], (1, 1, 1))]
    assert halos == [(5, 5, 5), (0, 5, 5), (5, 5, 2), (0, 0, 0)]  # in-plane distances count in-plane spacings


def test_the_slice_above_counts_in_3d_alone():
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[1] = 1
    options = {"bands": [1], "voxel_size": (1, 1, 1)}
    box = Box.of_shape(truth.shape)
    assert near_counts(truth == 1, truth, box, **options, dims=3) == [Counts(tp=16, tn=16)]
    assert near_counts(truth == 1, truth, box, **options, dims=2) == [Counts()]
    thick = {"bands": [1, 5], "voxel_size": (5, 1, 1)}
    assert near_counts(truth == 1, truth, box, **thick, dims=3) == [Counts(), Counts(tp=16, tn=16)]


def test_ignored_voxels_are_no_class_and_one_class_has_no_border():
    """A wall of ignored voxels hides nothing and is itself near nothing."""
    truth = np.array([0, 255, 255, 1, 255], np.uint8).reshape(1, 1, 5)
    box, prediction = Box.of_shape(truth.shape), np.ones((1, 1, 5), bool)
    found = near_counts(prediction, truth, box, bands=[1, 2, 3], voxel_size=(1, 1, 1), dims=3)
    assert found == [Counts(), Counts(), Counts(tp=1, fp=1)]
    for value, dims in itertools.product((0, 1, 255), (2, 3)):
        truth = np.full((2, 3, 4), value, np.uint8)
        box = Box.of_shape(truth.shape)
        assert near_counts(truth == 1, truth, box, bands=[99], voxel_size=(1, 1, 1), dims=dims) == [Counts()]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(SIZES),
    st.sampled_from([0.0, 0.1]),
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
)
def test_the_halo_suffices(seed, voxel_size, ignored, start, size):
    shape, bands = (10, 14, 15), [1, 2, 3]
    truth = phantom(seed, shape, ignored)
    prediction = np.random.default_rng(seed).random(shape) < 0.5
    inner = Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
    outer = inner.grow(halo(bands, voxel_size)).clip(Box.of_shape(shape))
    for dims in (3, 2):
        options = {"bands": bands, "voxel_size": voxel_size, "dims": dims}
        local = near_counts(prediction[inner.slices], truth[outer.slices], inner.inside(outer), **options)
        assert local == near_counts(prediction[inner.slices], truth, inner, **options)
