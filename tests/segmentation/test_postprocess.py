"""Each step alone against a plain computation, their order, blocks that give what the whole gives, bad numbers."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from other_places import Elsewhere
from scipy import ndimage
from scipy.special import expit, logit

from mitoseg.engines import LocalEngine
from mitoseg.errors import UserError
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.postprocess import clean_volume, mean_field, opening, refine_boundaries
from mitoseg.volumes import ArrayVolume

RNG = np.random.default_rng(0)
SIZE = (20.0, 5.0, 5.0)


def ball(shape=(24, 64, 64), centre=(12, 32, 32), radius=10.0, spacing=(1, 1, 1)):
    grid = np.indices(shape)
    return sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True)) <= radius**2


def probability(mask, inside=0.9, outside=0.1):
    return np.where(mask, inside, outside).astype(np.float32)


def test_without_steps_there_is_the_threshold_and_z_median_is_scipy_s():
    map_zyx = RNG.random((20, 8, 8)).astype(np.float32)
    found = Postprocess()(map_zyx, 0.6)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, map_zyx >= 0.6)
    np.testing.assert_array_equal(Postprocess(threshold=0.3)(map_zyx, 0.6), map_zyx >= 0.3)
    for depth in (3, 9):
        expected = ndimage.median_filter((map_zyx >= 0.5).astype(np.uint8), (depth, 1, 1), mode="nearest")
        np.testing.assert_array_equal(Postprocess(z_median=depth)(map_zyx, 0.5), expected)


def test_unsure_components_of_a_slice_go():
    mask = np.zeros((2, 12, 12), bool)
    mask[0, 1:4, 1:4] = mask[0, 6:9, 6:9] = mask[1, 1:4, 1:4] = True
    map_zyx = probability(mask)
    map_zyx[0, 6:9, 6:9] = 0.7
    map_zyx[0, 7, 7] = 0.9
    found = Postprocess(min_mean=0.8)(map_zyx, 0.5)
    mask[0, 6:9, 6:9] = False
    np.testing.assert_array_equal(found, mask)


def test_small_components_go_by_volume_in_nm():
    small = ball(centre=(4, 8, 8), radius=2)
    mask = ball(radius=6) | small
    volume = small.sum() * np.prod(SIZE)
    kept, gone = (Postprocess(min_volume=v)(probability(mask), 0.5, SIZE) for v in (volume, volume + 1))
    np.testing.assert_array_equal(kept, mask)
    np.testing.assert_array_equal(gone, mask & ~small)


def test_holes_are_filled_in_slices_and_in_volumes():
    mask = ball()
    mask[12, 30:34, 30:34] = False  # enclosed in 3D
    tube = mask.copy()
    tube[:, 20:22, 32] = False  # open along z at both ends
    slices = np.stack([ndimage.binary_fill_holes(s) for s in tube])
    for step, filled in (("fill_holes", ndimage.binary_fill_holes(tube)), ("fill_slices", slices)):
        np.testing.assert_array_equal(Postprocess(**{step: True})(probability(tube), 0.5), filled)


def test_opening_takes_bridges_leaves_balls_and_knows_thick_sections():
    mask = ball(radius=8) | ball(centre=(12, 32, 56), radius=6)
    bridged = mask.copy()
    bridged[12, 32, 32:56] = True
    found = opening(bridged, 3.0, (1, 1, 1))
    assert found.sum() > 0.92 * mask.sum()
    assert not (found & ~mask).any()
    assert ndimage.label(found)[1] == 2
    mask = ball(shape=(12, 64, 64), centre=(6, 32, 32), radius=80, spacing=SIZE)
    np.testing.assert_array_equal(opening(mask, 200.0, SIZE), np.zeros_like(mask))
    assert opening(mask, 15.0, SIZE).sum() > 0.85 * mask.sum()
    expected = ndimage.distance_transform_edt(~(ndimage.distance_transform_edt(mask, SIZE) > 30), SIZE) <= 30
    np.testing.assert_array_equal(opening(mask, 30.0, SIZE), expected & mask)


def test_the_mean_field_is_its_formula_and_removes_noise():
    map_zyx = RNG.random((6, 24, 24)).astype(np.float32)
    q = map_zyx
    for _ in range(5):
        smoothed = ndimage.gaussian_filter(q, [30 / s for s in SIZE], mode="nearest", truncate=3)
        q = expit(logit(np.clip(map_zyx, 1e-4, 1 - 1e-4)) + 4.0 * (smoothed - 0.5))
    np.testing.assert_allclose(mean_field(map_zyx, 2.0, 30.0, SIZE, 5), q, atol=1e-5)
    mask = ball()
    noisy = expit(logit(probability(mask, 0.7, 0.3)) + RNG.normal(0, 1.5, mask.shape)).astype(np.float32)
    plain = Postprocess()(noisy, 0.5)
    smooth = Postprocess(smoothness=3.0, smoothness_sigma=2.0)(noisy, 0.5, (1, 1, 1))
    assert (smooth != mask).mean() < 0.3 * (plain != mask).mean()


@pytest.mark.parametrize("is_image", [True, False])
def test_boundaries_move_to_the_edge(is_image):
    y, x = np.indices((96, 96))
    true = (y - 48) ** 2 + (x - 48) ** 2 < 24**2
    guess = (y - 48) ** 2 + (x - 48) ** 2 < 21**2
    image = np.where(true, 60.0, 160.0) + RNG.normal(0, 5, true.shape)
    relief = image if is_image else ndimage.gaussian_filter(true.astype(float), 2)
    found = refine_boundaries(guess[None], relief[None], radius=5, is_image=is_image)[0]
    assert (found != true).sum() < 0.35 * (guess != true).sum()
    thin = np.zeros((1, 40, 40), bool)
    thin[0, 10:17, 10:17] = True  # a component too thin to erode stays
    relief = ndimage.gaussian_filter(thin.astype(np.float32), (0, 1, 1))
    assert refine_boundaries(thin, relief, radius=3, is_image=False).any()


FINE = (10.0, 5.0, 5.0)
EVERYTHING = {
    "smooth": 8.0, "smoothness": 1.0, "smoothness_sigma": 6.0, "min_mean": 0.7, "watershed": 2, "z_median": 3,
    "opening": 8.0, "fill_slices": True, "fill_holes": True, "min_volume": 5000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "line"),
    [
        *((name, [-1.0], f"{name} is not above zero") for name in ("min_mean", "opening", "min_volume")),
        ("smooth", [-1.0, float("nan"), "a"], "above zero"),
        ("z_median", [4, 3.5], "not odd"),
        ("min_mean", [1.5], "not a probability"),
        ("watershed", [1.5], "not a number of pixels"),
        *((name, [10.0], f"{name} is in nm") for name in ("smooth", "smoothness", "opening", "min_volume")),
    ],
)
def test_numbers_out_of_range_are_told(name, values, line):
    for value in values:
        with pytest.raises(UserError, match=line):
            Postprocess(**{name: value})(np.zeros((2, 8, 8), np.float32), 0.5)


def test_steps_come_in_their_order():
    everything, map_zyx = Postprocess(**EVERYTHING), probability(ball())
    stages = list(everything.stages(map_zyx, 0.5, (5, 5, 5), map_zyx))
    expected = ["threshold", "min_mean", "watershed", "z_median", "opening", "fill_slices", "fill_holes", "min_volume"]
    assert [name for name, _ in stages] == expected
    np.testing.assert_array_equal(everything(map_zyx, 0.5, (5, 5, 5), map_zyx), stages[-1][1])
    for value in (0.0, 1.0):  # maps of one kind pass through
        found = everything(np.full((5, 24, 24), value, np.float32), 0.5, (5, 5, 5))
        np.testing.assert_array_equal(found, np.full((5, 24, 24), value))


def blobs(shape, seed, sigma=2.0):
    """Blobs with holes and specks."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    ring = 0.5 + 4.0 * (0.06 - np.abs(noise - 0.08))
    return np.clip(ring, 0, 1).astype(np.float32)


