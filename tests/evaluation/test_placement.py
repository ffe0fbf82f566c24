"""A known shift is found, in every part of the slice."""

import numpy as np
import pytest
from scipy import ndimage

from mitoseg.evaluation.figures import placement_offsets
from mitoseg.volumes import ArrayVolume


def blobs(shape, seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 6, 6))
    return (noise > np.quantile(noise, 0.9)).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4)])
def test_a_shift_is_found(shift):
    truth = blobs((3, 240, 330))
    moved = np.roll(truth, shift, axis=(1, 2))
    offsets = placement_offsets(ArrayVolume(moved, metadata={"kind": "mask"}), ArrayVolume(truth))
    assert len(offsets) == 9
    for name, offset in offsets.items():
        assert offset == pytest.approx(shift, abs=0.5), name


def test_a_stretched_map_shows_its_offsets():
    """Shrinking a map towards the centre moves its edges inwards: what placing scores by resizing would do."""
    truth = blobs((3, 240, 330), seed=1)
    index = np.indices((240, 330))
    factor, centre = 1.06, np.array([119.5, 164.5])
    source = [(index[a] - centre[a]) * factor + centre[a] for a in (0, 1)]
    shrunk = np.stack([ndimage.map_coordinates(s, source, order=0) for s in truth])
    offsets = placement_offsets(ArrayVolume(shrunk, metadata={"kind": "mask"}), ArrayVolume(truth))
    assert offsets["first y, first x"][0] > 2
    assert offsets["first y, first x"][1] > 2
    assert offsets["last y, last x"][0] < -2
    assert offsets["last y, last x"][1] < -2
    assert offsets["middle y, middle x"] == pytest.approx((0, 0), abs=0.5)


def test_without_mitochondria_there_is_no_offset():
    empty = np.zeros((1, 64, 64), np.uint8)
    assert all(
        np.isnan(o).all()
        for o in placement_offsets(ArrayVolume(empty, metadata={"kind": "mask"}), ArrayVolume(empty)).values()
    )
