"""A known shift is found, in every part of the slice, and seams between tiles where there are some."""

import math

import numpy as np
import pytest
from scipy import ndimage

from mitoseg.volumes import ArrayVolume


@pytest.fixture
def offsets_of(scripts):
    """The offsets of a mask against the truth."""
    find = scripts("placement").placement_offsets
    return lambda mask, truth: find(ArrayVolume(mask, metadata={"kind": "mask"}), ArrayVolume(truth))


def blobs(shape, seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 6, 6))
    return (noise > np.quantile(noise, 0.9)).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4)])
def test_a_shift_is_found(offsets_of, shift):
    truth = blobs((3, 240, 330))
    moved = np.roll(truth, shift, axis=(1, 2))
    offsets = offsets_of(moved, truth)
    assert len(offsets) == 9
    for name, offset in offsets.items():
        assert offset == pytest.approx(shift, abs=0.5), name


def test_a_stretched_map_shows_its_offsets(offsets_of):
    """Shrinking a map towards the centre moves its edges inwards: what placing scores by resizing would do."""
    truth = blobs((3, 240, 330), seed=1)
    index = np.indices((240, 330))
    factor, centre = 1.06, np.array([119.5, 164.5])
    source = [(index[a] - centre[a]) * factor + centre[a] for a in (0, 1)]
    shrunk = np.stack([ndimage.map_coordinates(s, source, order=0) for s in truth])
    offsets = offsets_of(shrunk, truth)
    assert min(offsets["first y, first x"]) > 2
    assert max(offsets["last y, last x"]) < -2
    assert offsets["middle y, middle x"] == pytest.approx((0, 0), abs=0.5)
    empty = np.zeros((1, 64, 64), np.uint8)
    assert all(np.isnan(offset).all() for offset in offsets_of(empty, empty).values())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_tiles_have_a_seam_and_noise_has_none(scripts, axis):
    seam_ratio = scripts("blend").seam_ratio
    noise = np.random.default_rng(0).normal(size=(20, 60, 60))
    assert seam_ratio(noise, {1: [16, 32], 2: [16, 32]}) == pytest.approx(1, abs=0.02)
    np.moveaxis(noise, axis, 0)[8:] += 5
    assert seam_ratio(noise, {axis: [8]}) > 3
    assert seam_ratio(noise, {axis: [9]}) < 1
    assert math.isnan(seam_ratio(noise[:2, :6, :6], {2: [0, 6]}))
    assert math.isnan(seam_ratio(np.zeros((2, 6, 6)), {2: [3]}))
