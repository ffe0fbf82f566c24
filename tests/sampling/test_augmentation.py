"""Augmentation: one seed a sample, image and label together, what each effect does; warps and shifts against SciPy."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import get_track_meta
from monai.transforms import Rand3DElasticd, RandAffined, RandFlipd, RandSpatialCropd
from scipy import ndimage
from scipy.interpolate import BSpline

from mitoseg.errors import UserError
from mitoseg.sampling import augmentation as effects
from mitoseg.sampling.augmentation import AsVolumed, Augmenter, Effectd, EMAugmentation, Warpd, shifted, spline_weights

CPU = torch.device("cpu")
PROBABILITIES = ["deform", "contrast", "curve", "blur", "resolution", "noise", "sections", "defocus", "missing"]
PROBABILITIES += ["shifted", "cutout"]
OFF = dict.fromkeys(PROBABILITIES, 0.0)


def stack(batch=3, sections=5, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, sections, side, side, generator=generator)


def discs(side=64):
    y, x = np.indices((side, side))
    return torch.from_numpy(((y - 30) ** 2 + (x - 26) ** 2 < 15**2).astype(np.int64))


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("volumetric", [False, True])
def test_a_sample_depends_on_its_seed_alone(volume, volumetric):
    options = dict.fromkeys(PROBABILITIES, 0.5) | {"volumetric": volumetric}
    image, label = stack(), discs().expand(3, 64, 64)
    if volume:
        image, label = image[:, None], label[:, None].expand(3, 5, 64, 64)
    augment = EMAugmentation(**options)
    seed_b = torch.tensor([11, 5, 8])
    together = augment(image, label, seed_b)
    torch.manual_seed(99)
    np.random.seed(99)
    again = EMAugmentation(**options)
    for i in (2, 0, 1):
        alone = again(image[i : i + 1], label[i : i + 1], seed_b[i : i + 1])
        assert torch.equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])
    assert together[0].shape == image.shape
    assert together[1].shape == label.shape
    assert together[0].dtype == torch.float32
    assert together[1].dtype == torch.int64
    other = augment(image, label, seed_b + 1)
    assert not torch.equal(other[0], together[0])


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_effect_changes_the_image_and_keeps_what_it_must(name):
    image, label = stack(), discs().expand(3, 64, 64)
    same = EMAugmentation(**OFF)(image, label, torch.arange(3))
    assert torch.equal(same[0], image)
    assert torch.equal(same[1], label)
    found, changed = EMAugmentation(**{**OFF, name: 1.0})(image, label, torch.arange(3))
    changed_ones = sum(not torch.equal(a, b) for a, b in zip(found, image, strict=True))
    assert changed_ones == 3 or (name == "resolution" and changed_ones)  # hardly larger pixels are the same ones
    assert torch.isfinite(found).all()
    if name != "deform":
        assert torch.equal(changed, label)
    if name in ("missing", "shifted"):
        assert torch.equal(found[:, 2], image[:, 2])
    if name in ("missing", "defocus"):
        assert (found != image).any(-1).any(-1).sum(1).tolist() == [1] * 3


def test_deformation_moves_image_and_label_together():
    label = discs().expand(8, 64, 64)
    image = label[:, None].float()
    found, moved = EMAugmentation(**{**OFF, "deform": 1.0})(image, label, torch.arange(8))
    assert not torch.equal(moved, label)
    known = moved != 255
    assert ((found[:, 0] > 0.5) == (moved == 1))[known].float().mean() > 0.99
    assert 0.6 < known.float().mean() < 1
    assert set(moved.unique().tolist()) == {0, 1, 255}
    _, reflected = EMAugmentation(**{**OFF, "deform": 1.0}, outside="reflect")(image, label, torch.arange(8))
    assert set(reflected.unique().tolist()) == {0, 1}
    assert torch.equal(reflected[known], moved[known])
    label = label.clone()
    label[:, 40:] = 255  # ignored labels stay ignored
    _, moved = EMAugmentation(**{**OFF, "deform": 1.0})(image, label, torch.arange(8))
    assert set(moved.unique().tolist()) == {0, 1, 255}


@pytest.mark.parametrize("kind", ["missing_section", "shifted_sections", "blurred_section", "section_contrast"])
def test_a_single_labelled_section_survives(kind):
    augment = Augmenter([Effectd(getattr(effects, kind), 1.0)])
    image = stack(4, 1)
    found, _ = augment(image, discs().expand(4, 64, 64), torch.arange(4))
    spared = kind in ("missing_section", "shifted_sections")
    assert torch.equal(found, image) == spared


def test_a_volume_may_lose_any_section():
    augment = Augmenter([Effectd(effects.missing_section, 1.0)])
    image, label = stack(60, 3, 16), discs(16).expand(60, 3, 16, 16)
    found, _ = augment(image[:, None], label, torch.arange(60))
    assert set((found[:, 0] != image).any(-1).any(-1).nonzero()[:, 1].tolist()) == {0, 1, 2}


def test_other_transforms_of_monai_can_be_added():
    augment = EMAugmentation(**OFF, extra=[RandFlipd(["image", "label"], prob=1.0, spatial_axis=1)])
    image, label = stack(), discs().expand(3, 64, 64)
    found, flipped = augment(image, label, torch.arange(3))
    assert torch.equal(found, image.flip(-1))
    assert torch.equal(flipped, label.flip(-1))


MISTAKES = [({"noise": 1.5}, "noise is not a prob"), ({"gamma": 0.5}, "gamma is too small"), ({"gain": -1}, "gain")]
MISTAKES += [({"coarser": 0.5}, "coarser is too small"), ({"outside": "zero"}, "outside")]


@pytest.mark.parametrize(("options", "line"), MISTAKES)
def test_mistakes_are_told(options, line):
    with pytest.raises(UserError, match=line):
        EMAugmentation(**options)


@pytest.mark.parametrize("names", [PROBABILITIES, ["cutout"]], ids=len)
def test_nothing_but_the_seeds_is_random_and_nothing_is_left_behind(names):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), get_track_meta()
    image, label = stack(), discs().repeat(3, 1, 1)
    given = image.clone(), label.clone()
    EMAugmentation(**OFF | dict.fromkeys(names, 1.0))(image, label, torch.arange(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert get_track_meta() is before[2]
    assert torch.equal(image, given[0])
    assert torch.equal(label, given[1])


@pytest.mark.parametrize("other", [11, -10, 10 + 2**32, 2**63 - 1])
def test_every_seed_is_another_change(other):
    augment = EMAugmentation(**dict.fromkeys(PROBABILITIES, 1.0))
    results = [augment(stack(1), discs()[None], torch.tensor([seed]))[0] for seed in (10, other)]
    assert not torch.equal(*results)


def test_a_volume_is_shown_as_one():
    """Through `AsVolumed` MONAI's transforms of volumes apply; the channels of slices stay channels."""
    seen = []

    def look(sample):
        seen.append((tuple(sample["image"].shape), tuple(sample["label"].shape)))
        return sample

    elastic = Rand3DElasticd(["image", "label"], (2, 3), (1, 2), prob=1.0, mode=["bilinear", "nearest"])
    augment = Augmenter([AsVolumed(look), AsVolumed(elastic)])
    label = discs().expand(2, 8, 64, 64)
    found, moved = augment(label[:, None].float(), label, torch.arange(2))
    assert ((found[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.98
    Augmenter([AsVolumed(look)])(stack(1), label[:1, 0], torch.arange(1))
    assert seen == [((1, 8, 64, 64), (1, 8, 64, 64))] * 2 + [((5, 64, 64), (1, 64, 64))]


def test_noise_has_the_deviation_asked_for():
    image = torch.zeros(30, 2, 64, 64)
    augment = Augmenter([Effectd(partial(effects.gaussian_noise, std=0.4), 1.0)])
    found, _ = augment(image, discs().expand(30, 64, 64), torch.arange(30))
    deviation = found.flatten(1).std(1)
    assert float(deviation.mean()) == pytest.approx(0.2, abs=0.06)
    assert float(deviation.max()) < 0.41
    assert float(found.mean()) == pytest.approx(0, abs=0.005)


BAD = {
    "changed the shape": RandSpatialCropd(["image"], (20, 20)),
    "give mode=nearest": RandAffined(["label"], prob=1.0, rotate_range=0.5),
    "failed, applying transform .*RandAffined": RandAffined(["image"], 1.0, 1.0),
}


@pytest.mark.parametrize("line", BAD)
def test_further_transforms_that_do_not_fit(line):
    with pytest.raises(UserError, match=line):
        Augmenter([BAD[line]])(stack(), discs().expand(3, 64, 64), torch.arange(3))


def sample(sections, labelled, side=(30, 34), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(sections, *side, generator=generator)
    label = torch.randint(2, (labelled, *side), generator=generator, dtype=torch.uint8)
    return {"image": image, "label": label}


@pytest.mark.parametrize(("sections", "labelled", "tilt"), [(3, 1, 0), (9, 9, 0), (20, 20, 25), (5, 1, 25)])
@pytest.mark.parametrize("seed", range(3))
def test_a_warp_without_deformation_is_an_affine_transform(sections, labelled, tilt, seed):
    given = sample(sections, labelled)
    warp = Warpd(prob=1.0, magnitude=0, tilt=tilt, stretch=1.3, outside="reflect").set_random_state(seed)
    found = warp(given)
    deep = tilt > 0 and labelled > 1  # the channels of a network on slices stay in their plane
    warp.set_random_state(seed)
    warp.R.rand()  # whether it strikes
    matrix = warp.matrix(3 if deep else 2)[::-1, ::-1]
    for key, order in (("image", 1), ("label", 0)):
        pairs = [(given[key], found[key])] if deep else zip(given[key], found[key], strict=True)
        for one, other in pairs:
            centre = (np.array(one.shape) - 1) / 2
            offset = centre - matrix @ centre
            oracle = ndimage.affine_transform(one.numpy().astype(float), matrix, offset, order=order, mode="reflect")
            assert np.mean(np.abs(oracle - other.numpy()) > 1e-3) < 0.005, key  # but for rounding at half a voxel


def test_the_deformation_is_a_cubic_spline():
    weight = spline_weights(40, 8.0).numpy()
    oracle = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    at = (np.arange(40) + 0.5) / 8
    for node in range(weight.shape[1]):
        np.testing.assert_allclose(weight[:, node], np.nan_to_num(oracle(at - (node - 1))), atol=1e-6)
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (32, 64, 64)])
def test_the_deformation_is_as_large_as_asked_and_does_not_fold(size):
    warp = Warpd(prob=1.0, magnitude=5.0).set_random_state(0)
    field = torch.stack([warp.deformation(size, CPU) for _ in range(10)])
    assert field.shape == (10, *size, len(size))
    assert 1 < float(field.std()) < 5  # a spline averages its nodes
    assert float(field.diff(dim=-2).abs().max()) < 1


def test_what_lies_outside_is_ignored():
    """At half the size the tile fills the middle half; around it there is no truth."""
    warp = Warpd(prob=1.0, rotation=0, scale=1.0, stretch=1.0)

    smallest = {"uniform": lambda low, high, size=None: np.full(size or (), low), "rand": lambda: 0.0}
    warp.R = SimpleNamespace(**smallest, normal=lambda mean, deviation, size: np.full(size, mean))
    label = warp(sample(1, 1, (32, 40)))["label"][0]
    inside = torch.zeros(32, 40, dtype=torch.bool)
    inside[8:24, 10:30] = True
    assert torch.equal(label != 255, inside)


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (1.25, -0.5), (-4.75, 3.0)])
def test_a_shift_is_that_of_scipy(shift):
    image = sample(2, 2)["image"]
    oracle = ndimage.shift(image.numpy(), (0, *shift), order=1, mode="reflect")
    np.testing.assert_allclose(shifted(image, shift), oracle, atol=1e-5)


@pytest.mark.parametrize("labelled", [1, 9])
def test_sections_shift_outwards_and_take_their_labels_along(labelled):
    given, move, runs = sample(9, labelled), Effectd(partial(effects.shifted_sections, reach=5), 1.0), set()
    for seed in range(20):
        found = move.set_random_state(seed)(given)
        changed = [k for k in range(9) if not torch.equal(found["image"][k], given["image"][k])]
        assert 4 not in changed
        assert len(changed) == 1 or changed in (list(range(changed[0], 9)), list(range(changed[-1] + 1)))
        runs.add(len(changed))
        moved = [k for k in range(labelled) if not torch.equal(found["label"][k], given["label"][k])]
        assert moved == (changed if labelled > 1 else []) or not moved  # a shift below half a pixel
    assert len(runs) > 2
