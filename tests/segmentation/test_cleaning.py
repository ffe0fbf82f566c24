"""Post-processing block by block is post-processing of the whole array."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mitoseg.engines import LocalEngine
from mitoseg.errors import UserError
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.cleaning import Cleaner
from mitoseg.volumes import ArrayVolume, create_volume, open_volume

SIZE = (10.0, 5.0, 5.0)
EVERYTHING = {
    "smooth": 8.0, "smoothness": 1.0, "smoothness_sigma": 6.0, "min_mean": 0.7, "watershed": 2, "z_median": 3,
    "opening": 8.0, "fill_slices": True, "fill_holes": True, "min_volume": 5000.0,
}  # fmt: skip


def blobs(shape, seed, sigma=2.0):
    """Blobs with holes and specks."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    ring = 0.5 + 4.0 * (0.06 - np.abs(noise - 0.08))
    return np.clip(ring, 0, 1).astype(np.float32)


def cleaner(steps, folder, **options):
    return Cleaner(Postprocess(**steps), folder, **{"block": (5, 16, 16), **options})


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_step_alone(tmp_path, name):
    map_zyx = blobs((17, 50, 45), 1)
    options = {"smoothness": 1.0} if name == "smoothness_sigma" else {}
    steps = {name: EVERYTHING[name], **options}
    expected = Postprocess(**steps)(map_zyx, 0.6, SIZE)
    plain = map_zyx >= 0.6
    assert (expected != plain).any()  # the step does something here
    found = cleaner(steps, tmp_path)(ArrayVolume(map_zyx), 0.6, voxel_size=SIZE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.read(), expected)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("in_memory", [0, 2**28])
def test_all_steps(tmp_path, in_memory, image):
    map_zyx = blobs((17, 50, 45), 2)
    image_zyx = (255 * blobs((17, 50, 45), 3)).astype(np.uint8) if image else None
    expected = Postprocess(**EVERYTHING)(map_zyx, 0.6, SIZE, image_zyx)
    given_image = None if image_zyx is None else ArrayVolume(image_zyx)
    found = cleaner(EVERYTHING, tmp_path, in_memory=in_memory)(
        ArrayVolume(map_zyx), 0.6, voxel_size=SIZE, image=given_image
    )
    np.testing.assert_array_equal(found.read(), expected)
    assert any(tmp_path.iterdir()) == (in_memory == 0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 24), st.integers(1, 24)),
    block=st.tuples(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12)),
    steps=st.sets(st.sampled_from([*EVERYTHING])),
    seed=st.integers(0, 99),
)
def test_blocks_do_not_matter(tmp_path, shape, block, steps, seed):
    chosen = {name: EVERYTHING[name] for name in steps}
    map_zyx = blobs(shape, seed, 1.0)
    found = cleaner(chosen, tmp_path, block=block)(ArrayVolume(map_zyx), 0.55, voxel_size=SIZE)
    np.testing.assert_array_equal(found.read(), Postprocess(**chosen)(map_zyx, 0.55, SIZE))


def test_stored_bytes_are_scaled(tmp_path):
    stored = (255 * blobs((9, 30, 30), 4)).astype(np.uint8)
    steps = {"smooth": 8.0, "fill_holes": True}
    expected = Postprocess(**steps)(stored.astype(np.float32) / np.float32(255), 0.6, SIZE)
    found = cleaner(steps, tmp_path)(ArrayVolume(stored), 0.6, scale=255.0, voxel_size=SIZE)
    np.testing.assert_array_equal(found.read(), expected)


def test_two_processes_write_the_same_mask(tmp_path):
    map_zyx, path = blobs((17, 50, 45), 5), str(tmp_path / "p.zarr")
    with create_volume(path, map_zyx.shape, np.float32, voxel_size=SIZE) as writer:
        writer.write(ArrayVolume(map_zyx).box, map_zyx)
    seen = []
    with LocalEngine(2) as engine:
        clean = cleaner(EVERYTHING, tmp_path, engine=engine)
        found = clean(open_volume(path), 0.6, voxel_size=SIZE, on_box=seen.append)
    np.testing.assert_array_equal(found.read(), Postprocess(**EVERYTHING)(map_zyx, 0.6, SIZE))
    assert sum(box.size for box in seen) == map_zyx.size


def test_a_block_holds_few_voxels(tmp_path, monkeypatch):
    """Only blocks with their halo are asked for, so memory does not grow with the volume."""
    most = 0
    read = ArrayVolume.read

    def watch(self, box=None):
        nonlocal most
        most = max(most, self.check_box(box).size)
        return read(self, box)

    monkeypatch.setattr(ArrayVolume, "read", watch)
    steps = {"smooth": 8.0, "fill_holes": True, "min_volume": 5000.0}
    cleaner(steps, tmp_path)(ArrayVolume(blobs((40, 64, 64), 6)), 0.6, voxel_size=SIZE)
    halo = Postprocess(**steps).halo(SIZE)
    assert most == math.prod(b + 2 * h for b, h in zip((5, 16, 16), halo, strict=True))


def test_too_little_memory_for_a_block_is_told(tmp_path, monkeypatch):
    from mitoseg.segmentation import postprocess

    monkeypatch.setattr(postprocess, "memory_available", lambda: 100)
    with pytest.raises(UserError, match="too little memory"):
        cleaner({"fill_holes": True}, tmp_path)(ArrayVolume(blobs((9, 30, 30), 4)), 0.5)
    assert not any(tmp_path.iterdir())
