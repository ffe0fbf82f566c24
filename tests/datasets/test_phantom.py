import hashlib
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import isotropic_opening

from mitoseg.datasets import phantom as phantom_module
from mitoseg.datasets.phantom import Phantom
from mitoseg.datasets.synthetic import PRESETS, generate_phantom, get_preset
from mitoseg.datasets.synthetic.generate import section_offsets, seed_sequences, shift_sections
from mitoseg.datasets.synthetic.scene import SPACING, Body, Grid, Neurite, plan_scene, smooth_noise, upsample
from mitoseg.errors import UserError
from mitoseg.volumes import open_volume

SMALL = (6, 96, 128)


def digest(volumes):
    return hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in volumes)).hexdigest()


def scene_of(seed, shape=(16, 512, 512), preset="fibsem"):
    chosen = get_preset(preset)
    grid = Grid.spaced(shape, chosen.voxel_nm, SPACING)
    return plan_scene(grid, chosen, np.random.default_rng(seed_sequences(seed)[0]))


def best_threshold_jaccard(image_zyx, label_zyx, slices, sigmas, greys, radii):
    """The best foreground JAC that `grey below a level`, smoothed before and opened after, can have."""
    best = 0.0
    truth = label_zyx[slices] > 0
    for sigma in sigmas:
        smooth = ndimage.gaussian_filter(image_zyx.astype(np.float32), sigma)[slices]
        for grey in greys:
            for radius in radii:
                found = np.stack([isotropic_opening(slice_yx, radius) for slice_yx in smooth < grey])
                best = max(best, (found & truth).sum() / (found | truth).sum())
    return best


@pytest.fixture(scope="module")
def fibsem():
    return generate_phantom((8, 512, 512), 3, "fibsem")


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads():
    program = (
        "import hashlib, numpy as np; from mitoseg.datasets.synthetic import generate_phantom\n"
        f"for preset in {sorted(PRESETS)}:\n v = generate_phantom({SMALL}, 5, preset)\n"
        " print(hashlib.sha256(b''.join(np.ascontiguousarray(a).tobytes() for a in v)).hexdigest())"
    )
    threads = {name: "7" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads}
    other = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert other.split() == [digest(generate_phantom(SMALL, 5, preset)) for preset in sorted(PRESETS)]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_types_and_truth(preset):
    image, label, instances = generate_phantom(SMALL, 1, preset)
    assert image.shape == label.shape == instances.shape == SMALL
    assert (image.dtype, label.dtype, instances.dtype) == (np.uint8, np.uint8, np.uint16)
    assert np.array_equal(label, instances > 0)
    assert np.array_equal(np.unique(instances), np.arange(instances.max() + 1))
    assert instances.max() > 0
    assert image.std() > 15
    for seed in range(4):  # the smallest volume has a mitochondrion
        assert generate_phantom((3, 64, 64), seed)[1].any()


def test_two_seeds_share_no_object():
    def parameters(scene):
        things = (*scene[0], *scene[1])
        pairs = {(f.name, getattr(t, f.name)) for t in things for f in fields(t) if f.name not in ("kind", "tubular")}
        return pairs - {("radius", 85.0), ("radius", 220.0)}  # where mitochondria's radii are clipped

    one, other = scene_of(0), scene_of(1)
    assert len(one[0]) > 5
    assert len(one[1]) > 30
    assert not parameters(one) & parameters(other)


def test_mitochondria_lie_in_the_dark_and_have_a_rim(fibsem):
    image, label, _ = fibsem
    assert 0.045 < label.mean() < 0.085
    distance = np.stack([ndimage.distance_transform_edt(s) - ndimage.distance_transform_edt(~s) for s in label > 0])
    matrix, rim, outside = (image[(distance > a) & (distance <= b)].mean() for a, b in ((8, 99), (0, 2), (-7, -4)))
    assert rim < matrix - 3
    assert matrix < outside - 10
    close = np.corrcoef(image[3].ravel(), image[4].ravel())[0, 1]
    assert 0.6 < close < 0.98  # neighbouring slices belong together
    assert np.corrcoef(image[0].ravel(), image[7].ravel())[0, 1] < close