def cleaner(steps, folder, **options):
    return partial(clean_volume, steps=Postprocess(**steps), folder=folder, **{"block": (5, 16, 16), **options})


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_step_alone(tmp_path, name):
    map_zyx = blobs((17, 50, 45), 1)
    options = {"smoothness": 1.0} if name == "smoothness_sigma" else {}
    steps = {name: EVERYTHING[name], **options}
    expected = Postprocess(**steps)(map_zyx, 0.6, FINE)
    plain = map_zyx >= 0.6
    assert (expected != plain).any()  # the step does something here
    found = cleaner(steps, tmp_path)(ArrayVolume(map_zyx), 0.6, voxel_size=FINE)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.read(), expected)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("in_memory", [0, 2**28])
def test_all_steps(tmp_path, in_memory, image):
    map_zyx = blobs((17, 50, 45), 2)
    image_zyx = (255 * blobs((17, 50, 45), 3)).astype(np.uint8) if image else None
    expected = Postprocess(**EVERYTHING)(map_zyx, 0.6, FINE, image_zyx)
    given_image = None if image_zyx is None else ArrayVolume(image_zyx)
    clean = cleaner(EVERYTHING, tmp_path, in_memory=in_memory)
    found = clean(ArrayVolume(map_zyx), 0.6, voxel_size=FINE, image=given_image)
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
    found = cleaner(chosen, tmp_path, block=block)(ArrayVolume(map_zyx), 0.55, voxel_size=FINE)
    np.testing.assert_array_equal(found.read(), Postprocess(**chosen)(map_zyx, 0.55, FINE))


@pytest.mark.parametrize("engine", [pytest.param(lambda: LocalEngine(2), marks=pytest.mark.slow), Elsewhere])
def test_elsewhere_and_from_scaled_bytes_the_mask_is_the_same(tmp_path, engine):
    stored, seen = (255 * blobs((17, 50, 45), 5)).astype(np.uint8), []
    with engine() as started:
        clean = cleaner(EVERYTHING, tmp_path, engine=started)
        found = clean(ArrayVolume(stored), 0.6, scale=255.0, voxel_size=FINE, on_box=seen.append)
    expected = Postprocess(**EVERYTHING)(stored.astype(np.float32) / np.float32(255), 0.6, FINE)
    np.testing.assert_array_equal(found.read(), expected)
    assert sum(box.size for box in seen) == stored.size


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
    cleaner(steps, tmp_path)(ArrayVolume(blobs((40, 64, 64), 6)), 0.6, voxel_size=FINE)
    halo = Postprocess(**steps).halo(FINE)
    assert most == math.prod(b + 2 * h for b, h in zip((5, 16, 16), halo, strict=True))


def test_too_little_memory_for_a_block_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("mitoseg.segmentation.postprocess.memory_available", lambda: 100)
    with pytest.raises(UserError, match="too little memory"):
        cleaner({"fill_holes": True}, tmp_path)(ArrayVolume(blobs((9, 30, 30), 4)), 0.5)
    with pytest.raises(UserError, match="too little memory"):
        Postprocess()(np.zeros((2, 8, 8), np.float32), 0.5)
    assert not any(tmp_path.iterdir())
