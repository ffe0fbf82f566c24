"""When grey values are another's."""

import numpy as np
import pytest

from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, open_volume
from mitoseg.volumes.normalize import FAR_GREYS, MatchedVolume, grey_distance, grey_quantiles, sample_greys


def test_the_distance_is_in_standard_deviations():
    rng = np.random.default_rng(0)
    trained = rng.normal(100, 20, 100_000)
    quantiles = np.quantile(trained, np.linspace(0, 1, 257))
    assert grey_distance(rng.normal(100, 20, 50_000), quantiles) < 0.05
    assert grey_distance(rng.normal(120, 20, 50_000), quantiles) == pytest.approx(1, abs=0.06)
    assert grey_distance(255 - trained, quantiles) > 2
    assert grey_distance(np.full(10, 3.0), [3, 3, 3]) == 0
    assert grey_distance(np.full(10, 4.0), [3, 3, 3]) == 1


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 500, 40), (200, 100, 97)])
def test_samples_are_few_and_inside(shape):
    image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    greys = sample_greys(ArrayVolume(image))
    assert 0 < greys.size <= min(64 * 2 * 96 * 96, 64 * image.size)


def test_blank_margins_do_not_count():
    image = np.zeros((8, 800, 800), np.uint8)
    image[:, :400] = np.random.default_rng(0).integers(100, 156, (8, 400, 800))
    assert sample_greys(ArrayVolume(image)).min() == 100
    assert sample_greys(ArrayVolume(np.zeros((8, 80, 80), np.uint8))).size == 0


def test_real_volumes(real_data):
    """The neighbour in the same block of tissue is near; another microscope, an inverted and a scaled one are far."""
    training = open_volume(real_data / "epfl_ca1" / "training.tif")
    test = open_volume(real_data / "epfl_ca1" / "testing_z000-081.tif")
    other = open_volume(real_data / "vnc_sstem" / "image_z00-14.tif")
    quantiles = grey_quantiles([(training, Box((0, 0, 0), (165, 768, 1024)))])
    assert grey_distance(sample_greys(test), quantiles) < FAR_GREYS / 2
    for z in (0, 60, 140):
        crop = training.read(Box((z, 200, 300), (z + 10, 500, 700)))
        assert grey_distance(sample_greys(ArrayVolume(crop)), quantiles) < FAR_GREYS
    assert grey_distance(sample_greys(other), quantiles) > 1.5 * FAR_GREYS
    crop = test.read(Box((30, 0, 0), (40, 768, 1024)))
    assert grey_distance(sample_greys(ArrayVolume(255 - crop)), quantiles) > 1.5 * FAR_GREYS
    assert grey_distance(sample_greys(ArrayVolume(crop.astype(np.uint16) * 257)), quantiles) > 100
    assert grey_distance(sample_greys(MatchedVolume(other, quantiles)), quantiles) < FAR_GREYS / 2