def test_a_grey_threshold_fails_on_a_small_phantom(fibsem):
    image, label, _ = fibsem
    jaccard = best_threshold_jaccard(image, label, slice(2, 7, 4), (1, 3), range(92, 140, 8), (0, 6, 12))
    assert jaccard < 0.35


@pytest.mark.slow
def test_a_grey_threshold_fails_on_the_default_test_volume():
    image, label, _ = generate_phantom(Phantom().shapes["test"], Phantom().volume_seed("test"), "fibsem")
    sigmas, radii = (0, 1, 2, 4), (0, 2, 4, 8, 12, 16)
    jaccard = best_threshold_jaccard(image, label, slice(2, None, 6), sigmas, range(88, 144, 8), radii)
    assert 0.1 < jaccard < 0.35


@pytest.mark.slow
def test_the_default_volumes_hold_as_much_as_real_tissue():
    recipe = Phantom()
    for split, shape in recipe.shapes.items():
        _, label, instances = generate_phantom(shape, recipe.volume_seed(split), "fibsem")
        assert 0.05 < label.mean() < 0.08
        assert instances.max() >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"test_shape": shape}, r"this (data\.test_)?shape") for shape in ((6, 96), (2, 96, 96), (6, 96, 63))),
        *(
            ({"train_shape": [3, 3, 3]}, r"this (data\.train_)?shape"),
            ({"seed": -1}, "seed"),
            ({"preset": "tem"}, "fibsem, sbem"),
        ),
        ({"validation": {"slab": 1}}, "slab"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        Phantom(**options)
    if "validation" not in options:
        shape = options.get("test_shape", options.get("train_shape", SMALL))
        with pytest.raises(UserError, match=message):
            generate_phantom(shape, options.get("seed", 0), options.get("preset", "fibsem"))


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "home").touch()
    with pytest.raises(UserError, match="folder of the data cannot be made"):
        Phantom(root=tmp_path / "home" / ".cache").prepare()


