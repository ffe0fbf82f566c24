"""Grey values: normalisation, channels, histogram matching, and how far they are from training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_files import refused
from skimage.exposure import match_histograms

from mitoseg.geometry import Box
from mitoseg.volumes import (
    CHANNEL_OFFSETS,
    ArrayVolume,
    Normalization,
    base,
    channel_slices,
    check_image_values,
    measure_normalization,
    open_volume,
    read_channels,
)
from mitoseg.volumes.normalize import COUNT, FAR_GREYS, MatchedVolume, grey_distance, grey_quantiles, sample_greys

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)


FLOATS = hnp.arrays("float32", SHAPES, elements=st.floats(-1e6, 1e6, width=32))


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(st.sampled_from(["uint8", "uint16", "int32", "bool"]), SHAPES) | FLOATS, st.integers(1, 100))
def test_volumes_are_measured_as_numpy_does(image_zyx, slab_voxels):
    volume = ArrayVolume(image_zyx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "SLAB_VOXELS", slab_voxels)
        if image_zyx.min() == image_zyx.max():
            refused("constant", measure_normalization, [(volume, volume.box)])
            return
        found = measure_normalization([(volume, volume.box)])
    exact = image_zyx.dtype.kind != "f"
    mean, std = image_zyx.mean(dtype=float), image_zyx.std(dtype=float)
    assert found.mean == pytest.approx(mean, rel=1e-12 if exact else 1e-9, abs=1e-9 if exact else 1e-6)
    assert found.std == pytest.approx(std, rel=1e-9 if exact else 1e-6)


def test_several_boxes_are_pooled_and_a_large_offset_costs_no_digits():
    rng = np.random.default_rng(0)
    one, other = ArrayVolume(rng.integers(0, 99, (5, 8, 9), np.uint8)), ArrayVolume(rng.normal(7, 3, (6, 7, 8)))
    box = Box((1, 2, 3), (4, 8, 9))
    voxels = np.concatenate([one.read(box).ravel(), other.read().ravel()])
    found = measure_normalization([(one, box), (other, other.box)])
    assert (found.mean, found.std) == pytest.approx((voxels.mean(), voxels.std()))
    image_zyx = 1e9 + rng.normal(0, 1, (5, 20, 20))
    volume = ArrayVolume(image_zyx)
    found = measure_normalization([(volume, volume.box)])
    assert found.std == pytest.approx(image_zyx.std(), rel=1e-6)
    assert found.apply(image_zyx).std() == pytest.approx(1, rel=1e-5)


def test_apply():
    for dtype in ("uint8", "uint16", "int32", "float16", "float32", "float64", "bool"):
        image = np.array([[0, 1], [100, 7]]).astype(dtype)
        before = image.copy()
        result = Normalization(mean=2.5, std=2).apply(image)
        assert result.dtype == np.float32
        assert np.allclose(result, np.clip((before.astype(float) - 2.5) / 2, -10, 10))  # a hot pixel is no more
        assert np.array_equal(image, before)
        assert np.array_equal(Normalization(0, 1).apply(image), before.astype(np.float32))  # a network's own affair
        assert not np.shares_memory(result, image)


UNUSABLE = [
    (np.nan, "float32", "holds NaN"),
    *((value, d, "holds values that are infinite") for value, d in ((1e300, "float64"), (-np.inf, "float16"))),
    (0, "complex64", "complex64, not real numbers"),
]


def test_images_that_no_network_can_take():
    for voxel, dtype, says in UNUSABLE:
        image_zyx = np.ones((4, 5, 6), dtype)
        image_zyx[3, 4, 5] = voxel
        volume = ArrayVolume(image_zyx, path="em.tif")
        refused(rf"{says}.*em\.tif", measure_normalization, [(volume, volume.box)])
        refused(rf"{says}.*em\.tif", check_image_values, image_zyx, "em.tif")
    for dtype in ("uint8", "float32", "float64"):
        image_zyx = np.full((4, 50, 60), 0.1).astype(dtype)  # 0.1 has rounding, so the variance alone would not tell
        volume = ArrayVolume(image_zyx, path="em.tif")
        refused(r"constant, every voxel is 0.*em\.tif", measure_normalization, [(volume, volume.box)])
        check_image_values(image_zyx, "em.tif")
    for value in (0, 7):
        flat = ArrayVolume(np.full((2, 8, 8), value, np.uint8))
        refused(f"constant, every voxel is {value}", MatchedVolume, flat, [0.0, 1.0])


def test_no_voxels_at_all():
    volume = ArrayVolume(np.ones((4, 5, 6)))
    refused("no voxels", measure_normalization, [])
    refused("no voxels", measure_normalization, [(volume, Box((1, 1, 1), (1, 5, 6)))])
    refused("no voxels", grey_quantiles, [])
    for mean, std in ((0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))):
        refused("not a normalisation", Normalization, mean, std)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_hot_pixels_change_no_normalisation(dtype, caplog):
    caplog.set_level("INFO")
    grey = np.random.default_rng(0).normal(2000, 300, (4, 100, 100)).clip(0, 4095).astype(dtype)
    hot = grey.copy()
    hot.ravel()[::3000] = 65535
    hot.ravel()[1::20000] = 0
    alone, found = (measure_normalization([(v := ArrayVolume(image), v.box)]) for image in (grey, hot))
    assert (found.mean, found.std) == pytest.approx((alone.mean, alone.std), rel=0.01)
    assert "14 hot or dead pixels" in caplog.text
    assert alone.mean == pytest.approx(grey.mean(dtype=float), rel=1e-12)


NEIGHBOURS = [
    *((0, 5, "adjacent", [0, 0, 1]), (2, 5, "adjacent", [1, 2, 3]), (4, 5, "adjacent", [3, 4, 4])),
    *((0, 1, "adjacent", [0, 0, 0]), (0, 2, "adjacent", [0, 0, 1])),
    *((3, 5, "repeat", [3, 3, 3]), (3, 5, "single", [3])),
]


def test_a_missing_neighbour_is_the_slice_itself():
    refused("no such channels: 'rgb'; choose one of adjacent, adjacent5, every_second9, ", channel_slices, 0, 5, "rgb")
    for z, depth, channels, slices in NEIGHBOURS:
        assert channel_slices(z, depth, channels) == slices
        assert len(slices) == len(CHANNEL_OFFSETS[channels])
        image_zyx = np.arange(depth * 4 * 6, dtype=np.uint16).reshape(depth, 4, 6)
        volume = ArrayVolume(image_zyx)
        image_cyx = read_channels(volume, z, channels)
        assert image_cyx.dtype == np.uint16
        assert np.array_equal(image_cyx, image_zyx[slices])
        part_cyx = read_channels(volume, z, channels, Box((1, 2), (3, 6)))
        assert np.array_equal(part_cyx, image_zyx[slices, 1:3, 2:6])


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


def test_order_is_kept_and_the_same_volume_stays_as_it_is():
    source = volume(100, 30)
    matched = MatchedVolume(source, np.linspace(0, 1, 17).tolist())
    first = [matched.read()[source.read() == g][0] for g in np.unique(source.read())]
    assert np.all(np.diff(first) >= 0)
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


def test_the_distance_is_in_standard_deviations():
    rng = np.random.default_rng(0)
    trained = rng.normal(100, 20, 100_000)
    quantiles = np.quantile(trained, np.linspace(0, 1, 257))
    assert grey_distance(rng.normal(100, 20, 50_000), quantiles) < 0.05
    assert grey_distance(rng.normal(120, 20, 50_000), quantiles) == pytest.approx(1, abs=0.06)
    assert grey_distance(255 - trained, quantiles) > 2
    assert grey_distance(np.full(10, 3.0), [3, 3, 3]) == 0
    assert grey_distance(np.full(10, 4.0), [3, 3, 3]) == 1


def test_samples_are_few_and_inside_and_blank_margins_do_not_count():
    for shape in ((1, 1, 2), (3, 500, 40), (200, 100, 97)):
        image = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        assert 0 < sample_greys(ArrayVolume(image)).size <= min(64 * 2 * 96 * 96, 64 * image.size)
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
