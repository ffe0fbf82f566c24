"""Post-processing block by block: the voxels that it gives for the whole array."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from other_places import Elsewhere
from scipy.ndimage import gaussian_filter

from mitoseg.engines import LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.clean_volume import NearSteps, Source, clean_volume
from mitoseg.volumes import ArrayVolume, create_volume, open_volume

SIZE = (8.0, 5.0, 4.0)
CLEAN = Postprocess(smooth=6.0, fill_holes=True, min_volume=4000.0)


def blobs(seed, shape=(9, 18, 20), sigma=1.5):
    """Smooth noise that spreads from 0 to 1."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return ((field - field.min()) / np.ptp(field)).astype(np.float32)


steps = st.builds(
    Postprocess,
    smooth=st.sampled_from([None, 3.0, 9.0]),
    smoothness=st.sampled_from([None, 2.0]),
    smoothness_sigma=st.just(3.0),
    min_mean=st.sampled_from([None, 0.55]),
    watershed=st.sampled_from([None, None, 1]),
    z_median=st.sampled_from([None, 3, 5]),
    opening=st.sampled_from([None, 8.0, 10.0]),
    fill_slices=st.booleans(),
    fill_holes=st.booleans(),
    min_volume=st.sampled_from([None, 4000.0]),
)


@settings(max_examples=15, deadline=None)
@given(steps, st.tuples(*[st.integers(4, 12)] * 3), st.integers(0, 999), st.booleans())
def test_blocks_are_parts_of_the_whole(chosen, block, seed, with_image):
    p, image = blobs(seed), blobs(seed + 1)
    source = Source(ArrayVolume(p, SIZE), 0.5, 1.0, SIZE, ArrayVolume(image) if with_image else None)
    expected = chosen(p, 0.5, SIZE, image if with_image else None)
    with tempfile.TemporaryDirectory() as folder:
        found = clean_volume(chosen, source, Path(folder), engine=Elsewhere(seed), block=block)
        np.testing.assert_array_equal(found.read(), expected)
        assert (found.dtype, found.voxel_size) == (np.uint8, SIZE)


@pytest.mark.parametrize("name", ["smooth", "smoothness", "z_median", "opening"])
def test_the_halo_is_needed(name, monkeypatch, tmp_path):
    """Or the test above would not see where blocks meet."""
    chosen = Postprocess(**{name: 5 if name == "z_median" else 9.0}, smoothness_sigma=3.0)
    p = blobs(0, (20, 40, 40))
    expected = chosen(p, 0.5, SIZE)
    monkeypatch.setattr(Postprocess, "halo", lambda self, spacing: (0, 0, 0))
    found = clean_volume(chosen, Source(ArrayVolume(p), 0.5, 1.0, SIZE), tmp_path, block=(4, 8, 8))
    assert (found.read() != expected).any()


def test_bytes_are_probabilities_by_their_scale(tmp_path):
    p = np.rint(255 * blobs(4)).astype(np.uint8)
    found = clean_volume(CLEAN, Source(ArrayVolume(p), 0.5, 255.0, SIZE), tmp_path, block=(5, 9, 10))
    expected = CLEAN(p.astype(np.float32) / np.float32(255), 0.5, SIZE)
    np.testing.assert_array_equal(found.read(), expected)
    assert 0 < expected.mean() < 1


def test_blocks_are_whole_slices_where_steps_need_them():
    source = Source(ArrayVolume(np.zeros((300, 100, 200), np.float32)), 0.5, 1.0, SIZE)
    assert NearSteps(CLEAN, source).block() == (64, 512, 512)
    assert NearSteps(Postprocess(min_mean=0.8), source).block() == (64, 100, 200)
    large = Source(ArrayVolume(np.broadcast_to(np.float32(0), (300, 2000, 2000))), 0.5)
    assert NearSteps(Postprocess(fill_slices=True), large).block() == (8, 2000, 2000)
    assert NearSteps(Postprocess(fill_slices=True, z_median=9), large).block() == (1, 2000, 2000)


def test_lengths_need_a_voxel_size_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="min_volume is in nm"):
        clean_volume(Postprocess(min_volume=1.0), Source(ArrayVolume(np.zeros((2, 2, 2))), 0.5), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_maps_of_one_kind(fill, tmp_path):
    source = Source(ArrayVolume(np.full((4, 9, 9), fill, np.float32)), 0.5, 1.0, SIZE)
    found = clean_volume(CLEAN, source, tmp_path, block=(2, 4, 4))
    assert (found.read() == fill).all()


@pytest.mark.slow
def test_two_processes_and_real_data(real_data, tmp_path):
    labels = open_volume(real_data / "epfl_ca1" / "testing_z000-081_groundtruth.tif")
    mask_zyx = labels.read(Box((0, 200, 300), (40, 560, 700))) > 0
    noise = np.random.default_rng(0).normal(0, 0.2, mask_zyx.shape)
    p = gaussian_filter(np.clip(0.2 + 0.6 * mask_zyx + noise, 0, 1).astype(np.float32), 1)
    with create_volume(tmp_path / "p.zarr", p.shape, "float32") as writer:
        writer.write(Box.of_shape(p.shape), p)
    chosen = Postprocess(smooth=20.0, opening=20.0, z_median=9, fill_holes=True, min_volume=1e6)
    (tmp_path / "two").mkdir()
    with LocalEngine(2) as engine:
        source = Source(open_volume(tmp_path / "p.zarr"), 0.5, 1.0, (5.0, 5.0, 5.0))
        found = clean_volume(chosen, source, tmp_path / "two", engine=engine, block=(17, 90, 100)).read()
    np.testing.assert_array_equal(found, chosen(p, 0.5, (5.0, 5.0, 5.0)))
    assert math.isclose(found.mean(), mask_zyx.mean(), rel_tol=0.2)