def test_upsampling_reproduces_ramps():
    grid = Grid((7, 10, 9), (1.0, 1.0, 1.0), (4, 3, 2))
    axes = [np.arange(-1, n - 1) * f for n, f in zip(grid.coarse_shape, grid.factors, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    fine = np.meshgrid(*map(np.arange, grid.shape), indexing="ij")
    found = upsample((2 * z - y + 5 * x).astype(np.float32), grid.factors, grid.shape)
    np.testing.assert_allclose(found, 2 * fine[0] - fine[1] + 5 * fine[2], atol=1e-4)


def test_smooth_noise_is_normalised_and_smooth():
    grid = Grid((40, 200, 200), (5.0, 5.0, 5.0), (1, 1, 1))
    noise = smooth_noise(grid, 60, np.random.default_rng(0))
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert np.diff(noise, axis=2).std() < 0.35


def test_neurite_distance_is_that_to_a_segment():
    neurite = Neurite((10.0, 20.0, 30.0), (0.0, 0.6, 0.8), 7.0, 25.0, 160.0, 1.0, 80.0)
    rng = np.random.default_rng(0)
    points = rng.uniform(-60, 100, (3, 200, 1, 1)).astype(np.float32)
    t = np.linspace(-25, 25, 20001)[:, None]
    segment = np.array(neurite.centre) + t * np.array(neurite.axis)
    brute = [np.sqrt(((segment - p) ** 2).sum(axis=1)).min() - 7 for p in points[:, :, 0, 0].T]
    np.testing.assert_allclose(neurite.distance(tuple(points))[:, 0, 0], brute, atol=0.05)


def test_body_distance_is_about_that_of_a_ball():
    eye = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    body = Body("lysosome", (0.0, 0.0, 0.0), eye, 100.0, 0.0, 1.0, 0.0, 0.0, (0.3, 1.0, 2.0), 110.0)
    axis = np.linspace(-200, 200, 41, dtype=np.float32)
    z, y, x = axis[:, None, None], axis[None, :, None], axis[None, None, :]
    exact = np.sqrt(z * z + y * y + x * x) - 100
    assert np.abs(body.distance((z, y, x)) - exact).max() <= 11.01  # the uneven outline: 6 % and 5 % of the radius
    assert not (body.distance((z, y, x)) < 0)[exact > body.reach - 100].any()


@pytest.mark.parametrize("seed", range(5))
def test_no_body_leaves_its_reach(seed):
    for body in scene_of(seed, (8, 256, 256))[0]:
        offset = np.linspace(-2.5, 2.5, 41, dtype=np.float32) * np.float32(body.reach)
        dz, dy, dx = offset[:, None, None], offset[None, :, None], offset[None, None, :]
        cz, cy, cx = np.float32(body.centre)
        far = np.sqrt(dz * dz + dy * dy + dx * dx) > body.reach
        assert not (body.distance((dz + cz, dy + cy, dx + cx)) < 0)[far].any()


def test_sections_move_with_their_truth():
    offsets = section_offsets(50, 4, np.random.default_rng(0))
    assert 0 <= offsets.min() <= offsets.max() <= 8
    assert len(np.unique(offsets, axis=0)) > 5
    z, y, x = np.meshgrid(np.arange(50), np.arange(20), np.arange(30), indexing="ij")
    np.testing.assert_array_equal(shift_sections(y, offsets, 4)[:, 0, 0], offsets[:, 0])
    np.testing.assert_array_equal(shift_sections(x, offsets, 4)[:, 0, 0], offsets[:, 1])
    np.testing.assert_array_equal(shift_sections(z, offsets, 4), z[:, 4:-4, 4:-4])


def test_shifted_truth_fits_every_section():
    """On each section the outline of the truth lies on the dark membrane, and would not if it moved."""
    image, label, _ = generate_phantom((8, 320, 320), 2, "sbem")
    for image_yx, label_yx in zip(image.astype(float), label > 0, strict=True):
        if label_yx.sum() < 1000:
            continue
        rim = label_yx & ~ndimage.binary_erosion(label_yx, iterations=2)
        here = image_yx[rim].mean()
        moved = [image_yx[np.roll(rim, step, (0, 1))].mean() for step in ((6, 0), (-6, 0), (0, 6), (0, -6))]
        assert here < min(moved)


@pytest.fixture
def recipe(tmp_path):
    return Phantom(root=str(tmp_path), train_shape=(10, 64, 96), test_shape=(4, 64, 64), validation={"share": 0.2})


def test_prepare_makes_files_once_that_splits_opens(recipe, monkeypatch):
    recipe.prepare()
    splits = recipe.splits()
    boxes = [str(r.box) for r in (*splits.train, *splits.validation, *splits.test)]
    assert boxes == ["[0:6,0:64,0:96]", "[8:10,0:64,0:96]", "[0:4,0:64,0:64]"]
    assert splits.voxel_size == (5.0, 5.0, 5.0)
    image, label, instances = generate_phantom((4, 64, 64), recipe.volume_seed("test"), "fibsem")
    np.testing.assert_array_equal(splits.test[0].read_image(), image)
    np.testing.assert_array_equal(splits.test[0].read_label(), label)
    stored = open_volume(str(recipe.volume_folder("test") / "instances.tif"))
    np.testing.assert_array_equal(stored.read(), instances)
    assert stored.voxel_size == (5.0, 5.0, 5.0)
    assert splits.provenance["licence"] == "CC0-1.0"
    assert splits.provenance["volume_seeds"] == {"train": 0, "test": 1}
    monkeypatch.setattr(phantom_module, "generate_phantom", lambda *_: pytest.fail("made again"))
    recipe.prepare()


def test_an_interrupted_prepare_leaves_nothing(recipe, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom_module, "create_volume", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.prepare()
    assert not [p for p in recipe.folder.iterdir() if p.suffix != ".lock"]
    with pytest.raises(UserError, match=r"lacks image\.tif"):
        recipe.splits()
    monkeypatch.undo()
    recipe.prepare()
    assert recipe.splits().test


def test_what_a_volume_depends_on_is_in_its_folder_and_no_two_have_the_same_seed(tmp_path):
    shapes = {"train_shape": (24, 900, 896), "test_shape": (13, 768, 768)}
    variants = [Phantom(root=str(tmp_path), **options) for options in ({}, {"seed": 1}, {"preset": "sbem"}, shapes)]
    folders = {v.volume_folder(split) for v in variants for split in ("train", "test")}
    assert len(folders) == 2 * len(variants)
    seeds = [Phantom(seed=seed).volume_seed(split) for seed in range(20) for split in ("train", "test")]
    assert len(set(seeds)) == len(seeds)
