"""Histogram matching against scikit-image's, and its edges."""

import numpy as np
import pytest
from skimage.exposure import match_histograms

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume
from mitoseg.volumes.normalize import COUNT, MatchedVolume, grey_quantiles

RNG = np.random.default_rng(0)


def volume(mean, std, dtype=np.uint8, shape=(6, 120, 100)):
    values = RNG.normal(mean, std, shape)
    return ArrayVolume(np.clip(values, 0, 255).astype(dtype), (5.0, 4.0, 3.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_matched_is_what_scikit_image_finds(dtype):
    source, reference = volume(90, 20, dtype), volume(150, 35)
    quantiles = grey_quantiles([(reference, reference.box)])
    matched = MatchedVolume(source, quantiles.tolist())
    found = matched.read()
    expected = match_histograms(source.read().astype(float), reference.read().astype(float))
    assert found.dtype == matched.dtype == np.float32
    inner = np.abs(source.read().astype(float) - 90) < 40
    assert np.abs(found - expected)[inner].mean() < 1.5
    assert found.mean() == pytest.approx(expected.mean(), abs=1)
    assert found.std() == pytest.approx(expected.std(), abs=2)
    assert matched.voxel_size == (5.0, 4.0, 3.0)
    box = Box((1, 10, 20), (3, 50, 60))
    np.testing.assert_array_equal(matched.read(box), found[box.slices])


def test_order_is_kept():
    source = volume(100, 30)
    matched = MatchedVolume(source, np.linspace(0, 1, 17).tolist())
    grey = np.unique(source.read())
    first = [matched.read()[source.read() == g][0] for g in grey]
    assert np.all(np.diff(first) >= 0)


def test_the_same_volume_stays_as_it_is():
    source = volume(128, 25)
    matched = MatchedVolume(source, grey_quantiles([(source, source.box)]).tolist())
    grey = source.read().astype(float)
    common = np.abs(grey - 128) < 50
    assert np.abs(matched.read() - grey)[common].max() <= 1.0


def test_quantiles_are_evenly_spaced():
    ramp = ArrayVolume(np.broadcast_to(np.arange(256, dtype=np.uint8)[None, None], (3, 8, 256)).copy())
    found = grey_quantiles([(ramp, ramp.box)])
    assert len(found) == COUNT
    assert found[0] == 0
    assert found[-1] == 252
    np.testing.assert_allclose(found, np.linspace(0, 252, COUNT), atol=4)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_told(value):
    with pytest.raises(UserError, match=f"constant, every voxel is {value}"):
        MatchedVolume(ArrayVolume(np.full((2, 8, 8), value, np.uint8)), [0.0, 1.0])


def test_no_voxels_are_told():
    with pytest.raises(UserError, match="no voxels"):
        grey_quantiles([])
