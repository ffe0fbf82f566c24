import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, Normalization, check_image_values, measure_normalization, normalize

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)


@settings(deadline=None)
@given(hnp.arrays(st.sampled_from(["uint8", "uint16", "int32", "bool"]), SHAPES), st.integers(1, 100))
def test_integers_are_measured_as_numpy_does(image_zyx, slab_voxels):
    volume = ArrayVolume(image_zyx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalize, "_SLAB_VOXELS", slab_voxels)
        if image_zyx.min() == image_zyx.max():
            with pytest.raises(UserError, match="constant"):
                measure_normalization([(volume, volume.box)])
            return
        found = measure_normalization([(volume, volume.box)])
    assert found.mean == pytest.approx(image_zyx.mean(dtype=float), rel=1e-12, abs=1e-9)
    assert found.std == pytest.approx(image_zyx.std(dtype=float), rel=1e-9)


@settings(deadline=None)
@given(hnp.arrays("float32", SHAPES, elements=st.floats(-1e6, 1e6, width=32)), st.integers(1, 100))
def test_floats_are_measured_as_numpy_does(image_zyx, slab_voxels):
    volume = ArrayVolume(image_zyx)
    if image_zyx.min() == image_zyx.max():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalize, "_SLAB_VOXELS", slab_voxels)
        found = measure_normalization([(volume, volume.box)])
    assert found.mean == pytest.approx(image_zyx.mean(dtype=float), rel=1e-9, abs=1e-6)
    assert found.std == pytest.approx(image_zyx.std(dtype=float), rel=1e-6)


def test_several_boxes_are_pooled():
    rng = np.random.default_rng(0)
    one, other = ArrayVolume(rng.integers(0, 99, (5, 8, 9), np.uint8)), ArrayVolume(rng.normal(7, 3, (6, 7, 8)))
    box = Box((1, 2, 3), (4, 8, 9))
    voxels = np.concatenate([one.read(box).ravel(), other.read().ravel()])
    found = measure_normalization([(one, box), (other, other.box)])
    assert (found.mean, found.std) == pytest.approx((voxels.mean(), voxels.std()))


def test_a_large_offset_costs_no_digits():
    image_zyx = 1e9 + np.random.default_rng(0).normal(0, 1, (5, 20, 20))
    volume = ArrayVolume(image_zyx)
    found = measure_normalization([(volume, volume.box)])
    assert found.std == pytest.approx(image_zyx.std(), rel=1e-6)
    assert found.apply(image_zyx).std() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64", "bool"])
def test_apply(dtype):
    image = np.array([[0, 1], [100, 7]]).astype(dtype)
    before = image.copy()
    result = Normalization(mean=2.5, std=2).apply(image)
    assert result.dtype == np.float32
    assert np.allclose(result, (before.astype(float) - 2.5) / 2)
    assert np.array_equal(image, before)
    assert not np.shares_memory(result, image)


@pytest.mark.parametrize(("mean", "std"), [(0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))])
def test_what_is_no_normalization(mean, std):
    with pytest.raises(UserError, match="not a normalisation"):
        Normalization(mean, std)


@pytest.mark.parametrize(
    ("voxel", "dtype", "says"),
    [
        (np.nan, "float32", "holds NaN"),
        (np.inf, "float64", "holds infinite values"),
        (-np.inf, "float16", "holds infinite values"),
        (0, "complex64", "complex64, no real numbers"),
    ],
)
def test_images_that_no_network_can_take(voxel, dtype, says):
    image_zyx = np.ones((4, 5, 6), dtype)
    image_zyx[3, 4, 5] = voxel
    volume = ArrayVolume(image_zyx, path="em.tif")
    with pytest.raises(UserError, match=rf"{says}.*em\.tif"):
        measure_normalization([(volume, volume.box)])
    with pytest.raises(UserError, match=rf"{says}.*em\.tif"):
        check_image_values(image_zyx, "em.tif")


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_constant_images(dtype):
    image_zyx = np.full((4, 50, 60), 0.1).astype(dtype)  # 0.1 has rounding, so the variance alone would not tell
    volume = ArrayVolume(image_zyx, path="em.tif")
    with pytest.raises(UserError, match=r"constant, every voxel is 0.*em\.tif"):
        measure_normalization([(volume, volume.box)])
    with pytest.raises(UserError, match="constant"):
        check_image_values(image_zyx, "em.tif", allow_constant=False)
    check_image_values(image_zyx, "em.tif")


def test_no_voxels_at_all():
    volume = ArrayVolume(np.ones((4, 5, 6)))
    with pytest.raises(UserError, match="no voxels"):
        measure_normalization([])
    with pytest.raises(UserError, match="no voxels"):
        measure_normalization([(volume, Box((1, 1, 1), (1, 5, 6)))])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_hot_pixels_change_no_normalisation(dtype, caplog):
    caplog.set_level("INFO")
    grey = np.random.default_rng(0).normal(2000, 300, (4, 100, 100)).clip(0, 4095).astype(dtype)
    hot = grey.copy()
    hot.ravel()[::3000] = 65535
    hot.ravel()[1::20000] = 0
    alone, found = (measure_normalization([(v := ArrayVolume(image), v.box)]) for image in (grey, hot))
    assert (found.mean, found.std) == pytest.approx((alone.mean, alone.std), rel=0.01)
    assert "14 voxels are hot" in caplog.text
    assert alone.mean == pytest.approx(grey.mean(dtype=float), rel=1e-12)
